"""The ways to compute D-RoPE attention that were weighed: seconds of one core, at the paper's size.

The compiled loop that the encoder uses on a CPU, the products of matrices that it uses elsewhere and for training, and
what torch.compile makes of the plain formula with tables that all positions share, where a C++ compiler is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from unittest import mock

import torch
from drope import DIM, LAYOUT, POSITIONS, ROUNDS, inputs, shells
from torch import Tensor

from DiffusionFMLib import fused
from DiffusionFMLib.encoder.attention import rotary_attention
from DiffusionFMLib.encoder.drope import RotaryTables, volume_distances
from DiffusionFMLib.fitting.device import keep_small_allocations

DIRECTIONS = (6, 12, 32, 64, 128)


@dataclass(frozen=True)
class KernelRow:
    """Seconds of a slab of 96 x 96 x 8 voxels; None where something needed is not installed."""

    volumes: int
    loop_s: float | None
    products_s: float
    torch_compile_s: float | None
    difference: float


def shared(q: Tensor, k: Tensor, v: Tensor, tables: Tensor) -> Tensor:
    """The formula, shape (M, N, d), of queries, keys and values, shape (G, H, N, d), and tables, shape (N, N, 2, d)."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    turned = torch.stack([-k[..., 1::2], k[..., 0::2]], -1).flatten(-2)
    scores = (q[:, :, None] * (k[:, None] * tables[:, :, 0] + turned[:, None] * tables[:, :, 1])).sum(-1)
    return scores.softmax(-1) @ v


def by_products(given: list[Tensor], tables: RotaryTables) -> Tensor:
    """Ours without the compiled loop."""
    with mock.patch.object(fused, "available", return_value=False):
        return rotary_attention(*given, tables)


def rows() -> list[KernelRow]:
    """Lines of the table."""
    keep_small_allocations()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_row(volumes) for volumes in DIRECTIONS]
    finally:
        torch.set_num_threads(before)


def _row(volumes: int) -> KernelRow:
    tables, given = RotaryTables.of(volume_distances(shells(volumes)), DIM, LAYOUT), inputs(volumes, POSITIONS)
    # halves of pairs side by side again
    plain = torch.from_numpy(tables.plain).unflatten(2, (2, 2)).transpose(3, 4).flatten(3).contiguous()
    # a variant for each size: torch's own choice, one for all sizes, is slower
    compiled = torch.compile(shared, dynamic=False)
    calls: dict[str, Callable[[], Tensor]] = {"products": lambda: by_products(given, tables)}
    if fused.available():
        calls["loop"] = lambda: rotary_attention(*given, tables)
    calls["torch.compile"] = lambda: compiled(*given, plain)
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Tensor] = {}
    for name, call in [*calls.items()]:
        try:
            results[name] = call()
        except torch._dynamo.exc.BackendCompilerFailed:
            del calls[name]
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    seconds = {name: median(times[name]) for name in calls}
    flat = {name: result.reshape(-1, volumes, DIM) for name, result in results.items()}
    difference = max(float((result - flat["products"]).abs().max()) for result in flat.values())
    return KernelRow(volumes, seconds.get("loop"), seconds["products"], seconds.get("torch.compile"), difference)


def show(table: list[KernelRow]) -> None:
    print(f"{'D-RoPE, one core':<24}{'loop ms':>9}{'products':>10}{'ratio':>7}", end="")
    print(f"{'torch.compile':>15}{'ratio':>7}{'differ':>10}")
    for row in table:
        loop, other = row.loop_s or float("nan"), row.torch_compile_s or float("nan")
        print(f"{row.volumes:>3} directions{'':<10}{1e3 * loop:9.2f}{1e3 * row.products_s:10.2f}", end="")
        print(f"{row.products_s / loop:7.1f}{1e3 * other:15.2f}{other / loop:7.1f}{row.difference:10.1e}")
    print("Ratios are to the loop. Memory and the formula as the paper's code has it: topic drope.")
