"""What a session takes for the scan that it has read already."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scan_files import BVALS, signal_of, write_scan
from test_io_exported import export

from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import ScanSettings

MASK = np.zeros(signal_of().shape[2::-1], np.uint8)
MASK[1] = 1


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Folders of two runs, with a scan and a mask of the scene each, all alike."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        export(folder)
        export(folder, MASK, "mask", bvals=None, bvecs=None)
    return folders


def read(session: Session, folder: Path):
    settings = ScanSettings(dwi=str(folder / "node.npy"), mask=str(folder / "mask.npy"))
    return session.read(settings, SilentReport())


def test_a_scene_exported_anew_is_the_same_scan(runs: list[Path]) -> None:
    session = Session()
    assert read(session, runs[0]) is read(session, runs[1])


@pytest.mark.parametrize("change", ["signal", "b-values", "mask"])
def test_a_scene_that_changed_is_another_scan(change: str, runs: list[Path]) -> None:
    session = Session()
    before = read(session, runs[0])
    if change == "signal":
        export(runs[1], signal_of().transpose(2, 1, 0, 3) + 1)
    elif change == "b-values":
        export(runs[1], bvals=(BVALS + 100 * (BVALS > 0)).tolist())
    else:
        export(runs[1], 1 - MASK, "mask", bvals=None, bvecs=None)
    assert read(session, runs[1]) is not before


def test_a_file_is_read_again_when_it_changed(tmp_path: Path) -> None:
    session, path = Session(), write_scan(tmp_path)
    settings = ScanSettings(dwi=str(path))
    first = session.read(settings, SilentReport())
    assert session.read(settings, SilentReport()) is first
    os.utime(path, (1, 1))
    assert session.read(settings, SilentReport()) is not first
