"""Reading NIfTI with bval and bvec, against nibabel and MRtrix3."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_files import AXES, BVALS, BVECS, SHAPE, affine_of, signal_of, write_scan, write_text

from DiffusionFMLib.errors import InputError, JobCancelled
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import compressed, nifti, read_acquisition, read_image
from DiffusionFMLib.settings import ScanSettings


def read(path: Path, **more: object):
    report = SilentReport()
    return read_acquisition(ScanSettings(dwi=str(path), **more), report), report


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
def test_signal_grid_and_gradients(name: str, extension: str, tmp_path: Path) -> None:
    affine = affine_of(AXES[name])
    acquisition, report = read(write_scan(tmp_path, f"sub-01_dwi.{extension}", affine=affine))
    np.testing.assert_array_equal(acquisition.signal, signal_of())
    assert acquisition.signal.dtype == np.float32
    np.testing.assert_allclose(acquisition.affine, affine, atol=1e-6)
    np.testing.assert_allclose(acquisition.gtab.bvecs, GradientTable.from_fsl(BVALS, BVECS, affine).bvecs, atol=1e-6)
    assert (acquisition.name, acquisition.notes, report.warnings) == ("sub-01_dwi", (), [])


@pytest.mark.skipif(shutil.which("mrinfo") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("name", AXES)
def test_the_file_means_to_us_what_it_means_to_mrtrix(name: str, tmp_path: Path) -> None:
    path = write_scan(tmp_path, "dwi.nii", affine=affine_of(AXES[name]))
    tables = [str(path.with_suffix(s)) for s in (".bvec", ".bval")]
    out = subprocess.run(
        ["mrinfo", str(path), "-fslgrad", *tables, "-dwgrad"], capture_output=True, text=True, check=True
    ).stdout
    grad = np.array([[float(word) for word in line.split()] for line in out.splitlines() if line.strip()])
    np.testing.assert_allclose(read(path)[0].gtab.to_mrtrix(), grad, atol=1e-4)


def write_raw(path: Path, values: np.ndarray, slope: float, intercept: float, kind: type = nib.Nifti1Header) -> None:
    """Write values as they are, beside a scaling: nibabel's own writer would choose another scaling."""
    header = kind(endianness=">" if values.dtype.byteorder == ">" else "<")
    header.set_data_shape(values.shape)
    header.set_data_dtype(values.dtype)
    header.set_sform(affine_of(AXES["LAS"]), 1)
    header["magic"] = kind.single_magic
    header["vox_offset"] = header.sizeof_hdr + 4
    header["scl_slope"], header["scl_inter"] = slope, intercept
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + values.tobytes(order="F")))
    write_text(path.parent / "dwi.bval", BVALS)
    write_text(path.parent / "dwi.bvec", BVECS.T)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "u2", "i4", "f4", ">f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize(("slope", "intercept"), [(0.37, 5.0), (0.0, 0.0), (np.nan, np.nan), (1.0, 0.0)])
def test_stored_types_and_scaling(dtype: str, kind: type, slope: float, intercept: float, tmp_path: Path) -> None:
    values = (signal_of() % 200).astype(dtype)
    write_raw(tmp_path / "dwi.nii.gz", values, slope, intercept, kind)
    signal = read(tmp_path / "dwi.nii.gz")[0].signal
    stored = float(np.float32(slope)) if kind is nib.Nifti1Header else slope
    scaled = values.astype(np.float64) * stored + intercept if slope == 0.37 else values
    np.testing.assert_array_equal(signal, scaled.astype(np.float32))
    np.testing.assert_allclose(signal, nib.load(tmp_path / "dwi.nii.gz").get_fdata(), rtol=1e-6)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(*[st.integers(1, 6)] * 3), seed=st.integers(0, 1000), gz=st.booleans())
def test_any_shape_reads_as_nibabel_does(shape: tuple[int, int, int], seed: int, gz: bool, tmp_path: Path) -> None:
    data = np.random.default_rng(seed).normal(size=(*shape, len(BVALS))).astype(np.float32)
    path = write_scan(tmp_path, "dwi.nii.gz" if gz else "dwi.nii", data)
    np.testing.assert_array_equal(read(path)[0].signal, data)


