"""Symmetric 3x3 tensors in bulk: eigenvalues, principal axis, anisotropy.

A tensor is its six unique components xx, xy, xz, yy, yz, zz on the last axis. Everything is elementwise over the
leading axes, because LAPACK called voxel by voxel costs several times the arithmetic, and differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30
"""Keeps roots and quotients of vanishing numbers finite, in float32 too; far below any rounding error."""


def principal_axis(tensor: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Eigenvalues, and the eigenvector of the largest.

    Of the three eigenvalues at least one is well separated from the others. It comes from the closed form of the
    cubic, its eigenvector from the adjugate matrix; what is left is a 2x2 problem across it, whose solution does
    not lose digits when its two eigenvalues meet (D. Eberly, "A Robust Eigensolver for 3x3 Symmetric Matrices").

    Parameters
    ----------
    tensor : Tensor, shape (..., 6)

    Returns
    -------
    eigenvalues : three Tensors, shape (...)
        Falling, in the tensor's unit.
    v1 : three Tensors, shape (...)
        Components of a unit vector whose largest component is positive.
    """
    xx, xy, xz, yy, yz, zz = tensor.unbind(-1)
    mean = (xx + yy + zz) / 3
    xx, yy = xx - mean, yy - mean
    # the mean is rounded: taken from zz too, it would leave a trace, which the closed form knows nothing of
    zz = -xx - yy
    # anisotropy below rounding is none; without a floor its derivatives overflow
    eps = torch.finfo(tensor.dtype).eps
    square = _dot(xx, yy, zz, xx, yy, zz) + 2 * _dot(xy, xz, yz, xy, xz, yz)
    norm = (square / 6).clamp_min(0.01 * eps * eps).sqrt()
    inverse = norm.reciprocal()
    xx, xy, xz, yy, yz, zz = (component * inverse for component in (xx, xy, xz, yy, yz, zz))

    half_det = 0.5 * _determinant(xx, xy, xz, yy, yz, zz)
    # rounding can carry it past 1, and at 1 the derivative of acos is infinite
    root = 2 * torch.cos(half_det.abs().clamp_max(1 - eps).acos() / 3)
    root = torch.copysign(root, half_det)
    prolate = root > 0

    ax, ay, az = xx - root, yy - root, zz - root
    adj_xx, adj_yy, adj_zz = _minor(ay, az, yz, yz), _minor(ax, az, xz, xz), _minor(ax, ay, xy, xy)
    adj_xy, adj_xz, adj_yz = _minor(xz, yz, xy, az), _minor(xy, yz, xz, ay), _minor(xy, xz, yz, ax)
    # the adjugate is v v' times a positive number: its longest column is v without cancellation
    take_y = (adj_yy > adj_xx) & (adj_yy >= adj_zz)
    take_z = (adj_zz > adj_xx) & (adj_zz > adj_yy)
    x = torch.where(take_z, adj_xz, torch.where(take_y, adj_xy, adj_xx))
    y = torch.where(take_z, adj_yz, torch.where(take_y, adj_yy, adj_xy))
    z = torch.where(take_z, adj_zz, torch.where(take_y, adj_yz, adj_xz))
    x, y, z = _unit(x, y, z)

    # two axes across (x, y, z) without a branch that degenerates (Duff et al., 2017)
    sign = torch.copysign(z.new_ones(()), z)
    a = -1 / (sign + z)
    b = x * y * a
    tx, ty, tz = 1 + sign * x * x * a, sign * b, -sign * x
    ux, uy, uz = b, sign + y * y * a, -y

    single = _dot(*_product(xx, xy, xz, yy, yz, zz, x, y, z), x, y, z)
    px, py, pz = _product(xx, xy, xz, yy, yz, zz, tx, ty, tz)
    tt, tu = _dot(px, py, pz, tx, ty, tz), _dot(px, py, pz, ux, uy, uz)
    # the third diagonal element is what makes the trace vanish
    centre = -0.5 * single
    half = tt - centre
    radius = (half * half + tu * tu).clamp_min(eps * eps).sqrt()
    high, low = centre + radius, centre - radius

    eigenvalues = (
        mean + norm * torch.where(prolate, single, high),
        mean + norm * torch.where(prolate, high, low),
        mean + norm * torch.where(prolate, low, single),
    )
    upright = half >= 0
    ct = torch.where(upright, half + radius, tu)
    cu = torch.where(upright, tu, radius - half)
    wx, wy, wz = _unit(*(torch.addcmul(ct * t, cu, u) for t, u in ((tx, ux), (ty, uy), (tz, uz))))
    v1 = (torch.where(prolate, x, wx), torch.where(prolate, y, wy), torch.where(prolate, z, wz))
    return eigenvalues, _positive(*v1)


def fractional_anisotropy(l1: Tensor, l2: Tensor, l3: Tensor) -> Tensor:
    """FA of non-negative eigenvalues (Basser and Pierpaoli, 1996), 0 to 1; 0 where all vanish."""
    spread = (l1 - l2) ** 2 + (l2 - l3) ** 2 + (l3 - l1) ** 2
    size = l1 * l1 + l2 * l2 + l3 * l3
    return (0.5 * spread / size.clamp_min(TINY)).clamp(TINY, 1.0).sqrt()


def positive_definite(tensor: Tensor) -> Tensor:
    """Where all eigenvalues are positive (Sylvester's criterion), bool, shape (...)."""
    xx, xy, xz, yy, yz, zz = tensor.unbind(-1)
    return (xx > 0) & (_minor(xx, yy, xy, xy) > 0) & (_determinant(xx, xy, xz, yy, yz, zz) > 0)


def _dot(a: Tensor, b: Tensor, c: Tensor, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Sum of a x, b y and c z, in three operations rather than five."""
    return torch.addcmul(torch.addcmul(a * x, b, y), c, z)


def _minor(a: Tensor, d: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Determinant ad - bc."""
    return torch.addcmul(a * d, b, c, value=-1)


def _determinant(xx: Tensor, xy: Tensor, xz: Tensor, yy: Tensor, yz: Tensor, zz: Tensor) -> Tensor:
    return _dot(xx, xy, xz, _minor(yy, zz, yz, yz), _minor(yz, xz, xy, zz), _minor(xy, yz, yy, xz))


def _product(
    xx: Tensor, xy: Tensor, xz: Tensor, yy: Tensor, yz: Tensor, zz: Tensor, x: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix times vector."""
    return _dot(xx, xy, xz, x, y, z), _dot(xy, yy, yz, x, y, z), _dot(xz, yz, zz, x, y, z)


def _unit(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = _dot(x, y, z, x, y, z).rsqrt()
    return x * scale, y * scale, z * scale


def _positive(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The vector or its opposite, so that the largest component is positive: neighbours then agree in sign."""
    largest = torch.where((x.abs() >= y.abs()) & (x.abs() >= z.abs()), x, torch.where(y.abs() >= z.abs(), y, z))
    flip = torch.copysign(x.new_ones(()), largest)
    return x * flip, y * flip, z * flip
