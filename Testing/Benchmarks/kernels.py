"""The ways to compute D-RoPE attention, with the paper's heads: on one core, and on a GPU where there is one.

On a CPU the compiled loop that the encoder uses, the products of matrices that it uses elsewhere and for training, and
torch.compile, where a C++ compiler is. On a GPU products, torch.compile, the fused Triton kernel, and what torch's own
attention takes without D-RoPE, in single precision and in bfloat16.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from drope import DIM, LAYOUT, POSITIONS, ROUNDS, inputs, shells
from torch import Tensor
from torch.nn import functional

from DiffusionFMLib import fused
from DiffusionFMLib.encoder.attention import check_attention, rotary_attention
from DiffusionFMLib.encoder.drope import RotaryTables, volume_distances
from DiffusionFMLib.encoder.volume import CUDA_TOKENS
from DiffusionFMLib.errors import DeviceError
from DiffusionFMLib.fitting.device import keep_small_allocations

DIRECTIONS = (6, 12, 32, 64, 128)

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

CHOICES = {"cpu": ("products", "torch-compile"), "cuda": ("products", "torch-compile", "triton")}
"""Beside them: on a CPU `LOOP`, on a GPU `PLAIN`."""

LOOP, PLAIN = "loop", "sdpa"

TARGETS = {"bfloat16": 3.0, "float32": 8.0}
"""Times torch's own attention that ours may take on a GPU."""

GPU_ROUNDS = 50


@dataclass(frozen=True)
class KernelRow:
    """Seconds of so many positions, by way; None where something needed is not installed.

    `difference` is the largest of ours from the first of them.
    """

    device: str
    precision: str
    volumes: int
    positions: int
    seconds: dict[str, float | None]
    difference: float


def rows() -> list[KernelRow]:
    """Lines of the tables."""
    keep_small_allocations()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [_row("cpu", "float32", volumes) for volumes in DIRECTIONS]
        if torch.cuda.is_available():
            found += [_row("cuda", precision, volumes) for precision in PRECISIONS for volumes in DIRECTIONS]
        return found
    finally:
        torch.set_num_threads(before)


def _row(device: str, precision: str, volumes: int) -> KernelRow:
    # on a CPU a slab of 96 x 96 x 8 voxels; on a GPU what the encoder takes at once
    positions = POSITIONS if device == "cpu" else CUDA_TOKENS // volumes
    given = [x.to(device, PRECISIONS[precision]) for x in inputs(volumes, positions)]
    calls = _calls(torch.device(device), given)
    results = {name: call() for name, call in calls.items() if call is not None}
    times: dict[str, list[float]] = {name: [] for name in results}
    for _ in range(ROUNDS if device == "cpu" else GPU_ROUNDS):
        for name in times:
            times[name].append(_seconds(device, calls[name]))
    ours = [result.float() for name, result in results.items() if name != PLAIN]
    difference = max(float((result - ours[0]).abs().max()) for result in ours)
    seconds = {name: median(times[name]) if name in times else None for name in calls}
    return KernelRow(device, precision, volumes, positions, seconds, difference)


def _calls(device: torch.device, given: list[Tensor]) -> dict[str, Callable[[], Tensor] | None]:
    """Ways by name; None where one is not possible."""
    calls: dict[str, Callable[[], Tensor] | None] = {}
    distances = volume_distances(shells(given[0].shape[2]))

    def by(choice: str) -> Callable[[], Tensor] | None:
        try:
            check_attention(choice, device)
        except DeviceError:
            return None
        tables = RotaryTables.of(distances, DIM, LAYOUT, given[0].dtype, device, attention=choice)
        return lambda: rotary_attention(*given, tables)

    if device.type == "cpu":
        calls[LOOP] = by("auto") if fused.available() else None
    calls.update({choice: by(choice) for choice in CHOICES[device.type]})
    if device.type == "cuda":
        calls[PLAIN] = lambda: functional.scaled_dot_product_attention(*given)
    return calls


def _seconds(device: str, call: Callable[[], Tensor]) -> float:
    """Of one core, or between two events on the GPU."""
    if device == "cpu":
        start = time.process_time()
        call()
        return time.process_time() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def show(table: list[KernelRow]) -> None:
    for device, precision in dict.fromkeys((row.device, row.precision) for row in table):
        part = [row for row in table if (row.device, row.precision) == (device, precision)]
        reference = LOOP if device == "cpu" else PLAIN
        heading = "".join(f"{name + ' ms':>18}{'ratio':>7}" for name in part[0].seconds)
        print(f"{f'D-RoPE, {device}, {precision}':<24}{heading}{'differ':>10}")
        for row in part:
            one = row.seconds[reference] or math.nan
            each = [seconds or math.nan for seconds in row.seconds.values()]
            figures = "".join(f"{1e3 * seconds:18.3f}{seconds / one:7.1f}" for seconds in each)
            fastest = min(s for name, s in row.seconds.items() if name != PLAIN and s is not None)
            missed = device == "cuda" and fastest > TARGETS[precision] * one
            print(f"{row.volumes:>3} directions{'':<10}{figures}{row.difference:10.1e}{'  missed' if missed else ''}")
    print("Ratios are to the loop; on a GPU, to torch's own attention (sdpa), which has no D-RoPE.")
    print("Memory and the formula as the paper's code has it: topic drope.")
