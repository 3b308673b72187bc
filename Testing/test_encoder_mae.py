"""The masked autoencoder: masks, that nothing hidden is seen, the loss, the plainest rival, and pretraining."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.cli import DONE, main
from DiffusionFMLib.encoder.checkpoint import load_encoder, save_encoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.mae import (
    DIFFUSION,
    MASKS,
    SPATIAL,
    Sample,
    draw_mask,
    masked_weight,
    reconstruct,
    same_shell_mean,
    square_errors,
)
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import write_acquisition
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.training.anatomies import FIELDS, Anatomy, random_phantom
from DiffusionFMLib.training.command import train
from DiffusionFMLib.training.kept_scans import kept_scans
from DiffusionFMLib.training.pretraining import PRESETS, EncoderTask, losses
from DiffusionFMLib.training.settings import PRESETS as PRIOR_PRESETS
from DiffusionFMLib.training.settings import TrainSettings
from DiffusionFMLib.training.signal_scans import SignalScan
from DiffusionFMLib.training.slab_examples import FAMILY, SlabMaker

SHAPE = PRESETS["tiny"].shape
EDGES = (16, 12, 4)
GTAB = GradientTable(np.repeat([1000.0, 2000.0], 4), spread_directions(8))
CPU = torch.device("cpu")


def sample(seed: int = 0) -> Sample:
    """A slab whose first row of patches is air."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.rand(len(GTAB), *EDGES, generator=generator)
    inside = torch.ones(EDGES, dtype=torch.bool)
    inside[:4] = False
    inside[4, 0] = False
    start = np.array([3, 0, 8])
    return Sample.of(signal, inside, start, GTAB, EncoderProtocol.of(GTAB, SHAPE), SHAPE.patch)


def network(seed: int = 0) -> DiffusionTransformer:
    torch.manual_seed(seed)
    made = DiffusionTransformer(SHAPE)
    with torch.no_grad():
        # started small, a network hardly lets one token tell of another
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


# --- samples and masks -----------------------------------------------------------------------------------


def test_a_sample_holds_its_brain_and_gives_it_back() -> None:
    made = sample()
    assert made.grid == (4, 3, 1)
    assert made.patches.shape == (8, 9, 64)
    assert made.where.tolist() == list(range(3, 12))
    assert made.positions[0].tolist() == [3 + 4 + 1.5, 1.5, 8 + 1.5]
    assert made.shells.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    signal = torch.rand(8, *EDGES, generator=torch.Generator().manual_seed(0))
    signal[:, :4] = 0
    signal[:, 4, 0] = 0
    assert torch.equal(made.volumes(made.patches, SHAPE.patch), signal)
    with pytest.raises(InputError, match="no brain"):
        Sample.of(signal, torch.zeros(EDGES, dtype=torch.bool), np.zeros(3, int), GTAB, made.protocol, SHAPE.patch)


def test_masks_hide_what_they_should() -> None:
    rng = np.random.default_rng(0)
    spatial = draw_mask(SPATIAL, 9, 40, rng)
    assert (spatial.sum(1) == 30).all()
    assert len({tuple(row.tolist()) for row in spatial}) == 9
    diffusion = draw_mask(DIFFUSION, 9, 40, rng)
    assert diffusion.all(1).sum() == 4
    assert diffusion.any(1).sum() == 4
    for kind in MASKS:
        assert torch.equal(
            draw_mask(kind, 9, 40, np.random.default_rng(5)), draw_mask(kind, 9, 40, np.random.default_rng(5))
        )
        # something to see and something to make up, however few there are
        few = draw_mask(kind, 2, 2, rng)
        assert few.any()
        assert not few.all()
    often = torch.stack([draw_mask(SPATIAL, 9, 40, rng) for _ in range(200)]).float().mean(0)
    assert 0.55 < float(often.min()) < 0.75 < float(often.max()) < 0.92


@pytest.mark.parametrize("kind", MASKS)
def test_nothing_that_is_hidden_is_seen(kind: str) -> None:
    made, one = network(), sample()
    masked = draw_mask(kind, 8, 9, np.random.default_rng(1))
    found = reconstruct(made, one, masked)
    assert found.shape == one.patches.shape
    other = torch.where(masked[..., None], torch.rand_like(one.patches), one.patches)
    assert torch.equal(reconstruct(made, replace(one, patches=other), masked), found)
    # while what is visible is
    changed = torch.where(masked[..., None], one.patches, one.patches + 0.5)
    moved = reconstruct(made, replace(one, patches=changed), masked) - found
    assert float(moved[masked].abs().max()) > 1e-3


