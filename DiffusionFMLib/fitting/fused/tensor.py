"""The weighted fit of the tensor and its maps as one compiled loop for the CPU.

Voxels are taken in blocks that stay in the fastest cache from the logarithm to the maps. The innermost loops run over
the voxels of a block and have no branches, so that the compiler turns them into vector instructions. The arithmetic
is that of `least_squares`, `tensor_algebra` and `dti.tensor_maps`; comments there are not repeated here.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BLOCK = 64
"""Voxels at a time."""

MAP_ROWS = 17
"""FA, MD, AD, RD, V1 (3), colour FA (3), tensor (6), S0: the order of `dti.DTI.map_specs`."""

# contracted sums are faster and more exact; NaN and infinity keep their meaning
FAST = {"contract", "nsz"}

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)

# numba computes in float64 wherever a Python number meets float32
F = np.float32
ZERO, ONE, TWO, THREE, HALF, THIRD = F(0), F(1), F(2), F(3), F(0.5), F(1 / 3)
EPS = F(np.finfo(np.float32).eps)
MILLI, TINY, TINY_PIVOT = F(1e-3), F(1e-30), F(1e-36)

MAX_EXPONENT = F(87)
LOG2E, LN2, LN2_HIGH, LN2_LOW = F(1 / math.log(2)), F(math.log(2)), F(0.693359375), F(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6 = F(1 / 2), F(1 / 6), F(1 / 24), F(1 / 120), F(1 / 720)
L1, L2, L3, L4, L5 = F(2), F(2 / 3), F(2 / 5), F(2 / 7), F(2 / 9)
ROOT_HALF_BITS, MANTISSA, EXPONENT_ONE = np.int32(0x3F3504F3), np.int32(0x7FFFFF), np.int32(0x3F800000)
BIAS, SHIFT = np.int32(127), np.int32(23)
ROOT3, SIXTH = F(math.sqrt(3)), F(2 - math.sqrt(3) - 1 / 3)


@compiled
def exponential(values, row, bits):
    """Exp of a row of float32, in place, to its last digit or two; numbers are kept within +-87."""
    for v in range(BLOCK):
        value = min(max(values[row, v], -MAX_EXPONENT), MAX_EXPONENT)
        power = np.floor(value * LOG2E + HALF)
        r = value - power * LN2_HIGH - power * LN2_LOW
        values[row, v] = ONE + r * (ONE + r * (E2 + r * (E3 + r * (E4 + r * (E5 + r * E6)))))
        bits[v] = (np.int32(power) + BIAS) << SHIFT
    scale = bits.view(np.float32)
    for v in range(BLOCK):
        values[row, v] *= scale[v]


@compiled
def logarithm(values, row, lowest, bits):
    """Ln of a row of positive numbers, in place, after they are raised to `lowest`."""
    as_bits = values.view(np.int32)
    for v in range(BLOCK):
        values[row, v] = max(values[row, v], lowest)
    for v in range(BLOCK):
        # mantissa between root 1/2 and root 2, where the series converges fast
        shifted = as_bits[row, v] - ROOT_HALF_BITS
        bits[v] = (shifted & MANTISSA) + ROOT_HALF_BITS
        values[row, v] = F(shifted >> SHIFT) * LN2
    mantissa = bits.view(np.float32)
    for v in range(BLOCK):
        s = (mantissa[v] - ONE) / (mantissa[v] + ONE)
        q = s * s
        values[row, v] += s * (L1 + q * (L2 + q * (L3 + q * (L4 + q * L5))))


@compiled
def multiply(matrix, rows, out):
    """Out = matrix @ rows, shapes (K, N), (N, V) and (K, V); four rows at once, so that sums are seldom stored."""
    count = matrix.shape[1]
    whole = count - count % 4
    for k in range(matrix.shape[0]):
        for v in range(BLOCK):
            out[k, v] = ZERO
        for n in range(0, whole, 4):
            a, b, c, d = matrix[k, n], matrix[k, n + 1], matrix[k, n + 2], matrix[k, n + 3]
            for v in range(BLOCK):
                out[k, v] += (a * rows[n, v] + b * rows[n + 1, v]) + (c * rows[n + 2, v] + d * rows[n + 3, v])
        for n in range(whole, count):
            a = matrix[k, n]
            for v in range(BLOCK):
                out[k, v] += a * rows[n, v]


@compiled
def solve(matrix, rhs, inverse, scaled):
    """`cholesky.PackedSolver.solve` on a block.

    `inverse`, shape (P, V), comes with the least that pivots may be; `scaled`, shape (V,), is room.
    """
    unknowns = rhs.shape[0]
    start = 0
    for j in range(unknowns):
        for v in range(BLOCK):
            inverse[j, v] = ONE / max(matrix[start, v], inverse[j, v])
        following = start + unknowns - j
        for i in range(j + 1, unknowns):
            for v in range(BLOCK):
                scaled[v] = matrix[start + i - j, v] * inverse[j, v]
            for v in range(BLOCK):
                rhs[i, v] -= scaled[v] * rhs[j, v]
            # entries (k, i), k >= i, of what is left
            for k in range(i, unknowns):
                for v in range(BLOCK):
                    matrix[following + k - i, v] -= scaled[v] * matrix[start + k - j, v]
            following += unknowns - i
        start += unknowns - j
    for j in range(unknowns - 1, -1, -1):
        start = j * unknowns - j * (j - 1) // 2
        for i in range(j + 1, unknowns):
            for v in range(BLOCK):
                rhs[j, v] -= matrix[start + i - j, v] * rhs[i, v]
        for v in range(BLOCK):
            rhs[j, v] *= inverse[j, v]


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
        norm = np.sqrt(max(square * (HALF * THIRD), F(0.01) * EPS * EPS))
        inverse = ONE / norm
        xx, xy, xz, yy, yz, zz = xx * inverse, xy * inverse, xz * inverse, yy * inverse, yz * inverse, zz * inverse

        half_det = HALF * (xx * (yy * zz - yz * yz) + xy * (yz * xz - xy * zz) + xz * (xy * yz - yy * xz))
        # 2 cos(acos(h) / 3) is the largest root of r^3 - 3 r = 2 h; two steps of Newton's method are exact
        h = min(abs(half_det), ONE)
        root = ROOT3 + h * (THIRD + h * SIXTH)
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
def weighted(signal, basis, basis_t, products, to_theta, min_signal, reweightings, lowest, max_residual, theta, out):
    """Fit a tile.

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
            for j in range(unknowns):
                pivot = j * unknowns - j * (j - 1) // 2
                for v in range(BLOCK):
                    inverse[j, v] = matrix[pivot, v] * EPS + TINY_PIVOT
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