def test_the_content_tells_the_format_not_the_name(tmp_path: Path) -> None:
    path = write_scan(tmp_path, "dwi.nii.gz")
    misnamed = path.rename(tmp_path / "dwi.nii")
    np.testing.assert_array_equal(read(misnamed)[0].signal, signal_of())


def test_without_isal_the_same_scan_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scan(tmp_path)
    monkeypatch.setattr(compressed, "_gzip", gzip)
    np.testing.assert_array_equal(read(path)[0].signal, signal_of())


def test_memory_is_the_float32_signal_and_one_volume(tmp_path: Path) -> None:
    data = np.zeros((64, 64, 40, 20), np.int16)
    path = write_scan(
        tmp_path, "dwi.nii.gz", data, bvals=[0, *[1000] * 19], bvecs=[[0, 0, 0], *np.eye(3), *[[0, 0.6, 0.8]] * 16]
    )
    read(path)
    tracemalloc.start()
    signal = read(path)[0].signal
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * signal.nbytes


@pytest.mark.parametrize(
    ("name", "dtype", "slope", "mapped"),
    [
        ("dwi.nii", "<f4", 1.0, True),
        ("dwi.nii", "<f4", 2.0, False),
        ("dwi.nii", ">f4", 1.0, False),
        ("dwi.nii", "<i2", 1.0, False),
        ("dwi.nii.gz", "<f4", 1.0, False),
    ],
)
def test_a_large_scan_that_is_as_in_memory_stays_in_its_file(
    name: str, dtype: str, slope: float, mapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "MAPPED_FROM", signal_of().size)
    values = signal_of().astype(dtype)
    write_raw(tmp_path / "dwi.nii.gz", values, slope, 0.0)
    if name == "dwi.nii":
        (tmp_path / name).write_bytes(gzip.decompress((tmp_path / "dwi.nii.gz").read_bytes()))
    signal = read(tmp_path / name)[0].signal
    np.testing.assert_array_equal(signal, slope * values)
    assert type(signal) is np.ndarray
    assert signal.flags.writeable is not mapped
    # an image that is not a scan is read
    assert nifti.NiftiFile(tmp_path / name).read(SilentReport()).flags.writeable


def test_a_small_scan_and_one_cut_short_are_never_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scan(tmp_path, "dwi.nii", signal_of().astype(np.float32))
    assert read(path)[0].signal.flags.writeable
    monkeypatch.setattr(nifti, "MAPPED_FROM", 1)
    assert not read(path)[0].signal.flags.writeable
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends within volume"):
        read(path)


def test_a_mapped_scan_without_its_trace_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "MAPPED_FROM", 1)
    vectors = BVECS.copy()
    vectors[4] = 0
    path = write_scan(tmp_path, "dwi.nii", signal_of().astype(np.float32), bvecs=vectors)
    np.testing.assert_array_equal(read(path)[0].signal, np.delete(signal_of(), 4, axis=3))


def test_fifth_axis_of_length_one_is_dropped_with_a_note(tmp_path: Path) -> None:
    acquisition, _ = read(write_scan(tmp_path, data=signal_of()[..., None]))
    np.testing.assert_array_equal(acquisition.signal, signal_of())
    assert "trailing axes" in acquisition.notes[0]


# --- bval and bvec --------------------------------------------------------------------------------------------


def test_three_columns_are_recognised(tmp_path: Path) -> None:
    path = write_scan(tmp_path, bvecs=None, bvals=None)
    expected = GradientTable.from_fsl(BVALS, BVECS, affine_of(AXES["oblique left-handed"])).bvecs
    write_text(tmp_path / "sub-01_dwi.bvec", BVECS)
    write_text(tmp_path / "sub-01_dwi.bval", BVALS[:, None])
    np.testing.assert_allclose(read(path)[0].gtab.bvecs, expected, atol=1e-6)


def test_tables_elsewhere_are_taken_when_named(tmp_path: Path) -> None:
    path = write_scan(tmp_path, bvals=None, bvecs=None)
    bval, bvec = write_text(tmp_path / "b.txt", BVALS), write_text(tmp_path / "v.txt", BVECS.T)
    acquisition, _ = read(path, bval=str(bval), bvec=str(bvec))
    np.testing.assert_array_equal(acquisition.gtab.bvals, BVALS)


