"""Calibration: what tells how large a map's errors are, how it is learnt, and that it changes nothing else."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import Artifact, Cancelled, Event, Progress, SilentReport
from DiffusionFMLib.fitting.uncertainty import MAX_ERROR
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, DTI, NODDI, SignalModel
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.calibration import MAX_LOG_FACTOR, Calibration, calibrated_maps, features
from DiffusionFMLib.prior.disagreement import together
from DiffusionFMLib.prior.fitting import fit, uncalibrated_fit
from DiffusionFMLib.prior.network import PriorNetwork
from DiffusionFMLib.prior.sampling import sample
from DiffusionFMLib.prior.weights import TrainedPrior, load_weights, save_weights, weights_file
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.training import calibration as training
from DiffusionFMLib.training.anatomies import random_phantom
from DiffusionFMLib.training.calibration import UNCALIBRATED
from DiffusionFMLib.training.command import run_training, train
from DiffusionFMLib.training.settings import TrainSettings

PRIOR = FitSettings(method="prior", device="cpu", adaptation="none")


def scan(unit: float = 1.0) -> Acquisition:
    """Two tissues at two shells, noise, and a voxel without any signal."""
    rng = np.random.default_rng(0)
    g = spread_directions(10)
    gtab = GradientTable(np.r_[0, 0, np.repeat([1000.0, 2000.0], 10)], np.concatenate([np.zeros((2, 3)), g, g]))
    theta = np.zeros((10, 12, 9, 7), np.float32)
    theta[..., 2], theta[..., 3:] = 1, [0.6, 0.2, 0.1, np.log(500.0)]
    theta[:4, ..., 3] = 0.3
    clean = NODDI().signal(torch.from_numpy(theta), gtab).numpy()
    noise = 20 * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    signal[5, 5, 5] = 0
    mask = np.ones(signal.shape[:3], bool)
    mask[:, 0] = False
    return Acquisition(unit * signal, np.diag([2.0, 2, 2, 1]), gtab, mask)


def plain_weights(model: SignalModel, folder: Path) -> Path:
    """Those shipped, without their calibration."""
    trained = load_weights(weights_file("", model))
    path = folder / "plain.safetensors"
    save_weights(path, trained.network, trained.model, trained.training)
    return path


def constant(model: SignalModel, size: int, factor: float) -> Calibration:
    calibration = Calibration(model, size)
    with torch.no_grad():
        for parameter in calibration.parameters():
            parameter.zero_()
        calibration.layers[-1].bias.fill_(MAX_LOG_FACTOR * np.arctanh(np.log(factor) / MAX_LOG_FACTOR))
    return calibration


@pytest.mark.parametrize("model", [DTI(), DKI(), NODDI()], ids=lambda m: m.name)
def test_a_factor_changes_standard_deviations_and_nothing_else(model: SignalModel, tmp_path: Path) -> None:
    plain = plain_weights(model, tmp_path)
    trained = load_weights(plain)
    given = scan()
    before = fit(given, model, replace(PRIOR, model=model.name, weights=str(plain)), SilentReport())
    size = features(before, given.gtab).shape[1]
    path = tmp_path / "calibrated.safetensors"
    save_weights(path, trained.network, trained.model, {}, {model.name: constant(model, size, 1.5)})
    after = fit(given, model, replace(PRIOR, model=model.name, weights=str(path)), SilentReport())
    changed = {f"{name}_sd" for name in calibrated_maps(model)}
    assert changed
    for name, image in before.maps.items():
        factor = 1.5 if name in changed else 1.0
        np.testing.assert_allclose(after.maps[name].data, factor * image.data, rtol=1e-4)
    assert not any(after.maps[name].data[~given.mask].any() for name in changed)


def test_what_has_no_standard_deviation_gets_none() -> None:
    given = scan()
    found = fit(given, DTI(), PRIOR, SilentReport())
    sd = found.maps["fa_sd"].data
    sd[3, 3, 3] = MAX_ERROR
    before = sd.copy()
    constant(DTI(), features(found, given.gtab).shape[1], 0.5).apply_to(found, given.gtab)
    assert sd[3, 3, 3] == MAX_ERROR
    assert sd[3, 3, 4] == pytest.approx(0.5 * before[3, 3, 4])


def test_features_are_of_the_tissue_and_not_of_the_unit() -> None:
    one, thousand = scan(), scan(1000.0)
    found = [features(fit(given, DTI(), PRIOR, SilentReport()), given.gtab) for given in (one, thousand)]
    assert found[0].shape[0] == one.mask.sum()
    # a voxel without a signal has no standard deviation either
    usable = one.signal.any(-1)[one.mask]
    found = [each[usable] for each in found]
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(*found, rtol=1e-3, atol=2e-3)
    # fa and md, each beside the mean around it
    assert float(found[0][:, 1].mean().abs()) < 0.01
    assert float(found[0][:, 5].mean().abs()) < 1e-5


def test_a_fit_shows_the_factors_what_they_were_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each voxel's own disagreement, though the map is of neighbours together."""
    given, shown = scan(), []
    monkeypatch.setattr(Calibration, "forward", lambda self, some: shown.append(some) or 0 * some[:, : len(self.names)])
    found = fit(given, DTI(), PRIOR, SilentReport())
    learnt_from, _ = uncalibrated_fit(given, DTI(), PRIOR, SilentReport())
    torch.testing.assert_close(torch.cat(shown), features(learnt_from, given.gtab))
    usable = given.signal.any(-1) & given.mask
    alone, joined = (each.maps["disagreement"].data[usable] for each in (learnt_from, found))
    np.testing.assert_allclose(joined, together(torch.from_numpy(alone), usable), rtol=1e-4, atol=1e-4)
    assert np.corrcoef(joined, alone)[0, 1] < 0.99


