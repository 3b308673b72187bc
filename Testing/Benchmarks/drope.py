"""D-RoPE attention, ours beside the plain formula: time and memory of the core alone, at the paper's size.

The plain formula is written as the paper's code computes it: cosines and sines of every pair of directions for every
position, and every turned k. At 64 directions it would take more memory than many machines have, so it gets a share of
the slab's positions, and its seconds and memory are scaled up: it keeps nothing that positions have in common.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.encoder.attention import rotary_attention
from DiffusionFMLib.encoder.drope import RotaryTables, frequencies, volume_distances
from DiffusionFMLib.fitting.device import cpu_workers, keep_small_allocations, one_thread_per_operation
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.tensor_arrays import spread_directions

SLAB, PATCH = (96, 96, 8), (8, 8, 4)
POSITIONS = math.prod(size // step for size, step in zip(SLAB, PATCH, strict=True))
HEADS, DIM = 3, 128
LAYOUT = "official"

SHARES = {12: 1, 64: 12}
"""Directions, and into how many parts the positions are divided for the plain formula."""

TARGETS = {12: (5.0, 0.0), 64: (20.0, 100.0)}
"""Ratios of time and of memory to be reached."""

ROUNDS = 3


@dataclass(frozen=True)
class DropeRow:
    """One comparison; seconds are of the whole slab: of one core's time with one thread, else of the clock."""

    volumes: int
    threads: int
    ours_s: float
    plain_s: float
    ratio: float
    ours_mib: float | None
    plain_mib: float | None
    memory_ratio: float | None
    difference: float
    plain_share: int


def shells(volumes: int) -> GradientTable:
    """Directions of two shells, spread over the sphere."""
    counts = volumes // 2, volumes - volumes // 2
    bvecs = np.concatenate([spread_directions(count) for count in counts])
    return GradientTable(np.repeat([1000.0, 3000.0], counts), bvecs)


def inputs(volumes: int, positions: int) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(positions, HEADS, volumes, DIM, generator=generator) for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor, distances: Tensor, theta: Tensor) -> Tensor:
    """The formula as it stands, with tables expanded per position."""
    s, _, n, _ = q.shape
    angle = distances.expand(s, n, n)[..., None] * theta
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    swapped = torch.stack([-k[..., 1::2], k[..., 0::2]], -1).flatten(-2)
    turned = k[:, :, None] * cos + swapped[:, :, None] * sin
    scores = torch.einsum("shid,shijd->shij", q, turned) / math.sqrt(DIM)
    return scores.softmax(-1) @ v


def ours_call(volumes: int, threads: int) -> Callable[[], Tensor]:
    """Ours on the whole slab, its positions shared among threads, as `encoder.volume` shares slabs."""
    tables = RotaryTables.of(volume_distances(shells(volumes)), DIM, LAYOUT)
    given = inputs(volumes, POSITIONS)
    parts = [tuple(part) for part in zip(*(x.chunk(threads) for x in given), strict=True)]

    def run() -> Tensor:
        with one_thread_per_operation(), ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(lambda part: rotary_attention(*part, tables), parts)))

    return run if threads > 1 else lambda: rotary_attention(*given, tables)


def plain_call(volumes: int) -> Callable[[], Tensor]:
    """The plain formula on its share of the slab."""
    distances = torch.as_tensor(volume_distances(shells(volumes)), dtype=torch.float32)
    theta = torch.as_tensor(frequencies(DIM, LAYOUT), dtype=torch.float32)
    given = [x[: POSITIONS // SHARES[volumes]] for x in inputs(volumes, POSITIONS)]
    return lambda: plain(*given, distances, theta)


def rows() -> list[DropeRow]:
    """Lines of the table."""
    keep_small_allocations()
    return [_row(volumes, threads) for threads in sorted({1, cpu_workers()}) for volumes in SHARES]


def _row(volumes: int, threads: int) -> DropeRow:
    clock = time.process_time if threads == 1 else time.perf_counter
    share = SHARES[volumes]
    calls = {"ours": ours_call(volumes, threads), "plain": plain_call(volumes)}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = {name: call() for name, call in calls.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = clock()
                call()
                times[name].append(clock() - start)
    finally:
        torch.set_num_threads(before)
    difference = float((results["ours"][: POSITIONS // share] - results["plain"]).abs().max())
    ours_s, plain_s = median(times["ours"]), share * median(times["plain"])
    ours_mib, plain_mib = peak_memory("ours", volumes, threads), peak_memory("plain", volumes, threads)
    if ours_mib is not None and plain_mib is not None:
        plain_mib *= share
    memory_ratio = plain_mib / ours_mib if ours_mib and plain_mib else None
    return DropeRow(
        volumes, threads, ours_s, plain_s, plain_s / ours_s, ours_mib, plain_mib, memory_ratio, difference, share
    )


def peak_memory(name: str, volumes: int, threads: int) -> float | None:
    """How far a fresh process grows during one call, its result included, MiB; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    command = [sys.executable, __file__, name, str(volumes), str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def show(table: list[DropeRow]) -> None:
    print(f"{'D-RoPE, ' + 'x'.join(map(str, SLAB)):<24}{'ours s':>9}{'plain s':>9}{'ratio':>7}", end="")
    print(f"{'MiB':>8}{'plain':>8}{'ratio':>7}{'differ':>10}")
    for row in table:
        name = f"{row.volumes} directions, {row.threads} thread{'s' if row.threads > 1 else ''}"
        memory = (row.ours_mib or math.nan, row.plain_mib or math.nan, row.memory_ratio or math.nan)
        figures = f"{row.ours_s:9.3f}{row.plain_s:9.3f}{row.ratio:7.1f}{memory[0]:8.0f}{memory[1]:8.0f}{memory[2]:7.0f}"
        faster, smaller = TARGETS[row.volumes]
        missed = row.ratio < faster or memory[2] < smaller
        print(f"{name:<24}{figures}{row.difference:10.1e}{'  missed' if missed else ''}")
    print("One thread: processor time; more: time of the clock. With 64 directions, plain is a twelfth, scaled up.")


def main(name: str, volumes: int, threads: int) -> None:
    torch.set_num_threads(threads)
    call = ours_call(volumes, threads) if name == "ours" else plain_call(volumes)
    # what libraries load at first use is not the core's
    small = [x[:2, :, :4] for x in inputs(volumes, 2)]
    distances = volume_distances(shells(4))
    rotary_attention(*small, RotaryTables.of(distances, DIM, LAYOUT))
    plain(*small, torch.as_tensor(distances, dtype=torch.float32), torch.ones(DIM))

    def resident(key: str) -> float:
        found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = call()
    print(resident("VmHWM") - before)
    del result


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
