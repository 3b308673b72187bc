"""Training: what lowers the loss, runs in pieces, the command, and the weights applied to scans."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.cli import DONE, USER, main
from DiffusionFMLib.errors import DiffusionFMError, InputError, ProtocolError, SettingsError
from DiffusionFMLib.events import Artifact, Cancelled, Event, Progress, SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import digest_of
from DiffusionFMLib.physics import DKI, DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.estimate import ScanPosterior, estimate
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.posterior import Posterior
from DiffusionFMLib.prior.weights import TrainedPrior, load_weights, save_weights
from DiffusionFMLib.training import loop
from DiffusionFMLib.training.anatomies import random_phantom
from DiffusionFMLib.training.command import run_training, train
from DiffusionFMLib.training.examples import Example, ExampleMaker
from DiffusionFMLib.training.loop import CHECKPOINT, LOG
from DiffusionFMLib.training.losses import batch_input, fa, losses, posterior_of
from DiffusionFMLib.training.plot import PLOT
from DiffusionFMLib.training.prior import PriorTask
from DiffusionFMLib.training.settings import TrainSettings

pytest.importorskip("lightning")

WEIGHTS = "prior.safetensors"

COORDINATES = coordinates_of(DTI())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Two without a look at the truth, two with one."""
    makers = [ExampleMaker([[random_phantom(0)]], DTI(), COORDINATES, 16, 2, looks, CPU) for looks in (0.0, 1.0)]
    rng = np.random.default_rng(3)
    return [maker.draw(rng) for maker in makers for _ in range(2)]


def small_network(seed: int = 0) -> PriorNetwork:
    torch.manual_seed(seed)
    return PriorNetwork(NetworkShape(7, 16, 1, 1)).to(memory_format=torch.channels_last_3d)


def test_a_run_starts_from_the_weights_that_it_is_given(pool: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_weights(start, small_network(7), DTI(), {})
    settings = TrainSettings(
        out=str(tmp_path / "run"), preset="tiny", anatomies=str(pool), device="cpu", start=str(start)
    )
    trained = load_weights(train(replace(settings, steps=1), SilentReport()))
    for name, value in small_network(7).state_dict().items():
        # one small step away
        torch.testing.assert_close(trained.network.state_dict()[name], value, rtol=0, atol=1e-4)
    assert trained.training["start"] == digest_of(start)
    other = replace(settings, preset="small", out=str(tmp_path / "other"))
    with pytest.raises(SettingsError, match="levels=1.*expected.*levels=2"):
        train(replace(other, steps=1), SilentReport())


def run(pool: Path, out: Path, steps: int) -> dict[str, torch.Tensor]:
    settings = TrainSettings(out=str(out), preset="tiny", anatomies=str(pool), steps=4, device="cpu")
    if steps < 4:
        # the learning rate follows the steps in all: a run is stopped, not made shorter
        class Stop(SilentReport):
            def progress(self, done: float, total: float, stage: str) -> None:
                if stage == "Training" and done >= steps:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(settings, Stop())
        return {}
    train(settings, SilentReport())
    return load_weights(out / WEIGHTS).network.state_dict()


def test_a_run_in_pieces_gives_the_same_weights(pool: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.training.loop.CHECKPOINT_SECONDS", 0.0)
    whole = run(pool, tmp_path / "whole", 4)
    run(pool, tmp_path / "pieces", 2)
    assert (tmp_path / "pieces" / CHECKPOINT).is_file()
    assert not (tmp_path / "pieces" / WEIGHTS).exists()
    pieces = run(pool, tmp_path / "pieces", 4)
    torch.manual_seed(0)
    start = PriorNetwork(NetworkShape(7, 16, 1, 1)).state_dict()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=0, atol=1e-6)


def test_a_run_is_not_taken_up_with_other_settings(pool: Path, tmp_path: Path) -> None:
    settings = TrainSettings(out=str(tmp_path), preset="tiny", anatomies=str(pool), device="cpu", steps=1)
    train(settings, SilentReport())
    for other, named in ((replace(settings, seed=9), "seed 0"), (replace(settings, model="dki"), "model dti")):
        with pytest.raises(SettingsError, match=f"a run with {named}; this one has"):
            train(other, SilentReport())


def test_a_cancelled_run_is_kept_and_goes_on_from_there(pool: Path, tmp_path: Path) -> None:
    def settings(name: str) -> TrainSettings:
        return TrainSettings(
            out=str(tmp_path / name), preset="tiny", anatomies=str(pool), device="cpu", steps=4, seed=5
        )

    cancelled, told = threading.Event(), []

    def sink(event: Event) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.stage == "Training":
            cancelled.set()

    assert isinstance(run_training(settings("pieces"), sink, cancelled), Cancelled)
    assert [event.role for event in told if isinstance(event, Artifact)] == ["checkpoint"]
    assert (tmp_path / "pieces" / CHECKPOINT).is_file()
    weights = [load_weights(train(settings(name), SilentReport())).network.state_dict() for name in ("whole", "pieces")]
    for whole, pieces in zip(*(each.values() for each in weights), strict=True):
        torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)


