"""NODDI's signal for fits: looked up where it can be, with its derivatives, a structure of arrays (volume, voxel)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.noddi import FREE, MIN_ODI, PARALLEL, kappa_of
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.watson import degree_for, even_legendre_and_slope, stick_coefficients, watson_coefficients

TABLE: Final = 512
"""Entries over ODI of the Watson coefficients; cubic interpolation between them is exact to 1e-9."""

FLOOR_END, FLOOR_TABLE = 12.0, 512
"""Signal, in sigmas, up to which the noise floor is looked up in a table, and its entries; beyond, a series does."""


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
    table : Tensor, shape (TABLE, K, 2)
        Watson coefficients at equal steps of ODI from 0 to 1, and their derivatives.
    floor : Tensor, shape (FLOOR_TABLE, 2)
        Mean of Rician noise around signals at equal steps from 0 to FLOOR_END, in sigmas, and its derivative.
    """

    b: Tensor
    bvecs: Tensor
    group: Tensor
    free: Tensor
    sticks: Tensor
    l_max: int
    table: Tensor
    floor: Tensor

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
            _floor_table().to(device, dtype),
        )


def _watson_table(l_max: int) -> Tensor:
    """Watson coefficients and their derivatives by ODI, shape (TABLE, K, 2), float64."""
    # at ODI 0 the concentration is infinite; nothing below the bound is ever looked up
    odi = torch.linspace(0, 1, TABLE, dtype=torch.float64).clamp(MIN_ODI / 2, 1 - 1e-9).requires_grad_()
    values = watson_coefficients(kappa_of(odi), l_max)
    slopes = [torch.autograd.grad(column.sum(), odi, retain_graph=True)[0] for column in values.unbind(1)]
    return torch.stack([values.detach(), torch.stack(slopes, 1)], -1)


def _floor_table() -> Tensor:
    """Mean of Rician noise of sigma 1 and its derivative, shape (FLOOR_TABLE, 2), float64."""
    signal = torch.linspace(0, FLOOR_END, FLOOR_TABLE, dtype=torch.float64).requires_grad_()
    mean = RicianNoise().mean(signal, torch.ones_like(signal))
    (slope,) = torch.autograd.grad(mean.sum(), signal)
    return torch.stack([mean.detach(), slope], -1)


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
    radial = PARALLEL * (1 - v * (1 + tau) / 2)
    excess = PARALLEL * (1 - v * (1 - tau)) - radial
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


def with_floor(table: Tensor, signal: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean of the measured signal, and its derivative by the signal, shape (N, V) each; sigma of 0 is no noise."""
    if isinstance(sigma, float) and not sigma or isinstance(sigma, Tensor) and not bool(sigma.any()):
        return signal, torch.ones_like(signal)
    step = FLOOR_END / (len(table) - 1)
    ratio = signal / sigma
    place = (ratio / step).clamp(0, len(table) - 1.001)
    index = place.long()
    t = place - index
    (f0, g0), (f1, g1) = table[index].movedim(-1, 0), table[index + 1].movedim(-1, 0)
    near = f0 + t * t * (3 - 2 * t) * (f1 - f0) + step * t * (1 - t) * ((1 - t) * g0 - t * g1)
    near_slope = 6 * t * (1 - t) / step * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    far = ratio > FLOOR_END
    inverse = 1 / torch.where(far, ratio, 1.0)
    mean = torch.where(far, ratio + inverse / 2 + inverse**3 / 8, near)
    return mean * sigma, torch.where(far, 1 - inverse**2 / 2 - 3 * inverse**4 / 8, near_slope)


def _interpolate(table: Tensor, odi: Tensor) -> tuple[Tensor, Tensor]:
    """Watson coefficients and their derivatives, shape (K, V) each, by cubic Hermite interpolation."""
    last = len(table) - 1
    place = odi.clamp(0, 1) * last
    index = place.long().clamp_max(last - 1)
    t, h = place - index, 1 / last
    f0, g0 = table[index].permute(2, 1, 0)
    f1, g1 = table[index + 1].permute(2, 1, 0)
    values = f0 + t * t * (3 - 2 * t) * (f1 - f0) + h * t * (1 - t) * ((1 - t) * g0 - t * g1)
    slopes = 6 * t * (1 - t) / h * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    return values, slopes