def test_windows_line_ends_tabs_and_byte_order_mark(tmp_path: Path) -> None:
    path = write_scan(tmp_path, bvals=None)
    text = "\t".join(f"{b:g}" for b in BVALS) + "\r\n\r\n"
    (tmp_path / "sub-01_dwi.bval").write_bytes(b"\xef\xbb\xbf" + text.encode())
    np.testing.assert_array_equal(read(path)[0].gtab.bvals, BVALS)


def test_trace_volumes_are_set_aside_with_a_warning(tmp_path: Path) -> None:
    bvecs = BVECS.copy()
    bvecs[5] = 0
    acquisition, report = read(write_scan(tmp_path, bvecs=bvecs))
    kept = [0, 1, 2, 3, 4, 6]
    np.testing.assert_array_equal(acquisition.signal, signal_of()[..., kept])
    np.testing.assert_array_equal(acquisition.gtab.bvals, BVALS[kept])
    assert [code for code, _ in report.warnings] == ["trace-volumes"]
    assert "[5]" in acquisition.notes[0]


# --- what is odd, but usable ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"bvals": [0, 1000, 1000, 1000, 2000, 5000, 700]}, "high-b"),
        ({"affine": affine_of(AXES["LAS"], (2, 2, 4.5))}, "large-voxels"),
        ({"affine": affine_of(AXES["LAS"], (0.3, 0.3, 0.5))}, "small-voxels"),
    ],
)
def test_out_of_protocol_input_is_warned_of(change: dict[str, object], code: str, tmp_path: Path) -> None:
    _, report = read(write_scan(tmp_path, **change))
    assert [c for c, _ in report.warnings] == [code]


@pytest.mark.parametrize(("name", "said"), [("RAS", "mirror"), ("LPS", "180 degrees")])
def test_sform_wins_and_a_gross_conflict_is_warned_of(name: str, said: str, tmp_path: Path) -> None:
    image = nib.Nifti1Image(signal_of(), affine_of(AXES[name] @ np.diag([1, 1, 1])))
    image.set_sform(affine_of(AXES["LAS" if name == "RAS" else "RAS"]), 1)
    image.set_qform(affine_of(AXES[name]), 1)
    path = write_scan(tmp_path)
    nib.save(image, path)
    acquisition, report = read(path)
    np.testing.assert_allclose(acquisition.affine, image.get_sform(), atol=1e-5)
    assert [code for code, _ in report.warnings] == ["orientation-conflict"]
    assert said in report.warnings[0][1]


def test_a_scan_without_orientation_is_warned_of(tmp_path: Path) -> None:
    path = write_scan(tmp_path)
    image = nib.Nifti1Image(signal_of(), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(image, path)
    _, report = read(path)
    assert [code for code, _ in report.warnings] == ["no-orientation"]


def test_a_qform_alone_is_the_orientation(tmp_path: Path) -> None:
    path = write_scan(tmp_path)
    affine = affine_of(AXES["oblique right-handed"])
    image = nib.Nifti1Image(signal_of(), affine)
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    nib.save(image, path)
    acquisition, report = read(path)
    np.testing.assert_allclose(acquisition.affine, affine, atol=1e-5)
    assert report.warnings == []


# --- other images --------------------------------------------------------------------------------------------------


def test_a_3d_image(tmp_path: Path) -> None:
    data = signal_of()[..., 0]
    path = write_scan(tmp_path, "T1w.nii.gz", data, bvals=None, bvecs=None)
    image = read_image(path)
    np.testing.assert_array_equal(image.data, data)
    assert image.data.shape == SHAPE
    assert image.name == "T1w"


def test_reading_stops_when_cancelled(tmp_path: Path) -> None:
    class Cancelling(SilentReport):
        def progress(self, done: float, total: float, stage: str) -> None:
            assert (total, stage) == (len(BVALS), "Reading")
            if done == 3:
                raise JobCancelled

    with pytest.raises(JobCancelled):
        read_acquisition(ScanSettings(dwi=str(write_scan(tmp_path))), Cancelling())