def test_samples_keep_their_own_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.prior.readout.SAMPLES", 1)
    monkeypatch.setattr("DiffusionFMLib.prior.readout.sample", partial(sample, levels=2))
    whole = scan()
    given = replace(whole, signal=whole.signal[:4, 1:5, :4], mask=whole.mask[:4, 1:5, :4])
    plain = plain_weights(DTI(), tmp_path)
    trained = load_weights(plain)
    path = tmp_path / "calibrated.safetensors"
    calibration = constant(DTI(), features(fit(given, DTI(), PRIOR, SilentReport()), given.gtab).shape[1], 3.0)
    save_weights(path, trained.network, trained.model, {}, {"dti": calibration})
    sampled = replace(PRIOR, adaptation="sample")
    found = [fit(given, DTI(), replace(sampled, weights=str(one)), SilentReport()) for one in (plain, path)]
    np.testing.assert_array_equal(found[0].maps["fa_sd"].data, found[1].maps["fa_sd"].data)


def test_the_regression_finds_where_errors_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that are 3 times too large in one half of the voxels, and half as large in the other."""
    monkeypatch.setattr(training, "STEPS", 800)
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(60_000, 5)).astype(np.float32)
    true = np.where(seen[:, 0] > 0, 3.0, 0.5)
    errors = np.abs(rng.normal(size=(4, len(seen))) * true).astype(np.float32).T
    calibration = training._learned(DTI(), [{"dti_features": seen, "dti_errors": errors}], 0)
    with torch.no_grad():
        factors = calibration(torch.from_numpy(seen)).exp().numpy()
    away = np.abs(seen[:, 0]) > 0.2
    for half in (seen[:, 0] > 0, seen[:, 0] <= 0):
        for share, width in training.QUANTILES.items():
            held = (errors < width * factors)[half & away].mean(0)
            np.testing.assert_allclose(held, share, atol=0.03)


@pytest.fixture(scope="module")
def settings(pool: Path) -> TrainSettings:
    return TrainSettings(preset="tiny", anatomies=str(pool), device="cpu", calibrate=True, steps=2)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Small scans, and one as good as the other: adaptation is slow."""
    for name, value in {"ADAPTED": 1000, "STEPS": 50, "EDGE": 16, "MIN_VOXELS": 100}.items():
        patch.setattr(training, name, value)


