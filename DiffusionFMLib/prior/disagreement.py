"""Where a voxel's own measurements contradict what the prior makes of them.

With posterior mean m and covariance P, what the N measurements leave, e = y - B m, has the covariance W^-1 - B P B',
however the prior was made of the neighbourhood: if m is the mean given all data, its error is uncorrelated with all
of them. So e' (W^-1 - B P B')^-1 e = e'We + (m - mu)' Lambda (m - mu) is distributed as chi^2 with N degrees of
freedom where noise level, physics and prior hold. It is the distance of the measurements from the prior's prediction
B mu, with the covariance B Lambda^-1 B' + W^-1: it tells of what the prior does not know even where few measurements
leave no residual.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.prior.information import Measurements
from DiffusionFMLib.prior.posterior import Posterior

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


def empirical_null(disagreement: Tensor) -> tuple[float, float]:
    """Centre and width of what most of a scan's voxels show, which are taken to be as the prior expects.

    Parameters
    ----------
    disagreement : Tensor, shape (V,)
        On the scale of a standard normal.

    Returns
    -------
    centre, width : float
        At least 0 and 1: motion and a model that does not quite hold make everything less likely than noise alone. The
        width comes from the lower half, where nothing that is abnormal counts (Efron, 2004).
    """
    some = disagreement[:: -(-len(disagreement) // SAMPLE)]
    low, middle = torch.nanquantile(some, some.new_tensor([0.1587, 0.5])).tolist()
    return max(middle, 0.0), max(middle - low, 1.0)
