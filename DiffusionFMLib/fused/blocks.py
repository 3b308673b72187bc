"""What the compiled loops share: arithmetic on blocks of voxels that stay in the fastest cache.

A block is an array (row, voxel). The innermost loops run over its voxels and have no branches, so that the compiler
turns them into vector instructions; a voxel's result does not depend on its place.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

BLOCK = 64
"""Voxels at a time."""

# contracted sums are faster and more exact; NaN and infinity keep their meaning
FAST = {"contract", "nsz"}

compiled = njit(nogil=True, cache=True, error_model="numpy", fastmath=FAST)

# numba computes in float64 wherever a Python number meets float32
F = np.float32
ZERO, ONE, TWO, HALF, THIRD = F(0), F(1), F(2), F(0.5), F(1 / 3)
EPS = F(np.finfo(np.float32).eps)
TINY_PIVOT = F(1e-36)

MAX_EXPONENT = F(87)
LOG2E, LN2, LN2_HIGH, LN2_LOW = F(1 / math.log(2)), F(math.log(2)), F(0.693359375), F(math.log(2) - 0.693359375)
E2, E3, E4, E5, E6 = F(1 / 2), F(1 / 6), F(1 / 24), F(1 / 120), F(1 / 720)
L1, L2, L3, L4, L5 = F(2), F(2 / 3), F(2 / 5), F(2 / 7), F(2 / 9)
ROOT_HALF_BITS, MANTISSA = np.int32(0x3F3504F3), np.int32(0x7FFFFF)
BIAS, SHIFT = np.int32(127), np.int32(23)


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

    `inverse`, shape (P, V), and `scaled`, shape (V,), are room.
    """
    unknowns = rhs.shape[0]
    start = 0
    for j in range(unknowns):
        for v in range(BLOCK):
            inverse[j, v] = matrix[start, v] * EPS + TINY_PIVOT
        start += unknowns - j
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
