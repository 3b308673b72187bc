"""What a voxel and its nearest neighbours say together: the network's input, and what it starts from."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.prior.information import FrontEnd, Information
from DiffusionFMLib.prior.systems import add_diagonal, solve

NEIGHBOURS: Final = 8.0
"""How many voxels' worth of information a pooled estimate is given: a binomial filter averages 19 in white noise,
and fewer where noise is correlated."""


def pooled_estimate(information: Information, shape: tuple[int, int, int]) -> Tensor:
    """Ridge estimate of each voxel from its own and its neighbours' data, shape (P, V).

    Information adds up, whatever was measured where: pooling it does not shrink estimates as averaging them would.

    Parameters
    ----------
    information : Information
        Of all V voxels of a volume; none outside the brain.
    shape : tuple of int
        Of that volume.
    """
    sums = torch.cat([information.precision, information.vector]).reshape(-1, *shape)
    for axis in (1, 2, 3):
        sums = _binomial(sums, axis)
    sums = NEIGHBOURS * sums.reshape(len(sums), -1)
    packed = len(information.precision)
    return solve(add_diagonal(sums[:packed], 1.0), sums[packed:])


def _binomial(volume: Tensor, axis: int) -> Tensor:
    """A volume filtered with 1/4, 1/2, 1/4 along an axis; zero beyond its edge."""
    size = volume.shape[axis]
    result = 0.5 * volume
    ahead, behind = volume.narrow(axis, 1, size - 1), volume.narrow(axis, 0, size - 1)
    result.narrow(axis, 0, size - 1).add_(ahead, alpha=0.25)
    result.narrow(axis, 1, size - 1).add_(behind, alpha=0.25)
    return result


def network_input(front: FrontEnd, information: Information, shape: tuple[int, int, int], mask: Tensor) -> Tensor:
    """Features of a volume for the network, shape (2 P + P (P + 1) / 2, X, Y, Z).

    Parameters
    ----------
    front : FrontEnd
        Of all V voxels.
    information : Information
        Theirs.
    shape : tuple of int
        Of the volume.
    mask : Tensor, shape (V,), bool
        Where there are data.
    """
    inside = Information(information.precision * mask, information.vector * mask)
    features = torch.cat([front.mean, pooled_estimate(inside, shape), front.spread()])
    return (features * mask).reshape(-1, *shape)
