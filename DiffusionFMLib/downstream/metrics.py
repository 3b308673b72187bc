"""Metrics of predictions, each subject counted as often as asked, so that a bootstrap is one call.

All take true and predicted values, shape (n,), and how often each subject counts, shape (..., n); they return (...),
not a number where no subject counts, or none of a class. Classes are 0 and 1, predictions probabilities of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

REGRESSION, CLASSIFICATION = "regression", "classification"

Values = NDArray[np.float64]
Metric = Callable[[Values, Values, Values], Values]

TINY: Final = 1e-12
"""Least variance of what is not constant."""


def correlation(true: Values, found: Values, times: Values) -> Values:
    """Pearson's r; 0 where one of both is constant, which says nothing."""
    total = times.sum(-1, keepdims=True)
    share = _ratio(times, total)
    a, b = (values - (share @ values)[..., None] for values in (true, found))
    variances = (share * a * a).sum(-1) * (share * b * b).sum(-1)
    found = (share * a * b).sum(-1) / np.sqrt(np.maximum(variances, TINY))
    return np.where(variances < TINY, 0.0, found)


def mean_square_error(true: Values, found: Values, times: Values) -> Values:
    """Of z-scores: 1 for a prediction of the mean."""
    return _ratio(times @ np.square(found - true), times.sum(-1))


def balanced_accuracy(true: Values, found: Values, times: Values) -> Values:
    """Mean over both classes of the share that is recognised, at a probability of one half."""
    right = (found > 0.5) == (true > 0.5)
    shares = [_ratio((times * (true == label)) @ right, times @ (true == label)) for label in (0, 1)]
    return (shares[0] + shares[1]) / 2


def auroc(true: Values, found: Values, times: Values) -> Values:
    """How often one of class 1 has the higher prediction than one of class 0; ties count half."""
    one, zero = true == 1, true == 0
    wins = np.sign(found[one][:, None] - found[zero]) / 2 + 0.5
    ones, zeros = times[..., one], times[..., zero]
    return _ratio(((ones @ wins) * zeros).sum(-1), ones.sum(-1) * zeros.sum(-1))


def auprc(true: Values, found: Values, times: Values) -> Values:
    """Average precision: over those of class 1, the share of class 1 among all that are predicted as high or higher.

    Few subjects have more of it by chance than class 1 has of them.
    """
    as_high = (found >= found[:, None]).astype(float)
    ones = times * (true == 1)
    precision = (ones @ as_high.T) / np.maximum(times @ as_high.T, TINY)
    return _ratio((ones * precision).sum(-1), ones.sum(-1))


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


METRICS: Final[dict[str, dict[str, Metric]]] = {
    REGRESSION: {"r": correlation, "MSE": mean_square_error},
    CLASSIFICATION: {"BA": balanced_accuracy, "AUROC": auroc, "AUPRC": auprc},
}
"""By what kind of target it is."""
