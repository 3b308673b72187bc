"""Reading DWI NRRD: both axis orders, measurement frames, spaces, detached data; the grid against ITK."""

from __future__ import annotations

import gzip
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_files import AXES, affine_of, rotation, signal_of

from DiffusionFMLib.errors import GradientError, InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition, read_image, scan_files
from DiffusionFMLib.io.nrrd import NrrdFile
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import ScanSettings

TO_RAS = {"RAS": [1, 1, 1], "LAS": [-1, 1, 1], "LPS": [-1, -1, 1]}
LONG = {"RAS": "right-anterior-superior", "LAS": "left-anterior-superior", "LPS": "left-posterior-superior"}
GRADIENTS = ["0 0 0", "1 0 0", "0 0.6 0.8", "0 0.5 0.5", "0.70710678 0 0.70710678"]
N = len(GRADIENTS)


def vectors(columns: np.ndarray) -> str:
    return " ".join(f"({','.join(f'{v:.12g}' for v in column)})" for column in np.asarray(columns).T)


def write(
    path: Path,
    *,
    axes: str = "LAS",
    space: str = "LPS",
    frame: np.ndarray | None = None,
    first: bool = False,
    gradients: list[str] | None = None,
    extra: tuple[str, ...] = (),
    encoding: str = "raw",
    data_file: str = "",
    dtype: str = "<i2",
    named: str = "",
) -> np.ndarray:
    """Write a NRRD scan by hand; returns its voxel to RAS affine."""
    affine = affine_of(AXES[axes])
    in_space = np.diag([*TO_RAS[space], 1]) @ affine
    signal = signal_of(volumes=N).astype(dtype)
    stored = np.moveaxis(signal, -1, 0) if first else signal
    directions = vectors(in_space[:3, :3])
    lines = [
        "NRRD0005",
        "# a comment",
        f"type: {'short' if 'i2' in dtype else 'float'}",
        "dimension: 4",
        f"space: {named or LONG[space]}",
        f"sizes: {' '.join(map(str, stored.shape))}",
        f"space directions: {'none ' + directions if first else directions + ' none'}",
        f"kinds: {'vector domain domain domain' if first else 'domain domain domain list'}",
        f"endian: {'big' if '>' in dtype else 'little'}",
        f"encoding: {encoding}",
        f"space origin: {vectors(in_space[:3, 3:])}",
        *([f"measurement frame: {vectors(frame)}"] if frame is not None else []),
        *([f"data file: {data_file}"] if data_file else []),
        "modality:=DWMRI",
        "DWMRI_b-value:=1000",
        *[f"DWMRI_gradient_{i:04d}:={g}" for i, g in enumerate(GRADIENTS if gradients is None else gradients) if g],
        *extra,
    ]
    raw = stored.tobytes(order="F")
    content = gzip.compress(raw) if encoding.startswith("gz") else raw
    header = ("\n".join(lines) + "\n\n").encode()
    path.write_bytes(header if data_file else header + content)
    if data_file:
        (path.parent / data_file).write_bytes(content)
    return affine


def read(path: Path):
    return read_acquisition(ScanSettings(dwi=str(path)), SilentReport())


