"""Attention over directions by choice: each beside the plain formula, and what is said where one cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_oracle import plain_attention, protocol
from test_encoder_volume import encoded, scan

from DiffusionFMLib.cli import USER, main
from DiffusionFMLib.encoder import attention, volume
from DiffusionFMLib.encoder.attention import check_attention, rotary_attention, rotary_weights, working_bytes
from DiffusionFMLib.encoder.drope import LAYOUTS, RotaryTables, volume_distances
from DiffusionFMLib.encoder.volume import DEFAULTS
from DiffusionFMLib.errors import DeviceError
from DiffusionFMLib.jobfiles import result_key
from DiffusionFMLib.settings import EncodeSettings

CPU = torch.device("cpu")
GTAB = protocol({0.0: 1, 1000.0: 6, 3000.0: 6})
DISTANCES = volume_distances(GTAB)


@pytest.fixture(scope="module")
def _compiler() -> None:
    """Something that torch.compile can use."""
    try:
        check_attention("torch-compile", CPU)
    except DeviceError as error:
        pytest.skip(error.message)


compiles = pytest.mark.usefixtures("_compiler")


def heads(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 3, len(GTAB), 32, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def tables(choice: str, layout: str = "paper", dtype: torch.dtype = torch.float32) -> RotaryTables:
    return RotaryTables.of(DISTANCES, 32, layout, dtype, attention=choice)


@compiles
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


@compiles
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


@compiles
def test_features_are_the_same_by_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which two threads here compile at once."""
    monkeypatch.setattr(volume, "cpu_workers", lambda: 2)
    torch.compiler.reset()
    found, expected = (encoded(scan(), options=replace(DEFAULTS, attention=way)) for way in ("torch-compile", "auto"))
    assert np.linalg.norm(found.tokens - expected.tokens) / np.linalg.norm(expected.tokens) < 1e-6


def test_what_a_choice_is_not_for_is_left_to_products(monkeypatch: pytest.MonkeyPatch) -> None:
    double = tables("torch-compile", dtype=torch.float64)
    assert isinstance(attention._workspace(double, heads()[0]), attention._Products)
    assert working_bytes(double, CPU) == attention.CPU_BYTES
    monkeypatch.setattr(attention, "PLAIN_BYTES", 0)
    for choice in ("torch-compile", "triton", "products", "auto"):
        workspace = attention._workspace(tables(choice), heads(torch.float32)[0])
        assert isinstance(workspace, attention._Products)


def test_products_can_be_chosen() -> None:
    assert not attention.is_compiled(tables("products"), CPU)
    assert isinstance(attention._workspace(tables("products"), heads(torch.float32)[0]), attention._Products)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_by_its_interpreter(project_root: Path) -> None:
    tests = project_root / "Testing" / "triton_attention.py"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tests)],
        cwd=project_root,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    assert " passed" in process.stdout


# --- what is said --------------------------------------------------------------------------------------------


def test_triton_without_a_gpu_is_told() -> None:
    with pytest.raises(DeviceError, match=r"is for a GPU, but the device is cpu. Set attention to auto") as told:
        encoded(scan(), options=replace(DEFAULTS, attention="triton"))
    assert "--device cuda" in told.value.hint


def test_triton_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="triton is not installed"):
        check_attention("triton", torch.device("cuda"))


def test_torch_compile_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(function: object) -> object:
        msg = "InvalidCxxCompiler: No working C++ compiler found\n\nA stack trace"
        raise RuntimeError(msg)

    monkeypatch.setattr(torch, "compile", failing)
    attention._try_compiling.cache_clear()
    with pytest.raises(DeviceError, match=r"No working C\+\+ compiler found Set attention to auto, or install a C\+\+"):
        check_attention("torch-compile", CPU)


def test_the_command_tells_before_it_reads_the_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["encode", "no-such-scan.nii.gz", "--out", str(tmp_path), "--device", "cpu", "--attention", "triton"]
    assert main(command) == USER
    assert "Attention is set to triton" in capsys.readouterr().err


def test_results_are_the_same_whatever_the_choice() -> None:
    keys = {result_key("scan", EncodeSettings(attention=way), EncodeSettings) for way in ("auto", "triton")}
    assert len(keys) == 1
