"""Adaptation to a scan: what misleads there is turned down, by volumes that were left out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import standard_deviation
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.adaptation import Adjustment, adapt, can_adapt
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.estimate import ScanPosterior, estimate
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.prior.neighbourhood import WEIGHTS
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.readout import SAMPLES
from DiffusionFMLib.prior.sampling import sample
from DiffusionFMLib.prior.weights import TrainedPrior
from DiffusionFMLib.settings import FitSettings

SHAPE = (20, 18, 16)
SIGMA = 25.0
COORDINATES = coordinates_of(DTI())
STEPS = 25


def scan(directions: int) -> tuple[Acquisition, NoiseEstimate, np.ndarray]:
    """Two tissues with noise, and their parameters, shape (X, Y, Z, 7)."""
    rng = np.random.default_rng(0)
    gtab = GradientTable(np.r_[0, np.full(directions, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(directions)])
    theta = np.zeros((*SHAPE, 7))
    theta[..., [0, 3, 5, 6]] = [1.6, 0.4, 0.3, np.log(500.0)]
    theta[:9, ..., [0, 3, 5]] = 0.8
    clean = np.exp(theta @ DTI().design(gtab).T)
    noise = SIGMA * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    mask = np.ones(SHAPE, bool)
    estimated = NoiseEstimate(SIGMA, np.full(SHAPE, SIGMA, np.float32), (0.0, 0.0, 0.0), 9)
    return Acquisition(signal, np.diag([2.0, 2, 2, 1]), gtab, mask, "two tissues"), estimated, theta


def misled(shift: float) -> TrainedPrior:
    """Neighbours joined, and in all voxels too much anisotropy, of which it is rather sure."""
    torch.manual_seed(0)
    network = PriorNetwork(NetworkShape(7, 16, 1, 1)).eval()
    with torch.no_grad():
        for layer in (network.head, network.linear):
            layer.weight.zero_()
            layer.bias.zero_()
        network.head.bias[1] = shift
    return TrainedPrior(network, DTI(), COORDINATES, {})


def posterior_of(directions: int, shift: float) -> tuple[ScanPosterior, np.ndarray]:
    acquisition, noise, theta = scan(directions)
    return ScanPosterior(acquisition, np.ones(SHAPE, bool), noise, misled(shift)), theta.reshape(-1, 7).T


def test_without_changes_the_output_is_the_networks() -> None:
    raw = torch.randn(7 + 28 + WEIGHTS, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Adjustment(COORDINATES.orders)(raw), raw)


def test_each_factor_reaches_its_part_of_the_output() -> None:
    adjustment = Adjustment(COORDINATES.orders)
    raw = torch.ones(35 + WEIGHTS, 2, 2, 2)
    with torch.no_grad():
        adjustment.gains[0] = 3
        adjustment.contrast += 1
        adjustment.log_precision += 5
        adjustment.offsets[-1] = 7
        adjustment.offsets[0] = 9
        changed = (adjustment(raw) - raw)[:, 0, 0, 0]
    expected = torch.zeros(35 + WEIGHTS)
    expected[1:6] = 2
    # neither of mean diffusivity nor of ln S0: what was 1 is twice that, and 5 more
    expected[7:][[7, 13, 18, 22, 25]] = 6
    # neighbours that face each other across the voxel, and the wide neighbourhood
    expected[35:][[0, 26]] = 9
    expected[35 + 27] = 7
    torch.testing.assert_close(changed, expected)
    # two of a gain, one of the contrast, and offsets; what is added to the precision costs nothing
    assert float(adjustment.change().detach()) == pytest.approx(4 + 1 + (49 + 81) / 4)


def test_without_factors_directions_are_as_if_nothing_were_learnt() -> None:
    adjustment = Adjustment(COORDINATES.orders)
    raw = torch.randn(35 + WEIGHTS, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for factor in (adjustment.gains, adjustment.choice, adjustment.contrast):
            factor.zero_()
        left = adjustment(raw)[:, 0, 0, 0] != 0
    # means over directions, all of the precision but its diagonal for the rest, and what weighs b0 volumes
    expected = torch.zeros(35 + WEIGHTS, dtype=torch.bool)
    expected[0] = True
    expected[6:35] = True
    expected[7:][[7, 13, 18, 22, 25]] = False
    expected[35 + WEIGHTS // 2 :] = True
    assert torch.equal(left, expected)


def test_what_misleads_is_turned_down() -> None:
    posterior, truth = posterior_of(12, 0.6)

    def anisotropy_error() -> float:
        theta = estimate(posterior, SilentReport()).theta
        return float(np.sqrt(np.mean(((theta[0] - theta[5]) - (truth[0] - truth[5])) ** 2)))

    before = anisotropy_error()
    adjustment = adapt(posterior, 0, SilentReport(), STEPS)
    assert float(adjustment.gains[0]) < 0.6
    posterior.trained = replace(posterior.trained, adjustment=adjustment)
    assert anisotropy_error() < 0.75 * before


def test_the_same_seed_adapts_the_same() -> None:
    posterior, _ = posterior_of(6, 0.3)
    one, same, other = (adapt(posterior, seed, SilentReport(), 3).to_dict() for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert set(one) == {"gains", "choice", "offsets", "contrast", "log_precision"}


def test_three_directions_have_none_to_spare() -> None:
    acquisition, _, _ = scan(3)
    assert not can_adapt(posterior_of(3, 0.0)[0])
    report = SilentReport()
    fitted = fit(acquisition, DTI(), FitSettings(method="prior", device="cpu"), report)
    assert "adaptation" not in fitted.provenance
    assert any(code == "adaptation" and "3 weighted volumes" in message for code, message in report.warnings)


@pytest.mark.parametrize("adaptation", ["none", "adapt"])
def test_provenance_says_how_it_was_adapted(adaptation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.prior.fitting.adapt", partial(adapt, steps=2))
    acquisition, _, _ = scan(12)
    fitted = fit(acquisition, DTI(), FitSettings(method="prior", device="cpu", adaptation=adaptation), SilentReport())
    assert ("adaptation" in fitted.provenance) == (adaptation == "adapt")


def test_standard_deviations_are_of_what_samples_miss_the_estimate_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.prior.fitting.adapt", lambda *_: Adjustment(COORDINATES.orders))
    # all alike, and without any anisotropy
    monkeypatch.setattr("DiffusionFMLib.prior.readout.sample", lambda scan, *_: torch.zeros(7, len(scan)))
    acquisition, _, _ = scan(12)
    fitted = fit(acquisition, DTI(), FitSettings(method="prior", device="cpu", adaptation="sample"), SilentReport())
    fa, sd = (fitted.maps[name].data for name in ("fa", standard_deviation(DTI.map_specs[0]).name))
    anisotropic = fa > 0.1
    assert anisotropic.any()
    np.testing.assert_allclose(sd[anisotropic], fa[anisotropic], atol=1e-3)


def test_samples_spread_as_the_first_order_says_where_that_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("DiffusionFMLib.prior.fitting.adapt", lambda *_: Adjustment(COORDINATES.orders))
    monkeypatch.setattr("DiffusionFMLib.prior.readout.sample", partial(sample, levels=6))
    acquisition, _, _ = scan(12)
    settings = FitSettings(method="prior", device="cpu", adaptation="sample")
    sampled = fit(acquisition, DTI(), settings, SilentReport())
    first_order = fit(acquisition, DTI(), replace(settings, adaptation="none"), SilentReport())
    assert sampled.provenance["samples"] == SAMPLES
    assert [used["file"] for used in sampled.provenance["weights"]] == [
        "prior-dti-small.safetensors",
        "sampler-dti-small.safetensors",
    ]
    specs = {spec.name: spec for spec in DTI.map_specs}
    name = standard_deviation(specs["md"]).name
    np.testing.assert_array_equal(sampled.maps["md"].data, first_order.maps["md"].data)
    ratio = np.median(sampled.maps[name].data) / np.median(first_order.maps[name].data)
    assert 0.6 < ratio < 1.7
