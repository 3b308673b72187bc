"""NODDI's signal for fits: looked up where it can be, with its derivatives, a structure of arrays (volume, voxel)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.noddi import FREE, MIN_ODI, PARALLEL, hindered_diffusivities, kappa_of
from DiffusionFMLib.physics.watson import degree_for, even_legendre_and_slope, stick_coefficients, watson_coefficients

TABLE: Final = 512
"""Entries over ODI of the Watson coefficients; cubic interpolation between them is exact to 1e-9."""

FLOOR: Final = (
    (math.pi / 2 - 1, 0.0175264, 0.00537954, 0.00044308, 0.0),
    (1.0, 0.40642597, 0.07707654, 0.00817788, 0.00090338),
)
"""Mean of the measured signal, m, over the signal without noise, s: m^2 = s^2 + sigma^2 (1 + p(t) / q(t)), t = s^2 /
sigma^2, with these coefficients of p and q. They are a least-squares fit to the exact mean, to 5e-6 sigma."""

MANY_SIGMAS: Final = 1e4
"""t is cut off here, where the fraction has vanished."""


@dataclass(frozen=True, eq=False)
class Protocol:
    """What a fit needs to know of the gradient table, on one device.

    Parameters
    ----------
    b : Tensor, shape (N,), ms/um2
    bvecs : Tensor, shape (N, 3)
    group : Tensor, shape (N,), int64
        Position of each volume's b-value among the distinct ones.
    free : Tensor, shape (N,)
        Signal of free water.
    sticks : Tensor, shape (G, K)
        See `stick_coefficients`; one row for each distinct b-value.
    l_max : int
    table : Tensor, shape (TABLE, 2, K)
        Watson coefficients at equal steps of ODI from 0 to 1, and their derivatives.
    """

    b: Tensor
    bvecs: Tensor
    group: Tensor
    free: Tensor
    sticks: Tensor
    l_max: int
    table: Tensor

    @classmethod
    def of(cls, gtab: GradientTable, device: torch.device, dtype: torch.dtype) -> Protocol:
        """Prepare a gradient table."""
        b = gtab.bvals / 1000
        distinct, group = np.unique(b, return_inverse=True)
        l_max = degree_for(float(b.max()))

        def moved(array: np.ndarray) -> Tensor:
            return torch.tensor(array).to(device, dtype)

        return cls(
            moved(b),
            moved(gtab.bvecs),
            torch.as_tensor(group).to(device),
            moved(np.exp(-b * FREE)),
            moved(stick_coefficients(distinct * PARALLEL, l_max)),
            l_max,
            _watson_table(l_max).to(device, dtype),
        )

    def to(self, dtype: torch.dtype) -> Protocol:
        """In another precision."""
        b, bvecs, free, sticks, table = (p.to(dtype) for p in (self.b, self.bvecs, self.free, self.sticks, self.table))
        return Protocol(b, bvecs, self.group, free, sticks, self.l_max, table)


@lru_cache(maxsize=4)
def _watson_table(l_max: int) -> Tensor:
    """Watson coefficients and their derivatives by ODI, shape (TABLE, 2, K), float64."""
    # at ODI 0 the concentration is infinite; nothing below the bound is ever looked up
    odi = torch.linspace(0, 1, TABLE, dtype=torch.float64).clamp(MIN_ODI / 2, 1 - 1e-9).requires_grad_()
    values = watson_coefficients(kappa_of(odi), l_max)
    slopes = [torch.autograd.grad(column.sum(), odi, retain_graph=True)[0] for column in values.unbind(1)]
    return torch.stack([values.detach(), torch.stack(slopes, 1)], 1)


@dataclass(frozen=True, eq=False)
class SignalParts:
    """Signal of many voxels over S0, shape (N, V) each: of all, of the tissue alone, and derivatives if asked for."""

    model: Tensor
    tissue: Tensor
    by_ndi: Tensor
    by_odi: Tensor
    by_fwf: Tensor
    by_cosine: Tensor


def signal_parts(protocol: Protocol, mu: Tensor, p: Tensor, derivatives: bool = False) -> SignalParts:
    """NODDI's signal and derivatives.

    Parameters
    ----------
    protocol : Protocol
    mu : Tensor, shape (3, V)
        Unit vectors.
    p : Tensor, shape (3, V)
        NDI, ODI and FWF.
    derivatives : bool
    """
    v, odi, f = p
    b, free = protocol.b[:, None], protocol.free[:, None]
    cosine = protocol.bvecs @ mu
    square = cosine * cosine
    watson, slopes = _interpolate(protocol.table, odi)
    sticks = protocol.sticks[protocol.group]
    inside, by_odi, by_square = torch.zeros_like(cosine), torch.zeros_like(cosine), torch.zeros_like(cosine)
    for k, (value, slope) in enumerate(even_legendre_and_slope(square, protocol.l_max)):
        stick = sticks[:, k, None]
        inside.addcmul_(value * stick, watson[k])
        if derivatives:
            by_odi.addcmul_(value * stick, slopes[k])
            by_square.addcmul_(slope * stick, watson[k])
    tau = (1 + 2 * watson[1]) / 3
    parallel, radial = hindered_diffusivities(v, watson[1])
    excess = parallel - radial
    outside = torch.exp(-b * (radial + excess * square))
    tissue = v * inside + (1 - v) * outside
    model = tissue + f * (free - tissue)
    if not derivatives:
        return SignalParts(model, tissue, *[model.new_empty(0)] * 4)
    # of the exponent of what is outside
    slope = -b * outside * (1 - v)
    share = 1 - f
    return SignalParts(
        model,
        tissue,
        share * (inside - outside + slope * PARALLEL * ((1.5 * tau - 0.5) * square - (1 + tau) / 2)),
        share * (v * by_odi + slope * (PARALLEL * v * (2 / 3) * slopes[1]) * (1.5 * square - 0.5)),
        free - tissue,
        2 * share * cosine * (v * by_square + slope * excess),
    )


def with_floor(signal: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean of the measured signal, and its derivative by the signal, shape (N, V) each; sigma of 0 is no noise.

    Parameters
    ----------
    signal : Tensor, shape (N, V)
        Without noise.
    sigma : Tensor, shape (V,), or float
        Standard deviation of Rician noise.
    """
    variance = signal.new_tensor(sigma) ** 2 if isinstance(sigma, float) else sigma**2
    t = (signal**2 / variance.clamp_min(1e-20)).clamp_max(MANY_SIGMAS)
    (p, p_slope), (q, q_slope) = (_polynomial(coefficients, t) for coefficients in FLOOR)
    ratio = p / q
    mean = (signal**2 + variance * (1 + ratio) + 1e-20).sqrt()
    return mean, signal * (1 + (p_slope - ratio * q_slope) / q) / mean


def _polynomial(coefficients: Sequence[float], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative, coefficients from the constant on."""
    value, slope = torch.full_like(x, coefficients[-1]), torch.zeros_like(x)
    for coefficient in reversed(coefficients[:-1]):
        slope = slope * x + value
        value = value * x + coefficient
    return value, slope


def _interpolate(table: Tensor, odi: Tensor) -> tuple[Tensor, Tensor]:
    """Watson coefficients and their derivatives, shape (K, V) each, by cubic Hermite interpolation."""
    last = len(table) - 1
    place = odi.clamp(0, 1) * last
    index = place.long().clamp_max(last - 1)
    t, h = place - index, 1 / last
    f0, g0 = table[index].permute(1, 2, 0)
    f1, g1 = table[index + 1].permute(1, 2, 0)
    values = f0 + t * t * (3 - 2 * t) * (f1 - f0) + h * t * (1 - t) * ((1 - t) * g0 - t * g1)
    slopes = 6 * t * (1 - t) / h * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    return values, slopes
