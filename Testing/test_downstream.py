"""What predicts a target from a scan: metrics, leaks, chance, planted effects, and the baselines' invariants."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from downstream_subjects import AFFINE, GTAB, scan, target
from encoder_oracle import protocol
from scipy import stats
from scipy.spatial.transform import Rotation
from sklearn import metrics as peers

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream.baselines import by_region, cells, energies_of, rotation_invariants, tensor_maps
from DiffusionFMLib.downstream.heads import linear_head, perceptron_head
from DiffusionFMLib.downstream.metrics import CLASSIFICATION, METRICS, REGRESSION
from DiffusionFMLib.downstream.validation import OutOfFold, Target, cross_validated, folds
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.gradients import GradientTable

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

import cohorts
from downstream import Blind, chance

KINDS = (REGRESSION, CLASSIFICATION)


# --- metrics and intervals -------------------------------------------------------------------------------


def test_metrics_are_those_of_others_with_each_subject_as_often_as_drawn() -> None:
    rng = np.random.default_rng(0)
    times = rng.integers(0, 4, 40)
    # rounded, so that there are ties
    found = rng.random(40).round(1)
    label = (rng.random(40) < 0.4).astype(float)
    drawn, drawn_label = np.repeat(found, times), np.repeat(label, times)
    theirs = {
        "BA": peers.balanced_accuracy_score(drawn_label, drawn > 0.5),
        "AUROC": peers.roc_auc_score(drawn_label, drawn),
        "AUPRC": peers.average_precision_score(drawn_label, drawn),
    }
    for name, metric in METRICS[CLASSIFICATION].items():
        ours = metric(label, found, np.stack([np.ones(40), times.astype(float)]))
        assert ours[1] == pytest.approx(theirs[name], abs=1e-12)
    score = rng.normal(size=40)
    one = np.repeat(score, times)
    theirs = {"r": stats.pearsonr(one, drawn).statistic, "MSE": peers.mean_squared_error(one, drawn)}
    for name, metric in METRICS[REGRESSION].items():
        assert metric(score, found, times.astype(float)) == pytest.approx(theirs[name], abs=1e-12)
    assert METRICS[REGRESSION]["r"](score, np.full(40, 0.3), np.ones(40)) == 0


def test_scores_are_means_over_folds() -> None:
    rng = np.random.default_rng(0)
    found, label, fold = rng.random(40), (np.arange(40) % 3 == 0).astype(float), np.arange(40) // 8
    result = OutOfFold(CLASSIFICATION, label, found, fold).scores(10)
    each = [peers.roc_auc_score(label[fold == k], found[fold == k]) for k in range(5)]
    assert result["AUROC"].value == pytest.approx(np.mean(each))
    # what only differs between folds is no merit
    assert OutOfFold(REGRESSION, fold + 0.0, fold + 0.0, fold).scores(10)["r"].value == 0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    held, label = [], np.repeat([0.0, 1.0], 40)
    for _ in range(200):
        found = stats.norm.cdf(rng.normal(size=80) + label)
        score = OutOfFold(CLASSIFICATION, label, found, np.arange(80) % 2).scores(200)["AUROC"]
        held.append(score.low <= stats.norm.cdf(1 / np.sqrt(2)) <= score.high)
        assert score.low <= score.value <= score.high
    assert 0.9 < np.mean(held) < 0.99


# --- folds and leaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_folds_test_each_subject_once_and_spread_the_target(kind: str) -> None:
    aim = target(kind, 52)
    parts = folds(aim, 5, 3)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(52))
    for train, test in parts:
        assert not set(train) & set(test)
        assert abs(aim.values[train].mean() - aim.values[test].mean()) < 0.35 * aim.values.std()
    assert all((a[1] == b[1]).all() for a, b in zip(parts, folds(aim, 5, 3), strict=True))
    with pytest.raises(InputError, match="expected 5 at least"):
        folds(Target("rare", np.r_[np.ones(3), np.zeros(40)], CLASSIFICATION), 5, 0)


def test_nothing_of_the_tested_reaches_what_is_fitted() -> None:
    """Scales of features and target are those of who is trained on, to the last digit."""
    rng = np.random.default_rng(0)
    features, aim = rng.normal(3, 2, (30, 4)), target(REGRESSION, 30)
    made, seen = [], []

    class Spying:
        def __init__(self) -> None:
            self.head = linear_head(REGRESSION)
            made.append(self.head)

        def fit(self, x: np.ndarray, y: np.ndarray) -> None:
            seen.append(y)
            self.head.fit(x, y)

        def predict(self, x: np.ndarray) -> np.ndarray:
            return self.head.predict(x)

    result = cross_validated(Spying, features, aim, seed=2)[""]
    for head, y, (train, test) in zip(made, seen, folds(aim, 5, 2), strict=True):
        np.testing.assert_array_equal(head["standardscaler"].mean_, features[train].mean(0))
        values = aim.values[train]
        np.testing.assert_allclose(y, (values - values.mean()) / values.std())
        np.testing.assert_allclose(result.true[test], (aim.values[test] - values.mean()) / values.std())
    # another value of one subject moves no prediction of a fold that it is tested in, but its own
    test = folds(aim, 5, 2)[0][1]
    other = features.copy()
    other[test[0]] += 100
    moved = cross_validated(lambda: linear_head(REGRESSION), other, aim, seed=2)[""].found != result.found
    assert moved[test[0]]
    assert not moved[test[1:]].any()


@pytest.mark.parametrize(
    ("kind", "name", "expected", "count"), [(REGRESSION, "r", 0.0, 16), (CLASSIFICATION, "AUROC", 0.5, 4)]
)
def test_a_label_of_noise_is_predicted_by_chance(kind: str, name: str, expected: float, count: int) -> None:
    """With more features than subjects; the mean over cohorts lies within 2.5 times its error of chance."""
    found = []
    for seed in range(count):
        features = np.random.default_rng([seed, 97]).normal(size=(40, 50))
        result = cross_validated(lambda: linear_head(kind), features, target(kind, 40, seed), seed=seed)[""]
        found.append(result.scores(10)[name].value)
    # one cohort of 40 scatters by 0.26 in r, by 0.09 in AUROC
    assert abs(np.mean(found) - expected) < 2.5 * (0.26 if kind == REGRESSION else 0.09) / np.sqrt(count)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_effects_are_found_and_carry_over_or_not(kind: str) -> None:
    rng = np.random.default_rng(0)
    aim = target(kind, 60)
    features = rng.normal(size=(60, 12))
    features[:, 3:6] += 2 * stats.zscore(aim.values)[:, None]
    # missing in all: filled in, and of no use
    features[:, 7] = np.nan
    noisy = features + rng.normal(0, 0.3, features.shape)
    other = {"same": features, "more noise": noisy, "shuffled": features[rng.permutation(60)]}
    for make in (lambda: linear_head(kind), lambda: perceptron_head(kind, 0)):
        found = cross_validated(make, features, aim, other)
        name = "r" if kind == REGRESSION else "AUROC"
        first = {tested: result.scores(10)[name].value for tested, result in found.items()}
        assert first["same"] > 0.85
        assert first["more noise"] > 0.85
        assert first["shuffled"] < 0.65
    again = cross_validated(make, features, aim)[""]
    np.testing.assert_array_equal(again.found, found["same"].found)


def test_targets_that_do_not_do() -> None:
    with pytest.raises(InputError, match="There are 9 subjects but 20 values of a target"):
        cross_validated(lambda: linear_head(REGRESSION), np.zeros((20, 2)), target(REGRESSION, 20), {"2": [1] * 9})
    with pytest.raises(InputError, match="other classes than 0 and 1"):
        Target("group", np.array([1.0, 2.0]), CLASSIFICATION)
    with pytest.raises(InputError, match="not known of all"):
        Target("age", np.array([1.0, np.nan]), REGRESSION)
    with pytest.raises(SettingsError, match="expected one of regression"):
        Target("age", np.array([1.0, 2.0]), "ranking")


# --- baselines -------------------------------------------------------------------------------------------


def fibre(gtab: GradientTable, axis: np.ndarray) -> np.ndarray:
    """Signal of a stick and a ball, shape (1, N)."""
    b = gtab.bvals / 1000
    return (0.6 * np.exp(-b * 2.0 * (gtab.bvecs @ axis) ** 2) + 0.4 * np.exp(-b * 0.9))[None]


def test_energies_do_not_change_when_head_and_directions_turn() -> None:
    gtab, axis = protocol({2000.0: 12}, seed=4), np.array([0.0, 0.6, 0.8])
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    straight = energies_of(fibre(gtab, axis), gtab, 4)
    turned = energies_of(fibre(gtab.rotated(turn), turn @ axis), gtab.rotated(turn), 4)
    np.testing.assert_allclose(turned, straight, rtol=1e-10)
    assert straight.shape == (3, 1)
    assert (straight > 1e-5).all()
    # a signal alike in all directions has the first only: (4 pi) mean^2
    flat = energies_of(np.full((1, 12), 0.3), gtab, 4)[:, 0]
    np.testing.assert_allclose(flat, [4 * np.pi * 0.3**2, 0, 0], atol=1e-12)
    # many directions, evenly spread: only the head turns
    dense = GradientTable(np.full(200, 2000.0), _sphere(200))
    np.testing.assert_allclose(
        energies_of(fibre(dense, turn @ axis), dense, 4), energies_of(fibre(dense, axis), dense, 4), rtol=0.02
    )


def _sphere(count: int) -> np.ndarray:
    k = np.arange(count) + 0.5
    z, phi = 1 - 2 * k / count, k * np.pi * (3 - np.sqrt(5))
    return np.column_stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z])


def test_maps_and_regions_follow_the_patient_not_the_file() -> None:
    acquisition = scan(0, 0.7)
    assert acquisition.mask is not None
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = acquisition.shape[0] - 1
    stored = Acquisition(acquisition.signal[::-1], AFFINE @ flip, GTAB, acquisition.mask[::-1])
    for make in (tensor_maps, rotation_invariants, lambda one: cells(one)[None]):
        np.testing.assert_allclose(make(stored), make(acquisition), atol=1e-6)
    fa, md = tensor_maps(acquisition)
    assert (fa[~acquisition.mask] == 0).all()
    assert md[acquisition.mask].mean() == pytest.approx(0.7, abs=0.02)
    assert rotation_invariants(acquisition).shape == (6, 9, 8, 4)
    labels = cells(acquisition, (2, 2, 1))
    assert (labels[~acquisition.mask] == -1).all()
    for i, j in np.ndindex(2, 2):
        # 9 voxels are cut 5 and 4, 8 are cut in half
        box = labels[5 * i : 5 + 4 * i, 4 * j : 4 + 4 * j]
        assert set(np.unique(box)) == {-1, 2 * i + j}


def test_regions_are_averaged_as_written_out() -> None:
    rng = np.random.default_rng(0)
    maps, labels = rng.normal(size=(2, 5, 4, 3)).astype(np.float32), rng.integers(-1, 3, (5, 4, 3))
    found = by_region(maps, labels, 4).reshape(2, 2, 4)
    for channel, label in np.ndindex(2, 3):
        values = maps[channel][labels == label].astype(float)
        np.testing.assert_allclose(found[:, channel, label], [values.mean(), values.std()], atol=1e-7)
    assert np.isnan(found[..., 3]).all()


# --- the evaluation --------------------------------------------------------------------------------------


def test_effects_are_planted_where_and_as_they_are_said_to_be() -> None:
    """White matter throughout, of a young and an old subject, and of one with water in the ball."""
    shape, old, young = cohorts.SHAPE, (0.55, 0.8, 0.0), (0.65, 0.6, 0.0)
    fields = np.zeros((13, *shape), np.float32)
    fields[0], fields[4], fields[7], fields[10:12] = 1, 1, 1, 0.1
    points = np.zeros((*shape, 3))
    points[:12], points[12:] = cohorts.PLACE, (-28.0, 22.0, 22.0)

    def maps(planted: tuple[float, float, float], scheme: str) -> np.ndarray:
        rng = np.random.default_rng(0)
        contents = cohorts.contents_of(fields, points, np.array(planted), rng)
        return tensor_maps(cohorts.scanned(contents, cohorts.SCHEMES[scheme], rng))

    (fa_old, md_old), (fa_young, md_young) = maps(old, "1"), maps(young, "1")
    assert fa_old.mean() < fa_young.mean() - 0.05
    assert md_old.mean() > md_young.mean() + 0.05
    wet = maps((0.65, 0.6, 0.3), "1")[1] - md_young
    assert wet[:12].mean() > 0.1
    assert abs(wet[12:].mean()) < 0.01
    # at the other protocol's higher b-value, the same tissue has a lower MD
    assert maps(old, "2")[1].mean() < md_old.mean() - 0.02


def test_chance_is_that_of_who_is_blind() -> None:
    found = chance(target(CLASSIFICATION, 40))
    assert found["BA"] == pytest.approx(0.5, abs=0.02)
    assert found["AUROC"] == pytest.approx(0.5, abs=0.02)
    assert chance(target(REGRESSION, 40))["MSE"] == pytest.approx(1, abs=0.1)
    assert Blind(np.random.default_rng(0)).predict_proba([1, 2]).sum(1) == pytest.approx([1, 1])
