"""Where a voxel's own measurements contradict what the prior makes of them.

With posterior mean m and covariance P, what the N measurements leave, e = y - B m, has the covariance W^-1 - B P B',
however the prior was made of the neighbourhood: if m is the mean given all data, its error is uncorrelated with all
of them. So e' (W^-1 - B P B')^-1 e = e'We + (m - mu)' Lambda (m - mu) is distributed as chi^2 with N degrees of
freedom where noise level, physics and prior hold. It is the distance of the measurements from the prior's prediction
B mu, with the covariance B Lambda^-1 B' + W^-1: it tells of what the prior does not know even where few measurements
leave no residual.

A lesion contradicts the prior a little in each of its voxels, more than noise does in all of them together. So what is
shown is what a voxel and its neighbours show, near or far, whichever is more.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.prior.information import Measurements
from DiffusionFMLib.prior.neighbourhood import filtered
from DiffusionFMLib.prior.posterior import Posterior

PASSES: Final = (1, 6)
"""Of the binomial filter that joins neighbours: a Gaussian of 0.7 voxels, and one of 1.7."""

MIN_WIDTH: Final = 0.05
"""What is left of white noise by the wider filter, about: a scan that shows less than that shows nothing."""

SAMPLE: Final = 1 << 20
"""Voxels, evenly picked, that the null distribution is taken from."""


def distance(result: Posterior, measurements: Measurements) -> Tensor:
    """Squared distance of the measurements from what the prior predicts, in units of its covariance, shape (V,)."""
    return measurements.misfit(result.mean) + result.tension()


def in_sigma(distance: Tensor, freedom: int) -> Tensor:
    """A squared distance on the scale of a standard normal, shape (V,).

    Parameters
    ----------
    distance : Tensor, shape (V,)
        Distributed as chi^2 when nothing is amiss.
    freedom : int
        Its degrees of freedom.

    Notes
    -----
    Wilson & Hilferty, 1931: unlike logarithms of tail probabilities it neither underflows nor needs tables.
    """
    part = 2 / (9 * freedom)
    return ((distance.clamp_min(0) / freedom) ** (1 / 3) - (1 - part)) / part**0.5


def empirical_null(alone: Tensor) -> tuple[float, float]:
    """Centre and width of what most of a scan's voxels show, which are taken to be as the prior expects.

    Parameters
    ----------
    alone : Tensor, shape (V,)
        Disagreement of each voxel by itself, on the scale of a standard normal.

    Returns
    -------
    centre, width : float
        At least 0 and 1: motion and a model that does not quite hold make everything less likely than noise alone.
    """
    middle, width = _most(alone)
    return max(middle, 0.0), max(width, 1.0)


def together(alone: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """Disagreement of voxels with those around them, in standard deviations of what most show, shape (V,).

    Parameters
    ----------
    alone : Tensor, shape (V,)
        That of each by itself; what is not a number counts as none.
    mask : array, shape (X, Y, Z), bool
        Where they lie.

    Notes
    -----
    What is a little more or less than expected everywhere adds up over neighbours, so that this is measured against
    the scan at each width.
    """
    place = torch.from_numpy(np.flatnonzero(mask)).to(alone.device)
    volume = alone.new_zeros(2, mask.size)
    volume[0, place], volume[1, place] = alone.nan_to_num(), 1
    found = []
    for passes in PASSES:
        total, voxels = filtered(volume.reshape(2, *mask.shape), passes).flatten(1)[:, place]
        # of the same spread at the brain's edge, where there are fewer
        found.append(_standardised(total / voxels.sqrt()))
    return _standardised(torch.stack(found).amax(0))


def _standardised(values: Tensor) -> Tensor:
    middle, width = _most(values)
    return (values - middle) / max(width, MIN_WIDTH)


def _most(values: Tensor) -> tuple[float, float]:
    """Median, and the width of the lower half, where nothing that is abnormal counts (Efron, 2004)."""
    some = values[:: -(-len(values) // SAMPLE)]
    low, middle = torch.nanquantile(some, some.new_tensor([0.1587, 0.5])).tolist()
    return middle, middle - low
