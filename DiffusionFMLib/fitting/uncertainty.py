"""Standard errors of maps: the noise that a fit leaves, spread to the parameters and on to their maps."""

from __future__ import annotations

from typing import Final

import torch
from scipy.stats import chi2
from torch import Tensor

from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.fitting.contract import Estimator, Spread, maps_in_rows
from DiffusionFMLib.maps import standard_error
from DiffusionFMLib.physics import SignalModel

MIN_FREEDOM: Final = 3
"""Volumes beyond the unknowns, below which residuals tell nothing of the noise."""

SCAN_FREEDOM: Final = 8.0
"""The noise of a voxel is that of the scan, taken as so many volumes, and its own, taken as those beyond its unknowns:
few residuals alone say little."""

CHUNK: Final = 4096
"""Voxels at a time: a covariance is large."""

MAX_ERROR: Final = 1e3
"""Errors are cut off here, where the data do not determine a map at all."""


def working_rows(volumes: int, unknowns: int) -> int:
    """Numbers of working memory, in float32, that standard errors take for each voxel of a tile."""
    return 4 * unknowns * (volumes + 2 * unknowns)


def scan_variance(estimator: Estimator, sample: Tensor) -> float:
    """Variance of a scan's noise, from what the fit of typical voxels leaves.

    Parameters
    ----------
    estimator : Estimator
        Of as many voxels as the sample.
    sample : Tensor, shape (N, V)

    Raises
    ------
    ProtocolError
        If there are too few volumes to tell.
    """
    estimator.signal.copy_(sample)
    spread = estimator.spread(estimator.solve().theta)
    freedom = float(spread.freedom.median())
    if freedom < MIN_FREEDOM:
        msg = (
            f"Standard errors come from what the fit leaves, and need {MIN_FREEDOM} volumes more than unknowns; this "
            f"scan has {freedom:.0f} more."
        )
        raise ProtocolError(msg, "Fit without standard errors.")
    # of a chi-squared distribution the median, because some voxels hold what no model explains
    return float(spread.squares.nanmedian()) / float(chi2.median(freedom))


def standard_errors(model: SignalModel, theta: Tensor, spread: Spread, variance: float) -> dict[str, Tensor]:
    """Standard errors of a model's scalar maps, to first order.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor, shape (P, V)
    spread : Spread
        Of these parameters.
    variance : float
        Of the scan's noise; see `scan_variance`.

    Returns
    -------
    dict of str to Tensor, shape (V,)
        By the names of `maps.standard_error`.
    """
    freedom = spread.freedom.clamp_min(0)
    noise = (SCAN_FREEDOM * variance + spread.squares) / (SCAN_FREEDOM + freedom)
    errors = spread_to_maps(model, theta, spread.covariance, noise)
    return {standard_error(spec).name: errors[spec.name] for spec in model.map_specs if not spec.components}


def spread_to_maps(
    model: SignalModel, theta: Tensor, covariance: Tensor, variance: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Standard deviations of a model's scalar maps, to first order, shape (V,) each, by the maps' names.

    Parameters
    ----------
    model : SignalModel
    theta : Tensor, shape (P, V)
    covariance : Tensor, shape (V, P, P)
        Of these parameters.
    variance : Tensor, shape (V,), or float
        What the covariance is to be multiplied with.
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, theta.shape[1], CHUNK)]
    parts = [_variances(model, theta[:, chunk], covariance[chunk].double()) for chunk in chunks]
    joined = {name: torch.cat([part[name] for part in parts]) * variance for name in parts[0]}
    # S0 is in the scan's unit
    most = {name: MAX_ERROR * (theta[-1].double().exp() if name == "s0" else torch.ones(())) for name in joined}
    return {
        name: torch.minimum(values.sqrt().nan_to_num(nan=torch.inf, posinf=torch.inf), most[name].to(values))
        for name, values in joined.items()
    }


def _variances(model: SignalModel, theta: Tensor, covariance: Tensor) -> dict[str, Tensor]:
    """Variances of the scalar maps, shape (V,) each."""
    theta = theta.double().requires_grad_()
    with torch.enable_grad():
        maps = maps_in_rows(model, theta)
    scalar = [spec.name for spec in model.map_specs if not spec.components]
    slopes = torch.stack(
        [torch.autograd.grad(maps[name].sum(), theta, retain_graph=True)[0].T for name in scalar], dim=2
    )
    variances = (slopes * (covariance @ slopes)).sum(1).clamp_min(0)
    # a value that was brought back into its range does not follow the data, which is not to say that it is sure
    variances[(slopes == 0).all(1)] = torch.inf
    return dict(zip(scalar, variances.unbind(1), strict=True))
