"""Heads on the frozen representation: linear and a perceptron, with all that is fitted before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.downstream.metrics import REGRESSION
from DiffusionFMLib.errors import SettingsError

if TYPE_CHECKING:
    from DiffusionFMLib.encoder.volume import Encoding

CLS, TOKENS = "cls", "tokens"
POOLINGS: Final = (CLS, TOKENS)
"""The class token's mean over slabs, as in the paper; or the mean token of the brain, which the masked autoencoder's
loss reaches."""

STRENGTHS: Final = np.logspace(0, 4, 5)
"""Of the linear heads' penalty, chosen within what is trained on."""

INNER_FOLDS: Final = 4
"""By which classification chooses it; regression leaves out one subject at a time, which has a closed form."""

INSIDE: Final = 32
"""Width of perceptrons."""


def representation(encoding: Encoding, pooling: str) -> NDArray[np.float32]:
    """A scan's, shape (C,).

    Raises
    ------
    SettingsError
        If there is no such pooling.
    """
    check_pooling(pooling)
    return encoding.summary if pooling == CLS else encoding.tokens[encoding.slabs.present].mean(0)


def check_pooling(pooling: str) -> None:
    """Raise `SettingsError` if there is none of that name."""
    if pooling not in POOLINGS:
        msg = f"There is no pooling '{pooling}'; expected one of {', '.join(POOLINGS)}."
        raise SettingsError(msg, "Correct it.")


def linear_head(kind: str) -> Any:
    """Ridge or logistic regression of features, shape (n, F), whose penalty is chosen within what is trained on."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.model_selection import GridSearchCV

    if kind == REGRESSION:
        return _prepared(RidgeCV(STRENGTHS))
    logistic = LogisticRegression(class_weight="balanced", max_iter=1000)
    return _prepared(GridSearchCV(logistic, {"C": 1 / STRENGTHS}, scoring="neg_log_loss", cv=INNER_FOLDS))


def perceptron_head(kind: str, seed: int) -> Any:
    """A perceptron with one layer inside, of features, shape (n, F)."""
    from DiffusionFMLib.downstream.learning import NetworkLearner, Perceptron

    return _prepared(NetworkLearner(lambda rows: Perceptron(len(rows[0]), INSIDE), kind, seed=seed))


def _prepared(model: Any) -> Any:
    """With missing features filled in, and all of them brought to one scale."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), model)