def test_leaving_directions_out_is_hiding_them() -> None:
    """Directions that are hidden as a whole are not encoded; tokens of the others are as if they were, but unseen."""
    made, one = network(), sample()
    masked = draw_mask(DIFFUSION, 8, 9, np.random.default_rng(1))
    seen = (~masked.all(1)).nonzero()[:, 0]
    with torch.no_grad():
        left_out = made(one.patches[seen][None], one.positions[None], [one.protocol.subset(seen)]).tokens
        # the class token, a mean over directions, comes between blocks: one block tells
        hidden = made(one.patches[None], one.positions[None], [one.protocol], masked[None]).tokens
    assert SHAPE.blocks == 1
    torch.testing.assert_close(left_out, hidden[:, seen], rtol=0, atol=1e-5)


def test_air_changes_nothing_but_the_borders_convolution() -> None:
    """Patches of air are no tokens: the same brain in a larger grid is reconstructed the same, away from its border."""
    made, one = network(), sample()
    masked = draw_mask(SPATIAL, 8, 9, np.random.default_rng(1))
    trimmed = replace(one, grid=(3, 3, 1), where=one.where - 3)
    with torch.no_grad():
        for convolution in made.decoder_conv:
            if isinstance(convolution, torch.nn.Conv3d):
                # only the middle: no voxel sees another
                kernel = convolution.weight.clone()
                convolution.weight.zero_()
                convolution.weight[:, :, 1, 1, 1] = kernel[:, :, 1, 1, 1]
    torch.testing.assert_close(reconstruct(made, one, masked), reconstruct(made, trimmed, masked), rtol=0, atol=1e-6)


# --- loss and rival --------------------------------------------------------------------------------------


def test_the_loss_weighs_hidden_and_visible_tokens() -> None:
    one, kind = sample(), SPATIAL
    masked = draw_mask(kind, 8, 9, np.random.default_rng(1))
    off = torch.where(masked[..., None], one.patches + 0.2, one.patches - 0.1)
    # air does not count
    off = torch.where(one.inside, off, off + 100)
    result = losses([off], [one], [masked], kind, 0.3)
    assert float(result.total) == pytest.approx(0.7 * 0.01 + 0.3 * 0.04, rel=1e-4)
    assert result.parts == pytest.approx({"visible_spatial": 0.01, "hidden_spatial": 0.04}, rel=1e-4)
    assert set(result.squares) == {"shell1_spatial", "shell2_spatial"}
    ours = sum(ours for ours, _, _ in result.squares.values())
    count = sum(count for _, _, count in result.squares.values())
    assert count == int((masked[..., None] & one.inside).sum())
    assert ours == pytest.approx(0.04 * count, rel=1e-4)
    assert [masked_weight(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.05, 0.5, 0.95])


def test_the_shells_mean_is_over_what_is_visible() -> None:
    one = sample()
    masked = torch.zeros(8, 9, dtype=torch.bool)
    masked[:2] = True
    masked[4:, 5] = True
    found = same_shell_mean(one, masked)
    expected = (one.patches[2] + one.patches[3]) / 2
    torch.testing.assert_close(found[0][one.inside], expected[one.inside])
    # nothing of the second shell is visible there: its mean over the brain
    everywhere = one.patches[4:][:, torch.arange(9) != 5]
    brain = one.inside[torch.arange(9) != 5].expand_as(everywhere)
    torch.testing.assert_close(found[6, 5], torch.full((64,), float(everywhere[brain].mean())))
    # nothing of it at all: the mean of all that is visible
    masked[4:] = True
    torch.testing.assert_close(same_shell_mean(one, masked)[6][one.inside], expected[one.inside])
    square, count = square_errors(found, one, masked & ~masked)
    assert (float(square), count) == (0, 0)


# --- examples --------------------------------------------------------------------------------------------


def maker(groups: list[list[Anatomy]], scans: list[SignalScan]) -> SlabMaker:
    return SlabMaker(groups, scans, SHAPE, (16, 16, 4), torch.float32, CPU)


def test_slabs_of_anatomies_are_drawn_by_seed() -> None:
    anatomy = random_phantom(0)
    one, again, other = (maker([[anatomy]], []).draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.patches, again.patches)
    assert one.patches.shape != other.patches.shape or not torch.equal(one.patches, other.patches)
    assert FAMILY.directions[0] <= len(one.protocol) <= FAMILY.directions[1]
    assert one.patches.isfinite().all()
    assert 0 <= float(one.patches.min()) < float(one.patches.max()) <= 1.5
    inside = one.patches[:, one.inside]
    # a weighted volume is darker than b0
    assert 0.1 < float(inside.mean()) < 0.9


