"""Streamlines as TRX, TCK or TRK, with FA at each point where the format has room for it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence, TckFile, Tractogram, TrkFile
from numpy.typing import ArrayLike, NDArray

from DiffusionFMLib.errors import InputError, OutputError
from DiffusionFMLib.io.outputs import temporary_folder, write_bytes

FA: Final = "fa"
"""Name of the values along the streamlines."""

_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_tracts(
    path: Path,
    streamlines: Sequence[NDArray[np.float32]],
    affine: ArrayLike,
    shape: Sequence[int],
    fa: NDArray[np.float32] | None = None,
) -> Path:
    """Write streamlines; the file's extension says the format.

    Parameters
    ----------
    path : Path
        ``.trx``, ``.tck`` or ``.trk``.
    streamlines : sequence of arrays, shape (n, 3), float32, RAS mm
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm of the scan they belong to.
    shape : tuple of int
        Its voxels along x, y and z.
    fa : array, shape (P,), float32
        FA at each point, one streamline after another; TCK has no room for it.

    Raises
    ------
    OutputError
        If it cannot be written, or the extension is unknown.
    """
    lines = ArraySequence(streamlines)
    if not len(lines):
        lines._data = np.empty((0, 3), np.float32)
    kind = path.suffix.lower()
    along = {}
    if fa is not None and kind != ".tck":
        ends = np.cumsum([len(line) for line in streamlines])[:-1]
        along = {FA: ArraySequence(np.split(np.asarray(fa, np.float32)[:, None], ends))} if len(lines) else {}
    tractogram = Tractogram(lines, data_per_point=along, affine_to_rasmm=np.eye(4))
    if kind == ".trx":
        data = _trx_bytes(tractogram, np.asarray(affine, np.float64), shape)
    elif kind == ".trk":
        data = _nibabel_bytes(TrkFile(tractogram, _trk_header(np.asarray(affine, np.float64), shape)))
    elif kind == ".tck":
        data = _nibabel_bytes(TckFile(tractogram))
    else:
        msg = f"{path.name} is of no known format for streamlines; expected .trx, .tck or .trk."
        raise OutputError(msg, "Choose one of these extensions.")
    return write_bytes(path, data)


def read_tracts(path: Path) -> tuple[list[NDArray[np.float32]], NDArray[np.float32] | None]:
    """Streamlines (each of shape (n, 3), RAS mm) and, where the file has it, FA at each point, shape (P,).

    Raises
    ------
    InputError
        If the file is missing, damaged or of another format.
    """
    try:
        if path.suffix.lower() == ".trx":
            from trx import trx_file_memmap

            trx = trx_file_memmap.load(str(path))
            lines, along = trx.streamlines.copy(), {k: v.copy() for k, v in trx.data_per_vertex.items()}
            trx.close()
        else:
            tractogram = nib.streamlines.load(path).tractogram
            lines, along = tractogram.streamlines, tractogram.data_per_point
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, nib.streamlines.tractogram_file.HeaderError) as error:
        msg = f"{path.name} is not a readable file of streamlines: {error}."
        raise InputError(msg, "Choose a .trx, .tck or .trk file.") from error
    fa = np.asarray(along[FA].get_data(), np.float32).reshape(-1) if FA in along else None
    return [np.asarray(line, np.float32) for line in lines], fa


def _trx_bytes(tractogram: Tractogram, affine: NDArray[np.float64], shape: Sequence[int]) -> bytes:
    # trx loads torch-sized dependencies, which reading a scan should not wait for
    from trx import trx_file_memmap

    reference = nib.Nifti1Header()
    reference.set_data_shape(shape)
    reference.set_sform(affine, 1)
    with temporary_folder() as temporary:
        folder = temporary / "trx"
        trx = trx_file_memmap.TrxFile.from_tractogram(tractogram, reference)
        trx_file_memmap.save(trx, str(folder))
        trx.close()
        # zipped here, because the library's archive holds the time of writing and the disk's order of files
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(p for p in folder.rglob("*") if p.is_file()):
                archive.writestr(zipfile.ZipInfo(file.relative_to(folder).as_posix(), _ZIP_EPOCH), file.read_bytes())
    return buffer.getvalue()


def _trk_header(affine: NDArray[np.float64], shape: Sequence[int]) -> dict[str, object]:
    field = nib.streamlines.Field
    return {
        field.VOXEL_TO_RASMM: affine,
        field.DIMENSIONS: np.asarray(shape, np.int16),
        field.VOXEL_SIZES: np.linalg.norm(affine[:3, :3], axis=0),
        field.VOXEL_ORDER: "".join(nib.aff2axcodes(affine)),
    }


def _nibabel_bytes(file: TrkFile | TckFile) -> bytes:
    buffer = io.BytesIO()
    file.save(buffer)
    return buffer.getvalue()
