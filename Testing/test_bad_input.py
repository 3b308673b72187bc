"""Every bad input gets a clear error: which file, what was expected and found, what to do; and writes nothing."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_files import AXES, BVALS, BVECS, SHAPE, affine_of, signal_of, write_scan, write_text

from DiffusionFMLib import cli
from DiffusionFMLib.errors import DiffusionFMError, GradientError, InputError, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition, read_image, read_mask
from DiffusionFMLib.settings import ScanSettings

NAME = "sub-01_dwi"


@dataclass(frozen=True)
class Bad:
    """How to spoil a sound scan, and what must be said of it."""

    spoil: Callable[[Path], object]
    kind: type[DiffusionFMError]
    message: str
    hint: str


def text(extension: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / f"{NAME}.{extension}").write_text(content)


def without(extension: str) -> Callable[[Path], object]:
    return lambda folder: (folder / f"{NAME}.{extension}").unlink()


def scan(**change: object) -> Callable[[Path], object]:
    return lambda folder: write_scan(folder, **change)


def content(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / f"{NAME}.nii.gz"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def inside(change: Callable[[bytearray], None]) -> Callable[[Path], object]:
    """Spoil what is inside the gzip stream."""

    def changed(data: bytes) -> bytes:
        raw = bytearray(gzip.decompress(data))
        change(raw)
        return gzip.compress(bytes(raw))

    return content(changed)


def rows(values: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:g}" for v in row) for row in np.atleast_2d(values)) + "\n"


def with_hole(volume: int, value: float) -> np.ndarray:
    data = signal_of().astype(np.float32)
    data[1, 1, 1, volume] = value
    return data


def flipped_bit(data: bytes) -> bytes:
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def set_bytes(raw: bytearray, start: int, value: bytes) -> None:
    raw[start : start + len(value)] = value


def set_dim(raw: bytearray, axis: int, value: int) -> None:
    set_bytes(raw, 40 + 2 * axis, value.to_bytes(2, "little", signed=True))


ONE_AXIS = np.array([[0, 0, 0], *[[1, 0, 0]] * 3, *[[-1, 0, 0]] * 3])

BAD = {
    # bval and bvec
    "no bval": Bad(without("bval"), GradientError, rf"{NAME}\.nii\.gz has no {NAME}\.bval beside it", "--bval"),
    "no bvec": Bad(without("bvec"), GradientError, rf"{NAME}\.nii\.gz has no {NAME}\.bvec beside it", "--bvec"),
    "empty bval": Bad(text("bval", ""), GradientError, rf"{NAME}\.bval is empty", "Convert"),
    "blank bvec": Bad(text("bvec", " \n\n \n"), GradientError, rf"{NAME}\.bvec is empty", "Convert"),
    "words in bval": Bad(
        text("bval", "0 1000 n/a 1000 2000 2000 700"), GradientError, rf"{NAME}\.bval has 'n/a' in line 1", "Correct"
    ),
    "decimal commas": Bad(text("bvec", "0,5 0,5\n"), GradientError, rf"{NAME}\.bvec has '0,5' in line 1", "Correct"),
    "NaN in bval": Bad(
        text("bval", rows(np.where(BVALS == 700, np.nan, BVALS))),
        GradientError,
        rf"{NAME}\.bval has 'nan' in line 1, column 7",
        "remove that volume",
    ),
    "NaN in bvec": Bad(
        text("bvec", rows(np.where(np.arange(7) == 3, np.nan, BVECS.T))),
        GradientError,
        rf"{NAME}\.bvec has 'nan' in line 1, column 4",
        "remove that volume",
    ),
    "a picture as bval": Bad(
        lambda folder: (folder / f"{NAME}.bval").write_bytes(b"\x89PNG\xff\xfe\x00"),
        GradientError,
        rf"{NAME}\.bval is not a text file",
        "dcm2niix",
    ),
    "bvec lost its b0": Bad(
        text("bvec", rows(BVECS[1:].T)),
        GradientError,
        rf"{NAME}\.bvec has 6 directions but {NAME}\.nii\.gz has 7 volumes",
        "Check that they belong together and that those of b0 volumes were kept.",
    ),
    "bval lost its b0": Bad(
        text("bval", rows(BVALS[1:])), GradientError, "has 6 b-values but .* 7 volumes", "those of b0 volumes were kept"
    ),
    "bval of another scan": Bad(
        text("bval", rows(np.tile(BVALS, 2))), GradientError, "has 14 b-values but .* 7 volumes", "belong together"
    ),
    "ragged bvec": Bad(
        text("bvec", "0 1 2 3\n0 1 2\n0 1 2 3\n"),
        GradientError,
        "has 4 numbers in row 1 but 3 in row 2",
        "equally long",
    ),
    "four columns": Bad(
        text("bvec", rows(np.c_[BVECS, BVALS])), GradientError, "7 rows and 4 columns; expected three", "bvec file"
    ),
    "negative b": Bad(text("bval", rows(-BVALS)), GradientError, rf"{NAME}\.bval.*is negative", "Correct"),
    "directions that are not unit vectors": Bad(
        text("bvec", rows(2 * BVECS.T)),
        GradientError,
        rf"{NAME}\.bval, {NAME}\.bvec: .*volume 1 \(b = 1000\) has length 2",
        "Normalise",
    ),
    # protocol
    "no b0": Bad(
        text("bval", rows(np.maximum(BVALS, 65))),
        ProtocolError,
        rf"{NAME}\.nii\.gz has no b0 volume: its lowest b-value is 65",
        "--b0-threshold",
    ),
    "only b0": Bad(text("bval", rows(0 * BVALS)), ProtocolError, "no diffusion-weighted volume", "diffusion series"),
    "b in ms/um2": Bad(
        text("bval", rows(BVALS / 1000)), ProtocolError, "highest b-value is 2 s/mm2", "multiply them by 1000"
    ),
    "one direction only": Bad(scan(bvecs=ONE_AXIS), ProtocolError, "6 diffusion-weighted .* one direction only", "ADC"),
    "only trace volumes": Bad(
        scan(bvecs=0 * BVECS), ProtocolError, r"6 diffusion-weighted volume\(s\) without any direction", "directions"
    ),
    # image
    "no such scan": Bad(without("nii.gz"), InputError, rf"{NAME}\.nii\.gz does not exist", "Check the name"),
    "an empty file": Bad(content(lambda _: b""), InputError, rf"{NAME}\.nii\.gz is empty", "again"),
    "a text file": Bad(content(lambda _: b"hello " * 99), InputError, "is not an image", "NIfTI"),
    "compressed text": Bad(content(lambda _: gzip.compress(b"hello " * 99)), InputError, "is not an image", "NIfTI"),
    "gzip cut short": Bad(
        content(lambda data: data[: len(data) // 2]), InputError, "gzip stream is cut short", "again"
    ),
    "gzip cut in its header": Bad(content(lambda data: data[:12]), InputError, "is damaged", "again"),
    "gzip without its end": Bad(content(lambda data: data[:-3]), InputError, "gzip stream is cut short", "again"),
    "gzip with a flipped bit": Bad(content(flipped_bit), InputError, "is damaged", "again"),
    "image cut short": Bad(
        inside(lambda raw: raw.__delitem__(slice(-100, None))), InputError, "ends within volume 6 of 7", "again"
    ),
    "3-D": Bad(
        scan(data=signal_of()[..., 0]), InputError, rf"has 3 dimensions \({', '.join(map(str, SHAPE))}\)", "whole"
    ),
    "a fifth axis": Bad(
        scan(data=np.zeros((*SHAPE, 7, 2), np.int16)), InputError, r"shape \(4, 5, 3, 7, 2\)", "series"
    ),
    "no voxels": Bad(inside(lambda raw: set_dim(raw, 1, 0)), InputError, r"shape \(0, 5, 3, 7\)", "series"),
    "negative size": Bad(inside(lambda raw: set_dim(raw, 2, -5)), InputError, rf"{NAME}.*(shape|header)", ""),
    "NaN in the signal": Bad(
        scan(data=with_hole(2, np.nan)), InputError, r"not finite numbers, in volume\(s\) 2 ", "zeros"
    ),
    "infinity in the signal": Bad(
        scan(data=with_hole(5, np.inf)), InputError, r"in volume\(s\) 5 \(the first", "zeros"
    ),
    "beyond float32": Bad(scan(data=np.where(signal_of() == 9, 1e300, 1.0)), InputError, "not finite numbers", "zeros"),
    "complex values": Bad(scan(data=signal_of().astype(np.complex64)), InputError, "type complex64", "magnitude"),
    "a flat affine": Bad(
        inside(lambda raw: set_bytes(raw, 280, bytes(16))), InputError, "no usable orientation", "DICOM"
    ),
    "NaN in the affine": Bad(
        inside(lambda raw: set_bytes(raw, 280, b"\x00\x00\xc0\x7f")), InputError, "no usable orientation", ""
    ),
    "a DICOM file": Bad(
        content(lambda _: bytes(128) + b"DICM" + bytes(300)), InputError, "single DICOM file", "folder"
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scan").mkdir()
    write_scan(tmp_path / "scan")
    return tmp_path / "scan"


@pytest.mark.parametrize("name", BAD)
def test_the_error_says_what_and_where_and_what_to_do(name: str, folder: Path) -> None:
    bad = BAD[name]
    bad.spoil(folder)
    with pytest.raises(bad.kind, match=bad.message) as caught:
        read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz")), SilentReport())
    assert NAME in caught.value.message
    assert bad.hint.lower() in caught.value.hint.lower()
    assert caught.value.hint


@pytest.mark.parametrize("name", BAD)
def test_the_command_line_exits_with_2_and_writes_nothing(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BAD[name].spoil(folder)
    before = {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*")}
    code = cli.main(["fit", str(folder / f"{NAME}.nii.gz"), "--out", str(folder.parent / "out"), "--device", "cpu"])
    assert code == 2
    assert {p: p.stat().st_mtime_ns for p in folder.parent.rglob("*")} == before
    said = "".join(capsys.readouterr())
    assert "Traceback" not in said
    assert NAME in said


@pytest.mark.parametrize("what", ["bval", "bvec"])
def test_a_named_table_that_is_not_there(what: str, folder: Path) -> None:
    with pytest.raises(GradientError, match=rf"elsewhere\.{what} does not exist"):
        read_acquisition(
            ScanSettings(dwi=str(folder / f"{NAME}.nii.gz"), **{what: str(folder / f"elsewhere.{what}")}),
            SilentReport(),
        )


def test_an_unreadable_file_is_an_input_error(folder: Path) -> None:
    (folder / "folder.nii.gz").mkdir()
    with pytest.raises(InputError):
        read_image(folder / "folder.nii.gz")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 351), value=st.integers(0, 255))
def test_no_byte_of_a_header_is_a_bug(position: int, value: int, folder: Path) -> None:
    write_scan(folder, f"{NAME}.nii")
    path = folder / f"{NAME}.nii"
    raw = bytearray(path.read_bytes())
    raw[position] = value
    path.write_bytes(bytes(raw))
    with suppress(DiffusionFMError):
        read_acquisition(ScanSettings(dwi=str(path)), SilentReport())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=st.one_of(st.text(max_size=60), st.text("0123456789.-+e \n\tn", max_size=60)))
def test_no_text_in_bval_or_bvec_is_a_bug(written: str, folder: Path) -> None:
    for extension in ("bval", "bvec"):
        write_scan(folder)
        (folder / f"{NAME}.{extension}").write_text(written, encoding="utf-8")
        with pytest.raises(DiffusionFMError):
            read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz")), SilentReport())


# --- masks ----------------------------------------------------------------------------------------------------------


def write_mask(folder: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    return write_scan(folder, "mask.nii.gz", data.astype(np.float32), affine, None, None)


def shifted(distance: float) -> np.ndarray:
    affine = affine_of(AXES["oblique left-handed"])
    affine[0, 3] += distance
    return affine


@pytest.mark.parametrize(
    ("data", "affine", "message", "hint"),
    [
        (np.ones((5, 5, 3)), None, r"mask\.nii\.gz has shape \(5, 5, 3\) but sub-01_dwi has \(4, 5, 3\)", "this scan"),
        (np.ones(SHAPE), shifted(2), "lies elsewhere than sub-01_dwi: .* up to 2 mm", "resample"),
        (np.ones(SHAPE), affine_of(AXES["RAS"]), "lies elsewhere", "resample"),
        (np.zeros(SHAPE), None, "is empty: every voxel is zero", "another"),
        (np.full(SHAPE, 0.5), None, "values between 0 and 1: probabilities", "Threshold"),
        (np.ones((*SHAPE, 2)), None, "has 2 volumes; expected a mask", "one volume"),
    ],
)
def test_masks_that_do_not_fit(
    data: np.ndarray, affine: np.ndarray | None, message: str, hint: str, folder: Path
) -> None:
    path = write_mask(folder, data, affine)
    with pytest.raises(InputError, match=message) as caught:
        read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz"), mask=str(path)), SilentReport())
    assert hint in caught.value.hint


def test_masks_that_fit(folder: Path) -> None:
    data = np.zeros(SHAPE)
    data[1, 2, 0], data[3, 4, 2] = 1, 5
    path = write_mask(folder, data, shifted(0.005))
    acquisition = read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz"), mask=str(path)), SilentReport())
    assert np.argwhere(acquisition.mask).tolist() == [[1, 2, 0], [3, 4, 2]]
    assert np.argwhere(read_mask(path, acquisition, 5)).tolist() == [[3, 4, 2]]
    with pytest.raises(InputError, match="has no voxel with label 4"):
        read_mask(path, acquisition, 4)


def test_a_mask_with_a_fourth_axis_of_one(folder: Path) -> None:
    path = write_mask(folder, np.ones((*SHAPE, 1)))
    acquisition = read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz"), mask=str(path)), SilentReport())
    assert acquisition.mask.all()


def test_an_image_with_nan(tmp_path: Path) -> None:
    path = tmp_path / "T1w.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), np.eye(4)), path)
    with pytest.raises(InputError, match=r"T1w\.nii\.gz holds values that are not finite"):
        read_image(path)


def test_bval_for_nrrd_must_fit_too(folder: Path) -> None:
    table = write_text(folder / "other.bval", BVALS[:3])
    with pytest.raises(GradientError, match=r"other\.bval has 3 b-values"):
        read_acquisition(ScanSettings(dwi=str(folder / f"{NAME}.nii.gz"), bval=str(table)), SilentReport())
