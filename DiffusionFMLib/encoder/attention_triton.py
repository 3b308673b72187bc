"""D-RoPE attention as one fused Triton kernel for a GPU: nothing between q, k, v and the result goes to memory.

A program has some queries of one position and head, and goes through the keys in blocks with a running softmax (Milakov
and Gimelshein, 2018, arXiv 1805.02867). Of a block,

    score_ij = sum_p T_p[i, j] (q w_p')[i, j],    w_p = k cos_p + turned(k) sin_p

is a product per term, with w_p made in registers. Sums are in single precision; products are of the inputs' precision,
and in single precision without TF32, which would be a thousand times less exact.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from DiffusionFMLib.encoder.drope import RotaryTables

LARGEST_BLOCK: Final = 64
"""Volumes that a program takes at a time, at most."""

LARGEST_BYTES: Final = 16 << 10
"""Of their queries, at most: with more, they leave the registers."""

DIMS: Final = (16, 32, 64, 128, 256)
"""Entries of a head that the kernel is for: blocks are powers of two, and products take 16 at least."""

DTYPES: Final = (torch.float32, torch.bfloat16)


def fits(q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables) -> bool:
    """Whether the kernel is for such inputs; see `triton_attention`."""
    alike = all(x.dtype in DTYPES and x.dtype is q.dtype and x.stride(-1) == 1 for x in (q, k, v))
    return alike and q.shape[-1] in DIMS and tables.terms.dtype is torch.float32


def triton_attention(
    q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables, hidden: Tensor | None, out: Tensor
) -> Tensor:
    """Attention into `out`, which is returned.

    Parameters
    ----------
    q, k, v, out : Tensor, shape (G, H, N, d), float32 or bfloat16
        Entries of a head lie side by side; the rest may lie in any order.
    tables : RotaryTables
        In single precision, of the N volumes.
    hidden : Tensor, shape (G, N), bool, or None
        What is not attended to.
    """
    g, h, n, d = q.shape
    block = max(16, min(LARGEST_BLOCK, LARGEST_BYTES // (d * q.element_size()), triton.next_power_of_2(n)))
    strides = [x.stride()[:3] for x in (q, k, v, out)]
    _attention[g * h, triton.cdiv(n, block)](
        q, k, v, out, *(step for each in strides for step in each),
        tables.cos, tables.sin, tables.terms, None if hidden is None else hidden.contiguous(),
        h, n, len(tables.cos), DIM=d, BLOCK=block, num_warps=block // 8,
    )  # fmt: skip
    return out


@triton.jit
def _attention(
    q, k, v, out,
    q_g, q_h, q_n, k_g, k_h, k_n, v_g, v_h, v_n, out_g, out_h, out_n,
    cos, sin, terms, hidden,
    heads, count, number_of_terms, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Queries of one block of volumes, at one position and head; strides are by position, head and volume."""
    # in 64 bits, since offsets may need them
    g, h = tl.program_id(0).to(tl.int64) // heads, tl.program_id(0).to(tl.int64) % heads
    e = tl.arange(0, DIM)
    sign = tl.where(e % 2 == 0, -1.0, 1.0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    queries = tl.load(q + g * q_g + h * q_h + i[:, None] * q_n + e, mask=i[:, None] < count, other=0.0)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, DIM), tl.float32)
    for first in range(0, count, BLOCK):
        j = first + tl.arange(0, BLOCK)
        there = j[:, None] < count
        at = k + g * k_g + h * k_h + j[:, None] * k_n
        keys = tl.load(at + e, mask=there, other=0.0).to(tl.float32)
        turned = tl.load(at + (e ^ 1), mask=there, other=0.0).to(tl.float32) * sign
        pairs = (i[:, None] < count) & (j < count)
        scores = tl.zeros((BLOCK, BLOCK), tl.float32)
        for p in range(number_of_terms):
            w = keys * tl.load(cos + p * DIM + e) + turned * tl.load(sin + p * DIM + e)
            t = tl.load(terms + (i[:, None] * number_of_terms + p) * count + j, mask=pairs, other=0.0)
            scores += t * tl.dot(queries, tl.trans(w.to(queries.dtype)), input_precision="ieee")
        if hidden is not None:
            unseen = tl.load(hidden + g * count + j, mask=j < count, other=0)
            # finite, so that a position where all is hidden makes no NaN
            scores = tl.where(unseen != 0, -1e30, scores)
        scores = tl.where(j < count, scores, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - above[:, None])
        shrink = tl.exp(largest - above)
        values = tl.load(v + g * v_g + h * v_h + j[:, None] * v_n + e, mask=there, other=0.0)
        result = result * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * shrink + tl.sum(weights, 1)
        largest = above
    result = (result / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + g * out_g + h * out_h + i[:, None] * out_n + e, result, mask=i[:, None] < count)