def ball_scan(affine: np.ndarray) -> Acquisition:
    """A ball of fibres along the patient's left and right, brighter in front; 20 directions on two shells."""
    bvals = np.r_[0.0, 0.0, np.repeat([1000.0, 2000.0], 10)]
    bvecs = np.r_[np.zeros((2, 3)), spread_directions(20)]
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 22, 12)), indexing="ij"), -1)
    inside = (((grid - [11.5, 10.5, 5.5]) / [11, 10, 6]) ** 2).sum(-1) < 1
    signal = 800 * np.exp(-bvals / 1000 * (0.4 + 1.3 * bvecs[:, 0] ** 2)) * inside[..., None]
    signal = signal * (1 + grid[..., 1:2] / 22)
    turn = np.abs(affine[:3, :3]).argmax(0)
    signal = signal.transpose(*turn, 3)
    for axis in range(3):
        if affine[turn[axis], axis] < 0:
            signal = np.flip(signal, axis)
    return Acquisition(np.ascontiguousarray(signal, np.float32), affine, GradientTable(bvals, bvecs))


def test_real_signals_lie_along_the_patients_axes(tmp_path: Path) -> None:
    straight = SignalScan.of(ball_scan(np.diag([2.0, 2, 2, 1])))
    affine = np.array([[0, -2.0, 0, 40], [0, 0, 2, 0], [-2, 0, 0, 20], [0, 0, 0, 1]])
    turned = SignalScan.of(ball_scan(affine))
    np.testing.assert_array_equal(turned.signal, straight.signal)
    np.testing.assert_array_equal(turned.inside, straight.inside)
    # the ratio to b0 knows nothing of how bright the scan is
    expected = np.exp(-straight.gtab.bvals / 1000 * (0.4 + 1.3 * straight.gtab.bvecs[:, 0] ** 2))
    np.testing.assert_allclose(straight.signal[:, 12, 10, 6], expected, rtol=2e-3)
    straight.save(tmp_path / "signal.npy")
    loaded = SignalScan.load(tmp_path / "signal.npy")
    np.testing.assert_array_equal(loaded.signal, straight.signal)
    np.testing.assert_array_equal(loaded.gtab.bvecs, straight.gtab.bvecs)
    slab = maker([], [loaded]).draw(np.random.default_rng(0))
    # as it was, or mirrored with its directions: fibres that lie left and right tell no difference
    x = slab.protocol.features[:, 1]
    rho = slab.protocol.features[:, 0]
    expected = torch.exp(-rho * (0.4 + 1.3 * x))
    found = (slab.patches * slab.inside).sum((1, 2)) / slab.inside.sum()
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)
    assert 8 <= len(rho) <= 15


def test_scans_of_a_folder_are_cached(tmp_path: Path) -> None:
    scans, pool = tmp_path / "scans", tmp_path / "pool"
    (scans / "a").mkdir(parents=True)
    write_acquisition(ball_scan(np.diag([2.0, 2, 2, 1])), scans / "a" / "dwi.nii.gz")
    (first,) = kept_scans(SignalScan, "signal", scans, pool, SilentReport())
    assert [path.name for path in pool.glob("*.npy")] == ["signal-a-dwi.npy"]
    (scans / "a" / "dwi.nii.gz").write_bytes(b"no longer read")
    (again,) = kept_scans(SignalScan, "signal", scans, pool, SilentReport())
    np.testing.assert_array_equal(again.signal, first.signal)
    with pytest.raises(InputError, match="no scan to train on"):
        list(kept_scans(SignalScan, "signal", tmp_path / "pool", pool, SilentReport()))


# --- pretraining -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small anatomies: all that a slab of the tiny preset needs."""
    folder = tmp_path_factory.mktemp("pool")
    whole = random_phantom(0).fields
    assert len(whole) == len(FIELDS)
    for seed, low in enumerate((0, 36)):
        part = np.ascontiguousarray(whole[:, low : low + 36, :36, :24])
        Anatomy(part, np.full(3, 2.0)).save(folder / f"random{seed:03d}.npz")
    return folder


def settings(pool: Path, out: Path) -> TrainSettings:
    return TrainSettings(out=str(out), model="encoder", preset="tiny", anatomies=str(pool), steps=4, device="cpu")


class Stop(SilentReport):
    """Ends a run before its third step, as a person would."""

    def progress(self, done: float, total: float, stage: str) -> None:
        if stage == "Training" and done >= 2:
            raise KeyboardInterrupt


