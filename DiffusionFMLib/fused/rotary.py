"""D-RoPE attention's weights as one compiled loop for the CPU.

The formula of `encoder.drope` as it stands, with tables that all positions share. It takes three multiplications for
each pair of volumes and entry of a head, where the products of matrices in `encoder.attention` take about ten; what
makes it slow in torch is that arrays of that size go to memory and back, and here there are none.

Entries of a head come in pairs, whose halves lie apart here: a matrix (N, d), of one position and head, is
(2, N, d / 2).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffusionFMLib.fused.blocks import BLOCK, FAST, ONE, ZERO, F, exponential

AT_ONCE = 4
"""Matrices for which an entry of the tables is read once."""

SIDE = 16
"""Volumes by volumes whose tables stay in the cache for all matrices."""

HIDDEN = F(-1e30)
"""Score of what is not attended to: finite, so that a row without anything else makes no NaN."""

# with sums in any order, that over a head's entries is made of vector instructions
SUMMING = FAST | {"reassoc"}

summing = njit(nogil=True, cache=True, error_model="numpy", fastmath=SUMMING)


@summing
def in_halves(pairs, halves):
    """A matrix (N, d) as its halves."""
    for n in range(halves.shape[1]):
        for e in range(halves.shape[2]):
            halves[0, n, e] = pairs[n, 2 * e]
            halves[1, n, e] = pairs[n, 2 * e + 1]


@summing
def scores(q, k, tables, first, second, out):
    """Scores (4, N, N) of matrices in halves (4, 2, N, d / 2): those of some volumes from two places on."""
    for i in range(first, min(first + SIDE, q.shape[2])):
        for j in range(second, min(second + SIDE, q.shape[2])):
            a, b, c, d = ZERO, ZERO, ZERO, ZERO
            for e in range(q.shape[3]):
                cx, cy, sx, sy = tables[i, j, 0, e], tables[i, j, 1, e], tables[i, j, 2, e], tables[i, j, 3, e]
                x, y = k[0, 0, j, e], k[0, 1, j, e]
                a += q[0, 0, i, e] * (x * cx - y * sx) + q[0, 1, i, e] * (y * cy + x * sy)
                x, y = k[1, 0, j, e], k[1, 1, j, e]
                b += q[1, 0, i, e] * (x * cx - y * sx) + q[1, 1, i, e] * (y * cy + x * sy)
                x, y = k[2, 0, j, e], k[2, 1, j, e]
                c += q[2, 0, i, e] * (x * cx - y * sx) + q[2, 1, i, e] * (y * cy + x * sy)
                x, y = k[3, 0, j, e], k[3, 1, j, e]
                d += q[3, 0, i, e] * (x * cx - y * sx) + q[3, 1, i, e] * (y * cy + x * sy)
            out[0, i, j], out[1, i, j], out[2, i, j], out[3, i, j] = a, b, c, d


@summing
def softmax(rows, hidden, block, bits):
    """Scores (N, N) become what they weigh, in place; those of hidden volumes, (N,) or (0,), nothing."""
    flat = rows.reshape(-1)
    for i in range(len(rows)):
        for j in range(len(hidden)):
            if hidden[j]:
                rows[i, j] = HIDDEN
        largest = rows[i, 0]
        for j in range(len(rows)):
            largest = max(largest, rows[i, j])
        for j in range(len(rows)):
            rows[i, j] -= largest
    for first in range(0, len(flat), BLOCK):
        width = min(BLOCK, len(flat) - first)
        for v in range(width):
            block[0, v] = flat[first + v]
        exponential(block, 0, bits)
        for v in range(width):
            flat[first + v] = block[0, v]
    for i in range(len(rows)):
        total = ZERO
        for j in range(len(rows)):
            total += rows[i, j]
        factor = ONE / total
        for j in range(len(rows)):
            rows[i, j] *= factor


@njit(
    "void(f4[:, :, ::1], f4[:, :, ::1], f4[:, :, :, ::1], b1[:, ::1], i8, f4[:, :, ::1])",
    nogil=True, cache=True, error_model="numpy", fastmath=SUMMING,
)  # fmt: skip
def weights(q, k, tables, hidden, heads, out):
    """Softmax of scores.

    q, k (M, N, d): matrices of each position's heads; tables (N, N, 4, d / 2): see `RotaryTables.plain`; hidden
    (positions, N), or (positions, 0) where nothing is: volumes that are not attended to; out (M, N, N), with room for
    M rounded up to `AT_ONCE`.
    """
    count, n, d = q.shape
    queries, keys = np.empty((len(out), 2, n, d // 2), F), np.empty((len(out), 2, n, d // 2), F)
    block, bits = np.zeros((1, BLOCK), F), np.empty(BLOCK, np.int32)
    for m in range(len(out)):
        # past the last, the last again
        in_halves(q[min(m, count - 1)], queries[m])
        in_halves(k[min(m, count - 1)], keys[m])
    for i in range(0, n, SIDE):
        for j in range(0, n, SIDE):
            for m in range(0, len(out), AT_ONCE):
                part = slice(m, m + AT_ONCE)
                scores(queries[part], keys[part], tables, i, j, out[part])
    for m in range(count):
        softmax(out[m], hidden[m // heads], block, bits)