@pytest.mark.parametrize("first", [False, True])
def test_trace_volumes_are_left_out_wherever_the_volumes_lie(first: bool, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd", first=first)
    image = NrrdFile(tmp_path / "dwi.nrrd")
    signal = image.read(SilentReport(), [0, 2, 3])
    np.testing.assert_array_equal(signal, signal_of(volumes=N)[..., [0, 2, 3]])
    # not a part of a larger array
    assert signal.base is None or signal.base.size == signal.size


def test_data_of_another_name_are_files_of_the_scan(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="values.raw")
    write(tmp_path / "other.nhdr", data_file="other.raw")
    scan = ScanSettings(dwi=str(tmp_path / "dwi.nhdr"))
    assert scan_files(scan) == [tmp_path / "dwi.nhdr", tmp_path / "values.raw"]


def test_changed_data_of_another_name_are_read_again(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="values.raw")
    scan, session = ScanSettings(dwi=str(tmp_path / "dwi.nhdr")), Session()
    before = session.read(scan, SilentReport())
    assert session.read(scan, SilentReport()) is before
    write(tmp_path / "dwi2.nhdr", data_file="values.raw", dtype=">i2")
    os.utime(tmp_path / "values.raw", ns=(1, 1))
    assert not np.array_equal(session.read(scan, SilentReport()).signal, before.signal)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("space", TO_RAS)
@pytest.mark.parametrize("first", [True, False], ids=["vector first", "vector last"])
def test_signal_grid_and_gradients(axes: str, space: str, first: bool, tmp_path: Path) -> None:
    frame = rotation([1, -1, 2], 30)
    affine = write(tmp_path / "dwi.nrrd", axes=axes, space=space, frame=frame, first=first)
    acquisition = read(tmp_path / "dwi.nrrd")
    np.testing.assert_array_equal(acquisition.signal, signal_of(volumes=N))
    np.testing.assert_allclose(acquisition.affine, affine, atol=1e-9)
    # M @ g is in the header's space; (0, 0.5, 0.5) is shorter, so its b is lower
    unit = np.array([[0, 0, 0], [1, 0, 0], [0, 0.6, 0.8], [0, 0.5**0.5, 0.5**0.5], [0.5**0.5, 0, 0.5**0.5]])
    expected = (unit @ frame.T) * TO_RAS[space]
    np.testing.assert_allclose(acquisition.gtab.bvecs, expected, atol=1e-7)
    np.testing.assert_allclose(acquisition.gtab.bvals, [0, 1000, 1000, 500, 1000], rtol=1e-7)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("space", TO_RAS)
def test_the_grid_is_that_of_itk(axes: str, space: str, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd", axes=axes, space=space, first=True)
    image = sitk.ReadImage(str(tmp_path / "dwi.nrrd"))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    lps = affine_of(direction, image.GetSpacing(), image.GetOrigin())
    acquisition = read(tmp_path / "dwi.nrrd")
    np.testing.assert_allclose(acquisition.affine, np.diag([-1, -1, 1, 1]) @ lps, atol=1e-6)
    np.testing.assert_array_equal(acquisition.signal, sitk.GetArrayFromImage(image).transpose(2, 1, 0, 3))


@pytest.mark.parametrize("encoding", ["raw", "gzip", "gz"])
@pytest.mark.parametrize("data_file", ["", "dwi.raw"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4"])
def test_encodings_and_detached_data(encoding: str, data_file: str, dtype: str, tmp_path: Path) -> None:
    path = tmp_path / ("dwi.nhdr" if data_file else "dwi.nrrd")
    write(path, encoding=encoding, data_file=data_file, dtype=dtype)
    np.testing.assert_array_equal(read(path).signal, signal_of(volumes=N))


def test_data_behind_a_foreign_header(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="dwi.raw", extra=())
    raw = (tmp_path / "dwi.raw").read_bytes()
    header = (tmp_path / "dwi.nhdr").read_text()
    for skip, content in (
        ("byte skip: -1", b"xyz" + raw),
        ("line skip: 2", b"a\nb\n" + raw),
        ("byte skip: 3", b"xyz" + raw),
    ):
        (tmp_path / "dwi.nhdr").write_text(header.replace("encoding: raw", f"encoding: raw\n{skip}"))
        (tmp_path / "dwi.raw").write_bytes(content)
        np.testing.assert_array_equal(read(tmp_path / "dwi.nhdr").signal, signal_of(volumes=N), err_msg=skip)


def test_one_data_file_per_volume(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="all.raw")
    raw = (tmp_path / "all.raw").read_bytes()
    size = len(raw) // N
    for i in range(N):
        (tmp_path / f"v{i}.raw").write_bytes(raw[i * size : (i + 1) * size])
    header = (tmp_path / "dwi.nhdr").read_text()
    (tmp_path / "dwi.nhdr").write_text(header.replace("data file: all.raw", f"data file: v%d.raw 0 {N - 1} 1"))
    np.testing.assert_array_equal(read(tmp_path / "dwi.nhdr").signal, signal_of(volumes=N))
    listed = "\n".join(["data file: LIST", *[f"v{i}.raw" for i in range(N)]])
    start = header.replace("data file: all.raw\n", "").rstrip("\n")
    (tmp_path / "dwi.nhdr").write_text(f"{start}\n{listed}\n")
    np.testing.assert_array_equal(read(tmp_path / "dwi.nhdr").signal, signal_of(volumes=N))


def test_short_names_of_spaces_and_no_measurement_frame(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd", space="LPS", named="LPS")
    acquisition = read(tmp_path / "dwi.nrrd")
    np.testing.assert_allclose(acquisition.gtab.bvecs[1], [-1, 0, 0])
    assert "no measurement frame" in acquisition.notes[0]


def test_nex_repeats_a_gradient(tmp_path: Path) -> None:
    write(
        tmp_path / "dwi.nrrd",
        gradients=["0 0 0", "", "1 0 0", "0 1 0", "0 0 1"],
        extra=("DWMRI_NEX_0000:=2",),
        frame=np.eye(3),
    )
    acquisition = read(tmp_path / "dwi.nrrd")
    assert acquisition.gtab.b0_mask.tolist() == [True, True, False, False, False]


def test_a_mask_in_nrrd(tmp_path: Path) -> None:
    mask = sitk.GetImageFromArray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    mask.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(mask, str(tmp_path / "mask.nrrd"), useCompression=True)
    image = read_image(tmp_path / "mask.nrrd")
    np.testing.assert_array_equal(image.data, np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, np.diag([-1, -2, 3, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradients": GRADIENTS[:-1]}, "4 gradients but 5 volumes: DWMRI_gradient_0004 is missing"),
        ({"gradients": [*GRADIENTS, "1 0 0"]}, "more gradients than its 5 volumes"),
        ({"gradients": ["0 0 0", "1 0", "0 1 0", "0 0 1", "1 0 0"]}, "DWMRI_gradient_0001 '1 0'"),
        ({"gradients": ["0 0 0", "1 0 x", "0 1 0", "0 0 1", "1 0 0"]}, "expected three numbers"),
        ({"gradients": ["0 0 0"] * 5}, "all are zero"),
        ({"gradients": ["0 0 0", "nan 0 0", "0 1 0", "0 0 1", "1 0 0"]}, "not finite"),
        ({"extra": ("DWMRI_NEX_0004:=3",)}, "more gradients than its 5 volumes"),
    ],
)
def test_broken_gradients(change: dict[str, object], message: str, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd", **change)
    with pytest.raises(GradientError, match=message) as caught:
        read(tmp_path / "dwi.nrrd")
    assert "dwi.nrrd" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sizes: 4 5 3 5", "sizes: 4 5 three 5", "expected whole numbers"),
        ("type: short", "type: block", "type 'block'"),
        ("encoding: raw", "encoding: bzip2", "encoding 'bzip2'"),
        ("space: left-posterior-superior", "space: scanner-xyz", "space 'scanner-xyz'"),
        ("space directions", "space directionz", "no field 'space directions'"),
        (" none", "", "expected three"),
        ("sizes: 4 5 3 5", "sizes: 4 5 3 50", "cut short|gradients but"),
    ],
)
def test_broken_headers(old: str, new: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd")
    content = (tmp_path / "dwi.nrrd").read_bytes()
    assert old.encode() in content
    (tmp_path / "dwi.nrrd").write_bytes(content.replace(old.encode(), new.encode(), 1))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "dwi.nrrd")
    assert "dwi.nrrd" in caught.value.message
    assert caught.value.hint


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(8, 700), value=st.integers(0, 255))
def test_no_byte_of_a_header_is_a_bug(position: int, value: int, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="v%01d.raw 0 4 1 3", frame=np.eye(3))
    raw = bytearray((tmp_path / "dwi.nhdr").read_bytes())
    raw[min(position, len(raw) - 1)] = value
    (tmp_path / "dwi.nhdr").write_bytes(raw)
    with suppress(InputError):
        read(tmp_path / "dwi.nhdr")


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_data_cut_short(encoding: str, tmp_path: Path) -> None:
    write(tmp_path / "dwi.nrrd", encoding=encoding)
    content = (tmp_path / "dwi.nrrd").read_bytes()
    (tmp_path / "dwi.nrrd").write_bytes(content[:-40])
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path / "dwi.nrrd")


def test_a_missing_data_file(tmp_path: Path) -> None:
    write(tmp_path / "dwi.nhdr", data_file="dwi.raw")
    (tmp_path / "dwi.raw").unlink()
    with pytest.raises(InputError, match="dwi.raw does not exist"):
        read(tmp_path / "dwi.nhdr")
