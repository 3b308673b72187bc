"""Symmetric tensors as numpy arrays, for what is not fitted: `tensor_algebra` is their like in torch.

A tensor is its six unique components xx, xy, xz, yy, yz, zz on the last axis; one of fourth order its fifteen in the
order of `QUARTIC`.
"""

from __future__ import annotations

from math import factorial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

AS_MATRIX: Final = ((0, 1, 2), (1, 3, 4), (2, 4, 5))
"""Where the components stand in the matrix: ``tensor[..., AS_MATRIX]`` has shape (..., 3, 3)."""

DIAGONAL: Final = (0, 3, 5)
OFF_DIAGONAL: Final = (1, 2, 4)
"""Which components lie on the matrix' diagonal, and which above it."""

QUARTIC: Final = (
    "xxxx", "yyyy", "zzzz", "xxxy", "xxxz", "xyyy", "yyyz", "xzzz", "yzzz", "xxyy", "xxzz", "yyzz", "xxyz", "xyyz",
    "xyzz",
)  # fmt: skip
"""Unique components of a symmetric tensor of fourth order, as DIPY orders them."""

QUARTIC_COUNTS: Final = tuple(
    24 // (factorial(name.count("x")) * factorial(name.count("y")) * factorial(name.count("z"))) for name in QUARTIC
)
"""How often each of them occurs among all 81."""


def spread_directions(count: int) -> NDArray[np.float64]:
    """Evenly spread unit vectors on a half sphere (Fibonacci lattice), shape (count, 3)."""
    index = np.arange(count) + 0.5
    z, angle = index / count, np.pi * (1 + 5**0.5) * index
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def quadratic_form(directions: NDArray[Any]) -> NDArray[Any]:
    """What a tensor's components are weighted by along directions: ``quadratic_form(g) @ tensor`` is g'Dg.

    Parameters
    ----------
    directions : array, shape (..., 3)

    Returns
    -------
    ndarray, shape (..., 6)
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    return np.stack([x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z], axis=-1)


def quartic_form(directions: NDArray[Any]) -> NDArray[Any]:
    """What the components of a tensor of fourth order are weighted by along directions, as `quadratic_form`.

    Parameters
    ----------
    directions : array, shape (..., 3)

    Returns
    -------
    ndarray, shape (..., 15)
    """
    x, y, z = np.moveaxis(directions, -1, 0)
    powers = (x ** n.count("x") * y ** n.count("y") * z ** n.count("z") for n in QUARTIC)
    return np.stack([count * power for count, power in zip(QUARTIC_COUNTS, powers, strict=True)], axis=-1)


def fractional_anisotropy(diagonal: NDArray[Any], off_diagonal: NDArray[Any] | None = None) -> NDArray[Any]:
    """FA (Basser and Pierpaoli, 1996), shape (...); 0 where a tensor vanishes.

    Parameters
    ----------
    diagonal : array, shape (..., 3)
        Eigenvalues, or components xx, yy and zz. Only where all eigenvalues are positive, FA is below 1.
    off_diagonal : array, shape (..., 3), optional
        Components xy, xz and yz.
    """
    square = (diagonal**2).sum(axis=-1)
    spread = ((diagonal - diagonal.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    if off_diagonal is not None:
        beside = 2 * (off_diagonal**2).sum(axis=-1)
        square, spread = square + beside, spread + beside
    return np.sqrt(1.5 * np.divide(spread, square, out=np.zeros_like(square), where=square > 0))
