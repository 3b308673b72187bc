"""A network per scan, trained on nothing but that scan's own signals through the physics (as DIMOND, Li et al., 2024).

Voxel by voxel it turns normalised signals into parameters, whose signal is to be the measured one. No reference and no
other scan has a part in it; what it has over least squares is that similar signals share their answer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.physics.noddi import MAX_ODI, MIN_ODI

WIDTH, LAYERS = 128, 3
BATCH = 512
EPOCHS = 40
RATE = 1e-3

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
    signal: NDArray[np.float32], gtab: GradientTable, model: str, epochs: int = EPOCHS, seed: int = 0
) -> NDArray[np.float32]:
    """Parameters of a scan's voxels by a network trained on them, shape (V, P).

    Parameters
    ----------
    signal : array, shape (V, N)
    gtab : GradientTable, N volumes
    model : str
        One of `PARAMETERS`.
    epochs : int
        It stops there, and not where the noise is fitted best.
    seed : int
        Of the network's start and of the batches.
    """
    torch.manual_seed(seed)
    measured = torch.as_tensor(signal, dtype=torch.float32)
    scale = measured[:, torch.as_tensor(gtab.b0_mask)].mean(1, keepdim=True).clamp_min(1e-3)
    measured = measured / scale
    physics, parameters = MODELS[model], PARAMETERS[model]
    layers: list[nn.Module] = []
    for inputs in (len(gtab), *([WIDTH] * (LAYERS - 1))):
        layers += [nn.Linear(inputs, WIDTH), nn.GELU()]
    last = nn.Linear(WIDTH, len(physics.parameters))
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    # a direction of length 0 points nowhere
    nn.init.constant_(last.bias[:1], 0.1 if model == "noddi" else 0.0)
    network = nn.Sequential(*layers, last)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    steps = -(-len(measured) // BATCH) * epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for some in torch.randperm(len(measured)).split(BATCH):
            optimizer.zero_grad()
            expected = physics.signal(parameters(network(measured[some])), gtab)
            (expected - measured[some]).square().mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        theta = torch.cat([parameters(network(part)) for part in measured.split(1 << 14)])
    theta[:, -1] += scale[:, 0].log()
    return theta.numpy()
