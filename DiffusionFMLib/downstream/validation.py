"""Cross-validation of anything that learns from subjects: it sees nothing of those that it is tested on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.downstream.metrics import CLASSIFICATION, METRICS, REGRESSION, Metric, Values
from DiffusionFMLib.errors import InputError, SettingsError

FOLDS: Final = 5
"""As in the paper."""

RESAMPLES: Final = 2000
INTERVAL: Final = 0.95


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be predicted.

    Parameters
    ----------
    name : str
    values : array, shape (n,)
        Of each subject; 0 and 1 for classes.
    kind : {"regression", "classification"}

    Raises
    ------
    InputError
        If values are missing, classes are not 0 and 1, or all are the same.
    SettingsError
        If the kind is another.
    """

    name: str
    values: NDArray[np.float64]
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in METRICS:
            msg = f"The kind of {self.name} is '{self.kind}'; expected one of {', '.join(METRICS)}."
            raise SettingsError(msg, "Correct it.")
        if not np.isfinite(self.values).all() or np.ptp(self.values) == 0:
            msg = f"{self.name} is not known of all subjects, or the same in all of them."
            raise InputError(msg, "Leave out subjects without a value; choose a target that varies.")
        if self.kind == CLASSIFICATION and not np.isin(self.values, (0, 1)).all():
            msg = f"{self.name} has other classes than 0 and 1."
            raise InputError(msg, "Name one class 0 and the other 1.")


class Learner(Protocol):
    """What scikit-learn calls an estimator; one of classes has ``predict_proba`` too, shape (n, 2)."""

    def fit(self, x: Any, y: NDArray[np.float64]) -> Any:
        """Learn from subjects."""

    def predict(self, x: Any) -> NDArray[np.float64]:
        """Predict those of others."""


class Score(NamedTuple):
    """A metric and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Each subject's prediction by what was trained without that subject.

    Parameters
    ----------
    kind : {"regression", "classification"}
    true, found : array, shape (n,)
        Numbers are z-scores, by mean and deviation of those that were trained on; predicted classes are probabilities.
    fold : array, shape (n,), intp
    """

    kind: str
    true: NDArray[np.float64]
    found: NDArray[np.float64]
    fold: NDArray[np.intp]

    def scores(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Score]:
        """All metrics of this kind, means over folds, with percentile intervals of a bootstrap over subjects.

        Subjects of different folds are not compared with each other: who is trained without those of high values
        predicts low ones for them, so that all folds in one would be worse than chance. Classes are drawn apart. The
        intervals say what other subjects would do, not what another training would.
        """
        drawn = _draws(self.true, self.kind, resamples, np.random.default_rng([seed, 31]))
        edges = (1 - INTERVAL) / 2, (1 + INTERVAL) / 2
        scores = {}
        for name, metric in METRICS[self.kind].items():
            value = float(self._mean(metric, np.ones((1, len(self.true))))[0])
            low, high = np.quantile(self._mean(metric, drawn), edges)
            scores[name] = Score(value, float(low), float(high))
        return scores

    def _mean(self, metric: Metric, times: Values) -> Values:
        """Over folds, shape (resamples,); a fold without a class counts for nothing."""
        each = [metric(self.true, self.found, times * (self.fold == fold)) for fold in np.unique(self.fold)]
        return np.nanmean(each, axis=0)


def cross_validated(
    make: Callable[[], Learner],
    subjects: Any,
    target: Target,
    tested_on: Mapping[str, Any] | None = None,
    count: int = FOLDS,
    seed: int = 0,
) -> dict[str, OutOfFold]:
    """Predictions of each subject by learners that were trained on others.

    Parameters
    ----------
    make : callable
        A new learner, for each fold; all that it is to know of the subjects it learns in ``fit``.
    subjects : array, shape (n, ...), or sequence
        What is trained on.
    target : Target
    tested_on : dict, optional
        The same subjects, in the same order, as they are tested: by another protocol, say. By default as trained on.
    count : int
        Folds.
    seed : int
        Of the folds: the same seed gives the same folds to all learners.

    Returns
    -------
    dict of str to OutOfFold
        For each of `tested_on`, or ``""``.

    Raises
    ------
    InputError
        If there are not as many subjects as values, or fewer of a class than folds.
    """
    tests = {"": subjects} if tested_on is None else dict(tested_on)
    for each in (subjects, *tests.values()):
        if len(each) != len(target.values):
            msg = f"There are {len(each)} subjects but {len(target.values)} values of {target.name}; expected as many."
            raise InputError(msg, "Give one row or entry per subject, in one order.")
    found = {name: np.empty(len(target.values)) for name in tests}
    true, fold = np.empty(len(target.values)), np.empty(len(target.values), np.intp)
    for number, (train, test) in enumerate(folds(target, count, seed)):
        centre, scale = 0.0, 1.0
        if target.kind == REGRESSION:
            centre, scale = float(target.values[train].mean()), float(target.values[train].std())
        true[test], fold[test] = (target.values[test] - centre) / scale, number
        learner = make()
        learner.fit(part(subjects, train), (target.values[train] - centre) / scale)
        for name, others in tests.items():
            found[name][test] = predicted(learner, part(others, test), target.kind)
    return {name: OutOfFold(target.kind, true, values, fold) for name, values in found.items()}


def folds(target: Target, count: int, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Subjects to train and to test on, by index; in each fold the target is spread as in all."""
    from sklearn.model_selection import StratifiedKFold

    strata = target.values
    if target.kind == REGRESSION:
        ranks = target.values.argsort(kind="stable").argsort()
        strata = np.minimum(ranks // count, len(ranks) // count - 1)
    fewest = np.unique(strata, return_counts=True)[1].min()
    if fewest < count:
        msg = f"{target.name} has {fewest} subjects of a class; expected {count} at least, one for each fold."
        raise InputError(msg, "Add subjects, or choose fewer folds.")
    splits = StratifiedKFold(count, shuffle=True, random_state=seed)
    return list(splits.split(np.zeros(len(strata)), strata))


def part(subjects: Any, which: NDArray[np.intp]) -> Any:
    """Some of the subjects, of an array or a sequence."""
    if isinstance(subjects, np.ndarray):
        return subjects[which]
    if isinstance(subjects, Sequence):
        return [subjects[int(number)] for number in which]
    msg = f"Subjects are a {type(subjects).__name__}; expected an array or a list."
    raise InputError(msg, "Give one row or entry per subject.")


def predicted(learner: Learner, subjects: Any, kind: str) -> NDArray[np.float64]:
    """Z-scores, or probabilities of class 1, shape (n,)."""
    if kind == CLASSIFICATION:
        return learner.predict_proba(subjects)[:, 1]  # type: ignore[attr-defined]
    return learner.predict(subjects)


def _draws(true: Values, kind: str, resamples: int, rng: np.random.Generator) -> Values:
    """How often each subject is drawn, shape (resamples, n)."""
    strata = true if kind == CLASSIFICATION else np.zeros(len(true))
    times = np.zeros((resamples, len(true)))
    for label in np.unique(strata):
        same = np.flatnonzero(strata == label)
        times[:, same] = rng.multinomial(len(same), np.full(len(same), 1 / len(same)), resamples)
    return times
