"""Exact D-RoPE attention, without an array of directions x directions x entries of a head for every position.

With the expansion of `drope`,

    score_ij = sum_p T_p[i, j] (q w_p')[i, j],    w_p = k cos_p + turned(k) sin_p

so that all q w_p' of one position and head are one product. Positions go through in chunks that stay in the cache.
This does on every device, in every precision, and for the derivative; attention itself has a compiled loop on CPUs,
which is two to four times as fast (`fused.rotary`). Two more ways are chosen by name, and where they are not for the
inputs, products are taken: the plain formula by torch.compile, and a fused kernel for a GPU (`attention_triton`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from DiffusionFMLib import fused
from DiffusionFMLib.encoder.drope import RotaryTables
from DiffusionFMLib.errors import DeviceError

CPU_BYTES: Final = 4 << 20
"""Working memory of a chunk on the CPU: about what the cache holds."""

CUDA_BYTES: Final = 256 << 20
"""On a GPU."""

LOOP_BYTES: Final = 1 << 20
"""Least of a chunk for the compiled loop; half of its tables' size where that is more, so that reading them counts
for little."""

PLAIN_BYTES: Final = 24 << 20
"""Most that the tables of the plain formula may take: above, they leave the cache, and it is no faster."""


def check_attention(choice: str, device: torch.device) -> None:
    """Try whether attention can be computed as chosen; see `RotaryTables`.

    Raises
    ------
    DeviceError
        If what it takes is not there.
    """
    if choice == "triton":
        # tests have Triton's interpreter, which needs no GPU
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            msg = f"Attention is set to triton, which is for a GPU, but the device is {device.type}."
            raise DeviceError(msg, "Set attention to auto, or compute on a GPU (--device cuda).")
        if find_spec("triton") is None:
            msg = "Attention is set to triton, but the Python package triton is not installed."
            raise DeviceError(msg, "Set attention to auto, or install it: pip install triton.")
    if choice == "torch-compile":
        _try_compiling(device)


@lru_cache
def _try_compiling(device: torch.device) -> None:
    """Let torch compile something small: whether it can depends on compiler, operating system and Python."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        msg = f"Attention is set to torch-compile, but torch cannot compile on this machine: {reason}"
        hint = "Set attention to auto, or install a C++ compiler; on a GPU, the Python package triton."
        raise DeviceError(msg, hint) from error


def rotary_attention(q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables, hidden: Tensor | None = None) -> Tensor:
    """Attention of each volume to all others at its position: softmax(scores) v, shape (G, H, N, d).

    Parameters
    ----------
    q, k, v : Tensor, shape (G, H, N, d)
        Positions, heads, volumes, entries; in any memory layout. Below single precision, scores and softmax are
        computed in it.
    tables : RotaryTables
        Of the N volumes.
    hidden : Tensor, shape (G, N), bool, optional
        What is not attended to.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _RotaryAttention.apply(q, k, v, tables, hidden)
    return _attend(q, k, v, tables, hidden, None)


@torch.no_grad()
def rotary_weights(q: Tensor, k: Tensor, tables: RotaryTables) -> Tensor:
    """The attention itself, shape (G, H, N, N): what a query (row) takes from each volume; to look at, not to train."""
    weights = tables.terms.new_empty(*q.shape[:3], q.shape[2])
    with _as_asked(q):
        space = _workspace(tables, q)
        for part in space.chunks():
            _put(weights[part], space.weights(_matrices(q[part], tables), _matrices(k[part], tables), None))
    return weights


class _RotaryAttention(torch.autograd.Function):
    """Keeps q, k, v and the attention; everything larger is made again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables, hidden: Tensor | None) -> Tensor:
        g, h, n, _ = q.shape
        kept = tables.terms.new_empty(g, h, n, n)
        out = _attend(q, k, v, tables, hidden, kept)
        ctx.save_for_backward(q, k, v, kept)
        ctx.tables, ctx.hidden = tables, hidden
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, kept = ctx.saved_tensors
        tables, (grad,) = ctx.tables, gradients
        dq, dk, dv = (_like_tokens(q) for _ in range(3))
        with _as_asked(q):
            space = _Products(tables, q)
            for part in space.chunks():
                qs, ks, vs, gs = (_matrices(x[part], tables) for x in (q, k, v, grad))
                a = kept[part].flatten(0, 1)
                _put(dv[part], torch.bmm(a.transpose(1, 2), gs))
                # the softmax's derivative, into the scores
                ds = torch.bmm(gs, vs.transpose(1, 2))
                ds.sub_((ds * a).sum(-1, keepdim=True)).mul_(a)
                if ctx.hidden is not None:
                    ds.masked_fill_(space.for_heads(ctx.hidden[part]), 0)
                dqs, dks = space.backward(ds, qs, ks)
                _put(dq[part], dqs)
                _put(dk[part], dks)
        return dq, dk, dv, None, None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, tables: RotaryTables, hidden: Tensor | None, keep: Tensor | None
) -> Tensor:
    """Attention; its weights into `keep` too, shape (G, H, N, N)."""
    out = _like_tokens(q)
    if tables.attention == "triton" and keep is None:
        from DiffusionFMLib.encoder import attention_triton as kernel

        if kernel.fits(q, k, v, tables):
            return kernel.triton_attention(q, k, v, tables, hidden, out)
    with _as_asked(q):
        space = _workspace(tables, q)
        for part in space.chunks():
            unseen = None if hidden is None else hidden[part]
            a = space.weights(_matrices(q[part], tables), _matrices(k[part], tables), unseen)
            if keep is not None:
                _put(keep[part], a)
            _put(out[part], torch.bmm(a, _matrices(v[part], tables)))
    return out


