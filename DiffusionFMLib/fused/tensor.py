"""Ordinary and weighted least squares of the tensor and its maps as one compiled loop for the CPU.

A block of voxels stays in the fastest cache from the logarithm to the maps. The arithmetic is that of `least_squares`,
`tensor_algebra` and `dti.tensor_maps`; comments there are not repeated here.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from DiffusionFMLib.fused.blocks import (
    BLOCK,
    EPS,
    FAST,
    HALF,
    ONE,
    THIRD,
    TWO,
    ZERO,
    F,
    compiled,
    exponential,
    logarithm,
    multiply,
    solve,
)  # fmt: skip

MAP_ROWS = 17
"""FA, MD, AD, RD, V1 (3), colour FA (3), tensor (6), S0: the order of `dti.DTI.map_specs`."""

THREE, SIXTH = F(3), F(1 / 6)
MILLI, TINY = F(1e-3), F(1e-30)
ROOT3, BEND = F(math.sqrt(3)), F(2 - math.sqrt(3) - 1 / 3)


@compiled
def maps(theta, lowest, out):
    """Maps (`MAP_ROWS`, V) of parameters (7, V), but ln S0 for S0; `lowest` as `dti.MIN_DIFFUSIVITY`.

    Arrays are flat: of two pointers the compiler can prove that they do not overlap, of 24 it does not try.
    """
    for v in range(BLOCK):
        xx, xy, xz = theta[v], theta[BLOCK + v], theta[2 * BLOCK + v]
        yy, yz, zz = theta[3 * BLOCK + v], theta[4 * BLOCK + v], theta[5 * BLOCK + v]
        out[10 * BLOCK + v], out[11 * BLOCK + v], out[12 * BLOCK + v] = xx * MILLI, xy * MILLI, xz * MILLI
        out[13 * BLOCK + v], out[14 * BLOCK + v], out[15 * BLOCK + v] = yy * MILLI, yz * MILLI, zz * MILLI
        mean = (xx + yy + zz) * THIRD
        xx, yy = xx - mean, yy - mean
        zz = -xx - yy
        square = xx * xx + yy * yy + zz * zz + TWO * (xy * xy + xz * xz + yz * yz)
        norm = np.sqrt(max(square * SIXTH, F(0.01) * EPS * EPS))
        inverse = ONE / norm
        xx, xy, xz, yy, yz, zz = xx * inverse, xy * inverse, xz * inverse, yy * inverse, yz * inverse, zz * inverse

        half_det = HALF * (xx * (yy * zz - yz * yz) + xy * (yz * xz - xy * zz) + xz * (xy * yz - yy * xz))
        # 2 cos(acos(h) / 3) is the largest root of r^3 - 3 r = 2 h; two steps of Newton's method are exact
        h = min(abs(half_det), ONE)
        root = ROOT3 + h * (THIRD + h * BEND)
        root -= (root * (root * root - THREE) - TWO * h) / (THREE * (root * root - ONE))
        root -= (root * (root * root - THREE) - TWO * h) / (THREE * (root * root - ONE))
        root = math.copysign(root, half_det)
        prolate = root > ZERO

        ax, ay, az = xx - root, yy - root, zz - root
        adj_xx, adj_yy, adj_zz = ay * az - yz * yz, ax * az - xz * xz, ax * ay - xy * xy
        adj_xy, adj_xz, adj_yz = xz * yz - xy * az, xy * yz - xz * ay, xy * xz - yz * ax
        take_y = (adj_yy > adj_xx) & (adj_yy >= adj_zz)
        take_z = (adj_zz > adj_xx) & (adj_zz > adj_yy)
        x = adj_xz if take_z else (adj_xy if take_y else adj_xx)
        y = adj_yz if take_z else (adj_yy if take_y else adj_xy)
        z = adj_zz if take_z else (adj_yz if take_y else adj_xz)
        length = ONE / np.sqrt(x * x + y * y + z * z)
        x, y, z = x * length, y * length, z * length

        sign = math.copysign(ONE, z)
        a = -ONE / (sign + z)
        b = x * y * a
        tx, ty, tz = ONE + sign * x * x * a, sign * b, -sign * x
        ux, uy, uz = b, sign + y * y * a, -y
        px, py, pz = xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z
        single = px * x + py * y + pz * z
        px, py, pz = xx * tx + xy * ty + xz * tz, xy * tx + yy * ty + yz * tz, xz * tx + yz * ty + zz * tz
        tt, tu = px * tx + py * ty + pz * tz, px * ux + py * uy + pz * uz
        centre = -HALF * single
        half = tt - centre
        radius = np.sqrt(max(half * half + tu * tu, EPS * EPS))
        high, low = centre + radius, centre - radius

        l1 = max(mean + norm * (single if prolate else high), lowest)
        l2 = max(mean + norm * (high if prolate else low), lowest)
        l3 = max(mean + norm * (low if prolate else single), lowest)
        upright = half >= ZERO
        ct = half + radius if upright else tu
        cu = tu if upright else radius - half
        wx, wy, wz = ct * tx + cu * ux, ct * ty + cu * uy, ct * tz + cu * uz
        length = ONE / np.sqrt(wx * wx + wy * wy + wz * wz)
        x, y, z = x if prolate else wx * length, y if prolate else wy * length, z if prolate else wz * length
        size_x, size_y, size_z = abs(x), abs(y), abs(z)
        largest = x if (size_x >= size_y) & (size_x >= size_z) else (y if size_y >= size_z else z)
        flip = math.copysign(ONE, largest)

        d12, d23, d31 = l1 - l2, l2 - l3, l3 - l1
        spread = d12 * d12 + d23 * d23 + d31 * d31
        size = max(l1 * l1 + l2 * l2 + l3 * l3, TINY)
        fa = np.sqrt(min(max(HALF * spread / size, TINY), ONE))
        out[v] = fa
        out[BLOCK + v] = (l1 + l2 + l3) * (MILLI * THIRD)
        out[2 * BLOCK + v] = l1 * MILLI
        out[3 * BLOCK + v] = (l2 + l3) * (MILLI * HALF)
        out[4 * BLOCK + v], out[5 * BLOCK + v], out[6 * BLOCK + v] = x * flip, y * flip, z * flip
        out[7 * BLOCK + v], out[8 * BLOCK + v], out[9 * BLOCK + v] = size_x * fa, size_y * fa, size_z * fa
        out[16 * BLOCK + v] = theta[6 * BLOCK + v]


@njit(
    "void(f4[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], f4, i8, f4, f4, f4[:, ::1], f4[:, ::1])",
    nogil=True, cache=True, error_model="numpy", fastmath=FAST,
)  # fmt: skip
def fit(signal, basis, basis_t, products, to_theta, min_signal, reweightings, lowest, max_residual, theta, out):
    """Fit a tile; with no reweightings, ordinary least squares.

    signal (N, V); basis, basis_t, products, to_theta: of `least_squares.Design`; theta (7, V) and out
    (`MAP_ROWS` + 1, V) receive the parameters, and the maps and the residual.
    """
    volumes, voxels = signal.shape
    unknowns = basis.shape[1]
    measured, log_signal = np.zeros((volumes, BLOCK), F), np.empty((volumes, BLOCK), F)
    predicted, weights = np.empty((volumes, BLOCK), F), np.empty((volumes, BLOCK), F)
    matrix, rhs, z = (
        np.empty((products.shape[0], BLOCK), F),
        np.empty((unknowns, BLOCK), F),
        np.empty((unknowns, BLOCK), F),
    )
    rhs, inverse, block_theta = np.empty_like(z), np.empty_like(z), np.empty_like(z)
    block_maps = np.empty((MAP_ROWS, BLOCK), F)
    scaled, total, bits = np.empty(BLOCK, F), np.empty(BLOCK, F), np.empty(BLOCK, np.int32)
    for start in range(0, voxels, BLOCK):
        width = min(BLOCK, voxels - start)
        measured[:, :width] = signal[:, start : start + width]
        log_signal[:] = measured
        for n in range(volumes):
            logarithm(log_signal, n, min_signal, bits)
        multiply(basis_t, log_signal, z)
        for _ in range(reweightings):
            multiply(basis, z, predicted)
            for n in range(volumes):
                for v in range(BLOCK):
                    weights[n, v] = TWO * predicted[n, v]
                exponential(weights, n, bits)
                for v in range(BLOCK):
                    predicted[n, v] = (log_signal[n, v] - predicted[n, v]) * weights[n, v]
            multiply(products, weights, matrix)
            multiply(basis_t, predicted, rhs)
            solve(matrix, rhs, inverse, scaled)
            z += rhs
        multiply(to_theta, z, block_theta)

        multiply(basis, z, predicted)
        total[:] = ZERO
        maps(block_theta.reshape(-1), lowest, block_maps.reshape(-1))
        exponential(block_maps, MAP_ROWS - 1, bits)
        for n in range(volumes):
            exponential(predicted, n, bits)
            for v in range(BLOCK):
                difference = predicted[n, v] - measured[n, v]
                total[v] += difference * difference
        for v in range(width):
            residual = np.sqrt(total[v] / F(volumes)) / block_maps[MAP_ROWS - 1, v]
            out[MAP_ROWS, start + v] = min(residual, max_residual)
        theta[:, start : start + width] = block_theta[:, :width]
        out[:MAP_ROWS, start : start + width] = block_maps[:, :width]
