"""What a voxel's measurements say about its parameters, in a form that knows no protocol.

For a log-linear model ln S = B theta the measurements enter an estimate only through the information matrix A = B'WB
and the vector r = B'Wy, whatever the directions and b-values: here in whitened coordinates u, with the magnitude
image's noise in mind. The logarithm of a Rician signal with s = S / sigma has the expectation
ln s + E1(s^2 / 2) / 2, whose derivative by ln s is 1 - exp(-s^2 / 2); both matter below s = 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import diagonal_entries
from DiffusionFMLib.prior.coordinates import WhitenedDesign
from DiffusionFMLib.prior.systems import add_diagonal, inverse, solve

FIRST_STEPS: Final = 3
"""Weights of the first estimate: from the measured signal once, then from the predicted one."""

MIN_SIGNAL: Final = 0.05
"""Measured signals are raised to this, sigma: below, the logarithm is all noise."""

LOG_RANGE: Final = (-6.0, 30.0)
"""Predicted log signals over sigma are kept in here, so that weights stay finite; no signal that was measured is
beyond."""

MODEL_ERROR: Final = 0.02
"""No model fits signals to better than this fraction of them: noise below it gives no more weight."""

SAYS_NOTHING: Final = 1e6
"""Noise level, where typical tissue has S0 = 1, that leaves measurements without information."""

LOOK_LEVELS: Final = (0.05, 10.0)
"""Range of the standard deviation of noisy looks at the answer, in whitened coordinates: from next to none to so much
that only means over whole structures can be told."""

NEAR_ZERO, BETWEEN = 2 - math.exp(0.5772156649015329), 0.6
"""Constants of `exponential_integral`: from Euler's constant, and fitted."""


Kind = TypeVar("Kind", bound="Information")


@dataclass(frozen=True, eq=False)
class Information:
    """What data say about coordinates u: a Gaussian in u up to a constant, exp(-u'Au/2 + r'u).

    Parameters
    ----------
    precision : Tensor, shape (P (P + 1) / 2, V)
        A, packed.
    vector : Tensor, shape (P, V)
        r.
    """

    precision: Tensor
    vector: Tensor

    def __add__(self, other: Information) -> Information:
        return Information(self.precision + other.precision, self.vector + other.vector)

    def __len__(self) -> int:
        return self.vector.shape[1]

    def part(self: Kind, voxels: slice | Tensor) -> Kind:
        """That of some of the voxels."""
        return replace(self, precision=self.precision[:, voxels], vector=self.vector[:, voxels])

    def nothing(self) -> Information:
        """No information on as many voxels."""
        return Information(torch.zeros_like(self.precision), torch.zeros_like(self.vector))


@dataclass(frozen=True, eq=False)
class Look(Information):
    """What a noisy look at the answer says.

    Parameters
    ----------
    level : float
        Standard deviation of its noise.
    """

    level: float


@dataclass(frozen=True, eq=False)
class FrontEnd:
    """What the network is shown of the data.

    Parameters
    ----------
    mean : Tensor, shape (P, V)
        Ridge estimate: the data and the unit Gaussian that all tissues together are.
    covariance : Tensor, shape (P (P + 1) / 2, V)
        Of that estimate, packed.
    b0 : Tensor, shape (2, V)
        Precision and vector of what the b0 volumes say: of ln S0, the last coordinate, and of nothing else.
    """

    mean: Tensor
    covariance: Tensor
    b0: Tensor

    def spread(self) -> Tensor:
        """Log standard deviations and correlations, shape (P (P + 1) / 2, V), each of order 1."""
        size = len(self.mean)
        diagonal = diagonal_entries(size)
        sd = self.covariance[diagonal].clamp_min(1e-12).sqrt()
        rows = [i for j in range(size) for i in range(j + 1, size)]
        columns = [j for j in range(size) for i in range(j + 1, size)]
        off = [k for k in range(len(self.covariance)) if k not in diagonal]
        correlation = self.covariance[off] / (sd[rows] * sd[columns])
        return torch.cat([sd.log() + 2, correlation])


