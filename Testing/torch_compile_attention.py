"""Attention by torch.compile beside the plain formula.

In a process of its own, which `test_encoder_attention.py` starts: once torch has compiled, PySide6 can no longer read
the signatures of Qt's functions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_oracle import plain_attention
from test_encoder_attention import CPU, DISTANCES, GTAB, heads, tables
from test_encoder_volume import encoded, scan

from DiffusionFMLib.encoder import attention, volume
from DiffusionFMLib.encoder.attention import check_attention, rotary_attention, rotary_weights
from DiffusionFMLib.encoder.drope import LAYOUTS
from DiffusionFMLib.encoder.volume import DEFAULTS
from DiffusionFMLib.errors import DeviceError


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    """Something that torch.compile can use."""
    try:
        check_attention("torch-compile", CPU)
    except DeviceError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_compile_equals_the_plain_formula(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, chosen = heads(torch.float32), tables("torch-compile", layout)
    expected = plain_attention(*heads(), DISTANCES, layout)
    whole = rotary_attention(*given, chosen)
    assert float((whole - expected).abs().max()) <= 2e-6
    weights = rotary_weights(*given[:2], chosen)
    torch.testing.assert_close(weights @ given[2], whole, rtol=0, atol=2e-6)
    # chunks of one position
    monkeypatch.setattr(attention, "CPU_BYTES", 1)
    torch.testing.assert_close(rotary_attention(*given, chosen), whole, rtol=0, atol=1e-7)


def test_torch_compile_hides_volumes_and_leaves_the_derivative_to_products() -> None:
    hidden = torch.rand(7, len(GTAB), generator=torch.Generator().manual_seed(0)) < 0.4
    hidden[3] = True

    def with_gradients(choice: str) -> list[torch.Tensor]:
        given = [x.requires_grad_() for x in heads(torch.float32)]
        out = rotary_attention(*given, tables(choice), hidden)
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in given if x.grad is not None)]

    found, expected = with_gradients("torch-compile"), with_gradients("products")
    assert len(found) == 4
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-6


def test_features_are_the_same_by_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which two threads here compile at once."""
    monkeypatch.setattr(volume, "cpu_workers", lambda: 2)
    torch.compiler.reset()
    found, expected = (encoded(scan(), options=replace(DEFAULTS, attention=way)) for way in ("torch-compile", "auto"))
    assert np.linalg.norm(found.tokens - expected.tokens) / np.linalg.norm(expected.tokens) < 1e-6