@pytest.fixture(scope="module")
def calibrated(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        return train(replace(settings, out=str(tmp_path_factory.mktemp("run"))), SilentReport())


def same(one: TrainedPrior, other: TrainedPrior) -> bool:
    states = [trained.calibrations["dti"].state_dict() for trained in (one, other)]
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_command_calibrates_and_leaves_the_network_alone(calibrated: Path) -> None:
    shipped, found = load_weights(weights_file("", DTI())), load_weights(calibrated)
    for name, value in shipped.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)
    assert set(found.calibrations) == {"dti"}
    assert found.training["calibration"]["scans"] == 2
    assert not found.training.keys() & {"out", "anatomies"}


def test_a_calibration_in_pieces_and_of_calibrated_weights_is_the_same(
    settings: TrainSettings, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    again = replace(settings, out=str(tmp_path), start=str(calibrated))
    train(replace(again, steps=1), SilentReport())
    assert same(load_weights(train(again, SilentReport())), load_weights(calibrated))


def test_weights_whose_calibration_is_not_whole_are_told(calibrated: Path, tmp_path: Path) -> None:
    tensors, path = load_file(calibrated), tmp_path / "broken.safetensors"
    del tensors["calibration.dti.centre"]
    with safe_open(calibrated, "pt") as stored:
        save_file(tensors, path, metadata=stored.metadata())
    with pytest.raises(InputError, match=r"not complete.*centre.*Choose"):
        load_weights(path)


def test_what_a_cancelled_calibration_has_is_kept_and_told(settings: TrainSettings, tmp_path: Path) -> None:
    cancelled, told = threading.Event(), []

    def sink(event: Event) -> None:
        told.append(event)
        if isinstance(event, Progress) and event.stage == "Scans":
            cancelled.set()

    assert isinstance(run_training(replace(settings, out=str(tmp_path)), sink, cancelled), Cancelled)
    assert [Path(event.path) for event in told if isinstance(event, Artifact)] == [tmp_path / UNCALIBRATED]


def test_a_damaged_scan_is_named(
    settings: TrainSettings, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quick(monkeypatch)
    whole = next(calibrated.parent.glob("*scan0000.npz"))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"scan0000.npz cannot be read.*Delete it"):
        train(replace(settings, out=str(tmp_path), steps=1), SilentReport())


def test_scans_of_another_preset_are_not_mixed_in(settings: TrainSettings, tmp_path: Path) -> None:
    trained = load_weights(weights_file("", DTI()))
    save_weights(tmp_path / UNCALIBRATED, trained.network, DTI(), {"features": 1})
    with pytest.raises(SettingsError, match="scans of another calibration"):
        train(replace(settings, out=str(tmp_path)), SilentReport())


def test_a_folder_of_other_weights_is_left_alone(settings: TrainSettings, tmp_path: Path) -> None:
    trained = load_weights(weights_file("", DTI()))
    save_weights(tmp_path / "uncalibrated.safetensors", PriorNetwork(trained.network.shape), DTI(), {})
    with pytest.raises(SettingsError, match="calibration of other weights"):
        train(replace(settings, out=str(tmp_path)), SilentReport())


def test_training_on_drops_the_calibration(settings: TrainSettings, calibrated: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    on = replace(settings, calibrate=False, preset="small", start=str(calibrated), out=str(tmp_path), steps=1, crop=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("DiffusionFMLib.training.prior.anatomies", lambda *_: [[random_phantom(0)]])
        found = load_weights(train(on, SilentReport()))
    assert not found.calibrations


@pytest.mark.parametrize("wrong", [{"out": ""}, {"model": "encoder"}, {"measured": True}])
def test_what_cannot_be_calibrated_is_told(settings: TrainSettings, wrong: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"No folder|no option"):
        train(replace(replace(settings, out=str(tmp_path)), **wrong), SilentReport())


def test_the_shipped_weights_are_calibrated() -> None:
    for model, names in ((DTI(), {"dti"}), (DKI(), {"dki", "noddi"})):
        assert set(load_weights(weights_file("", model)).calibrations) == names