class Measurements:
    """A protocol's measurements of many voxels, to be turned into information at any expansion point.

    Parameters
    ----------
    signal : Tensor, shape (N, V)
    design : WhitenedDesign
        In the same signal unit: ln S0 = 0 is typical tissue.
    sigma : Tensor, shape () or (V,)
        Standard deviation of the noise in each of the receiver's channels.
    """

    def __init__(self, signal: Tensor, design: WhitenedDesign, sigma: Tensor) -> None:
        self._design = design
        self._log_sigma = sigma.log()
        self._log_signal = (signal / sigma).clamp_min(MIN_SIGNAL).log()

    def part(self, voxels: Tensor) -> Measurements:
        """Those of some of the voxels."""
        result = copy(self)
        result._log_signal = self._log_signal[:, voxels]
        if self._log_sigma.ndim:
            result._log_sigma = self._log_sigma[voxels]
        return result

    def around(self, u: Tensor) -> Information:
        """Information with weights from the signal that coordinates u, shape (P, V), predict."""
        design = self._design
        weight, linear = self._linear(u)
        return Information(design.products @ weight, design.matrix.T @ linear)

    def b0_around(self, u: Tensor) -> Tensor:
        """The part of it that the b0 volumes gave; see `FrontEnd.b0`."""
        rows = self._design.b0_volumes
        weight, linear = self._linear(u, rows)
        column = self._design.matrix[rows, -1:]
        return torch.stack([(column.square() * weight).sum(0), (column * linear).sum(0)])

    def misfit(self, u: Tensor) -> Tensor:
        """Squares of what coordinates u, shape (P, V), leave of the signal, over its variance, summed: (V,).

        Of the signal and not of its logarithm, whose noise is skewed.
        """
        residual, trusted, gain = self._expand(u)
        return (trusted / gain * torch.expm1(residual) ** 2).sum(0)

    def _linear(self, u: Tensor, volumes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights of log signals, and these weighted, linear at u; shape (N, V) each."""
        residual, trusted, gain = self._expand(u, volumes)
        weight = gain * trusted
        matrix = self._design.matrix if volumes is None else self._design.matrix[volumes]
        return weight, weight * (matrix @ u) + trusted * residual

    def _expand(self, u: Tensor, volumes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Log signal less its expectation, how far it is trusted, and how it follows the noiseless one; (N, V) each."""
        design = self._design if volumes is None else self._design.part(volumes)
        measured = self._log_signal if volumes is None else self._log_signal[volumes]
        predicted = (design.log_signal(u) - self._log_sigma).clamp(*LOG_RANGE)
        square = (2 * predicted).exp()
        half = 0.5 * square
        decay = (-half).exp()
        residual = measured - predicted - 0.5 * exponential_integral(half, decay)
        return residual, square / (1 + MODEL_ERROR**2 * square), 1 - decay

    def first_guess(self, extra: Information | None = None) -> tuple[Tensor, Information]:
        """Ridge estimate of the data, and of `extra` when given; and the data's information there."""
        design = self._design
        weight = 1 / ((-2 * self._log_signal).exp() + MODEL_ERROR**2)
        centred = self._log_signal + self._log_sigma - design.offset
        information = Information(design.products @ weight, design.matrix.T @ (weight * centred))
        for step in range(FIRST_STEPS):
            total = information if extra is None else information + extra
            u = solve(add_diagonal(total.precision, 1.0), total.vector)
            if step < FIRST_STEPS - 1:
                information = self.around(u)
        return u, information


def front_end(measurements: Measurements, extra: Information | None = None) -> tuple[FrontEnd, Information]:
    """The network's input, and the data's information at the ridge estimate.

    Parameters
    ----------
    measurements : Measurements
    extra : Information, optional
        Other knowledge of the same voxels, such as a noisy look at the truth.
    """
    with torch.no_grad():
        u, _ = measurements.first_guess(extra)
        information = measurements.around(u)
        total = information if extra is None else information + extra
        covariance = inverse(add_diagonal(total.precision, 1.0))
        return FrontEnd(u, covariance, measurements.b0_around(u)), information


def look_at(u: Tensor, level: float) -> Look:
    """What coordinates u, shape (P, V), say that have noise of standard deviation `level` on them."""
    nothing = u.new_zeros(len(u) * (len(u) + 1) // 2, u.shape[1])
    return Look(add_diagonal(nothing, 1 / level**2), u / level**2, level)


def concatenate(parts: Sequence[Information]) -> Information:
    """Information of all voxels of some parts, one after another."""
    return Information(torch.cat([p.precision for p in parts], 1), torch.cat([p.vector for p in parts], 1))


def exponential_integral(x: Tensor, decay: Tensor) -> Tensor:
    """E1(x) for x > 0, from `decay` = exp(-x).

    A form of our own that is exact in both limits, -ln x - Euler's constant and exp(-x) / (1 + x), and fitted to 0.002
    between them: it takes a quarter of the time of the usual series and fraction.
    """
    return -torch.log1p(-decay / (1 + x * (1 - NEAR_ZERO / (1 + BETWEEN * x))))
