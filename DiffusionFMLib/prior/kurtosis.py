"""The mean kurtosis of the neighbours, as one more measurement of each voxel.

Errors of the signal without weighting, of diffusivity and of V = MD^2 W go together and nearly cancel in the
signals, but not in W: maps of kurtosis are the noisiest of all, though kurtosis itself differs least between neighbours
of all that the model estimates. The local priors, which are of MD and V, can hardly say so.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.prior.coordinates import KURTOSIS_SD, MD_SD, TYPICAL_KURTOSIS, TYPICAL_MD
from DiffusionFMLib.prior.neighbourhood import filtered

PLACES: Final = (0, 6)
"""Coordinates that are MD and the mean of V."""

MIN_MD: Final = 0.3
"""V is divided by at least the square of it, um2/ms."""

MAX_MD: Final = 1.6
"""Above it is fluid, um2/ms, where kurtosis means little: it neither gives nor takes."""

SCATTER: Final = 0.1
"""Standard deviation of a voxel's W about its neighbours' mean; .05 without noise in simulated heads, whose borders are
softer than real ones."""

SHARED: Final = 0.3
"""Variance of the neighbours' mean over that of one of them; it would be .05 if their errors had nothing in common.
Chosen in simulated heads: with less, MD of lesions suffers."""

MIN_SHARE: Final = 0.05
"""Of the neighbours, by the filter's weights, that have to be there."""

PASSES: Final = 2
"""The second has means of what the first has made better."""

OWN: Final = 1 / 8
"""Weight of the voxel itself in the filter."""


def mean_kurtosis(u: Tensor) -> Tensor:
    """Mean W of the kurtosis tensor of whitened coordinates, shape (22, V): (V,)."""
    md = (TYPICAL_MD + MD_SD * u[0]).clamp_min(MIN_MD)
    return (TYPICAL_KURTOSIS + KURTOSIS_SD[0] * u[6]) / md.square()


def told_by_neighbours(u: Tensor, covariance: Tensor, mask: Tensor) -> Tensor:
    """Posterior mean, shape (22, V), once the neighbours' mean kurtosis is known too.

    Parameters
    ----------
    u : Tensor, shape (22, V)
        Posterior mean of the coordinates.
    covariance : Tensor, shape (22, 22, V)
        Of it; becomes that of the result, in place.
    mask : Tensor, shape (X, Y, Z), bool
        Where the V voxels lie.
    """
    places = list(PLACES)
    tissue = TYPICAL_MD + MD_SD * u[0] < MAX_MD
    found, gain, spread = u, torch.zeros_like(u), torch.zeros_like(u)
    for _ in range(PASSES):
        w, slope = _linearised(found)
        spread = covariance[:, places[0]] * slope[0] + covariance[:, places[1]] * slope[1]
        variance = (slope * spread[places]).sum(0)
        mean, uncertain, share = _of_neighbours(torch.stack([w, variance]), tissue, mask)
        told = tissue & (share > MIN_SHARE)
        gain = told * spread / (SCATTER**2 + SHARED * uncertain + variance)
        found = u + gain * (mean - w - (slope * (u - found)[places]).sum(0))
    for row, part in zip(covariance, gain, strict=True):
        row -= part * spread
    return found


def _linearised(u: Tensor) -> tuple[Tensor, Tensor]:
    """W, shape (V,), and its derivatives by `PLACES`, shape (2, V)."""
    w = mean_kurtosis(u)
    md = (TYPICAL_MD + MD_SD * u[0]).clamp_min(MIN_MD)
    return w, torch.stack([-2 * MD_SD * w / md, KURTOSIS_SD[0] / md.square()])


def _of_neighbours(values: Tensor, some: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of two values, shape (2, V), over `some` of the voxels beside each; and what share of them is there."""
    volume = values.new_zeros(3, *mask.shape)
    # not by a product: what is not a number would spread
    volume[:, mask] = torch.cat([values, torch.ones_like(values[:1])]).where(some, 0.0)
    total = (filtered(volume, 1) - OWN * volume)[:, mask]
    share = total[2] / (1 - OWN)
    return *(total[:2] / total[2].clamp_min(1e-6)), share
