"""NODDI fits: truth is found, both implementations agree, bad voxels are told, AMICO is no better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffusionFMLib import fused
from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import FitOptions, fit
from DiffusionFMLib.fitting.noddi import NoddiPlan
from DiffusionFMLib.fitting.noddi_signal import with_floor
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import MODELS, NODDI
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.simulation.scanner import gradient_table

DENSE = gradient_table(((1000.0, 30), (2000.0, 60)), 6)
SPARSE = gradient_table(((1000.0, 6), (2000.0, 6)), 1)
SHAPE = (16, 16, 8)
SIGNAL = 245.0
"""Typical S0, of which SNR speaks; the noise is the same everywhere."""
IMPLEMENTATIONS = ["torch", pytest.param("fused", marks=pytest.mark.skipif(not fused.available(), reason="no numba"))]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch) -> str:
    monkeypatch.setattr(fused, "available", lambda: request.param == "fused")
    return request.param


def truth(seed: int = 0) -> torch.Tensor:
    """Parameters of tissue, shape (voxels, 7)."""
    rng, count = np.random.default_rng(seed), int(np.prod(SHAPE))
    mu = rng.normal(size=(count, 3))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    rest = rng.uniform([0.2, 0.03, 0.0, 5.0], [0.8, 0.7, 0.3, 6.0], (count, 4))
    return torch.as_tensor(np.column_stack([mu, rest]))


def scan(theta: torch.Tensor, gtab, snr: float = np.inf, seed: int = 0) -> Acquisition:
    clean = NODDI().signal(theta, gtab).numpy()
    rng = np.random.default_rng(seed)
    sigma = SIGNAL / snr
    noise = rng.normal(size=(2, *clean.shape)) * sigma
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    return Acquisition(signal.reshape(*SHAPE, -1), np.diag([2.0, 2, 2, 1]), gtab)


def run(acquisition: Acquisition, method: str = "nlls", **options) -> dict:
    settings = FitSettings(model="noddi", method=method, device="cpu")
    found = fit(acquisition, MODELS["noddi"], settings, SilentReport(), FitOptions(**options))
    return {name: map.data.reshape(-1, *map.data.shape[3:]) for name, map in found.maps.items()}


@pytest.mark.parametrize("method", ["map", "nlls"])
@pytest.mark.parametrize("gtab", [DENSE, SPARSE], ids=str)
def test_truth_is_found_without_noise(implementation, gtab, method):
    theta = truth().numpy()
    maps = run(scan(torch.as_tensor(theta), gtab), method)
    for column, name in ((3, "ndi"), (4, "odi"), (5, "fwf")):
        error = np.abs(maps[name] - theta[:, column])
        assert np.median(error) < 1e-5, name
        assert np.percentile(error, 99) < 1e-3, name
    cosine = np.abs((maps["v1"] * theta[:, :3]).sum(axis=-1))
    assert np.degrees(np.arccos(np.clip(np.percentile(cosine, 1), 0, 1))) < 0.5
    np.testing.assert_allclose(np.median(maps["s0"] / np.exp(theta[:, 6])), 1, atol=1e-4)
    assert (maps["status"] == FitStatus.OK).mean() > 0.99
    assert np.median(maps["residual"]) < 1e-5


@pytest.mark.skipif(not fused.available(), reason="no numba")
@pytest.mark.parametrize("method", ["map", "nlls"])
def test_both_implementations_find_the_same(monkeypatch, method):
    noisy = scan(truth(), DENSE, snr=20)
    compiled = run(noisy, method)
    monkeypatch.setattr(fused, "available", lambda: False)
    batched = run(noisy, method)
    for name in ("ndi", "odi", "fwf", "residual"):
        difference = np.abs(compiled[name] - batched[name])
        assert np.median(difference) < 2e-4, name
        assert np.percentile(difference, 98) < 1e-2, name


def test_b_values_beyond_the_compiled_loop_are_fitted_too():
    gtab = gradient_table(((1000.0, 20), (5000.0, 40)), 3)
    theta = truth()
    maps = run(scan(theta, gtab), "nlls")
    assert np.median(np.abs(maps["ndi"].ravel() - theta[:, 3].numpy())) < 1e-3
    assert np.median(np.abs(maps["odi"].ravel() - theta[:, 4].numpy())) < 1e-3


def test_noise_floor_is_that_of_rician_noise():
    signal = torch.cat([torch.linspace(0, 15, 2001), torch.logspace(1, 5, 200)]).double().requires_grad_()
    for sigma in (0.3, 1.0, 7.0):
        mean, slope = with_floor(sigma * signal, sigma)
        exact = RicianNoise().mean(sigma * signal, torch.full_like(signal, sigma))
        (exact_slope,) = torch.autograd.grad(exact.sum(), signal)
        torch.testing.assert_close(mean / sigma, exact / sigma, rtol=0, atol=1e-5)
        torch.testing.assert_close(slope, exact_slope / sigma, rtol=0, atol=1e-4)
    mean, slope = with_floor(signal, 0.0)
    torch.testing.assert_close(mean, signal, rtol=0, atol=1e-9)


def test_noise_level_is_learnt_and_its_floor_taken_off():
    theta, snr = truth(2), 12
    noisy = scan(theta, DENSE, snr=snr)
    plan = NoddiPlan(DENSE, FitSettings(model="noddi"), FitOptions(), torch.device("cpu"), torch.float32)
    plan.calibrate(torch.as_tensor(noisy.signal.reshape(-1, len(DENSE)).T.copy()))
    assert plan.sigma == pytest.approx(SIGNAL / snr, rel=0.03)
    plain, aware = run(noisy, "nlls"), run(noisy, "map")
    truths = {"ndi": theta[:, 3].numpy(), "fwf": theta[:, 5].numpy()}
    for name, true in truths.items():
        bias = [abs(float(np.mean(maps[name].ravel() - true))) for maps in (plain, aware)]
        assert bias[1] < 0.5 * bias[0] + 0.01, (name, bias)


def test_priors_yield_to_the_data():
    """Where the noise vanishes, so does the difference that the priors make."""
    theta = truth(3)
    apart = []
    for snr in (10, 40, 160):
        noisy = scan(theta, SPARSE, snr=snr)
        plain, weighed = run(noisy, "nlls"), run(noisy, "map")
        apart.append(float(np.median(np.abs(plain["ndi"] - weighed["ndi"]))))
    assert apart[0] > 3 * apart[1] > 9 * apart[2]


@pytest.mark.parametrize("dtype", ["single", "double"])
def test_bounds_hold_and_nothing_is_nan_in_noise(implementation, dtype):
    maps = run(scan(truth(), SPARSE, snr=2), "map", double=dtype == "double")
    for name, low, high in (("ndi", 0, 1), ("odi", 0.01, 0.99), ("fwf", 0, 1), ("s0", 0, np.inf)):
        assert np.isfinite(maps[name]).all(), name
        assert maps[name].min() >= low - 1e-6, name
        assert maps[name].max() <= high + 1e-6, name
    np.testing.assert_allclose(np.linalg.norm(maps["v1"], axis=-1), 1, atol=1e-5)


def test_voxels_without_a_usable_signal_are_told(implementation):
    good = scan(truth(), DENSE)
    signal = good.signal.copy()
    signal[0, 0, 0] = 0
    signal[0, 0, 1] = 77
    signal[0, 0, 2] = 1e30
    signal[0, 0, 3] = -5
    signal[0, 0, 4] = np.exp(-DENSE.bvals * 3e-3) * 900
    signal[0, 0, 5, ~DENSE.b0_mask] = 0
    maps = run(Acquisition(signal, good.affine, DENSE))
    assert all(np.isfinite(values).all() for values in maps.values())
    status = maps["status"][:6]
    assert (status[:4] == FitStatus.DEGENERATE).all()
    assert all(maps[name][:4].max() == 0 for name in ("ndi", "odi", "fwf", "s0", "residual"))
    # free water is a signal like any other
    assert maps["fwf"][4] > 0.98
    assert maps["s0"][4] == pytest.approx(900, rel=0.02)


@pytest.mark.parametrize(("gtab", "snr"), [(DENSE, 10), (DENSE, 20), (SPARSE, 10), (SPARSE, 30)], ids=str)
def test_no_worse_than_amico(tmp_path, gtab, snr):
    amico = pytest.importorskip("amico", reason="AMICO is not installed")
    from amico_peer import amico_noddi

    theta = truth(1)
    noisy = scan(theta, gtab, snr=snr)
    ours, theirs = run(noisy, "map"), amico_noddi(amico, noisy, tmp_path)
    for column, name in ((3, "ndi"), (4, "odi"), (5, "fwf")):
        error = [np.sqrt(np.mean((maps[name].ravel() - theta[:, column].numpy()) ** 2)) for maps in (ours, theirs)]
        assert error[0] < error[1], (name, error)
