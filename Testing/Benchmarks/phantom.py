"""The data that speed is measured on: a whole head's worth of brain voxels, simulated with the tensor model."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np

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


def phantom(n_directions: int = 30, bval: float = 1000.0, seed: int = 0) -> Acquisition:
    """A noisy scan, one b0 and one shell, with its mask."""
    directions = spread_directions(n_directions)
    if REFERENCE_SCRIPT.is_file() and n_directions == 30:
        bvals, bvecs = runpy.run_path(str(REFERENCE_SCRIPT))["make_scheme"]("a_ss30")
        directions = bvecs[bvals > 0]
    gtab = GradientTable(np.r_[0, np.full(n_directions, bval)], np.concatenate([np.zeros((1, 3)), directions]))
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), -1)
    radius = np.linalg.norm(grid / BRAIN_RADII, axis=-1)
    mask = radius < 1
    theta = _tissue(grid[mask] / BRAIN_RADII, radius[mask])

    import torch

    rng = np.random.default_rng(seed)
    signal = np.empty((*SHAPE, len(gtab)), np.float32, order="F")
    clean = DTI().signal(torch.as_tensor(theta, dtype=torch.float32), gtab).numpy()
    for volume in range(len(gtab)):
        real, imaginary = rng.normal(scale=S0 / SNR, size=(2, *SHAPE)).astype(np.float32)
        real[mask] += clean[:, volume]
        signal[..., volume] = np.hypot(real, imaginary)
    affine = np.diag([-VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    return Acquisition(signal, affine, gtab, mask, name="phantom")


def _tissue(position: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Parameters of the tensor model, shape (V, 7): arching white matter inside, grey matter, CSF outside."""
    tangent = np.stack([position[:, 2] + 0.3, 0.2 + 0 * radius, -position[:, 0]], axis=1)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    axial = np.select([radius < 0.8, radius < 0.95], [1.7, 0.9], 3.0)
    radial = np.select([radius < 0.8, radius < 0.95], [0.4, 0.8], 3.0)
    tensors = radial[:, None, None] * np.eye(3)
    tensors = tensors + (axial - radial)[:, None, None] * tangent[:, :, None] * tangent[:, None, :]
    log_s0 = np.log(S0 * np.select([radius < 0.8, radius < 0.95], [1.0, 1.15], 1.9))
    return np.column_stack([tensors[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], log_s0])
