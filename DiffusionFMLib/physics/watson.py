"""Watson distributions of sticks by their Legendre series.

A signal that depends on the angle between a gradient and an axon, averaged over a Watson distribution of axons, is a
sum of products: coefficients of the distribution, coefficients of the signal, and Legendre polynomials of the angle
between gradient and mean direction (Funk-Hecke). Only even degrees l = 0, 2, ..., l_max occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor

NODES: Final = 64
"""Gauss-Legendre nodes on half the sphere's axis; exact to rounding for ODI of 0.01 and more."""


def degree_for(b_max: float) -> int:
    """Highest degree l_max for errors of the stick signal below 1e-5 up to a b-value, ms/um2."""
    return 12 if b_max <= 1.2 else 16 if b_max <= 3.2 else 18 if b_max <= 4.2 else 24


@lru_cache(maxsize=8)
def _quadrature(l_max: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on [0, 1], shape (NODES,), and P_l there, shape (l_max / 2 + 1, NODES)."""
    nodes, weights = legendre.leggauss(NODES)
    nodes, weights = (nodes + 1) / 2, weights / 2
    polynomials = np.stack([legendre.legval(nodes, np.eye(l_max + 1)[degree]) for degree in range(0, l_max + 1, 2)])
    return nodes, weights, polynomials


def watson_coefficients(kappa: Tensor, l_max: int) -> Tensor:
    """Mean of P_l over a Watson distribution.

    Parameters
    ----------
    kappa : Tensor, shape (...)
        Concentration, >= 0: 0 is isotropic.
    l_max : int, even

    Returns
    -------
    Tensor, shape (..., l_max / 2 + 1)
    """
    nodes, weights, polynomials = (
        torch.as_tensor(part, dtype=kappa.dtype, device=kappa.device) for part in _quadrature(l_max)
    )
    density = (kappa[..., None] * (nodes**2 - 1)).exp() * weights
    return (density @ polynomials.T) / density.sum(-1, keepdim=True)


def stick_coefficients(attenuation: NDArray[np.float64], l_max: int) -> NDArray[np.float64]:
    """(2 l + 1) times the mean of P_l(t) exp(-b d t^2) over t in [0, 1].

    Parameters
    ----------
    attenuation : array, shape (N,)
        b times the diffusivity along the stick.
    l_max : int, even

    Returns
    -------
    ndarray, shape (N, l_max / 2 + 1)
    """
    nodes, weights, polynomials = _quadrature(l_max)
    degrees = np.arange(0, l_max + 1, 2)
    return (np.exp(-attenuation[:, None] * nodes**2) * weights) @ polynomials.T * (2 * degrees + 1)


def even_legendre_and_slope(square: Tensor, l_max: int) -> Iterator[tuple[Tensor, Tensor]]:
    """P_l for l = 0, 2, ..., l_max, and its derivative by the squared cosine.

    Parameters
    ----------
    square : Tensor, shape (...)
        Squared cosines.
    l_max : int, even
    """
    before, before_slope = torch.ones_like(square), torch.zeros_like(square)
    yield before, before_slope
    value, value_slope = 1.5 * square - 0.5, torch.full_like(square, 1.5)
    for n in range(2, l_max, 2):
        yield value, value_slope
        # the recurrence over even degrees
        below = (n + 2) * (n + 1)
        slope = (2 * n + 3) * (2 * n + 1) / below
        offset = -(2 * n + 1) * (2 * n * n + 2 * n - 1) / (below * (2 * n - 1))
        former = -(2 * n + 3) * n * (n - 1) / (below * (2 * n - 1))
        factor = slope * square + offset
        value_slope, before_slope = factor * value_slope + slope * value + former * before_slope, value_slope
        value, before = factor * value + former * before, value
    yield value, value_slope
