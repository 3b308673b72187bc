"""Symmetric fourth-order tensors in bulk: their part in the frame of a diffusion tensor, and means of kurtosis.

A fourth-order tensor V is its fifteen unique components in the order of `tensor_arrays.QUARTIC`, on the last axis.
Everything is elementwise over the leading axes and differentiable.

The kurtosis along a direction n is K(n) = V(n) / D(n)^2 with V = MD^2 W. Its means have closed forms in Carlson's
elliptic integrals (Tabesh et al., 2011), whose terms cancel where eigenvalues meet and lose all digits in float32. The
forms here are the same quantities as sums with positive weights: they have no singular case.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.physics.tensor_arrays import QUARTIC, QUARTIC_COUNTS

_PAIRS = ("xx", "yy", "zz", "xy", "xz", "yz")
_FIRST, _SECOND = ["xyz".index(pair[0]) for pair in _PAIRS], ["xyz".index(pair[1]) for pair in _PAIRS]
_CONTRACTION = [[QUARTIC.index("".join(sorted(a + b))) for a in _PAIRS] for b in _PAIRS]
_TRACE = [1.0] * 3 + [0.0] * 6 + [2.0] * 3 + [0.0] * 3

NODES: Final = {torch.float32: 16, torch.float64: 40}
"""Nodes of the integral of `mean_kurtosis`. Its relative error, by the ratio of largest to smallest eigenvalue: 16
nodes 2e-11 (30), 1e-7 (100), 1e-3 (1000); 40 nodes rounding (100), 1e-10 (1000)."""

Axis = tuple[Tensor, Tensor, Tensor]


def second_axis(tensor: Tensor, v1: Axis) -> Axis:
    """Eigenvector of the second eigenvalue.

    Parameters
    ----------
    tensor : Tensor, shape (..., 6)
        Components xx, xy, xz, yy, yz, zz.
    v1 : three Tensors, shape (...)
        Unit eigenvector of the largest eigenvalue.

    Returns
    -------
    three Tensors, shape (...)
        Unit vector; any one across `v1` where the two smaller eigenvalues are equal.
    """
    xx, xy, xz, yy, yz, zz = tensor.unbind(-1)
    x, y, z = v1
    # two axes across v1 without a branch that degenerates (Duff et al., 2017)
    sign = torch.copysign(z.new_ones(()), z)
    a = -1 / (sign + z)
    b = x * y * a
    t = (1 + sign * x * x * a, sign * b, -sign * x)
    u = (b, sign + y * y * a, -y)
    dt, du = ((_dot((xx, xy, xz), axis), _dot((xy, yy, yz), axis), _dot((xz, yz, zz), axis)) for axis in (t, u))
    tt, tu, uu = _dot(dt, t), _dot(dt, u), _dot(du, u)
    half = 0.5 * (tt - uu)
    # anisotropy below rounding is none; without a floor its derivatives overflow
    floor = torch.finfo(tensor.dtype).eps * (xx + yy + zz).abs() + torch.finfo(tensor.dtype).tiny ** 0.5
    radius = (half * half + tu * tu + floor * floor).sqrt()
    upright = half >= 0
    ct = torch.where(upright, half + radius, tu)
    cu = torch.where(upright, tu, radius - half)
    scale = (ct * ct + cu * cu).rsqrt()
    ct, cu = ct * scale, cu * scale
    x, y, z = (torch.addcmul(ct * p, cu, q) for p, q in zip(t, u, strict=True))
    return x, y, z


def in_frame(kurtosis: Tensor, v1: Axis, v2: Axis) -> tuple[Tensor, ...]:
    """Components V_iijj in the frame of three orthonormal axes, the third being across the first two.

    These are all that means over directions with the diffusion tensor's symmetry depend on.

    Parameters
    ----------
    kurtosis : Tensor, shape (..., 15)
    v1, v2 : three Tensors each, shape (...)

    Returns
    -------
    six Tensors, shape (...)
        V_1111, V_2222, V_3333, V_1122, V_1133, V_2233.
    """
    components = kurtosis.movedim(-1, 0)
    products = [_products(axis) for axis in (v1, v2)]
    # the matrices V_ijkl n_k n_l, entries in the order of _PAIRS
    along1, along2 = (
        sum(components[row] * product for row, product in zip(_CONTRACTION, axis, strict=True)) for axis in products
    )
    v1111, v1122 = (along1 * products[0]).sum(0), (along1 * products[1]).sum(0)
    v2222 = (along2 * products[1]).sum(0)
    # traces hold the rest: the third axis need not be known
    v1133 = along1[:3].sum(0) - v1111 - v1122
    v2233 = along2[:3].sum(0) - v2222 - v1122
    v3333 = trace(kurtosis) - v1111 - v2222 - 2 * (v1122 + v1133 + v2233)
    return v1111, v2222, v3333, v1122, v1133, v2233


def trace(kurtosis: Tensor) -> Tensor:
    """Full trace V_iijj summed over i and j, shape (...): five times the mean of V over directions."""
    return kurtosis @ kurtosis.new_tensor(_TRACE)


def mean_kurtosis(eigenvalues: Axis, frame: tuple[Tensor, ...]) -> Tensor:
    """Mean of V(n) / D(n)^2 over all directions, shape (...).

    With x normal instead of uniform on the sphere, 1 / D^2 written as the integral of s exp(-s D) over s > 0 leaves
    Gaussian moments: the mean is the integral of 3 s / sqrt(q1 q2 q3) times the sum of V_iijj / (q_i q_j), where
    q_i = 1 + 2 s l_i. Substituting v = 2 s c / (1 + 2 s c) makes it a Gauss-Jacobi integral with weight
    v sqrt(1 - v) of a function whose poles are far off; c = 1 / sqrt(l1 l3) keeps them farthest.

    Parameters
    ----------
    eigenvalues : three Tensors, shape (...)
        Positive, falling.
    frame : six Tensors, shape (...)
        Of `in_frame`.
    """
    l1, l2, l3 = eigenvalues
    v1111, v2222, v3333, v1122, v1133, v2233 = frame
    c = (l1 * l3).rsqrt()
    nodes, weights = (l1.new_tensor(part) for part in _jacobi(NODES[l1.dtype]))
    # all nodes at once, on an axis in front
    nodes = nodes.view(-1, *[1] * l1.ndim)
    q1, q2, q3 = (1 + nodes * (length * c - 1) for length in (l1, l2, l3))
    inverse = (q1 * q2 * q3).rsqrt()
    q1, q2, q3 = q1.reciprocal(), q2.reciprocal(), q3.reciprocal()
    row1 = torch.addcmul(torch.addcmul(v1111 * q1, 2 * v1122, q2), 2 * v1133, q3)
    row2 = torch.addcmul(v2222 * q2, 2 * v2233, q3)
    form = torch.addcmul(torch.addcmul(row1 * q1, row2, q2), v3333 * q3, q3)
    return torch.tensordot(weights, form * inverse, 1) * c * c


def axial_kurtosis(eigenvalues: Axis, frame: tuple[Tensor, ...]) -> Tensor:
    """V(n) / D(n)^2 along the first axis, shape (...); parameters as `mean_kurtosis`."""
    return frame[0] / eigenvalues[0].square()


def radial_kurtosis(eigenvalues: Axis, frame: tuple[Tensor, ...]) -> Tensor:
    """Mean of V(n) / D(n)^2 over the directions across the first axis, shape (...); parameters as `mean_kurtosis`.

    The closed form of Tabesh et al., multiplied out so that equal eigenvalues are no special case.
    """
    _, l2, l3 = eigenvalues
    _, v2222, v3333, _, _, v2233 = frame
    root2, root3 = l2.sqrt(), l3.sqrt()
    straight = v2222 * (2 * root2 + root3) / (l2 * root2) + v3333 * (2 * root3 + root2) / (l3 * root3)
    return 0.5 * (straight + 6 * v2233 / (root2 * root3)) / (root2 + root3).square()


def kurtosis_anisotropy(kurtosis: Tensor) -> Tensor:
    """KFA, |W - its mean| / |W| by Frobenius norms (Glenn et al., 2015), 0 to 1; 0 where the mean is not positive.

    Parameters
    ----------
    kurtosis : Tensor, shape (..., 15)
        In any scale.
    """
    mean = trace(kurtosis) / 5
    square = kurtosis.square() @ kurtosis.new_tensor(QUARTIC_COUNTS)
    # the isotropic tensor of mean 1 has norm sqrt(5) and is orthogonal to the rest
    tiny = torch.finfo(kurtosis.dtype).tiny
    ratio = 1 - 5 * mean * mean / square.clamp_min(tiny)
    return torch.where(mean > 0, ratio.clamp(torch.finfo(kurtosis.dtype).eps ** 2, 1).sqrt(), 0.0)


@cache
def _jacobi(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on (0, 1) for 3/4 v sqrt(1 - v) times a smooth function."""
    from scipy.special import roots_jacobi

    nodes, weights = roots_jacobi(count, 0.5, 1.0)
    return ((1 + nodes) / 2).tolist(), (0.75 * weights / 2**2.5).tolist()


def _dot(a: Axis, b: Axis) -> Tensor:
    return torch.addcmul(torch.addcmul(a[0] * b[0], a[1], b[1]), a[2], b[2])


def _products(axis: Axis) -> Tensor:
    """What the entries of a symmetric matrix, in the order of _PAIRS, are weighted by along an axis, shape (6, ...)."""
    stacked = torch.stack(axis)
    products = stacked[_FIRST] * stacked[_SECOND]
    return torch.cat([products[:3], 2 * products[3:]])
