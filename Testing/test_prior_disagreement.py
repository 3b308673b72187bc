"""Disagreement: standard normal where the prior is right, and high where it is not."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, MODELS
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.disagreement import distance, empirical_null, in_sigma
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
