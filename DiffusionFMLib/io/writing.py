"""A scan as files that other programs read: NIfTI with bval and bvec, or NRRD."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import OutputError
from DiffusionFMLib.gradients import SPACE_TO_RAS
from DiffusionFMLib.io.compressed import compressing
from DiffusionFMLib.io.images import stem
from DiffusionFMLib.io.outputs import nifti_image, replacing, write_bytes

SPACE: Final = "left-posterior-superior"
"""Space of NRRD headers that are written: that of DICOM, ITK and Slicer's own files."""


def write_acquisition(acquisition: Acquisition, path: Path) -> list[Path]:
    """Write a scan; the file's extension says the format.

    Parameters
    ----------
    acquisition : Acquisition
    path : Path
        ``.nii`` or ``.nii.gz`` (bval and bvec go beside it, in FSL's convention), ``.nrrd``, or ``.nhdr`` (its data
        go beside it).

    Returns
    -------
    list of Path
        What was written, the image first.

    Raises
    ------
    OutputError
        If it cannot be written, or the extension is unknown.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _write_nifti(acquisition, path, compressed=name.endswith(".gz"))
    if name.endswith(".nrrd"):
        return [_write_volumes(path, acquisition.signal, before=_nrrd_header(acquisition, "").encode())]
    if name.endswith(".nhdr"):
        _, data = written_files(path)
        _write_volumes(data, acquisition.signal)
        return [write_bytes(path, _nrrd_header(acquisition, data.name).encode()), data]
    msg = f"{path.name} is of no known format for scans; expected .nii.gz, .nii, .nrrd or .nhdr."
    raise OutputError(msg, "Choose one of these extensions.")


def written_files(path: Path) -> list[Path]:
    """Files that `write_acquisition` writes for a path, which comes first."""
    name = path.name.lower()
    beside = ("bval", "bvec") if name.endswith((".nii", ".nii.gz")) else ("raw.gz",) if name.endswith(".nhdr") else ()
    return [path, *(path.with_name(f"{stem(path)}.{extension}") for extension in beside)]


def _write_nifti(acquisition: Acquisition, path: Path, *, compressed: bool) -> list[Path]:
    gtab = acquisition.gtab
    _, bval, bvec = written_files(path)
    # the tables first: an image without them would look like a whole scan
    write_bytes(bval, _rows([gtab.bvals]))
    write_bytes(bvec, _rows(gtab.to_fsl(acquisition.affine).T))
    header = BytesIO()
    nifti_image(acquisition.signal, acquisition.affine).header.write_to(header)
    try:
        return [_write_volumes(path, acquisition.signal, header.getvalue(), compressed=compressed), bval, bvec]
    except (OSError, OutputError):
        # tables without an image would stand in the way of the next attempt
        for table in (bval, bvec):
            table.unlink(missing_ok=True)
        raise


def _rows(rows: Iterable[NDArray[np.float64]]) -> bytes:
    return "".join(f"{' '.join(f'{value + 0.0:.10g}' for value in row)}\n" for row in rows).encode()


def _write_volumes(
    path: Path, signal: NDArray[np.float32], header: bytes = b"", *, before: bytes = b"", compressed: bool = True
) -> Path:
    """Write `before`, then header and signal, as gzip unless told otherwise; volume by volume to spare a copy."""
    with replacing(path) as temporary, temporary.open("wb") as raw:
        raw.write(before)
        with compressing(raw) if compressed else nullcontext(raw) as file:
            file.write(header)
            for volume in range(signal.shape[3]):
                file.write(np.asarray(signal[..., volume], "<f4").tobytes(order="F"))
    return path


def _nrrd_header(acquisition: Acquisition, data_file: str) -> str:
    """NRRD header with the DWMRI keys, directions in the space itself; lower b-values are shorter gradients."""
    gtab, top = acquisition.gtab, acquisition.gtab.bvals.max()
    to_space = np.array(SPACE_TO_RAS[SPACE])
    affine = np.diag([*to_space, 1.0]) @ acquisition.affine
    vectors = gtab.bvecs * to_space * np.sqrt(gtab.bvals / top)[:, None]
    lines = [
        "NRRD0005",
        "type: float",
        "dimension: 4",
        f"space: {SPACE}",
        f"sizes: {' '.join(str(n) for n in acquisition.signal.shape)}",
        f"space directions: {' '.join(_vector(column) for column in affine[:3, :3].T)} none",
        "kinds: space space space list",
        "endian: little",
        "encoding: gzip",
        f"space origin: {_vector(affine[:3, 3])}",
        f"measurement frame: {' '.join(_vector(column) for column in np.eye(3))}",
        *([f"data file: {data_file}"] if data_file else []),
        "modality:=DWMRI",
        f"DWMRI_b-value:={top:.10g}",
        *(
            f"DWMRI_gradient_{i:04d}:={' '.join(f'{value + 0.0:.10g}' for value in vector)}"
            for i, vector in enumerate(vectors)
        ),
    ]
    return "\n".join(lines) + "\n\n"


def _vector(values: NDArray[np.float64]) -> str:
    return f"({','.join(f'{value + 0.0:.17g}' for value in values)})"
