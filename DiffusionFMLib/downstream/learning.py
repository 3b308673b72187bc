"""Training of a torch network on some dozens of subjects, behind the interface of scikit-learn's estimators."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn import functional

from DiffusionFMLib.downstream.metrics import REGRESSION
from DiffusionFMLib.downstream.validation import Target, folds, part

INNER_FOLDS: Final = 5
"""One of so many parts of what is trained on decides when to stop."""

MAX_GRADIENT: Final = 1.0


@dataclass(frozen=True)
class Schedule:
    """How a network is trained.

    Parameters
    ----------
    epochs : int
        At most.
    patience : int
        Epochs without a lower loss of the subjects held back, after which training ends.
    batch : int
        Subjects.
    rate, decay : float
        Of AdamW.
    """

    epochs: int = 40
    patience: int = 6
    batch: int = 8
    rate: float = 1e-3
    decay: float = 0.05


DEFAULTS: Final = Schedule()


class NetworkLearner(BaseEstimator):
    """A network that is trained anew at each fit; the same seed gives the same.

    A fifth of the subjects is held back and decides when training ends; weights are those with which its loss was
    lowest.

    Parameters
    ----------
    build : callable
        A new network, from the subjects that it is trained on. It takes a list of n subjects, and returns numbers,
        shape (n,): z-scores, or logits of class 1. Only parameters that require gradients are trained.
    kind : {"regression", "classification"}
    schedule : Schedule
    seed : int

    Attributes
    ----------
    network_ : Module
        After `fit`.
    """

    def __init__(
        self, build: Callable[[Sequence[Any]], nn.Module], kind: str, schedule: Schedule = DEFAULTS, seed: int = 0
    ) -> None:
        self.build, self.kind, self.schedule, self.seed = build, kind, schedule, seed

    def fit(self, x: Sequence[Any], y: NDArray[np.float64]) -> NetworkLearner:
        """Train on subjects and their z-scores or classes, shape (n,)."""
        inner, held = folds(Target("The target", y, self.kind), INNER_FOLDS, self.seed)[0]
        rng = np.random.default_rng([self.seed, 32])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network_ = self.build(part(x, inner))
        trained = [parameter for parameter in self.network_.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=self.schedule.rate, weight_decay=self.schedule.decay)
        best, lowest, since = self.network_.state_dict(), math.inf, 0
        for _ in range(self.schedule.epochs):
            self.network_.train()
            order = rng.permutation(inner)
            for batch in np.array_split(order, math.ceil(len(order) / self.schedule.batch)):
                optimiser.zero_grad()
                self._loss(part(x, batch), y[batch], y[inner]).backward()
                nn.utils.clip_grad_norm_(trained, MAX_GRADIENT)
                optimiser.step()
            self.network_.eval()
            with torch.no_grad():
                loss = float(self._loss(part(x, held), y[held], y[inner]))
            since += 1
            if loss < lowest:
                best, lowest, since = copy.deepcopy(self.network_.state_dict()), loss, 0
            if since >= self.schedule.patience:
                break
        self.network_.load_state_dict(best)
        self.network_.eval()
        return self

    @torch.no_grad()
    def predict(self, x: Sequence[Any]) -> NDArray[np.float64]:
        """Z-scores, or logits of class 1, shape (n,)."""
        return self.network_(x).double().cpu().numpy()

    def predict_proba(self, x: Sequence[Any]) -> NDArray[np.float64]:
        """Probabilities of both classes, shape (n, 2)."""
        one = torch.sigmoid(torch.from_numpy(self.predict(x))).numpy()
        return np.column_stack([1 - one, one])

    def _loss(self, x: Sequence[Any], y: NDArray[np.float64], trained_on: NDArray[np.float64]) -> Tensor:
        found = self.network_(x)
        wanted = torch.as_tensor(y, dtype=found.dtype, device=found.device)
        if self.kind == REGRESSION:
            return functional.mse_loss(found, wanted)
        # both classes count the same, however rare one is
        ratio = float((trained_on == 0).sum() / (trained_on == 1).sum())
        return functional.binary_cross_entropy_with_logits(found, wanted, pos_weight=found.new_tensor(ratio))


class Standardised(nn.Module):
    """Features, shape (n, F, ...), by mean and deviation of those of the subjects that are trained on."""

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        super().__init__()
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", mean)
        # what never varies stays at zero
        self.register_buffer("sd", torch.where(sd > 0, sd, torch.ones_like(sd)))

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return (x - self.mean) / self.sd


class Perceptron(nn.Sequential):
    """One layer inside, and one number, shape (n,), of features, shape (n, F)."""

    def __init__(self, features: int, inside: int) -> None:
        super().__init__(nn.Linear(features, inside), nn.GELU(), nn.Linear(inside, 1))

    def forward(self, x: Tensor | NDArray[np.float64]) -> Tensor:
        """Of features, in either kind of array."""
        return super().forward(torch.as_tensor(x, dtype=torch.float32))[:, 0]
