"""Noise of magnitude images: probability, mean, variance and samples, batched and differentiable.

All take the noise-free signal s >= 0 and the standard deviation sigma of the noise in each of a coil's two channels,
and broadcast. Moments are taken from the generalised Laguerre function while s/sigma is moderate, and beyond from its
asymptotic series, in float64 inside: the variance is a small difference of large numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

SERIES_TERMS: Final = 8
"""Terms of the asymptotic series; at the snr where it takes over they leave less than 1e-6 of the variance."""

RATIO_STEPS: Final = 24
"""Steps of the backward recurrence for ratios of Bessel functions, above the order that is wanted."""


class Noise(ABC):
    """What a scanner's noise does to a signal."""

    @abstractmethod
    def log_prob(self, measured: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """Log probability density of measured signals."""

    @abstractmethod
    def mean(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """Expected measured signal."""

    @abstractmethod
    def variance(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """Variance of the measured signal."""

    @abstractmethod
    def sample(self, signal: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw measured signals, of the signal's shape."""


class GaussianNoise(Noise):
    """Noise of real-valued images, and of magnitude images where s is many sigma.

    Examples
    --------
    >>> float(GaussianNoise().variance(torch.tensor(10.0), torch.tensor(2.0)))
    4.0
    """

    def log_prob(self, measured: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`."""
        return -0.5 * ((measured - signal) / sigma) ** 2 - sigma.log() - 0.5 * math.log(2 * math.pi)

    def mean(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`."""
        return signal + 0 * sigma

    def variance(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`."""
        return sigma**2 + 0 * signal

    def sample(self, signal: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Noise`."""
        return signal + sigma * _normal(signal, generator)


class NonCentralChiNoise(Noise):
    """Noise of the root of the sum of squares of several coils (Constantinides et al., 1997); Rician for one.

    Parameters
    ----------
    coils : int
        Number n of coils, all with the same uncorrelated noise. At s = 0 the measured signal is about
        sqrt(2 n) sigma.

    Raises
    ------
    ValueError
        If there is not at least one coil.

    Examples
    --------
    >>> round(float(NonCentralChiNoise(4).mean(torch.tensor(0.0), torch.tensor(1.0))), 3)
    2.742
    """

    def __init__(self, coils: int) -> None:
        if coils < 1:
            msg = f"The number of coils is {coils}; expected at least 1."
            raise ValueError(msg)
        self.coils = coils
        # from here on the asymptotic series is the better one, in x = s^2 / 2 sigma^2
        self._far = 50.0 + 12.0 * coils
        terms = [1.0]
        for k in range(SERIES_TERMS):
            terms.append(terms[-1] * (k - 0.5) * (k + 0.5 - coils) / (k + 1))
        self._mean_terms = terms
        # variance / sigma^2 = 2 n + 2 x - 2 x (sum of terms)^2, whose first two orders cancel
        square = [sum(terms[i] * terms[k - i] for i in range(k + 1)) for k in range(SERIES_TERMS + 1)]
        self._variance_terms = [1.0, *(-2 * value for value in square[2:])]

    def log_prob(self, measured: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`; minus infinity for a measured signal below 0."""
        tiny = torch.finfo(signal.dtype).tiny ** 0.25
        positive = measured > 0
        m, s = torch.where(positive, measured, sigma) / sigma, signal / sigma
        product = (m * s).clamp_min(tiny)
        # log of I(ms) exp(-ms) (ms)^(1-n), which stays finite as s goes to 0
        bessel = torch.special.i0e(product).log()
        for ratio in _bessel_ratios(product, self.coils - 1):
            bessel = bessel + (ratio / product).log()
        density = bessel - 0.5 * (m - s) ** 2 + (2 * self.coils - 1) * m.log() - sigma.log()
        return torch.where(positive, density, -torch.inf)

    def mean(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`."""
        x = 0.5 * (signal / sigma).double() ** 2
        far = x > self._far
        distant = torch.where(far, x, self._far)
        series = _polynomial(self._mean_terms, 1 / distant) * (2 * distant).sqrt()
        ratio = torch.where(far, series, self._near_mean(torch.where(far, self._far, x)))
        return sigma * ratio.to(sigma.dtype)

    def variance(self, signal: Tensor, sigma: Tensor) -> Tensor:
        """See `Noise`."""
        x = 0.5 * (signal / sigma).double() ** 2
        far = x > self._far
        series = _polynomial(self._variance_terms, 1 / torch.where(far, x, self._far))
        near = torch.where(far, self._far, x)
        ratio = torch.where(far, series, 2 * self.coils + 2 * near - self._near_mean(near) ** 2)
        return sigma**2 * ratio.to(sigma.dtype)

    def _near_mean(self, x: Tensor) -> Tensor:
        """Mean over sigma while x = s^2 / 2 sigma^2 is moderate.

        The squared signal is a Poisson mixture of chi-squared ones: their mean roots, weighted, have no cancellation.
        """
        n = self.coils
        count = int(self._far + 10 * math.sqrt(self._far)) + 20
        weight = (-x).exp() * math.sqrt(2) * math.exp(math.lgamma(n + 0.5) - math.lgamma(n))
        total = weight
        for k in range(1, count):
            weight = weight * x * ((n + k - 0.5) / ((n + k - 1) * k))
            total = total + weight
        return total

    def sample(self, signal: Tensor, sigma: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """See `Noise`."""
        square = (signal + sigma * _normal(signal, generator)) ** 2
        for _ in range(2 * self.coils - 1):
            square = square + (sigma * _normal(signal, generator)) ** 2
        return square.sqrt()


class RicianNoise(NonCentralChiNoise):
    """Noise of magnitude images of one coil, or of coils combined with their phases (Gudbjartsson and Patz, 1995).

    Examples
    --------
    >>> round(float(RicianNoise().mean(torch.tensor(0.0), torch.tensor(1.0))), 4)
    1.2533
    """

    def __init__(self) -> None:
        super().__init__(1)

    def _near_mean(self, x: Tensor) -> Tensor:
        half = 0.5 * x
        return math.sqrt(math.pi / 2) * ((1 + x) * torch.special.i0e(half) + x * torch.special.i1e(half))


def _bessel_ratios(x: Tensor, count: int) -> list[Tensor]:
    """Ratios I_k(x) / I_(k-1)(x) of modified Bessel functions for k = count...1.

    The continued fraction runs downwards, which is stable, from the ratio at an order so high that the logarithmic
    derivative of Debye's uniform expansion gives it.
    """
    if not count:
        return []
    order = count + RATIO_STEPS
    p = (order * order + x * x).sqrt()
    u = (order / p) ** 2
    slope = p / x - x / p**2 * (
        0.5
        + (1 - 5 * u) / (8 * p)
        + _polynomial([1, -12, 15], u) / (8 * p**2)
        + _polynomial([25, -531, 1547, -1105], u) / (128 * p**3)
    )
    ratio = 1 / (slope + order / x)
    ratios = []
    for k in range(order - 1, 0, -1):
        ratio = x / (2 * k + x * ratio)
        if k <= count:
            ratios.append(ratio)
    return ratios


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