def test_the_average_forgets_the_start_and_smooths_the_end() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=loop._average)
    for step in range(1000):
        with torch.no_grad():
            # far off in the first tenth, then to and fro about 1
            network.weight.fill_(100 if step < 100 else 1 + (-1) ** step)
        average.update_parameters(network)
    assert float(average.module.weight) == pytest.approx(1, abs=0.02)


def spoil(monkeypatch, spoilt) -> None:
    """Make the loss of some calls, counted from 0, not a number."""
    count = iter(range(1000))

    def spoiling(*args):
        result = losses(*args)
        return replace(result, total=result.total * torch.nan) if next(count) in spoilt else result

    monkeypatch.setattr("DiffusionFMLib.training.prior.losses", spoiling)


def test_a_step_without_a_finite_gradient_is_left_out(pool: Path, tmp_path: Path, monkeypatch) -> None:
    spoil(monkeypatch, {1})
    weights = run(pool, tmp_path, 4)
    assert all(torch.isfinite(value).all() for value in weights.values())
    monkeypatch.undo()
    assert any(not torch.equal(value, weights[name]) for name, value in run(pool, tmp_path / "all", 4).items())


def test_a_run_that_diverged_says_so(pool: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.training.loop.MAX_LEFT_OUT", 2)
    spoil(monkeypatch, range(1000))
    with pytest.raises(DiffusionFMError, match="last 3 steps had no finite gradient"):
        run(pool, tmp_path, 4)


def test_steps_lower_the_loss(examples: list[Example]) -> None:
    network = small_network()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    totals, errors = [], []
    for _ in range(25):
        raw = network(*batch_input(examples))
        result = losses(posterior_of(network, raw, examples), examples, np.random.default_rng(0))
        totals.append(float(result.total.detach()))
        errors.append(sum(ours for ours, _, _ in result.squares.values()))
        optimiser.zero_grad()
        result.total.backward()
        optimiser.step()
    assert totals[-1] < totals[0] - 0.04
    assert errors[-1] < 0.95 * errors[0]


def shifted(examples: list[Example], shift: list[float]) -> dict[str, float]:
    """Loss of a posterior that is off the truth by a vector of whitened coordinates."""
    truth = torch.cat([e.truth for e in examples], 1)
    precision = torch.zeros(28, truth.shape[1])
    precision[[0, 7, 13, 18, 22, 25, 27]] = 10.0
    mean = truth + torch.tensor(shift)[:, None]
    result = Posterior(mean, precision, examples[0].data)
    return losses(result, examples, np.random.default_rng(0)).parts


def test_losses_see_what_they_should(examples: list[Example]) -> None:
    nothing, md_and_s0, direction = (
        shifted(examples, shift) for shift in ([0.0] * 7, [0.1, 0, 0, 0, 0, 0, 0.06], [0, 0.5, 0, 0, 0, 0, 0])
    )
    assert nothing["parameters"] == pytest.approx(0, abs=1e-5)
    assert nothing["signals"] == pytest.approx(0, abs=1e-5)
    assert nothing["fa"] == pytest.approx(0, abs=1e-5)
    # at b = 1 ms/um2 this shift of MD and ln S0 leaves weighted signals as they are: b0 gives it away
    assert md_and_s0["signals"] > 0.005
    assert direction["fa"] > 0.02
    assert direction["likelihood"] > nothing["likelihood"]


@pytest.mark.parametrize("shown", [True, False])
def test_with_a_look_the_mean_is_what_loses_least(examples: list[Example], shown: bool) -> None:
    """Truths of two kinds: other losses would have the commoner kind, and samples would never be of the other."""
    first = next(e for e in examples if (e.look is not None) == shown)
    kind = torch.arange(first.truth.shape[1]) % 4 == 0
    truth = torch.zeros_like(first.truth)
    truth[1, kind] = 1.0
    example = replace(first, truth=truth, mask=torch.ones_like(first.mask))
    mean = truth.mean(1).requires_grad_()
    precision = torch.zeros(28, truth.shape[1])
    precision[[0, 7, 13, 18, 22, 25, 27]] = 10.0
    result = Posterior(mean[:, None].expand_as(truth), precision, first.data)
    (slope,) = torch.autograd.grad(losses(result, [example], np.random.default_rng(0)).total, mean)
    assert (float(slope.abs().max()) < 1e-5) == shown


def test_fa_is_that_of_the_eigenvalues() -> None:
    theta = torch.tensor([[1.5, 0.2, 0.1, 0.5, -0.1, 0.4, 0.0]]).T
    expected = DTI().maps(theta.T)["fa"]
    torch.testing.assert_close(fa(COORDINATES.whiten(theta)), expected, rtol=0, atol=2e-3)


def test_watched_errors_are_apart_where_the_truth_was_shown(examples: list[Example]) -> None:
    assert {e.look is None for e in examples} == {True, False}
    network = small_network()
    with torch.no_grad():
        result = losses(
            posterior_of(network, network(*batch_input(examples)), examples), examples, np.random.default_rng(0)
        )
    for shown in (False, True):
        counted = sum(count for name, (_, _, count) in result.squares.items() if name.startswith("look") == shown)
        assert counted == sum(int(e.mask.sum()) for e in examples if (e.look is not None) == shown)


def test_all_that_a_sampler_sees_has_a_look_at_the_truth(pool: Path, tmp_path: Path) -> None:
    settings = TrainSettings(out=str(tmp_path), preset="tiny", anatomies=str(pool), device="cpu", sampler=True)
    task = PriorTask(settings)
    task.prepare(pool, CPU, SilentReport())
    watched = [set(task.losses(task.network, 0, 1, np.random.default_rng(seed)).squares) for seed in range(4)]
    assert all(name.startswith("look") for names in watched for name in names)
    assert all(watched)


def test_crops_are_as_large_as_asked(pool: Path, tmp_path: Path) -> None:
    settings = TrainSettings(out=str(tmp_path), preset="tiny", anatomies=str(pool), device="cpu", crop=20)
    task = PriorTask(settings)
    task.prepare(pool, CPU, SilentReport())
    squares = task.losses(task.network, 0, 1, np.random.default_rng(0)).squares
    # the inner 16 of 20 voxels of each of two crops, as far as they are brain; 12 of the preset's 16
    assert 2 * 12**3 < sum(count for _, _, count in squares.values()) <= 2 * 16**3
    for crop in (4, 21):
        with pytest.raises(SettingsError, match="expected a multiple of 2 above 4"):
            PriorTask(replace(settings, crop=crop))


@pytest.mark.parametrize(("model", "option"), [("encoder", "sampler"), ("encoder", "crop"), ("dti", "rotary")])
def test_options_of_the_other_network_are_refused(model: str, option: str) -> None:
    value = {"sampler": True, "crop": 24, "rotary": False}[option]
    with pytest.raises(SettingsError, match=f"{option}: no option for training --model {model}"):
        train(TrainSettings(model=model, **{option: value}), SilentReport())


def test_the_command_trains_and_says_where(pool: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    argv = ["train", "--preset=tiny", f"--out={out}", f"--anatomies={pool}", "--device=cpu", "--steps=2", "--json"]
    assert main(argv) == DONE
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "files": [WEIGHTS], "warnings": []}
    trained = load_weights(out / WEIGHTS)
    assert trained.training["done"] == 2
    assert trained.model.name == "dti"
    assert str(tmp_path) not in json.dumps(trained.training)
    assert main(["train", "--preset=tiny"]) == USER


def test_the_log_tells_errors_by_noise_and_tissue(pool: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.training.loop.LOG_STEPS", 2)
    run(pool, tmp_path, 4)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["loss"] > 0
    assert lines[0]["to_ridge"]
    for name, ratio in lines[0]["to_ridge"].items():
        assert name.split("_")[1] in {"wm", "gm", "fluid"}
        assert 0 < ratio < 5
    pytest.importorskip("matplotlib")
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_folder_is_refused() -> None:
    with pytest.raises(SettingsError, match="No folder"):
        train(TrainSettings(preset="tiny"), SilentReport())


def test_weights_survive_the_disk_and_foreign_files_are_refused(tmp_path: Path) -> None:
    network = small_network()
    save_weights(tmp_path / "prior.safetensors", network, DTI(), {"seed": 3})
    found = load_weights(tmp_path / "prior.safetensors")
    assert found.training == {"seed": 3}
    assert found.network.shape == network.shape
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], tensor)
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / "absent.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="expected diffusionfm-prior"):
        load_weights(tmp_path / "other.safetensors")
    # of another size than the model that the header names
    save_weights(tmp_path / "other.safetensors", network, DKI(), {})
    with pytest.raises(InputError, match="7 unknowns, where"):
        load_weights(tmp_path / "other.safetensors")


