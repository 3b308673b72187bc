"""Heads and what they must beat: leaks, chance, planted effects, low-rank changes, invariants."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_oracle import protocol
from scipy import stats
from scipy.spatial.transform import Rotation
from sklearn import metrics as peers

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream import lora, resnet
from DiffusionFMLib.downstream.baselines import by_region, cells, energies_of, rotation_invariants, tensor_maps
from DiffusionFMLib.downstream.finetune import LOW_RANK, WHOLE, FineTuning, TunedEncoder, builder, frozen_part
from DiffusionFMLib.downstream.heads import CLS, POOLINGS, TOKENS, linear_head, perceptron_head, representation
from DiffusionFMLib.downstream.learning import NetworkLearner, Schedule
from DiffusionFMLib.downstream.metrics import CLASSIFICATION, METRICS, REGRESSION
from DiffusionFMLib.downstream.validation import OutOfFold, Target, cross_validated, folds, predicted
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder, import_official, load_encoder, save_encoder
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import encode
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

import cohorts
from downstream import Blind, chance

SHAPE = EncoderShape(
    24, 2, 2, 48, 0, 0, (4, 4, 2), directions="even", position_divisor=4.0, axes="scanner", brain_only=True
)
GTAB = protocol({0.0: 1, 1000.0: 4, 2000.0: 3})
AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
KINDS = (REGRESSION, CLASSIFICATION)


def trained(shape: EncoderShape = SHAPE) -> TrainedEncoder:
    """Weights large enough for tokens to differ."""
    torch.manual_seed(0)
    network = DiffusionTransformer(shape).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return TrainedEncoder(network)


def scan(seed: int, md: float = 0.8, size: tuple[int, int, int] = (9, 8, 4)) -> Acquisition:
    """A ball of one diffusivity, um2/ms, and some noise."""
    rng = np.random.default_rng([seed, 99])
    signal = 400 * np.exp(-GTAB.bvals / 1000 * md) + rng.normal(0, 10, (*size, len(GTAB)))
    centre = (np.array(size) - 1) / 2
    radius = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - centre) / (centre + 0.6), axis=-1)
    return Acquisition(signal.astype(np.float32), AFFINE, GTAB, radius < 1)


def target(kind: str, count: int, seed: int = 0) -> Target:
    values = np.random.default_rng([seed, 98]).normal(50, 12, count)
    if kind == CLASSIFICATION:
        values = (values > np.quantile(values, 0.6)).astype(float)
    return Target("a target", values, kind)


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


# --- low-rank changes and fine-tuning --------------------------------------------------------------------


def changed(module: torch.nn.Module) -> None:
    """Give low-rank changes some size."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.1)


def test_low_rank_changes_begin_at_zero_train_alone_and_merge() -> None:
    base = torch.nn.Linear(10, 6)
    holder = torch.nn.ModuleDict({"qkv": copy.deepcopy(base), "other": torch.nn.Linear(6, 6)})
    lora.adapt(holder, rank=3, alpha=6.0)
    x = torch.randn(5, 10)
    torch.testing.assert_close(holder["qkv"](x), base(x))
    changed(holder)
    holder["other"](holder["qkv"](x)).square().sum().backward()
    with_gradient = {name for name, parameter in holder.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"qkv.lora_A.default.weight", "qkv.lora_B.default.weight"}
    a, b = (holder["qkv"].get_submodule(f"{name}.default").weight for name in ("lora_A", "lora_B"))
    expected = x @ (base.weight + 6 / 3 * b @ a).T + base.bias
    torch.testing.assert_close(holder["qkv"](x), expected)
    lora.merge(holder)
    assert type(holder["qkv"]) is torch.nn.Linear
    torch.testing.assert_close(holder["qkv"](x), expected)


