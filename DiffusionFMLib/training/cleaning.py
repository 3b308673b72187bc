"""Noise taken out of fitted maps, edges kept, so that what is trained on looks like tissue and not like noise."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.errors import InputError

CLEANING: Final = 1.5
"""Weight of the total variation over the noise's standard deviation."""

STEPS: Final = 60
"""Of the iteration that minimises total variation."""


def noise_of(volume: Tensor, inside: Tensor) -> float:
    """Standard deviation of what is not smooth in a volume, shape (C, X, Y, Z), in a mask, but of its first channel.

    From second differences along all axes, in which anatomy all but cancels; its borders do not count in a median.

    Raises
    ------
    InputError
        If no voxel of the mask has neighbours in it on all sides.
    """
    centre = inside[1:-1, 1:-1, 1:-1]
    rough = 6 * volume[:, 1:-1, 1:-1, 1:-1]
    for axis in range(3):
        for shift in (-1, 1):
            rough = rough - volume.roll(shift, axis + 1)[:, 1:-1, 1:-1, 1:-1]
            centre = centre & inside.roll(shift, axis)[1:-1, 1:-1, 1:-1]
    if not centre.any():
        msg = f"The brain of a scan of {' x '.join(map(str, inside.shape))} voxels is too thin to train on."
        raise InputError(msg, "Leave the scan out.")
    return float(rough[1:, centre].abs().median()) / (0.6745 * 42**0.5)


def denoised(volume: Tensor, inside: Tensor, strength: float) -> Tensor:
    """Vector-valued total variation denoising: channels share their edges (Bresson and Chan, 2008).

    Parameters
    ----------
    volume : Tensor, shape (C, X, Y, Z)
    inside : Tensor, shape (X, Y, Z), bool
        Differences across its border count for nothing.
    strength : float
        Weight of the total variation beside half the squared change.
    """
    if not strength > 0:
        return volume
    joined = torch.stack([_both(inside, axis) for axis in range(3)])
    dual = volume.new_zeros(3, *volume.shape)
    step = 1 / (12 * strength)
    for _ in range(STEPS):
        clean = volume + strength * _divergence(dual)
        gradient = torch.stack([_difference(clean, axis) * joined[axis] for axis in range(3)])
        dual = dual + step * gradient
        dual = dual / dual.square().sum((0, 1)).sqrt().clamp_min(1)
    return volume + strength * _divergence(dual)


def _both(inside: Tensor, axis: int) -> Tensor:
    """Where a voxel and the next one along an axis are inside."""
    ahead = inside.roll(-1, axis)
    ahead.select(axis, inside.shape[axis] - 1).fill_(False)
    return inside & ahead


def _difference(volume: Tensor, axis: int) -> Tensor:
    return volume.roll(-1, axis + 1) - volume


def _divergence(dual: Tensor) -> Tensor:
    # the dual is zero where there is no next voxel, so that rolling round brings nothing in
    return sum((part - part.roll(1, axis + 1) for axis, part in enumerate(dual)), torch.zeros(()))
