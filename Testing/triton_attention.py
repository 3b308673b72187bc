"""Tests of the fused Triton kernel beside the plain formula, for a GPU and for Triton's interpreter.

`test_gpu.py` runs them on a GPU. This file itself runs on the CPU, in a process where TRITON_INTERPRET=1 is set before
Triton is loaded; `test_encoder_attention.py` starts it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoder_oracle import plain_attention, protocol
from torch import Tensor

from DiffusionFMLib.encoder import attention
from DiffusionFMLib.encoder.attention import rotary_attention
from DiffusionFMLib.encoder.drope import LAYOUTS, RotaryTables, volume_distances

PROTOCOLS = {
    "one shell": {1000.0: 12},
    "with b0": {0.0: 3, 1000.0: 8, 3000.0: 9},
    "whole blocks": {1000.0: 64},
    "several blocks": {0.0: 1, 1000.0: 36, 3000.0: 36},
    "very high b": {0.0: 1, 10000.0: 7},
}

protocols = pytest.mark.parametrize("counts", PROTOCOLS.values(), ids=PROTOCOLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def heads(count: int, dim: int = 32) -> list[Tensor]:
    """Queries, keys and values, which lie as those of tokens do, keys in another order."""
    generator = torch.Generator().manual_seed(count)
    qkv = torch.randn(count, 5, 3, 2, dim, generator=generator, dtype=torch.float64)
    q, k, v = qkv.permute(2, 1, 3, 0, 4)
    return [q, k.contiguous(), v]


class TritonTests:
    """For classes that say where."""

    device: torch.device

    @pytest.fixture(autouse=True)
    def _no_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Attention by the kernel, and by nothing else."""

        def unexpected(*_: object) -> None:
            pytest.fail("attention went to the products")

        monkeypatch.setattr(attention, "_workspace", unexpected)

    def found(
        self, given: list[Tensor], distances: np.ndarray, layout: str = "paper", hidden: Tensor | None = None
    ) -> Tensor:
        """Attention by the kernel, on the CPU again."""
        q, k, v = (x.to(self.device) for x in given)
        tables = RotaryTables.of(distances, q.shape[-1], layout, q.dtype, self.device, attention="triton")
        out = rotary_attention(q, k, v, tables, None if hidden is None else hidden.to(self.device))
        assert out.dtype is q.dtype
        return out.cpu()

    @layouts
    @protocols
    @pytest.mark.parametrize("dim", [16, 128])
    def test_it_equals_the_plain_formula(self, counts: dict[float, int], layout: str, dim: int) -> None:
        gtab = protocol(counts)
        given, distances = heads(len(gtab), dim), volume_distances(gtab)
        found = self.found([x.float() for x in given], distances, layout)
        assert float((found - plain_attention(*given, distances, layout)).abs().max()) <= 2e-6

    @layouts
    @protocols
    def test_half_precision_stays_near(self, counts: dict[float, int], layout: str) -> None:
        gtab = protocol(counts)
        given, distances = [x.bfloat16() for x in heads(len(gtab), 128)], volume_distances(gtab)
        expected = plain_attention(*(x.double() for x in given), distances, layout)
        # some roundings of keys, weights and result, 2^-9 each
        assert float((self.found(given, distances, layout) - expected).abs().max()) < 0.02 * float(expected.abs().max())

    @protocols
    def test_hidden_volumes_are_as_if_not_there(self, counts: dict[float, int]) -> None:
        gtab = protocol(counts)
        n, distances = len(gtab), volume_distances(gtab)
        given = heads(n)
        hidden = torch.rand(5, n, generator=torch.Generator().manual_seed(0)) < 0.4
        hidden[2] = False
        hidden[3] = True
        hidden[4] = torch.arange(n) < n - 1
        found = self.found([x.float() for x in given], distances, hidden=hidden)
        for place in (0, 1, 2, 4):
            seen = ~hidden[place]
            expected = plain_attention(*(x[place][:, seen] for x in given), distances[np.ix_(seen, seen)], "paper")
            assert float((found[place][:, seen] - expected).abs().max()) <= 2e-6
        # where nothing is seen, everything is alike
        mean = given[2][3].mean(1, keepdim=True).float().expand(-1, n, -1)
        torch.testing.assert_close(found[3], mean, rtol=0, atol=2e-6)

    @protocols
    def test_large_scores_overflow_nowhere(self, counts: dict[float, int]) -> None:
        gtab = protocol(counts)
        distances = volume_distances(gtab)
        q, k, v = heads(len(gtab))
        found = self.found([x.float() for x in (100 * q, 100 * k, v)], distances)
        expected = plain_attention(100 * q, 100 * k, v, distances, "paper")
        # scores of 1e4 are known to 1e-3 in single precision
        assert float((found - expected).abs().max()) < 0.02


class TestInterpreted(TritonTests):
    device = torch.device("cpu")

    @pytest.fixture(autouse=True)
    def _products_of_bfloat16(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The interpreter would multiply the bits of bfloat16 as if they were whole numbers."""
        import triton.language as tl
        from triton.runtime.interpreter import InterpreterBuilder

        dot = InterpreterBuilder.create_dot

        def of_numbers(self, a, b, *more):
            a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
            return dot(self, a, b, *more)

        monkeypatch.setattr(InterpreterBuilder, "create_dot", of_numbers)