class _Workspace:
    """Positions in chunks.

    Parameters
    ----------
    tables : RotaryTables
    q : Tensor, shape (G, H, N, d)
    numbers : int
        That a matrix takes, of one position and head.
    budget : int
        Bytes of a chunk.
    """

    def __init__(self, tables: RotaryTables, q: Tensor, numbers: int, budget: int) -> None:
        self.tables = tables
        self.positions, self.heads = q.shape[:2]
        each = numbers * self.heads * tables.terms.element_size()
        self.size = max(1, min(self.positions, budget // each))

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.positions, self.size):
            yield slice(start, min(start + self.size, self.positions))

    def for_heads(self, hidden: Tensor) -> Tensor:
        """What is hidden at some positions, shape (c, N), for the scores of all heads, shape (c H, 1, N)."""
        return hidden.repeat_interleave(self.heads, 0)[:, None]


class _Plain(_Workspace):
    """The formula as it stands, compiled; its tables are all that it needs."""

    def __init__(self, tables: RotaryTables, q: Tensor) -> None:
        n, d = q.shape[2:]
        super().__init__(tables, q, n * (6 * d + n), _loop_bytes(tables))
        # a chunk that is no multiple of what the loop takes at a time would make it do some of it twice
        self.size = min(self.positions, _rounded_up(self.size))

    def weights(self, q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
        """Attention, shape (c H, N, N), of matrices, shape (c H, N, d); hidden, shape (c, N), is not attended to."""
        from DiffusionFMLib.fused import rotary as kernel

        m, n, _ = q.shape
        out = q.new_empty(_rounded_up(m), n, n)
        unseen = q.new_empty(len(q), 0, dtype=torch.bool) if hidden is None else hidden
        queries, keys, hides = (x.contiguous().numpy() for x in (q, k, unseen))
        kernel.weights(queries, keys, self.tables.plain, hides, self.heads, out.numpy())
        return out[:m]


class _TorchCompiled(_Workspace):
    """The formula as it stands, compiled by torch."""

    def __init__(self, tables: RotaryTables, q: Tensor) -> None:
        n, d = q.shape[2:]
        super().__init__(tables, q, n * (2 * d + n), _chunk_bytes(q.device))

    def weights(self, q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
        """See `_Plain.weights`."""
        unseen = None if hidden is None else self.for_heads(hidden)
        for x in (q, k, *([] if unseen is None else [unseen])):
            # chunks of any size are one variant
            torch._dynamo.maybe_mark_dynamic(x, 0)
        with torch.no_grad():
            return _compiled_weights(len(self.tables))(q, k, self.tables.plain_pairs, unseen)


@lru_cache
def _compiled_weights(volumes: int) -> Callable[..., Tensor]:
    """`_plain_weights` compiled for a number of volumes: what torch would make for all numbers is slower.

    Each has code of its own, since torch gives up on code of which it has made eight variants.
    """
    code = _plain_weights.__code__.replace(co_name=f"weights_of_{volumes}_volumes")
    return torch.compile(FunctionType(code, globals()), dynamic=False)


def _plain_weights(q: Tensor, k: Tensor, tables: Tensor, hidden: Tensor | None) -> Tensor:
    """Attention, shape (M, N, N), of matrices, shape (M, N, d); see `RotaryTables.plain_pairs`; hidden (M, 1, N)."""
    turned = torch.stack([-k[..., 1::2], k[..., 0::2]], -1).flatten(-2)
    scores = (q[:, :, None] * (k[:, None] * tables[:, :, 0] + turned[:, None] * tables[:, :, 1])).sum(-1)
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


class _Products(_Workspace):
    """Products of matrices. Their memory is made once, and used again by each chunk."""

    def __init__(self, tables: RotaryTables, q: Tensor) -> None:
        n, d = q.shape[2:]
        p = len(tables.cos)
        super().__init__(tables, q, p * n * (n + d), _chunk_bytes(q.device))
        count = self.size * self.heads
        self.w = tables.terms.new_empty(count, p, n, d)
        self.products = tables.terms.new_empty(count, n, p, n)

    def weights(self, q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
        """See `_Plain.weights`."""
        scores = self.scores(q, k)
        if hidden is not None:
            # finite, so that a position where all is hidden makes no NaN
            scores.masked_fill_(self.for_heads(hidden), torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    def _expanded(self, k: Tensor) -> Tensor:
        """The w of some k, shape (c, N, d), as matrices, shape (c, P N, d)."""
        w = self.w[: len(k)]
        torch.mul(k[:, None], self.tables.cos[:, None], out=w)
        w.addcmul_(_turned(k)[:, None], self.tables.sin[:, None])
        return w.flatten(1, 2)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores, shape (c, N, N), of q and k, shape (c, N, d)."""
        products = self.products[: len(q)]
        # with w on this side, matrices of few directions still have long rows, which is up to twice as fast
        torch.bmm(q, self._expanded(k).transpose(1, 2), out=products.flatten(2))
        return products.mul_(self.tables.terms).sum(2)

    def backward(self, ds: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in q and k, shape (c, N, d), from that in the scores, shape (c, N, N)."""
        products = self.products[: len(q)]
        torch.mul(ds[:, :, None], self.tables.terms, out=products)
        flat = products.flatten(2)
        dq = torch.bmm(flat, self._expanded(k))
        dw = self.w[: len(q)]
        torch.bmm(flat.transpose(1, 2), q, out=dw.flatten(1, 2))
        turned = (dw * self.tables.sin[:, None]).sum(1)
        return dq, dw.mul_(self.tables.cos[:, None]).sum(1).sub_(_turned(turned))


def is_compiled(tables: RotaryTables, device: torch.device) -> bool:
    """Whether attention is by the compiled loop there."""
    return tables.attention == "auto" and device.type == "cpu" and _fits_plain(tables) and fused.available()


def working_bytes(tables: RotaryTables | None, device: torch.device) -> int:
    """Memory that attention takes beside what it is given and gives."""
    if tables is not None and is_compiled(tables, device):
        return _loop_bytes(tables) + tables.plain_bytes
    if tables is not None and tables.attention == "torch-compile" and _fits_plain(tables):
        return _chunk_bytes(device) + 2 * tables.plain_bytes
    return _chunk_bytes(device)


def _fits_plain(tables: RotaryTables) -> bool:
    """Whether the plain formula's tables are exact enough, and not too large."""
    return tables.terms.dtype is torch.float32 and tables.plain_bytes <= PLAIN_BYTES


def _chunk_bytes(device: torch.device) -> int:
    return CPU_BYTES if device.type == "cpu" else CUDA_BYTES


def _rounded_up(count: int) -> int:
    """To a multiple of the matrices that the compiled loop takes at a time."""
    from DiffusionFMLib.fused.rotary import AT_ONCE

    return -(-count // AT_ONCE) * AT_ONCE


def _loop_bytes(tables: RotaryTables) -> int:
    return max(LOOP_BYTES, tables.plain_bytes // 2)


def _workspace(tables: RotaryTables, q: Tensor) -> _Plain | _TorchCompiled | _Products:
    if tables.attention == "torch-compile" and _fits_plain(tables):
        return _TorchCompiled(tables, q)
    return _Plain(tables, q) if is_compiled(tables, q.device) else _Products(tables, q)


def _turned(x: Tensor) -> Tensor:
    """(-x1, x0) of each pair (x0, x1): a quarter turn, which is i times a complex number."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 1j).flatten(-2)


def _matrices(x: Tensor, tables: RotaryTables) -> Tensor:
    """Positions and heads as one axis, in the tables' precision: shape (G H, N, d)."""
    return x.to(tables.terms.dtype).reshape(-1, *x.shape[2:])


def _put(where: Tensor, values: Tensor) -> None:
    """Write matrices, shape (c H, N, d), to where positions and heads are apart."""
    where.copy_(values.view(where.shape))


def _like_tokens(q: Tensor) -> Tensor:
    """Memory of shape (G, H, N, d) that lies as tokens do: volumes, positions, heads, entries."""
    g, h, n, d = q.shape
    return q.new_empty(n, g, h, d).permute(1, 2, 0, 3)


def _as_asked(q: Tensor) -> torch.autocast:
    """No automatic change of precision: the tables have it."""
    return torch.autocast(q.device.type, enabled=False)
