"""A network per scan, trained on nothing but that scan's own signals through the physics (as DIMOND, Li et al., 2024).

It turns normalised signals, of a voxel or of its neighbours too, into the voxel's parameters, whose signal is to be the
measured one. No reference and no other scan has a part in it. What it has over least squares is that similar signals
share their answer, and that it stops before it follows the noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.physics.noddi import MAX_ODI, MIN_ODI

WIDTH, LAYERS = 128, 3
BATCH = 512
RATE = 1e-3

STEPS = 300
"""More make it follow the noise, at SNR 10 above all; chosen on the phantom, in its favour."""

MIN_DIFFUSIVITY = 0.02
"""um2/ms, which keeps tensors positive."""

TYPICAL_DIFFUSIVITY = 0.9
"""Where the tensor starts, um2/ms."""


def tensor(raw: Tensor) -> Tensor:
    """Parameters of the tensor from 7 numbers per voxel: those of a Cholesky factor, and ln S0."""
    start = functional.softplus(raw[:, :3] + 1) * (TYPICAL_DIFFUSIVITY**0.5 / functional.softplus(raw.new_tensor(1.0)))
    a, b, c = start.unbind(1)
    d, e, f = raw[:, 3:6].unbind(1)
    xx, xy, xz = a * a, a * d, a * e
    yy, yz, zz = d * d + b * b, d * e + b * f, e * e + f * f + c * c
    least = MIN_DIFFUSIVITY
    return torch.stack([xx + least, xy, xz, yy + least, yz, zz + least, raw[:, 6]], dim=1)


def noddi(raw: Tensor) -> Tensor:
    """Parameters of NODDI from 7 numbers per voxel: direction, NDI, ODI, FWF and ln S0."""
    ndi, odi, fwf = raw[:, 3].sigmoid(), (raw[:, 4] - 1).sigmoid(), (raw[:, 5] - 2).sigmoid()
    return torch.stack([*raw[:, :3].unbind(1), ndi, MIN_ODI + (MAX_ODI - MIN_ODI) * odi, fwf, raw[:, 6]], dim=1)


PARAMETERS: dict[str, Callable[[Tensor], Tensor]] = {"dti": tensor, "noddi": noddi}
"""By model: from what a network can put out to what is physical."""


def train_on_scan(
    scan: Acquisition, model: str, radius: int = 0, steps: int = STEPS, seed: int = 0
) -> NDArray[np.float32]:
    """Parameters of the V voxels of a scan's mask by a network trained on them, shape (V, P).

    Parameters
    ----------
    scan : Acquisition
        With a mask.
    model : str
        One of `PARAMETERS`.
    radius : int
        Neighbours to so many voxels along each axis are shown too.
    steps : int
    seed : int
        Of the network's start and of the batches.
    """
    torch.manual_seed(seed)
    around, scale = neighbourhoods(scan, radius)
    inputs = torch.as_tensor(around.reshape(len(around), -1))
    measured = torch.as_tensor(around[:, around.shape[1] // 2])
    physics, parameters = MODELS[model], PARAMETERS[model]
    layers: list[nn.Module] = []
    for size in (inputs.shape[1], *([WIDTH] * (LAYERS - 1))):
        layers += [nn.Linear(size, WIDTH), nn.GELU()]
    last = nn.Linear(WIDTH, len(physics.parameters))
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    # a direction of length 0 points nowhere
    nn.init.constant_(last.bias[:1], 0.1 if model == "noddi" else 0.0)
    network = nn.Sequential(*layers, last)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        some = torch.randint(len(inputs), (BATCH,))
        optimizer.zero_grad()
        expected = physics.signal(parameters(network(inputs[some])), scan.gtab)
        (expected - measured[some]).square().mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        theta = torch.cat([parameters(network(part)) for part in inputs.split(1 << 14)]).numpy()
    theta[:, -1] += np.log(scale)
    return theta


def neighbourhoods(scan: Acquisition, radius: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Signals of the V voxels of a mask and their K neighbours, 0 outside of it, over the mean b0 of them.

    Returns
    -------
    around : ndarray, shape (V, K, N)
        The voxel itself is the middle one.
    scale : ndarray, shape (V,)
        That mean, in the scan's unit.
    """
    size, margin = 2 * radius + 1, [(radius, radius)] * 3
    signal = np.where(scan.mask[..., None], scan.signal, np.float32(0))
    windows = sliding_window_view(np.pad(signal, [*margin, (0, 0)]), (size,) * 3, axis=(0, 1, 2))[scan.mask]
    around = np.moveaxis(windows, 1, -1).reshape(len(windows), -1, signal.shape[-1])
    inside = sliding_window_view(np.pad(scan.mask, margin), (size,) * 3)[scan.mask].reshape(len(windows), -1)
    scale = (around[..., scan.gtab.b0_mask].mean(-1).sum(1) / inside.sum(1)).clip(1e-3).astype(np.float32)
    return np.ascontiguousarray(around / scale[:, None, None]), scale