def test_checkpoints_with_low_rank_changes_are_read_as_they_were_trained(tmp_path: Path) -> None:
    """By the import of the public format, which merges for itself."""
    shape = EncoderShape(24, 2, 2, 48, 0, 0, (8, 8, 4), layout="official")
    whole = trained(shape).network
    adapted = copy.deepcopy(whole)
    lora.adapt(adapted.blocks)
    changed(adapted)
    path = tmp_path / "tuned.pth"
    torch.save(adapted.state_dict(), path)
    found, coverage = import_official(path, rotary=True, heads=2)
    assert len(coverage.merged) == 2 * 2 * 2
    lora.merge(adapted)
    for name, parameter in found.network.named_parameters():
        torch.testing.assert_close(parameter, adapted.get_parameter(name))
    assert not torch.equal(adapted.blocks[0].attn_space.qkv.weight, whole.blocks[0].attn_space.qkv.weight)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("change", "blocks"), [(WHOLE, 1), (LOW_RANK, 2)])
def test_tuning_begins_with_the_frozen_representation_and_ends_in_a_file(
    pooling: str, change: str, blocks: int, tmp_path: Path
) -> None:
    encoder, tuning = trained(), FineTuning(change, blocks, pooling)
    scans = [scan(seed) for seed in range(3)]
    expected = np.stack([representation(encode(one, encoder, SilentReport()), pooling) for one in scans])
    subjects = [frozen_part(one, encoder, tuning) for one in scans]
    torch.manual_seed(1)
    tuned = TunedEncoder(encoder.network, tuning, subjects)
    np.testing.assert_allclose(tuned.representation(subjects).detach(), expected, atol=2e-5)
    before = copy.deepcopy(encoder.network.state_dict())
    tuned(subjects).sum().backward()
    got = {name for name, parameter in tuned.named_parameters() if parameter.grad is not None}
    inside = {name for name in got if not name.startswith("head.")}
    assert any(name.startswith("head.") for name in got)
    if change == LOW_RANK:
        assert inside == {f"blocks.{k}.{a}.{p}.lora_{m}.default.weight" for k in range(2) for a in ATTENTIONS
                          for p in lora.PROJECTIONS for m in "AB"}  # fmt: skip
    else:
        assert inside >= {"blocks.0.attn_diffusion.qkv.weight", "blocks.0.mlp_space.linear2.bias", "ln.weight"}
    with torch.no_grad():
        for name in inside:
            tuned.get_parameter(name).add_(0.05 * torch.randn_like(tuned.get_parameter(name)))
    save_encoder(tmp_path / "tuned.safetensors", tuned.onto(encoder.network), {})
    stored = load_encoder(tmp_path / "tuned.safetensors")
    found = np.stack([representation(encode(one, stored, SilentReport()), pooling) for one in scans])
    np.testing.assert_allclose(tuned.representation(subjects).detach(), found, atol=2e-5)
    assert np.abs(found - expected).max() > 1e-3
    # the encoder that was given stays as it was
    for name, tensor in encoder.network.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


ATTENTIONS = ("attn_diffusion", "attn_space")


@pytest.mark.parametrize(("change", "kind"), [(WHOLE, REGRESSION), (LOW_RANK, CLASSIFICATION)])
def test_tuning_learns_what_is_there_and_the_same_twice(change: str, kind: str) -> None:
    encoder, tuning = trained(), FineTuning(change, 1, TOKENS)
    aim = target(kind, 20)
    level = 0.8 + 0.2 * stats.zscore(aim.values)
    subjects = [frozen_part(scan(seed, md), encoder, tuning) for seed, md in enumerate(level)]

    learnt = aim.values[:14] if kind == CLASSIFICATION else stats.zscore(aim.values[:14])

    def found(seed: int, epochs: int) -> np.ndarray:
        schedule = Schedule(epochs=epochs, rate=3e-3)
        learner = NetworkLearner(builder(encoder.network, tuning), kind, schedule, seed)
        return predicted(learner.fit(subjects[:14], learnt), subjects[14:], kind)

    score = METRICS[kind]["r" if kind == REGRESSION else "AUROC"](aim.values[14:], found(0, 8), np.ones(6))
    assert score > 0.9
    np.testing.assert_array_equal(found(0, 1), found(0, 1))
    assert (found(1, 1) != found(0, 1)).all()


