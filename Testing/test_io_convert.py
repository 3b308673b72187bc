"""A scan written and read again: the same signal, grid and directions, whatever the format and orientation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_files import AXES, BVALS, BVECS, affine_of, rotation, signal_of

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import OutputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import read_acquisition, write_acquisition
from DiffusionFMLib.settings import ScanSettings

EXTENSIONS = ["nii", "nii.gz", "nrrd", "nhdr"]


def acquisition_on(affine: np.ndarray) -> Acquisition:
    return Acquisition(signal_of().astype(np.float32) / 7, affine, GradientTable(BVALS, BVECS), name="scan")


def read(path: Path) -> Acquisition:
    return read_acquisition(ScanSettings(dwi=str(path)), SilentReport())


def assert_same(one: Acquisition, other: Acquisition) -> None:
    np.testing.assert_array_equal(one.signal, other.signal)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)
    np.testing.assert_allclose(one.gtab.bvecs, other.gtab.bvecs, atol=1e-6)
    np.testing.assert_allclose(one.gtab.bvals, other.gtab.bvals, rtol=1e-8)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_round_trip(axes: str, extension: str, tmp_path: Path) -> None:
    given_scan = acquisition_on(affine_of(AXES[axes]))
    written = write_acquisition(given_scan, tmp_path / f"scan.{extension}")
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert_same(read(written[0]), given_scan)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1),
    degrees=st.floats(-180, 180),
    hand=st.sampled_from([1.0, -1.0]),
    extension=st.sampled_from(EXTENSIONS),
)
def test_round_trip_on_any_oblique_grid(
    axis: tuple[float, ...], degrees: float, hand: float, extension: str, tmp_path: Path
) -> None:
    given_scan = acquisition_on(affine_of(rotation(axis, degrees) @ np.diag([hand, 1, 1])))
    assert_same(read(write_acquisition(given_scan, tmp_path / f"scan.{extension}")[0]), given_scan)


def test_b_values_a_percent_apart_stay_apart(tmp_path: Path) -> None:
    bvals = np.array([0.0, 995, 1000, 1005, 2000, 2010, 700])
    given_scan = Acquisition(signal_of(), affine_of(AXES["LPS"]), GradientTable(bvals, BVECS))
    assert_same(read(write_acquisition(given_scan, tmp_path / "scan.nrrd")[0]), given_scan)


@pytest.mark.skipif(shutil.which("mrinfo") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("axes", AXES)
def test_mrtrix_finds_our_directions_in_our_files(axes: str, tmp_path: Path) -> None:
    scan = acquisition_on(affine_of(AXES[axes]))
    image, bval, bvec = write_acquisition(scan, tmp_path / "scan.nii.gz")
    command = ["mrinfo", str(image), "-fslgrad", str(bvec), str(bval), "-dwgrad"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grad = np.array([[float(word) for word in line.split()] for line in out.splitlines() if line.strip()])
    np.testing.assert_allclose(grad, scan.gtab.to_mrtrix(), atol=1e-4)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("extension", ["nrrd", "nhdr"])
def test_itk_reads_our_nrrd(axes: str, extension: str, tmp_path: Path) -> None:
    scan = acquisition_on(affine_of(AXES[axes]))
    image = sitk.ReadImage(str(write_acquisition(scan, tmp_path / f"scan.{extension}")[0]))
    assert image.GetMetaData("modality") == "DWMRI"
    assert image.GetMetaData("DWMRI_b-value") == "2000"
    array = sitk.GetArrayFromImage(image)
    if image.GetDimension() == 3:
        np.testing.assert_allclose(array.transpose(2, 1, 0, 3), scan.signal)
    else:
        np.testing.assert_allclose(array.transpose(3, 2, 1, 0), scan.signal)
    to_ras = np.diag([-1.0, -1, 1])
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)[:3, :3]
    np.testing.assert_allclose(to_ras @ direction * image.GetSpacing()[:3], scan.affine[:3, :3], atol=1e-6)
    np.testing.assert_allclose(to_ras @ image.GetOrigin()[:3], scan.affine[:3, 3], atol=1e-6)


def test_the_same_scan_is_the_same_bytes(tmp_path: Path) -> None:
    scan = acquisition_on(affine_of(AXES["PSR"]))
    for extension in EXTENSIONS:
        (tmp_path / "a").mkdir(exist_ok=True)
        one = [p.read_bytes() for p in write_acquisition(scan, tmp_path / f"scan.{extension}")]
        assert one == [p.read_bytes() for p in write_acquisition(scan, tmp_path / "a" / f"scan.{extension}")]


def test_an_unknown_extension_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"scan\.mif is of no known format"):
        write_acquisition(acquisition_on(np.eye(4)), tmp_path / "scan.mif")
    assert list(tmp_path.iterdir()) == []
