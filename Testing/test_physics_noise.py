"""Noise models against scipy's distributions, brute-force integrals, samples and derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from DiffusionFMLib.physics.noise import GaussianNoise, NonCentralChiNoise, RicianNoise

NOISES = [GaussianNoise(), RicianNoise(), NonCentralChiNoise(1), NonCentralChiNoise(4), NonCentralChiNoise(32)]
SNRS = [0.0, 0.1, 1.0, 2.0, 5.0, 9.9, 10.0, 10.1, 11.1, 11.2, 14.0, 20.0, 29.0, 30.0, 100.0]


def coils(noise) -> int:
    return getattr(noise, "coils", 0)


def name(noise) -> str:
    return f"{type(noise).__name__}{coils(noise)}"


def scipy_log_density(noise, m, s, sigma):
    """The same density by scipy: the square of m / sigma is non-central chi-squared."""
    if isinstance(noise, GaussianNoise):
        return stats.norm.logpdf(m, s, sigma)
    shift = (s / sigma) ** 2
    return stats.ncx2.logpdf((m / sigma) ** 2, 2 * noise.coils, shift) + np.log(2 * m / sigma**2)


def brute_force_moments(noise, snr: float) -> tuple[float, float]:
    centre = np.sqrt(snr**2 + 2 * max(coils(noise) - 0.5, 0))
    low, high = (max(centre - 12, 0) if coils(noise) else centre - 12), centre + 12
    points = np.linspace(low + 1e-9, high, 40001)
    density = (
        noise.log_prob(torch.as_tensor(points), torch.tensor(snr).double(), torch.tensor(1.0).double()).exp().numpy()
    )
    assert integrate.simpson(density, points) == pytest.approx(1, abs=1e-9)
    mean = integrate.simpson(points * density, points)
    return mean, integrate.simpson((points - mean) ** 2 * density, points)


@pytest.mark.parametrize("noise", NOISES, ids=name)
def test_probability_is_that_of_scipy(noise):
    rng = np.random.default_rng(0)
    s, sigma = rng.uniform(0.01, 30, 500), rng.uniform(0.5, 2, 500)
    m = np.abs(s + rng.normal(0, 3, 500)) + np.sqrt(2 * coils(noise)) * 0.7
    ours = noise.log_prob(*map(torch.as_tensor, (m, s, sigma))).numpy()
    expected = scipy_log_density(noise, m, s, sigma)
    known = np.isfinite(expected)
    assert known.mean() > 0.9
    np.testing.assert_allclose(ours[known], expected[known], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise", NOISES, ids=name)
@pytest.mark.parametrize("snr", SNRS)
def test_moments_are_the_integrals_of_the_probability(noise, snr):
    mean, variance = brute_force_moments(noise, snr)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6)):
        s, sigma = torch.tensor(2.5 * snr, dtype=dtype), torch.tensor(2.5, dtype=dtype)
        assert float(noise.mean(s, sigma)) == pytest.approx(2.5 * mean, rel=tolerance)
        assert float(noise.variance(s, sigma)) == pytest.approx(2.5**2 * variance, rel=tolerance)


@pytest.mark.parametrize("noise", NOISES, ids=name)
@pytest.mark.parametrize("snr", [0.0, 1.5, 12.0])
def test_samples_have_these_moments(noise, snr):
    s, sigma = torch.full((200_000,), 3 * snr, dtype=torch.float64), torch.tensor(3.0).double()
    drawn = noise.sample(s, sigma, torch.Generator().manual_seed(1))
    again = noise.sample(s, sigma, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)
    mean, variance = float(noise.mean(s[0], sigma)), float(noise.variance(s[0], sigma))
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * np.sqrt(variance / 200_000))
    assert float(drawn.var()) == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("noise", NOISES, ids=name)
def test_derivatives(noise):
    s = torch.tensor([0.3, 1.0, 4.0, 9.0, 15.0, 35.0], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    m = torch.tensor([1.0, 2.0, 3.0, 10.0, 15.0, 33.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(noise.log_prob, (m, s, sigma))
    assert torch.autograd.gradcheck(noise.mean, (s, sigma))
    assert torch.autograd.gradcheck(noise.variance, (s, sigma))


@pytest.mark.parametrize("noise", NOISES, ids=name)
def test_no_signal_is_no_problem_in_float32(noise):
    s = torch.zeros(3, requires_grad=True)
    m = torch.tensor([0.5, 1.0, 3.0])
    values = (noise.log_prob(m, s, torch.tensor(1.0)), noise.mean(s, torch.tensor(1.0)))
    for value in values:
        (gradient,) = torch.autograd.grad(value.sum(), s, retain_graph=True)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


def test_negative_magnitudes_are_impossible():
    m, s, sigma = torch.tensor([-1.0, 1.0]), torch.tensor(1.0), torch.tensor(1.0)
    found = RicianNoise().log_prob(m, s, sigma)
    assert found[0] == -torch.inf
    assert torch.isfinite(found[1])


def test_rician_is_non_central_chi_of_one_coil():
    s, sigma = torch.linspace(0, 40, 200).double(), torch.tensor(1.0).double()
    one, rician = NonCentralChiNoise(1), RicianNoise()
    torch.testing.assert_close(rician.mean(s, sigma), one.mean(s, sigma), rtol=1e-10, atol=0)
    torch.testing.assert_close(rician.variance(s, sigma), one.variance(s, sigma), rtol=1e-8, atol=0)


def test_without_a_coil_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        NonCentralChiNoise(0)
