"""Scans for the tests of preprocessing and quality: real ones, and a small head with fibres made on the fly."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable

MD_TISSUE, MD_WATER, NOISE = 0.8e-3, 3.0e-3, 0.02
BUNDLES, BUNDLE_MM = 40, 8.0


def load_scan(path: Path, volumes: int | None = None) -> Acquisition:
    """A scan as FSL files; its b0s and every so-manieth other volume when `volumes` is given."""
    image = nib.load(f"{path}.nii.gz")
    bvals, bvecs = np.loadtxt(f"{path}.bval"), np.loadtxt(f"{path}.bvec")
    gtab = GradientTable.from_fsl(bvals, bvecs if bvecs.shape[1] == 3 else bvecs.T, image.affine)
    keep = np.arange(len(gtab))
    if volumes is not None:
        weighted = np.flatnonzero(~gtab.b0_mask)
        keep = np.sort(np.r_[np.flatnonzero(gtab.b0_mask)[:1], weighted[:: -(-len(weighted) // volumes)]])
    signal = image.get_fdata(dtype=np.float32)[..., keep]
    return Acquisition(signal, image.affine, gtab.subset(keep), name=path.name)


def directions(count: int) -> NDArray[np.float64]:
    """Evenly spread unit vectors, shape (count, 3)."""
    k = np.arange(count) + 0.5
    z, phi = 1 - k / count, np.pi * (1 + 5**0.5) * k
    return np.column_stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z])


def head(
    *,
    count: int = 16,
    bval: float = 1000.0,
    n_b0: int = 1,
    voxel: tuple[float, float, float] = (4.0, 4.0, 4.0),
    shape: tuple[int, int, int] = (50, 56, 44),
    axes: NDArray[np.float64] | None = None,
    turns: NDArray[np.float64] | None = None,
    coil: float = 0.0,
    seed: int = 0,
) -> tuple[Acquisition, NDArray[np.bool_]]:
    """A head with brain, ventricle, eyes and scalp, in any grid and frame; and its true brain mask.

    `axes` are the image's axes in RAS as columns; `turns`, shape (N, 3, 3), is how the head lies in each volume
    (about the middle of the field of view); `coil` darkens the middle by that fraction.
    """
    rng = np.random.default_rng(seed)
    axes = np.eye(3) if axes is None else axes
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(voxel)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    bvals = np.r_[np.zeros(n_b0), np.full(count, bval)]
    bvecs = np.vstack([np.zeros((n_b0, 3)), directions(count)])
    grid = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    turns = np.broadcast_to(np.eye(3), (len(bvals), 3, 3)) if turns is None else turns
    signal = np.empty((*shape, len(bvals)), np.float32)
    last = None
    for v, (b, g, turn) in enumerate(zip(bvals, bvecs, turns, strict=True)):
        # a head turned by R shows at x what lay at R^-1 x, and sees the gradient from R^-1
        if last is None or (turn != last).any():
            s0, fibre, fa, md = _tissue(grid @ turn)
            last = turn
        along = (fibre @ (turn.T @ g)) ** 2
        signal[..., v] = s0 * np.exp(-b * md * (1 + fa * (3 * along - 1)))
    signal *= (1 - coil * np.exp(-(grid**2).sum(axis=-1) / (2 * 40.0**2)))[..., None].astype(np.float32)
    noise = rng.normal(0, NOISE, (2, *signal.shape))
    signal = np.hypot(signal + noise[0], noise[1]).astype(np.float32)
    return Acquisition(signal, affine, GradientTable(bvals, bvecs), name="phantom"), _radius(grid) < 1


def _radius(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 on the brain's surface, an ellipsoid 130 mm wide, 170 long and 120 high: about 1400 ml."""
    return np.linalg.norm(x / [65.0, 85.0, 60.0], axis=-1)


def _tissue(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """S0, fibre direction, anisotropy (-> axial diffusivity MD (1 + 2 fa)) and MD at points in RAS mm."""
    r = _radius(x)
    brain = r < 1
    ventricle = np.linalg.norm(x / [8.0, 22.0, 10.0], axis=-1) < 1
    eyes = np.minimum(*(np.linalg.norm(x - [s * 32.0, 84.0, -38.0], axis=-1) for s in (-1, 1))) < 11
    scalp = (r > 1.12) & (r < 1.2) & ~eyes
    s0 = 1.0 * brain + 1.5 * (ventricle | eyes) + 0.35 * scalp
    md = np.where(ventricle | eyes, MD_WATER, np.where(scalp, 2e-3, MD_TISSUE))
    # straight bundles in all directions, thin, so that a wrong step leaves them
    fibre = np.zeros_like(x)
    rng = np.random.default_rng(7)
    for _ in range(BUNDLES):
        u = rng.normal(size=3)
        u /= np.linalg.norm(u)
        beside = x - rng.uniform(-0.7, 0.7, 3) * [65.0, 85.0, 60.0]
        beside -= (beside @ u)[..., None] * u
        fibre[np.linalg.norm(beside, axis=-1) < BUNDLE_MM] = u
    fa = np.where(brain & ~ventricle & fibre.any(axis=-1), 0.6, 0.0)
    return s0, fibre, fa, md
