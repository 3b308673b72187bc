"""The mean kurtosis of the neighbours, as one more measurement of each voxel.

Errors of the signal without weighting, of diffusivity and of V = MD^2 W go together and nearly cancel in the
signals, but not in kurtosis, V over squares of the diffusivity: its maps are the noisiest of all, those across fibres
above all, though kurtosis itself differs least between neighbours of all that the model estimates. The local priors,
which are of diffusivity and V, can hardly say so.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.physics import DKI
from DiffusionFMLib.physics.tensor_arrays import quadratic_form, quartic_form, spread_directions
from DiffusionFMLib.prior.coordinates import KURTOSIS_SD, MD_SD, TYPICAL_KURTOSIS, TYPICAL_MD, coordinates_of
from DiffusionFMLib.prior.neighbourhood import filtered

MIN_MD: Final = 0.3
"""V is divided by at least the square of it, um2/ms."""

MAX_MD: Final = 1.6
"""Above it is fluid, um2/ms, where kurtosis means little: it neither gives nor takes."""

SCATTER: Final = 0.1
"""Standard deviation of a voxel's MK about its neighbours' mean; .03 without noise in simulated heads, whose borders
are softer than real ones. That of W is .045, so that MK says more."""

SHARED: Final = 0.3
"""Variance of the neighbours' mean over that of one of them; it would be .05 if their errors had nothing in common.
Chosen in simulated heads: with less, MD of lesions suffers."""

MIN_SHARE: Final = 0.05
"""Of the neighbours, by the filter's weights, that have to be there."""

PASSES: Final = 2
"""The second has means of what the first has made better."""

OWN: Final = 1 / 8
"""Weight of the voxel itself in the filter."""

DIRECTIONS: Final = 40
"""That `mean_apparent_kurtosis` averages over."""

CHUNK: Final = 1 << 15
"""Voxels whose kurtosis along all of them is held at once."""

MIN_DIFFUSIVITY: Final = 0.15
"""Along a direction, um2/ms: V is divided by at least the square of it."""


def mean_kurtosis(u: Tensor) -> Tensor:
    """Mean W of the kurtosis tensor of whitened coordinates, shape (22, V): (V,)."""
    md = (TYPICAL_MD + MD_SD * u[0]).clamp_min(MIN_MD)
    return (TYPICAL_KURTOSIS + KURTOSIS_SD[0] * u[6]) / md.square()


def mean_apparent_kurtosis(u: Tensor) -> Tensor:
    """MK, the mean of V(n) / D(n)^2 over directions n, of whitened coordinates, shape (22, V): (V,).

    Unlike the exact mean, finite for all coordinates.
    """
    diffusivity, v = _along_directions(u)
    return (v / diffusivity.clamp_min(MIN_DIFFUSIVITY).square()).mean(0)


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
    tissue = TYPICAL_MD + MD_SD * u[0] < MAX_MD
    found, gain, spread = u, torch.zeros_like(u), torch.zeros_like(u)
    for _ in range(PASSES):
        mk, slope = _linearised(found)
        spread.zero_()
        for column, part in zip(covariance.unbind(1), slope, strict=True):
            spread.addcmul_(column, part)
        variance = (slope * spread).sum(0)
        mean, uncertain, share = _of_neighbours(torch.stack([mk, variance]), tissue, mask)
        told = tissue & (share > MIN_SHARE)
        gain = told * spread / (SCATTER**2 + SHARED * uncertain + variance)
        found = u + gain * (mean - mk - (slope * (u - found)).sum(0))
    for row, part in zip(covariance, gain, strict=True):
        row -= part * spread
    return found


def _along_directions(u: Tensor) -> tuple[Tensor, Tensor]:
    """D(n) and V(n), shape (`DIRECTIONS`, V) each."""
    offsets, matrix = (u.new_tensor(part) for part in _forms())
    return (offsets + matrix @ u).chunk(2)  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _forms() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """D(n), then V(n), of coordinates u: offsets + matrix @ u; shapes (2 `DIRECTIONS`, 1) and (2 `DIRECTIONS`, 22)."""
    n, coordinates = spread_directions(DIRECTIONS), coordinates_of(DKI())
    forms = np.zeros((2 * DIRECTIONS, len(coordinates)))
    forms[:DIRECTIONS, :6], forms[DIRECTIONS:, 6:21] = quadratic_form(n), quartic_form(n)
    return (forms @ coordinates.mean)[:, None], forms @ coordinates.basis


def _linearised(u: Tensor) -> tuple[Tensor, Tensor]:
    """MK, shape (V,), and its derivatives by the coordinates, shape (22, V)."""
    values, slopes = torch.empty_like(u[0]), torch.empty_like(u)
    of_diffusivity, of_v = (u.new_tensor(part) / DIRECTIONS for part in np.split(_forms()[1], 2))
    for start in range(0, u.shape[1], CHUNK):
        here = slice(start, start + CHUNK)
        diffusivity, v = _along_directions(u[:, here])
        inverse = diffusivity.clamp_min(MIN_DIFFUSIVITY).reciprocal()
        square = inverse.square()
        values[here] = (v * square).mean(0)
        lowered = -2 * v * square * inverse * (diffusivity > MIN_DIFFUSIVITY)
        slopes[:, here] = of_v.T @ square + of_diffusivity.T @ lowered
    return values, slopes


def _of_neighbours(values: Tensor, some: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means of two values, shape (2, V), over `some` of the voxels beside each; and what share of them is there."""
    volume = values.new_zeros(3, *mask.shape)
    # not by a product: what is not a number would spread
    volume[:, mask] = torch.cat([values, torch.ones_like(values[:1])]).where(some, 0.0)
    total = (filtered(volume, 1) - OWN * volume)[:, mask]
    share = total[2] / (1 - OWN)
    return *(total[:2] / total[2].clamp_min(1e-6)), share
