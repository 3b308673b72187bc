"""Small scans on disk, for tests of readers: a signal whose every value is known, on grids of every orientation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

BVALS = np.array([0.0, 1000, 1000, 1000, 2000, 2000, 700])
BVECS = np.array(
    [
        [0, 0, 0],
        [1, 0, 0],
        [0.6, 0.8, 0],
        [0.48, -0.6, 0.64],
        [-0.36, 0.48, 0.8],
        [0, 0, 1],
        [0, -1, 0],
    ]
)
"""Directions in FSL's frame of the image they are written with."""

SIZES = (2.0, 1.5, 3.0)
ORIGIN = (-10.0, 20.0, 5.0)
SHAPE = (4, 5, 3)


def rotation(axis: Sequence[float], degrees: float) -> NDArray[np.float64]:
    """Rodrigues' rotation about an axis."""
    x, y, z = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


AXES: dict[str, NDArray[np.float64]] = {
    "RAS": np.diag([1.0, 1, 1]),
    "LAS": np.diag([-1.0, 1, 1]),
    "LPS": np.diag([-1.0, -1, 1]),
    "PSR": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "oblique right-handed": rotation([1, 2, -1], 25) @ np.diag([-1.0, -1, 1]),
    "oblique left-handed": rotation([1, 2, -1], 25) @ np.diag([-1.0, 1, 1]),
    "oblique sagittal": rotation([0, 1, 1], -18) @ np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]]),
}
"""Directions of the voxel axes in RAS, as columns, of both handednesses."""


def affine_of(axes: ArrayLike, sizes: ArrayLike = SIZES, origin: ArrayLike = ORIGIN) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes) * np.asarray(sizes)
    affine[:3, 3] = origin
    return affine


def signal_of(shape: Sequence[int] = SHAPE, volumes: int = len(BVALS)) -> NDArray[np.int16]:
    """Every voxel of every volume has another value."""
    return np.arange(1, np.prod(shape) * volumes + 1, dtype=np.int16).reshape(*shape, volumes)


def write_text(path: Path, rows: ArrayLike) -> Path:
    np.savetxt(path, np.atleast_2d(rows), fmt="%.10g")
    return path


def write_scan(
    folder: Path,
    name: str = "sub-01_dwi.nii.gz",
    data: NDArray | None = None,
    affine: ArrayLike | None = None,
    bvals: ArrayLike | None = BVALS,
    bvecs: ArrayLike | None = BVECS,
) -> Path:
    """Write NIfTI, bval and bvec, without either where it is None."""
    affine = affine_of(AXES["oblique left-handed"]) if affine is None else np.asarray(affine)
    image = nib.Nifti1Image(signal_of() if data is None else data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    path = folder / name
    nib.save(image, path)
    stem = name.removesuffix(".gz").removesuffix(".nii")
    if bvals is not None:
        write_text(folder / f"{stem}.bval", bvals)
    if bvecs is not None:
        write_text(folder / f"{stem}.bvec", np.transpose(bvecs))
    return path