def test_subjects_held_back_do_not_train() -> None:
    """Neither the network's scale nor its weights see them; they decide when to stop."""
    built, trained_on = [], set()

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, subjects: list[float]) -> torch.Tensor:
            if self.training:
                trained_on.update(subjects)
            # each step of the weight makes those held back worse
            return self.weight * torch.tensor(subjects)

    def build(subjects: list[float]) -> torch.nn.Module:
        built.extend(subjects)
        return Counting()

    x = [float(number) for number in range(20)]
    y = stats.zscore(np.arange(20.0))
    held = folds(Target("y", y, REGRESSION), 5, 0)[0][1]
    y[held] = -y[held]
    learner = NetworkLearner(build, REGRESSION, Schedule(epochs=30, patience=3, rate=1e-2)).fit(x, y)
    inner = folds(Target("y", y, REGRESSION), 5, 0)[0][0]
    assert sorted(built) == sorted(trained_on) == [x[number] for number in inner]
    assert len(learner.predict(x)) == 20


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(SettingsError, match="not 1 'half'"):
        FineTuning("half")
    with pytest.raises(SettingsError, match="no pooling 'max'"):
        FineTuning(pooling="max")
    with pytest.raises(SettingsError, match="3 blocks cannot be tuned of an encoder that has 2"):
        frozen_part(scan(0), trained(), FineTuning(blocks=3, pooling=CLS))


# --- baselines -------------------------------------------------------------------------------------------


def test_resnet_has_eighteen_layers_and_the_known_size() -> None:
    network = resnet.ResNet18(torch.zeros(2), torch.ones(2))
    layers = [m for m in network.modules() if isinstance(m, (torch.nn.Conv3d, torch.nn.Linear))]
    shortcuts = [m for m in layers if isinstance(m, torch.nn.Conv3d) and m.kernel_size == (1, 1, 1)]
    assert len(layers) - len(shortcuts) == 18
    # by hand: stem, 16 convolutions of 27 voxels, three shortcuts, two numbers per channel of each norm, the last layer
    widths = [64, 128, 256, 512]
    convolutions = 4 * 27 * 64**2 + sum(
        27 * (a * b + 3 * b * b) + a * b for a, b in zip(widths, widths[1:], strict=False)
    )
    norms = 2 * (64 + 4 * 64 + 5 * (128 + 256 + 512))
    assert sum(p.numel() for p in network.parameters()) == 2 * 64 * 343 + convolutions + norms + 513
    small = resnet.ResNet18(torch.zeros(2), torch.ones(2), width=4)
    assert small.blocks(small.stem(torch.randn(2, 2, 64, 70, 33))).shape == (2, 32, 2, 3, 2)
    with pytest.raises(InputError, match="expected one grid"):
        small([torch.zeros(2, 8, 8, 8), torch.zeros(2, 8, 8, 9)])


def test_resnet_learns_what_is_there_and_the_same_twice() -> None:
    aim = target(REGRESSION, 30)
    rng = np.random.default_rng(0)
    level = stats.zscore(aim.values)
    maps = [torch.from_numpy(rng.normal([[[[0.4]]], [[[0.8 + 0.2 * z]]]], 0.1, (2, 12, 12, 8))).float() for z in level]

    def found() -> np.ndarray:
        learner = NetworkLearner(resnet.builder(4), REGRESSION, Schedule(epochs=15, patience=15, rate=1e-2))
        return learner.fit(maps[:20], level[:20]).predict(maps[20:])

    one = found()
    assert stats.pearsonr(one, level[20:]).statistic > 0.8
    np.testing.assert_array_equal(found(), one)
    scaled = resnet.builder(4)(maps[:20])
    inside = torch.stack(maps[:20]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(scaled.scale.mean.flatten(), inside.mean(1))


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