def test_pretraining_in_pieces_gives_the_same_weights(pool: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr("DiffusionFMLib.training.loop.CHECKPOINT_SECONDS", 0.0)
    whole = load_encoder(train(settings(pool, tmp_path / "whole"), SilentReport()))
    with pytest.raises(KeyboardInterrupt):
        train(settings(pool, tmp_path / "pieces"), Stop())
    pieces = load_encoder(train(settings(pool, tmp_path / "pieces"), SilentReport()))
    other = load_encoder(train(replace(settings(pool, tmp_path / "other"), seed=1), SilentReport()))
    assert whole.training["done"] == 4
    assert whole.network.shape == SHAPE
    differ = []
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(pieces.network.state_dict()[name], value, rtol=0, atol=1e-6)
        differ.append(not torch.equal(other.network.state_dict()[name], value))
    assert any(differ)


def test_the_command_pretrains_from_scans_too(pool: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.setattr("DiffusionFMLib.training.loop.LOG_STEPS", 2)
    (tmp_path / "scans").mkdir()
    write_acquisition(ball_scan(np.diag([2.0, 2, 2, 1])), tmp_path / "scans" / "dwi.nii.gz")
    start = tmp_path / "start.safetensors"
    torch.manual_seed(3)
    without = DiffusionTransformer(replace(SHAPE, rotary=False))
    save_encoder(start, without, {})
    out = tmp_path / "run"
    argv = ["train", "--model=encoder", "--preset=tiny", f"--out={out}", f"--anatomies={pool}", "--device=cpu"]
    argv += ["--steps=2", "--json", "--no-rotary", f"--start={start}", f"--scans={tmp_path / 'scans'}"]
    assert main(argv) == DONE
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "files": ["encoder.safetensors"], "warnings": []}
    trained = load_encoder(out / "encoder.safetensors")
    assert not trained.network.shape.rotary
    assert str(tmp_path) not in json.dumps(trained.training)
    (line,) = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    assert {name.rpartition("_")[2] for name in line["to_mean"]} == set(MASKS)
    # one step of each kind: the loss is their mean, and each is told as it was
    weights = masked_weight(0), masked_weight(0.5)
    told = [
        (1 - a) * line[f"visible_{kind}"] + a * line[f"hidden_{kind}"] for a, kind in zip(weights, MASKS, strict=True)
    ]
    assert np.mean(told) == pytest.approx(line["loss"], abs=3e-5)
    with pytest.raises(SettingsError, match="rotary=False.*expected.*rotary=True"):
        EncoderTask(replace(settings(pool, out), start=str(start)))


def test_presets_have_the_priors_names_and_rates_follow_the_paper() -> None:
    assert set(PRESETS) == set(PRIOR_PRESETS)
    for preset in PRESETS.values():
        assert all(edge % step == 0 for edge, step in zip(preset.crop, preset.shape.patch, strict=True))
        assert preset.shape.axes == "scanner"
    task = EncoderTask(TrainSettings(model="encoder", preset="tiny"))
    optimiser = task.optimiser()
    rates, decays = [], []
    for step in range(300):
        rates.append(task.set_rates(optimiser, step, 300))
        assert optimiser.param_groups[1]["weight_decay"] == 0
        decays.append(optimiser.param_groups[0]["weight_decay"])
    assert int(np.argmax(rates)) in (39, 40)
    assert all(later <= earlier for earlier, later in pairwise(rates[40:]))
    assert rates[-1] == pytest.approx(0.02 * max(rates), rel=0.02)
    assert decays[0] == pytest.approx(0.04)
    assert decays[-1] == pytest.approx(0.4, rel=1e-3)


def test_steps_make_hidden_tokens_better_known() -> None:
    """On one slab, whose shells differ and whose tissue does too: better than the shell's mean over the brain."""
    torch.manual_seed(0)
    task = EncoderTask(TrainSettings(model="encoder", preset="tiny"))
    network, one = task.network, maker([[random_phantom(1)]], []).draw(np.random.default_rng(4))
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    errors = []
    for step in range(60):
        kind = MASKS[step % 2]
        masked = draw_mask(kind, len(one.protocol), one.patches.shape[1], np.random.default_rng(step % 4))
        result = losses([reconstructed(network, one, masked)], [one], [masked], kind, 0.5)
        optimiser.zero_grad()
        result.total.backward()
        optimiser.step()
        errors.append(result.parts[f"hidden_{kind}"])
    assert np.mean(errors[-4:]) < 0.5 * np.mean(errors[:4])


def reconstructed(network: torch.nn.Module, one: Sample, masked: torch.Tensor) -> torch.Tensor:
    from DiffusionFMLib.encoder.mae import Batch

    (found,) = network(Batch([one], [masked]))
    return found
