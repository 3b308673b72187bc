"""Scans on disk that are larger than one likes to hold: written volume by volume, for tests and measurements."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np

from DiffusionFMLib.io.compressed import compressing
from DiffusionFMLib.physics.tensor_arrays import spread_directions

FIELD_OF_VIEW = (181.25, 217.5, 181.25)
"""Millimetres; with 145 x 174 x 145 voxels those of the Human Connectome Project."""

BRAIN_RADII = (0.72, 0.76, 0.66)
"""Half-axes of the brain as fractions of half the field of view."""

S0, SNR = 1000.0, 20.0
B0_EACH = 16
"""One volume in so many is b0; the others are spread over b = 1000 and 2000."""


def write_large_scan(path: Path, shape: tuple[int, int, int, int], seed: int = 0) -> int:
    """Write a noisy head as float32, with bval and bvec beside it.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    shape : tuple of int
        Voxels along x, y, z, and volumes.
    seed : int

    Returns
    -------
    int
        Bytes of the signal.
    """
    *grid, volumes = shape
    bvals, bvecs = _protocol(volumes)
    stem = path.name.partition(".")[0]
    np.savetxt(path.with_name(f"{stem}.bval"), bvals[None], fmt="%g")
    np.savetxt(path.with_name(f"{stem}.bvec"), bvecs.T, fmt="%.8f")

    position = np.stack(np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in grid), indexing="ij"), -1)
    radius = np.linalg.norm(position / np.float32(BRAIN_RADII), axis=-1)
    brain = radius < 1
    position, radius = position[brain], radius[brain]
    axis = np.stack([position[:, 2] + 0.3, np.full_like(radius, 0.2), -position[:, 0]], axis=1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    along, across = np.where(radius < 0.8, 1.7, 0.9), np.where(radius < 0.8, 0.4, 0.8)

    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=S0 / SNR, size=brain.size).astype(np.float32)
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    sizes = np.array(FIELD_OF_VIEW) / grid
    header.set_sform(np.diag([-sizes[0], *sizes[1:], 1.0]), 1)
    with path.open("wb") as raw, compressing(raw) if path.name.endswith(".gz") else nullcontext(raw) as file:
        header.write_to(file)
        for b, g in zip(bvals / 1000, bvecs, strict=True):
            # the same numbers, shifted: new ones for each volume would take longer than all the rest
            real, imaginary = (np.roll(noise, rng.integers(brain.size)).reshape(brain.shape) for _ in range(2))
            diffusivity = across + (along - across) * (axis @ g.astype(np.float32)) ** 2
            real[brain] += S0 * np.exp(-b * diffusivity)
            file.write(np.hypot(real, imaginary).tobytes(order="F"))
    return 4 * brain.size * volumes


def _protocol(volumes: int) -> tuple[np.ndarray, np.ndarray]:
    """b-values, s/mm2, shape (N,), and directions, shape (N, 3)."""
    b0 = np.arange(volumes) % B0_EACH == 0
    bvals = np.where(b0, 0.0, np.where(np.cumsum(~b0) % 2, 1000.0, 2000.0))
    bvecs = np.zeros((volumes, 3))
    for shell in (1000.0, 2000.0):
        bvecs[bvals == shell] = spread_directions(int((bvals == shell).sum()))
    return bvals, bvecs
