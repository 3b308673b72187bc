"""From a path to an `Acquisition`, an image or a mask: the format is told by the content, not by the name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition, check_affine
from DiffusionFMLib.errors import GradientError, InputError, ProtocolError
from DiffusionFMLib.events import Report, SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import dicom, fsl
from DiffusionFMLib.io.compressed import opened
from DiffusionFMLib.io.exported import NPY_MAGIC, ExportedNode
from DiffusionFMLib.io.images import ImageFile, stem
from DiffusionFMLib.io.nifti import NiftiFile, is_nifti
from DiffusionFMLib.io.nrrd import NRRD_MAGIC, NrrdFile
from DiffusionFMLib.settings import ScanSettings

IMPOSSIBLE_BVAL: Final = 100_000.0
"""Higher b-values are in another unit, s/mm2."""

LARGEST_LABEL: Final = 1 << 24
"""Whole numbers above it are no longer told apart in float32, which images are read as."""

GRID_TOLERANCE: Final = 1e-2
"""Two grids are the same when no corner voxel is further off, as a fraction of a voxel's edge."""


@dataclass(frozen=True, eq=False)
class Image:
    """A 3-D image, such as a T1w.

    Parameters
    ----------
    data : array, shape (X, Y, Z), float32
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm.
    name : str
        Stem of its file.
    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    name: str


@dataclass(frozen=True, eq=False)
class LabelImage:
    """Regions of a head, in a grid of their own.

    Parameters
    ----------
    data : array, shape (X, Y, Z), int32
        Number of the region that each voxel belongs to; 0 is none.
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm.
    name : str
        Name of its file.
    """

    data: NDArray[np.int32]
    affine: NDArray[np.float64]
    name: str


def open_image(path: Path) -> ImageFile:
    """The image in a file, its header read.

    Raises
    ------
    InputError
        If it is missing, damaged or of no known format.
    """
    with opened(path) as file:
        start = file.read(352)
    if is_nifti(start):
        return NiftiFile(path)
    if start.startswith(NRRD_MAGIC):
        return NrrdFile(path)
    if start.startswith(NPY_MAGIC):
        return ExportedNode(path)
    if not start:
        msg = f"{path.name} is empty."
        raise InputError(msg, "Copy or download the file again.")
    if start[128:132] == b"DICM":
        msg = f"{path.name} is a single DICOM file; expected the folder of the series."
        raise InputError(msg, f"Choose the folder {path.absolute().parent.name} instead.")
    msg = f"{path.name} is not an image that can be read: expected NIfTI, NRRD or a DICOM folder."
    raise InputError(msg, "Choose an image, or convert this one to NIfTI.")


def scan_files(settings: ScanSettings) -> list[Path]:
    """Files that a scan is read from, as far as they exist; the mask, which is not the scan, is not among them.

    Beside an image these are all of its name (bval and bvec), and those that its header names.

    Raises
    ------
    InputError
        If the image is damaged or of no known format.
    """
    dwi = Path(settings.dwi).expanduser()
    paths = [Path(path) for path in (settings.bval, settings.bvec) if path]
    if dwi.is_dir():
        paths += dwi.rglob("*")
    elif dwi.exists():
        name = stem(dwi)
        paths += (path for path in dwi.parent.iterdir() if path.name.startswith(f"{name}."))
        paths += open_image(dwi).files
    return sorted({path for path in (dwi, *paths) if path.is_file()})


def read_acquisition(settings: ScanSettings, report: Report) -> Acquisition:
    """Read a diffusion scan.

    Parameters
    ----------
    settings : ScanSettings
        `dwi` is a NIfTI, NRRD or exported file, or a DICOM folder; `bval` and `bvec` stand for the files beside it.
    report : Report
        Told of progress, and warned of what is odd but usable.

    Returns
    -------
    Acquisition
        Without the vendor's trace volumes; what was normalised is in its notes. A large signal may stay in its file,
        read-only; see `ImageFile.read`.

    Raises
    ------
    InputError
        If a file is missing, broken, or does not fit the others.
    GradientError
        If b-values or directions cannot be used.
    ProtocolError
        If the scan has no b0, no weighting or only one direction.
    JobCancelled
        If the report says so.
    """
    path = Path(settings.dwi).expanduser()
    if path.is_dir():
        with dicom.converted(path, settings.series, report) as series:
            return _read(NiftiFile(series.path), settings, report, series.stem)
    return _read(open_image(path), settings, report, mapped=True)


def _read(
    image: ImageFile, settings: ScanSettings, report: Report, name: str = "", *, mapped: bool = False
) -> Acquisition:
    """The scan in an image; `mapped` if the file will stay."""
    if len(image.shape) != 4:
        msg = f"{image.path.name} has 3 dimensions {image.shape}; expected 4: x, y, z and volumes."
        raise InputError(msg, "Choose the whole diffusion series, not a single volume of it.")
    check_affine(image.affine, image.path.name)
    gtab = None if settings.bval or settings.bvec else image.gradients(settings.b0_threshold)
    if gtab is None:
        gtab = fsl.read_table(image, settings.bval, settings.bvec, settings.b0_threshold)
    for code, message in image.warnings:
        report.warning(code, message)
    _check_protocol(image, gtab)
    notes, kept = list(image.notes), None
    if gtab.trace_mask.any():
        kept = np.flatnonzero(~gtab.trace_mask)
        message = (
            f"{int(gtab.trace_mask.sum())} volume(s) with a b-value but no direction (the scanner's trace images) "
            f"were set aside: {np.flatnonzero(gtab.trace_mask).tolist()}."
        )
        report.warning("trace-volumes", message)
        notes.append(message)
        gtab = gtab.subset(kept)
    signal = image.read(report, None if kept is None else kept.tolist(), mapped)
    acquisition = Acquisition(signal, image.affine, gtab, None, name or image.stem, tuple(notes))
    for code, message in acquisition.out_of_protocol():
        report.warning(code, message)
    if settings.mask:
        acquisition = acquisition.with_mask(read_mask(Path(settings.mask), acquisition))
    return acquisition


def _check_protocol(image: ImageFile, gtab: GradientTable) -> None:
    """Reject what no model can use, before the image itself is read."""
    name, weighted = image.path.name, gtab.bvals[~gtab.b0_mask]
    if len(weighted) and weighted.max() > IMPOSSIBLE_BVAL:
        msg = f"{name} has b-values up to {weighted.max():g} s/mm2, which no scanner of people reaches."
        raise GradientError(msg, "If they are 1000 times too large, divide them in the bval file.")
    if not len(weighted):
        top = gtab.bvals.max(initial=0.0)
        msg = f"{name} has no diffusion-weighted volume: its highest b-value is {top:g} s/mm2."
        hint = "Choose a diffusion series."
        if 0.1 < top < 10:
            hint = "If the b-values are in ms/um2, multiply them by 1000."
        raise ProtocolError(msg, hint)
    if not gtab.b0_mask.any():
        lowest, limit = weighted.min(), gtab.b0_threshold
        msg = f"{name} has no b0 volume: its lowest b-value is {lowest:g} s/mm2; expected one at most at {limit:g}."
        raise ProtocolError(
            msg, "Add the b0 volume, or raise the b0 threshold (--b0-threshold) if the lowest b-value stands for it."
        )
    if gtab.n_directions < 2:
        few = "along one direction only" if gtab.n_directions else "without any direction"
        msg = f"{name} has {len(weighted)} diffusion-weighted volume(s) {few}; expected three directions or more."
        raise ProtocolError(msg, "Choose the whole series: three directions give ADC, six the tensor.")


def read_image(path: Path, report: Report | None = None) -> Image:
    """Read a 3-D image, such as a T1w.

    Raises
    ------
    InputError
        If it is missing, damaged, not 3-D, or holds values that are not finite.
    """
    file = open_image(path)
    _check_volume(file, "a 3-D image")
    report = report or SilentReport()
    for code, message in file.warnings:
        report.warning(code, message)
    data = file.read(report)
    data = data[..., 0] if data.ndim == 4 else data
    if not np.isfinite(data.sum(dtype=np.float64)):
        msg = f"{path.name} holds values that are not finite numbers."
        raise InputError(msg, "Export the image again, or replace them with zeros.")
    return Image(data, file.affine, file.stem)


def read_mask(path: Path, acquisition: Acquisition, label: int = 0) -> NDArray[np.bool_]:
    """Read a mask or a label image in a scan's grid.

    Parameters
    ----------
    path : Path
        NIfTI, NRRD or exported node.
    acquisition : Acquisition
        The scan it must fit.
    label : int
        Which label; 0 takes every voxel that is not zero.

    Returns
    -------
    ndarray, shape (X, Y, Z), bool

    Raises
    ------
    InputError
        If it is damaged, of another shape or place, or empty.
    """
    file = open_image(path)
    _check_volume(file, "a mask")
    if file.shape[:3] != acquisition.shape:
        msg = f"{path.name} has shape {file.shape[:3]} but {acquisition.name} has {acquisition.shape}."
        raise InputError(msg, "Choose a mask drawn on this scan, or resample it to the scan's grid.")
    distance = grid_distance(file.affine, acquisition.affine, acquisition.shape)
    if distance > GRID_TOLERANCE * acquisition.voxel_sizes.min():
        msg = f"{path.name} lies elsewhere than {acquisition.name}: the same voxel is up to {distance:.3g} mm off."
        raise InputError(msg, "Choose a mask drawn on this scan, or resample it to the scan's grid.")
    values = file.read(SilentReport())
    values = values[..., 0] if values.ndim == 4 else values
    if not label and ((values > 0) & (values < 1)).any():
        msg = f"{path.name} holds values between 0 and 1: probabilities; expected a mask of 0 and 1."
        raise InputError(msg, "Threshold it first, for instance at 0.5.")
    mask = values == label if label else values != 0
    if np.isnan(values).any():
        msg = f"{path.name} holds values that are not numbers."
        raise InputError(msg, "Export the mask again.")
    if not mask.any():
        what = f"has no voxel with label {label}" if label else "is empty: every voxel is zero"
        msg = f"{path.name} {what}."
        raise InputError(msg, "Choose another label or mask.")
    return mask


def read_labels(path: Path, report: Report | None = None) -> LabelImage:
    """Read an image whose values are numbers of regions, in any grid.

    Raises
    ------
    InputError
        If it is damaged, not 3-D, without a region, or holds anything but whole numbers from 0 on.
    """
    image = read_image(path, report)
    check_affine(image.affine, path.name)
    values = image.data
    fraction = values != np.rint(values)
    if fraction.any():
        msg = f"{path.name} holds {values[fraction][0]:g}; expected the numbers of regions, which are whole."
        raise InputError(msg, "Choose a label image, not probabilities; resample it by nearest neighbour only.")
    if values.min() < 0:
        msg = f"{path.name} holds {values.min():g}; expected the numbers of regions, from 0 on."
        raise InputError(msg, "Give these regions positive numbers, or set them to 0.")
    if values.max() > LARGEST_LABEL:
        msg = f"{path.name} holds labels up to {values.max():.0f}; expected {LARGEST_LABEL} at most."
        raise InputError(msg, "Number the regions anew.")
    if not values.any():
        msg = f"{path.name} is empty: every voxel is zero."
        raise InputError(msg, "Choose another label image.")
    return LabelImage(values.astype(np.int32), image.affine, path.name)


def grid_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Largest distance between the same corner voxel of two grids, mm."""
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def _check_volume(file: ImageFile, what: str) -> None:
    if file.n_volumes != 1:
        msg = f"{file.path.name} has {file.n_volumes} volumes; expected {what}."
        raise InputError(msg, "Choose an image with one volume.")
