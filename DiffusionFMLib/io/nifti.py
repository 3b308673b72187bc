"""NIfTI images: single files, version 1 or 2, gzip or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import image_rotation
from DiffusionFMLib.io.compressed import drain, is_gzip, opened
from DiffusionFMLib.io.images import READING, ImageFile

CONFLICT_DEGREES: Final = 5.0
"""sform and qform that differ by a larger rotation are reported."""

MAPPED_FROM: Final = 1 << 28
"""Smaller images are always read, bytes: a mapped file that another program cuts short ends this one."""

_HEADERS: Final = {348: nib.Nifti1Header, 540: nib.Nifti2Header}


def is_nifti(start: bytes) -> bool:
    """Whether a file that starts so is NIfTI."""
    sizes = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    return (348 in sizes and start[344:347] in (b"n+1", b"ni1")) or (540 in sizes and start[4:7] in (b"n+2", b"ni2"))


class NiftiFile(ImageFile):
    """A NIfTI image; see `ImageFile`.

    The sform is the orientation when it is set, else the qform, as in nibabel and FSL.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with opened(path) as file:
            header = _read_header(path, file)
        if header["magic"].item() in (b"ni1", b"ni2"):
            msg = f"{path.name} is the header of a NIfTI pair (.hdr and .img); expected a single .nii or .nii.gz file."
            raise InputError(msg, "Convert it to a single file.")
        self._header = header
        self._dtype = header.get_data_dtype()
        if self._dtype.kind not in "iufb":
            msg = f"{path.name} holds values of type {self._dtype}; expected real numbers."
            raise InputError(msg, "Choose the magnitude images, not colours or complex values.")
        self.shape = tuple(int(n) for n in header.get_data_shape())
        self._check_shape()
        self._offset = _data_offset(path, header)
        self.affine = np.asarray(header.get_best_affine(), np.float64)
        self._check_orientation()

    def _values(self, report: Report, volumes: Sequence[int] | None, mapped: bool) -> NDArray[np.float32]:
        """Volume by volume, so that the file's own type never stands in memory as a whole."""
        if mapped and volumes is None and self._mappable():
            # not every drive can map; a plain array on the map, since what is made like it must not be one
            with suppress(OSError):
                return np.asarray(np.memmap(self.path, self._dtype, "r", self._offset, self.shape, order="F"))
        grid, count = self.shape[:3], self.n_volumes
        wanted = {volume: place for place, volume in enumerate(range(count) if volumes is None else volumes)}
        size = math.prod(grid) * self._dtype.itemsize
        slope, intercept = self._scaling()
        out = np.empty((*grid, len(wanted)), np.float32, order="F")
        with opened(self.path) as file:
            file.seek(self._offset)
            for volume in range(count):
                report.progress(volume, count, READING)
                data = file.read(size)
                if len(data) < size:
                    msg = f"{self.path.name} ends within volume {volume} of {count}: the file is cut short."
                    raise InputError(msg, "Copy or download the file again.")
                if volume not in wanted:
                    continue
                values = np.frombuffer(data, self._dtype).reshape(grid, order="F")
                if (slope, intercept) != (1.0, 0.0):
                    values = values * np.float64(slope) + np.float64(intercept)
                # what float32 cannot hold becomes infinite here, and is reported with its volume afterwards
                with np.errstate(over="ignore"):
                    out[..., wanted[volume]] = values
            drain(file)
        return out if len(self.shape) == 4 else out[..., 0]

    def _mappable(self) -> bool:
        """Whether the file holds a large image just as it would be in memory, and all of it."""
        size = math.prod(self.shape) * self._dtype.itemsize
        return (
            size >= MAPPED_FROM
            and self._dtype == np.float32
            and self._scaling() == (1.0, 0.0)
            and self._offset % self._dtype.itemsize == 0
            and not is_gzip(self.path)
            and self.path.stat().st_size >= self._offset + size
        )

    def _scaling(self) -> tuple[float, float]:
        try:
            slope, intercept = self._header.get_slope_inter()
        except HeaderDataError as error:
            msg = f"{self.path.name} has an unusable intensity scaling: {error}."
            raise InputError(msg, "Convert the scan again.") from error
        return (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))

    def _check_orientation(self) -> None:
        sform, scode = self._header.get_sform(coded=True)
        qform, qcode = _qform(self._header)
        if not scode and not qcode:
            self.warnings.append(
                ("no-orientation", f"{self.path.name} has neither sform nor qform: left and right are not known.")
            )
        if not scode or not qcode or qform is None:
            return
        if not all(np.isfinite(form).all() and abs(np.linalg.det(form[:3, :3])) > 1e-9 for form in (sform, qform)):
            return
        turn = image_rotation(sform) @ image_rotation(qform).T
        mirrored = np.linalg.det(turn) < 0
        degrees = np.rad2deg(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        if mirrored or degrees > CONFLICT_DEGREES:
            how = "are mirror images of each other" if mirrored else f"differ by {degrees:.0f} degrees"
            message = f"In {self.path.name} sform and qform {how}; the sform was taken. Check left and right."
            self.warnings.append(("orientation-conflict", message))


def _read_header(path: Path, file: BinaryIO) -> Any:
    try:
        size = file.read(4)
        file.seek(0)
        known = next(h for n, h in _HEADERS.items() if n in (int.from_bytes(size, o) for o in ("little", "big")))
        return known.from_fileobj(file)
    except (
        nib.filebasedimages.ImageFileError,
        HeaderDataError,
        nib.wrapstruct.WrapStructError,
        StopIteration,
    ) as error:
        msg = f"{path.name} has a broken NIfTI header: {error or 'its size is wrong'}."
        raise InputError(msg, "Convert the scan again, or choose another file.") from error


def _data_offset(path: Path, header: Any) -> int:
    """Where the values start, bytes; a whole number in a float field, so that it can be anything."""
    offset = float(header["vox_offset"])
    if not header.sizeof_hdr <= offset < 1 << 40:
        msg = f"{path.name} has a broken NIfTI header: its values are said to start at byte {offset:g}."
        raise InputError(msg, "Convert the scan again, or choose another file.")
    return int(offset)


def _qform(header: Any) -> tuple[NDArray[np.float64] | None, int]:
    try:
        qform, code = header.get_qform(coded=True)
    except (ValueError, HeaderDataError):  # a quaternion that is none
        return None, 0
    return qform, int(code)
