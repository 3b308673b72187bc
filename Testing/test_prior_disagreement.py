"""Disagreement: standard normal where the prior is right, and high where it is not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, MODELS
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.disagreement import PASSES, distance, empirical_null, in_sigma, together
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.prior.information import Information, Measurements
from DiffusionFMLib.prior.posterior import posterior
from DiffusionFMLib.prior.systems import multiply, pack
from DiffusionFMLib.settings import FitSettings

MODEL = MODELS["dti"]


def exact(count: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Disagreement, in sigma, of voxels drawn from their own prior; `shift` moves MD by so many prior sds."""
    rng = np.random.default_rng(1)
    voxels, size, sigma = 20_000, 7, 0.06
    gtab = GradientTable(np.r_[0, np.full(count, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(count)])
    design = WhitenedDesign.of(DTI(), gtab, coordinates_of(DTI()), dtype=torch.float64)
    half = 0.3 * rng.normal(size=(size, size)) + 3 * np.eye(size)
    precision = half @ half.T
    mean = 0.2 * rng.normal(size=(size, voxels))
    u = mean + np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=(size, voxels)))
    u[0] += shift * np.sqrt(np.linalg.inv(precision)[0, 0])
    clean = design.log_signal(torch.from_numpy(u)).exp().numpy()
    noise = sigma * rng.normal(size=(2, *clean.shape))
    measurements = Measurements(torch.from_numpy(np.hypot(clean + noise[0], noise[1])), design, torch.tensor(sigma))
    packed = pack(torch.from_numpy(precision)[..., None].expand(-1, -1, voxels))
    prior = Information(packed, multiply(packed, torch.from_numpy(mean)))
    result = posterior(prior, [measurements], [measurements.around(torch.from_numpy(mean))])
    return in_sigma(distance(result, measurements), len(gtab)).numpy()


@pytest.mark.parametrize("count", [3, 6, 30])
def test_disagreement_is_standard_normal_where_the_prior_is_right(count):
    found = exact(count)
    assert abs(found.mean()) < 0.2
    assert 0.03 < np.mean(found > 1.645) < 0.06
    assert 0.004 < np.mean(found > 2.326) < 0.014


def test_what_is_wrong_everywhere_is_the_null_and_lesions_still_stand_out():
    rng = np.random.default_rng(0)
    shown = 1.5 + 2 * rng.normal(size=20_000)
    shown[:800] += 12
    shown[-3:] = np.nan
    centre, width = empirical_null(torch.from_numpy(shown))
    assert centre == pytest.approx(1.5, abs=0.2)
    assert width == pytest.approx(2.0, rel=0.1)
    # a scan that is as the prior expects, or better, stays as it is
    assert empirical_null(torch.from_numpy(0.8 * rng.normal(size=20_000) - 0.5)) == (0.0, 1.0)


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("shift", [-5.0, 8.0])
def test_what_the_prior_does_not_know_stands_out(count, shift):
    """Though with so few directions no residual is left to see it by.

    Diffusion that is too fast leaves less signal to see it by than one that is too slow.
    """
    assert np.mean(exact(count, shift) > 1.645) > 0.85


def box_and_ball(diameter: float, edge: int = 48) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """A round head, and a ball in it, in voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(edge) - (edge - 1) / 2 for _ in range(3)), indexing="ij"), -1)
    return np.linalg.norm(grid, axis=-1) < 0.45 * edge, np.linalg.norm(grid - 6, axis=-1) < diameter / 2


def test_what_neighbours_show_is_the_larger_of_two_filters_standardised() -> None:
    # with room for the wider filter, which is made of narrow ones
    rng, mask = np.random.default_rng(0), np.pad(box_and_ball(3, 20)[0], 8)
    alone = rng.normal(size=int(mask.sum()))

    def standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
        low, middle = np.quantile(values, [0.1587, 0.5])
        return (values - middle) / (middle - low)

    found = []
    for passes in PASSES:
        weights = np.poly1d([0.25, 0.5, 0.25]) ** passes
        rows = np.zeros((2, *mask.shape))
        rows[:, mask] = alone, np.ones_like(alone)
        for axis in (1, 2, 3):
            rows = ndimage.correlate1d(rows, weights.coeffs, axis=axis, mode="constant")
        found.append(standardised(rows[0][mask] / np.sqrt(rows[1][mask])))
    expected = standardised(np.max(found, axis=0))
    np.testing.assert_allclose(together(torch.from_numpy(alone), mask).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("diameter", "strength"), [(3, 2.0), (7, 0.8)])
def test_a_lesion_is_shown_by_its_voxels_together(diameter: float, strength: float) -> None:
    """Though each of them hardly differs from noise, of which no more is called abnormal than there was."""
    rng, (mask, ball) = np.random.default_rng(1), box_and_ball(diameter)
    alone = rng.normal(size=mask.shape) + strength * ball
    found = np.zeros(mask.shape)
    found[mask] = together(torch.from_numpy(alone[mask]), mask).numpy()
    far = mask & ~ndimage.binary_dilation(ball, iterations=6)
    limit = np.quantile(found[far], 0.95)
    assert limit == pytest.approx(1.645, abs=0.3)
    assert np.mean(found[far] > 3) < 0.005
    assert np.mean(found[ball] > limit) > 0.8 > 0.7 > np.mean(alone[ball] > 1.645)


def test_noise_is_no_more_abnormal_at_the_edge_of_the_brain() -> None:
    mask, _ = box_and_ball(3)
    edge = (mask & ~ndimage.binary_erosion(mask))[mask]
    ratios = []
    for seed in range(8):
        alone = np.random.default_rng(seed).normal(size=int(mask.sum()))
        shown = together(torch.from_numpy(alone), mask).numpy()
        ratios.append(shown[edge].std() / shown[~edge].std())
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_what_is_not_a_number_shows_nothing_and_neither_does_a_scan_without_noise() -> None:
    mask, _ = box_and_ball(3, 20)
    alone = torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(0))
    alone[:50] = torch.nan
    assert together(alone, mask).isfinite().all()
    assert together(torch.zeros_like(alone), mask).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("md", "snr", "says"),
    [
        (0.85, 20, ""),
        (2.0, 20, "mean diffusivity is [12]"),
        (0.25, 20, "mean diffusivity is 0"),
        (0.8, 1, "times the noise"),
    ],
)
def test_what_is_no_brain_is_told(md: float, snr: float, says: str) -> None:
    """Water, fixed tissue, and noise; living tissue is not."""
    gtab = GradientTable(np.r_[0, 0, np.full(12, 1000.0)], np.r_[np.zeros((2, 3)), spread_directions(12)])
    rng, shape = np.random.default_rng(0), (12, 12, 12)
    clean = 500 * np.exp(-md * gtab.bvals / 1000) * np.ones((*shape, 1))
    noise = 500 / snr * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    scan = Acquisition(signal, np.diag([2.0, 2, 2, 1]), gtab, np.ones(shape, bool))
    report = SilentReport()
    fit(scan, DTI(), FitSettings(method="prior", device="cpu", adaptation="none"), report)
    told = [message for code, message in report.warnings if code == "no-brain"]
    assert len(told) == bool(says)
    assert not says or re.search(says, told[0])
