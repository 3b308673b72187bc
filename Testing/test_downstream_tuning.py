"""Networks on some dozens of subjects: low-rank changes, fine-tuned blocks, the residual network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from downstream_subjects import scan, target
from scipy import stats

from DiffusionFMLib.downstream import lora, resnet
from DiffusionFMLib.downstream.finetune import LOW_RANK, WHOLE, FineTuning, TunedEncoder, builder, frozen_part
from DiffusionFMLib.downstream.heads import CLS, POOLINGS, TOKENS, representation
from DiffusionFMLib.downstream.learning import NetworkLearner, Schedule
from DiffusionFMLib.downstream.metrics import CLASSIFICATION, METRICS, REGRESSION
from DiffusionFMLib.downstream.validation import Target, folds, predicted
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder, import_official, load_encoder, save_encoder
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import encode
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import SilentReport

ATTENTIONS = ("attn_diffusion", "attn_space")
SHAPE = EncoderShape(
    24, 2, 2, 48, 0, 0, (4, 4, 2), directions="even", position_divisor=4.0, axes="scanner", brain_only=True
)


def trained(shape: EncoderShape = SHAPE) -> TrainedEncoder:
    """Weights large enough for tokens to differ."""
    torch.manual_seed(0)
    network = DiffusionTransformer(shape).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return TrainedEncoder(network)


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
