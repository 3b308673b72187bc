"""What the posterior leaves of the measurements, given back where neighbours say it alike (twicing: Tukey, 1977).

Each voxel's posterior takes its prior's error for one of its own. But what a prior does not expect, a lesion or a
bundle, it gets wrong alike in all voxels of it: what is left of their measurements, mostly noise in each of them,
together tells that error. It is estimated as the prior's mean is, by adding up information, and added.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.prior.information import Information
from DiffusionFMLib.prior.neighbourhood import VOXELS, filtered
from DiffusionFMLib.prior.systems import add_diagonal, multiply, solve

PASSES: Final = 1
"""Of the binomial filter: over the near neighbourhood, whose worth in voxels is `neighbourhood.VOXELS`."""

REACH: Final = PASSES
"""Voxels at the faces of a box that lack neighbours to be judged with."""

ROWS: Final = 16
"""Of the information that are spread over the volume at once."""

CHUNK: Final = 1 << 15
"""Voxels that are solved for at once."""


def twiced(
    mean: Tensor, information: Information, firmness: Tensor, place: Tensor, shape: tuple[int, int, int]
) -> Tensor:
    """The posterior mean with the error added that neighbours' measurements tell, shape (P, V).

    Parameters
    ----------
    mean : Tensor, shape (P, V)
        Posterior mean of the voxels of a box that have data.
    information : Information
        What their measurements say, with weights from that mean; without derivatives.
    firmness : Tensor, shape (P, V)
        Precision of the errors, for each coordinate.
    place : Tensor, shape (V,)
        Where the voxels lie in the box, in C order.
    shape : tuple of int
        Edges of the box, voxels.
    """
    left = _gathered(information.vector - multiply(information.precision, mean), place, shape)
    known = _gathered(information.precision, place, shape)
    parts = [
        solve(add_diagonal(known[:, part], firmness[:, part]), left[:, part])
        for part in (slice(start, start + CHUNK) for start in range(0, len(place), CHUNK))
    ]
    return mean + torch.cat(parts, 1)


def interior(place: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Whether voxels, shape (V,), at these places of a box have all their neighbours in it."""
    x, y, z = torch.unravel_index(place, shape)
    inside = [(REACH <= at) & (at < n - REACH) for at, n in zip((x, y, z), shape, strict=True)]
    return inside[0] & inside[1] & inside[2]


def _gathered(rows: Tensor, place: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Sums of rows, shape (C, V), over the voxels near each, as much as `VOXELS` of them in tissue of one kind."""
    parts = []
    for some in rows.split(ROWS):
        volume = some.new_zeros(len(some), shape[0] * shape[1] * shape[2])
        volume = volume.index_copy(1, place, some).reshape(-1, *shape)
        parts.append(VOXELS[0] * filtered(volume, PASSES).flatten(1)[:, place])
    return torch.cat(parts)
