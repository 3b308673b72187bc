"""DICOM folders through dcm2niix: the real one on a real series, a stand-in for the rest."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from scan_files import BVALS, signal_of, write_scan

from DiffusionFMLib.errors import InputError, JobCancelled
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import dicom, nifti, read_acquisition
from DiffusionFMLib.settings import ScanSettings


def read(folder: Path, report: SilentReport | None = None, **more: object):
    return read_acquisition(ScanSettings(dwi=str(folder), **more), report or SilentReport())


# --- the real dcm2niix -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toshiba(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dicom")
    with tarfile.open(scans / "dicom" / "toshiba_galan_10006_DTI.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def test_a_real_series_is_the_scan_of_its_nifti(toshiba: Path, scans: Path) -> None:
    from_dicom = read(toshiba)
    from_nifti = read(scans / "train" / "toshiba_galan_b1500" / "dwi_10006_DTI_ALL_20d.nii.gz")
    np.testing.assert_array_equal(from_dicom.signal, from_nifti.signal)
    np.testing.assert_allclose(from_dicom.affine, from_nifti.affine, atol=1e-5)
    np.testing.assert_allclose(from_dicom.gtab.bvecs, from_nifti.gtab.bvecs, atol=1e-5)
    np.testing.assert_array_equal(from_dicom.gtab.bvals, from_nifti.gtab.bvals)
    assert from_dicom.name == "series-10006"


def test_of_several_real_series_the_person_chooses(toshiba: Path, tmp_path: Path) -> None:
    for file in toshiba.iterdir():
        content = file.read_bytes()
        shutil.copy(file, tmp_path / file.name)
        # another series: the same slices with another number and instance UID, of the same lengths
        uid = re.search(rb"\x20\x00\x0e\x00UI..([0-9.]+)", content)[1]
        changed = content.replace(uid, uid[:-1] + (b"1" if uid[-1:] != b"1" else b"2"))
        changed = re.sub(rb"(\x20\x00\x11\x00IS..)10006", rb"\g<1>10007", changed)
        (tmp_path / f"b{file.name}").write_bytes(changed)
    with pytest.raises(InputError, match=r"2 diffusion series: 10006 \(DTI ALL 20d, 13 volumes\); 10007") as caught:
        read(tmp_path)
    assert caught.value.choices == dict.fromkeys(("10006", "10007"), "DTI ALL 20d, 13 volumes")
    assert read(tmp_path, series="10007").name == "series-10007"
    with pytest.raises(InputError, match="no diffusion series 3; it has 10006"):
        read(tmp_path, series="3")


def test_a_folder_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match="could not be converted from DICOM: .*Unable to find any DICOM") as caught:
        read(tmp_path)
    assert caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# --- a stand-in for dcm2niix ---------------------------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a program in dcm2niix's place: Python code that finds the output folder in `out`."""
    if os.name == "nt":
        pytest.skip("the stand-in is a script with an interpreter line")

    def install(code: str) -> None:
        program = tmp_path / "dcm2niix"
        program.write_text(f"#!{sys.executable}\nimport sys\nout = sys.argv[sys.argv.index('-o') + 1]\n{code}\n")
        program.chmod(0o755)
        monkeypatch.setattr(dicom, "_program", lambda: str(program))

    return install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "Doe^Jane").mkdir()
    return tmp_path / "Doe^Jane"


def converted_scan(folder: Path, number: str) -> str:
    """Code that makes the stand-in give a scan as a converted series."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    write_scan(made, f"{number}.nii")
    (made / f"{number}.json").write_text('{"SeriesDescription": "ep2d"}')
    return f"import shutil; shutil.copytree({str(made)!r}, out, dirs_exist_ok=True)"


def test_names_hold_nothing_of_the_patient(folder: Path, tmp_path: Path, stand_in) -> None:
    stand_in(converted_scan(tmp_path, "7"))
    acquisition = read(folder)
    assert acquisition.name == "series-7"
    np.testing.assert_array_equal(acquisition.signal, signal_of())


def test_a_converted_scan_is_not_left_in_its_file(
    folder: Path, tmp_path: Path, stand_in, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "MAPPED_FROM", 1)
    code = converted_scan(tmp_path, "7")
    write_scan(tmp_path / "made", "7.nii", signal_of().astype(np.float32))
    stand_in(code)
    # the file is gone, and some systems cannot remove one that is mapped
    assert read(folder).signal.flags.writeable


def test_patient_data_are_left_out_of_the_conversion(folder: Path, tmp_path: Path, stand_in) -> None:
    seen = tmp_path / "seen"
    stand_in(f"open({str(seen)!r}, 'w').write(' '.join(sys.argv))\n{converted_scan(tmp_path, '7')}")
    read(folder)
    words = seen.read_text().split()
    assert words[words.index("-f") + 1] == "%s"
    assert words[words.index("-ba") + 1] == "y"
    out = Path(words[words.index("-o") + 1])
    assert not out.exists()


def test_series_without_weighting_are_not_offered(folder: Path, tmp_path: Path, stand_in) -> None:
    code = converted_scan(tmp_path, "7")
    write_scan(tmp_path / "made", "8.nii", bvals=None, bvecs=None)
    write_scan(tmp_path / "made", "9.nii", bvals=0 * BVALS)
    stand_in(code)
    assert read(folder).name == "series-7"
    (tmp_path / "made" / "7.bval").unlink()
    with pytest.raises(InputError, match="holds no diffusion series"):
        read(folder)


def test_an_incomplete_conversion_is_warned_of(folder: Path, tmp_path: Path, stand_in) -> None:
    stand_in(f"{converted_scan(tmp_path, '7')}\nprint('Error: slice missing.'); sys.exit(8)")
    report = SilentReport()
    read(folder, report)
    assert report.warnings == [
        ("dicom-incomplete", "Not every image in Doe^Jane could be converted: Error: slice missing.")
    ]


def test_cancelling_kills_the_conversion(folder: Path, tmp_path: Path, stand_in) -> None:
    pid = tmp_path / "pid"
    stand_in(f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()) + ' ' + out)\ntime.sleep(60)")

    class Cancelling(SilentReport):
        def check(self) -> None:
            if pid.exists() and pid.read_text().count(" "):
                raise JobCancelled

    with pytest.raises(JobCancelled):
        read(folder, Cancelling())
    number, out = pid.read_text().split()
    assert not psutil.pid_exists(int(number))
    assert not Path(out).exists()
