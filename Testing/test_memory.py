"""No step from file to maps copies the whole scan."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from large_scan import write_large_scan
from peak_memory import watch

from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition, write_acquisition
from DiffusionFMLib.settings import ScanSettings

SHAPE = (56, 64, 56, 256)
"""Many volumes of few voxels, so that maps and masks are small beside the scan."""

COPY = 0.25
"""A fit of a scan that stays in its file takes less than this fraction of it: about half of that, when nothing is
copied. A copy of the scan would be 1, one of its brain 0.2."""

CHILD = """
import sys
from pathlib import Path
from DiffusionFMLib import cli
from DiffusionFMLib.io import nifti
nifti.MAPPED_FROM = 1
for number, command in enumerate(sys.argv[1:]):
    if cli.main([*command.split(), "--device", "cpu", "--json"]):
        sys.exit(f"{command} failed")
    Path(f"done{number}").touch()
"""

ALLOWED = 256
"""MiB for overlays: less than one slab of the scan takes with all its directions."""


def peaks(folder: Path, *commands: str) -> list[float]:
    """Memory that nobody can take back, MiB, of commands in one process, one after another."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *commands], cwd=folder, text=True, stdout=subprocess.DEVNULL
    )
    found = [watch(process, (folder / f"done{number}").exists).own for number in range(len(commands))]
    assert process.wait() == 0
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted as Linux does")
def test_no_step_of_a_fit_copies_the_scan(tmp_path: Path) -> None:
    write_large_scan(tmp_path / "small.nii", (*SHAPE[:3], 16))
    size = write_large_scan(tmp_path / "large.nii", SHAPE)
    # the first pays for libraries, masks and maps
    before, after = peaks(tmp_path, *(f"fit {name}.nii --out {name} --memory-mib 16" for name in ("small", "large")))
    (tmp_path / "large.nii").unlink()
    assert (after - before) * 2**20 < COPY * size


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted as Linux does")
def test_overlays_take_what_they_are_allowed(tmp_path: Path) -> None:
    write_large_scan(tmp_path / "scan.nii", (64, 64, 8, 96))
    # the first pays for libraries, and for what is looked at in every scan
    before, after = peaks(
        tmp_path,
        "fit scan.nii --out first --memory-mib 16",
        f"encode scan.nii --out second --overlays all --memory-mib {ALLOWED}",
    )
    print(before, after)
    assert after - before < ALLOWED


def test_writing_a_scan_takes_some_volumes(tmp_path: Path) -> None:
    write_large_scan(tmp_path / "given.nii", (24, 24, 24, 64))
    acquisition = read_acquisition(ScanSettings(dwi=str(tmp_path / "given.nii")), SilentReport())
    for name in ("scan.nii", "scan.nii.gz", "scan.nrrd", "scan.nhdr"):
        tracemalloc.start()
        write_acquisition(acquisition, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * acquisition.signal.nbytes, name
