"""The data that speed is measured on: a whole head's worth of brain voxels, simulated with the tensor model."""

from __future__ import annotations

import runpy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions

SHAPE, VOXEL_SIZE = (96, 96, 50), 2.0
SNR, S0 = 20.0, 1000.0
BRAIN_RADII = (37.5, 43.5, 22.95)
"""Half-axes of the brain's ellipsoid in voxels; it holds about as many voxels as an adult brain at 2 mm."""

REFERENCE_SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "phantom" / "phantom.py"
"""The NODDI phantom of the published figures, where there is one: its mask and its directions are then used."""


PARENCHYMA = 0.95
"""Radius, as a fraction of the brain's, beyond which there is CSF."""


def phantom(n_directions: int = 30, bval: float = 1000.0, seed: int = 0, snr: float = SNR) -> Acquisition:
    """A noisy scan, one b0 and one shell, with its mask; `snr` is that of white matter at b0."""
    directions = spread_directions(n_directions)
    if REFERENCE_SCRIPT.is_file() and n_directions == 30:
        bvals, bvecs = runpy.run_path(str(REFERENCE_SCRIPT))["make_scheme"]("a_ss30")
        directions = bvecs[bvals > 0]
    gtab = GradientTable(np.r_[0, np.full(n_directions, bval)], np.concatenate([np.zeros((1, 3)), directions]))
    mask, position, radius = brain()
    theta = torch.as_tensor(_tissue(position, radius), dtype=torch.float32)
    clean = (DTI().signal(theta, gtab.subset([volume]))[:, 0].numpy() for volume in range(len(gtab)))
    return noisy(clean, gtab, mask, snr, seed)


def truth() -> dict[str, np.ndarray]:
    """FA and MD (mm2/s) of the phantom's voxels, shape (V,)."""
    _, position, radius = brain()
    maps = DTI().maps(torch.as_tensor(_tissue(position, radius)))
    return {name: maps[name].numpy() for name in ("fa", "md")}


def brain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask, and position (V, 3) and radius (V,) of its voxels as fractions of the brain's."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), -1)
    radius = np.linalg.norm(grid / BRAIN_RADII, axis=-1)
    mask = radius < 1
    return mask, grid[mask] / BRAIN_RADII, radius[mask]


def noisy(clean: Iterable[np.ndarray], gtab: GradientTable, mask: np.ndarray, snr: float, seed: int) -> Acquisition:
    """A scan with Rician noise of each volume's signal in the mask, shape (V,)."""
    rng = np.random.default_rng(seed)
    signal = np.empty((*SHAPE, len(gtab)), np.float32, order="F")
    for volume, values in enumerate(clean):
        real, imaginary = rng.normal(scale=S0 / snr, size=(2, *SHAPE)).astype(np.float32)
        real[mask] += values.astype(np.float32)
        signal[..., volume] = np.hypot(real, imaginary)
    affine = np.diag([-VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    return Acquisition(signal, affine, gtab, mask, name="phantom")


def _tissue(position: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Parameters of the tensor model, shape (V, 7): arching white matter inside, grey matter, CSF outside."""
    tangent = np.stack([position[:, 2] + 0.3, 0.2 + 0 * radius, -position[:, 0]], axis=1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    axial = np.select([radius < 0.8, radius < PARENCHYMA], [1.7, 0.9], 3.0)
    radial = np.select([radius < 0.8, radius < PARENCHYMA], [0.4, 0.8], 3.0)
    tensors = radial[:, None, None] * np.eye(3)
    tensors = tensors + (axial - radial)[:, None, None] * tangent[:, :, None] * tangent[:, None, :]
    log_s0 = np.log(S0 * np.select([radius < 0.8, radius < PARENCHYMA], [1.0, 1.15], 1.9))
    return np.column_stack([tensors[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], log_s0])