# --- a whole scan ----------------------------------------------------------------------------------------


def pooling_prior() -> TrainedPrior:
    """A network without weights: neighbours' information and a vague prior, the same from all directions."""
    network = small_network().eval()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    return TrainedPrior(network, DTI(), COORDINATES, {})


def scan(affine: np.ndarray, seed: int = 0) -> tuple[Acquisition, NoiseEstimate]:
    rng = np.random.default_rng(seed)
    axes = Rotation.random(rng=rng).as_matrix()
    gtab = GradientTable(np.r_[0, np.full(12, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(12) @ axes.T])
    theta = np.zeros((12, 10, 9, 7))
    theta[..., [0, 3, 5]] = rng.uniform(0.3, 1.5, 3)
    theta[..., 1] = 0.2
    theta[6:, ..., [0, 3, 5]] = 0.8
    theta[..., 6] = np.log(700)
    signal = np.abs(np.exp(theta @ DTI().design(gtab).T) + rng.normal(0, 35, (12, 10, 9, 13)))
    mask = np.ones((12, 10, 9), bool)
    mask[:2, :2] = False
    noise = NoiseEstimate(35.0, np.where(mask, 35, 0).astype(np.float32), (0.0, 0.0, 0.0), 9)
    return Acquisition(signal.astype(np.float32), affine, gtab, mask), noise


def test_estimates_are_in_the_scanners_frame_whatever_the_grid() -> None:
    """The same head stored with its axes exchanged and mirrored, as LAS or oblique files have it."""
    turn = Rotation.from_euler("xyz", [10, -5, 20], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = 2 * turn
    one, noise = scan(affine)
    result = estimate(ScanPosterior(one, one.mask, noise, pooling_prior()), SilentReport())
    other_affine = affine[:, [2, 0, 1, 3]] @ np.diag([-1, 1, 1, 1])
    other = Acquisition(one.signal.transpose(2, 0, 1, 3)[::-1].copy(), other_affine, one.gtab)
    other_mask = one.mask.transpose(2, 0, 1)[::-1]
    other_noise = NoiseEstimate(35.0, noise.sigma_map.transpose(2, 0, 1)[::-1], noise.correlation, 9)
    again = estimate(ScanPosterior(other, other_mask, other_noise, pooling_prior()), SilentReport())
    volume, other_volume = np.zeros((*one.mask.shape, 7)), np.zeros((*other_mask.shape, 7))
    volume[one.mask], other_volume[other_mask] = result.theta.T, again.theta.T
    np.testing.assert_allclose(other_volume, volume.transpose(2, 0, 1, 3)[::-1], atol=2e-3)
    assert 0.1 < result.data_fraction.mean() < 0.95


def test_a_scans_unit_does_not_matter() -> None:
    one, noise = scan(np.diag([2.0, 2, 2, 1]))
    result = estimate(ScanPosterior(one, one.mask, noise, pooling_prior()), SilentReport())
    louder = Acquisition(one.signal * 40, one.affine, one.gtab)
    more = NoiseEstimate(noise.sigma * 40, noise.sigma_map * 40, noise.correlation, 9)
    again = estimate(ScanPosterior(louder, one.mask, more, pooling_prior()), SilentReport())
    np.testing.assert_allclose(again.theta[:6], result.theta[:6], atol=1e-3)
    np.testing.assert_allclose(again.theta[6], result.theta[6] + np.log(40), atol=1e-3)


def test_neighbours_help_even_without_weights() -> None:
    one, noise = scan(np.diag([2.0, 2, 2, 1]))
    clean = scan(np.diag([2.0, 2, 2, 1]))[0]
    rng = np.random.default_rng(5)
    noisy = Acquisition(
        np.abs(clean.signal + rng.normal(0, 35, clean.signal.shape)).astype(np.float32), one.affine, one.gtab
    )
    result = estimate(ScanPosterior(noisy, one.mask, noise, pooling_prior()), SilentReport())
    truth = estimate(ScanPosterior(clean, one.mask, noise, pooling_prior()), SilentReport()).theta
    inside = np.zeros(one.mask.shape, bool)
    inside[8:, 2:-2, 2:-2] = True
    at = inside[one.mask]
    error, ridge = (np.square((found - truth)[:6, at]).mean() for found in (result.theta, result.ridge))
    assert error < 0.5 * ridge


def test_a_scan_without_b0_is_refused() -> None:
    one, noise = scan(np.eye(4))
    weighted = ~one.gtab.b0_mask
    part = Acquisition(one.signal[..., weighted], one.affine, one.gtab.subset(weighted))
    with pytest.raises(ProtocolError, match="no b0"):
        estimate(ScanPosterior(part, one.mask, noise, pooling_prior()), SilentReport())
