"""The posterior: the data, once, and the local prior, joined by a solve in every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import diagonal_entries
from DiffusionFMLib.prior.information import Information, Measurements, concatenate
from DiffusionFMLib.prior.systems import entry, inverse, log_determinant, multiply, size_of, solve

UNROLLS: Final = 2
"""Solves; the data's weights come from the solve before."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Gaussian over coordinates u of each of V voxels.

    Parameters
    ----------
    mean : Tensor, shape (P, V)
    precision : Tensor, shape (P (P + 1) / 2, V)
        A plus the prior's precision, packed.
    data : Information
        The part of it that the voxel's own measurements gave.
    """

    mean: Tensor
    precision: Tensor
    data: Information

    @cached_property
    def log_determinant(self) -> Tensor:
        """Logarithm of the precision's determinant, shape (V,)."""
        return log_determinant(self.precision)

    def distance(self, u: Tensor) -> Tensor:
        """Squared Mahalanobis distance of coordinates u from the mean, shape (V,); P on average when all is right."""
        error = u - self.mean
        return (error * multiply(self.precision, error)).sum(0)

    def log_prob(self, u: Tensor) -> Tensor:
        """Log probability density of coordinates u, shape (V,), without the constant P/2 ln(2 pi)."""
        return 0.5 * (self.log_determinant - self.distance(u))

    def covariance(self) -> Tensor:
        """Packed covariance, shape (P (P + 1) / 2, V)."""
        return inverse(self.precision)

    def data_fraction(self) -> Tensor:
        """How much of an estimate came from the voxel's own measurements, 0 to 1, shape (V,).

        tr[(A + Lambda)^-1 A] / P: 1 where the prior has no say, as with many volumes. It is a lower bound: the
        network that made the prior's mean saw the voxel too, among its neighbours.
        """
        size = size_of(self.precision)
        product = self.covariance() * self.data.precision
        # off-diagonal entries stand for two
        return (2 * product.sum(0) - product[diagonal_entries(size)].sum(0)) / size

    def tension(self) -> Tensor:
        """Squared Mahalanobis distance of the mean from that of the prior, by the prior's precision, shape (V,)."""
        prior = self.precision - self.data.precision
        pull = self.data.vector - multiply(self.data.precision, self.mean)
        return (pull * solve(prior, pull)).sum(0)

    def sd(self, direction: Tensor) -> Tensor:
        """Standard deviation of linear combinations of u, shape (V,).

        Parameters
        ----------
        direction : Tensor, shape (P,) or (P, V)
        """
        size = size_of(self.precision)
        covariance, where = self.covariance(), entry(size)
        variance = sum(
            (direction[i] * direction[j] * covariance[where[i, j]] for i in range(size) for j in range(size)),
            torch.zeros(()),
        )
        return variance.clamp_min(0).sqrt()


def posterior(prior: Information, measurements: Sequence[Measurements], data: Sequence[Information]) -> Posterior:
    """Join data and prior: u = (A + Lambda)^-1 (r + Lambda mu), again with weights from that u.

    Parameters
    ----------
    prior : Information
        What is known of V voxels beside their own measurements.
    measurements : sequence of Measurements
        Of consecutive parts of these voxels: scans of different protocols.
    data : sequence of Information
        What they say at a first estimate.

    Notes
    -----
    Derivatives by the prior go through the last solve only: the weights hardly depend on it.
    """
    for _ in range(UNROLLS - 1):
        with torch.no_grad():
            total = concatenate(data) + prior
            parts = solve(total.precision, total.vector).split([len(part) for part in data], dim=1)
            data = [m.around(part) for m, part in zip(measurements, parts, strict=True)]
    together = concatenate(data)
    total = together + prior
    return Posterior(solve(total.precision, total.vector), total.precision, together)
