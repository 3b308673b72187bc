"""Attention over directions by choice: each beside the plain formula, and what is said where one cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from encoder_oracle import protocol
from test_encoder_volume import encoded, scan

from DiffusionFMLib.cli import USER, main
from DiffusionFMLib.encoder import attention
from DiffusionFMLib.encoder.attention import check_attention, working_bytes
from DiffusionFMLib.encoder.drope import RotaryTables, volume_distances
from DiffusionFMLib.encoder.volume import DEFAULTS
from DiffusionFMLib.errors import DeviceError
from DiffusionFMLib.jobfiles import result_key
from DiffusionFMLib.settings import EncodeSettings

CPU = torch.device("cpu")
GTAB = protocol({0.0: 1, 1000.0: 6, 3000.0: 6})
DISTANCES = volume_distances(GTAB)


def heads(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(7, 3, len(GTAB), 32, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def tables(choice: str, layout: str = "paper", dtype: torch.dtype = torch.float32) -> RotaryTables:
    return RotaryTables.of(DISTANCES, 32, layout, dtype, attention=choice)


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


def run_apart(tests: Path, **environment: str) -> None:
    """Run a file of tests in a process of its own; skips where all in it are."""
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", str(tests)],
        cwd=tests.parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    if " passed" not in process.stdout:
        pytest.skip(process.stdout.splitlines()[-1])


def test_torch_compile(project_root: Path) -> None:
    run_apart(project_root / "Testing" / "torch_compile_attention.py")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernel_by_its_interpreter(project_root: Path) -> None:
    run_apart(project_root / "Testing" / "triton_attention.py", TRITON_INTERPRET="1")


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
