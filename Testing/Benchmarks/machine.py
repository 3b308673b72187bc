"""What this machine can do at most, measured: bytes moved and float32 operations done per second."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from timing import seconds

from DiffusionFMLib.fitting.device import MAX_WORKERS

ARRAY_BYTES = 256 << 20
"""Larger than any cache."""

MATRIX = 1536
REPEATS = 15


@dataclass(frozen=True)
class Machine:
    """Peak rates with some number of threads."""

    threads: int
    bytes_per_s: float
    flops_per_s: float


@lru_cache
def measured(threads: int) -> Machine:
    """The best of some runs: what else the machine does only makes it slower."""
    return Machine(threads, _bandwidth(threads), _matrix_product(threads))


def all_measured() -> list[Machine]:
    """With one thread, and with as many as a fit uses at most."""
    return [measured(count) for count in sorted({1, min(os.cpu_count() or 1, MAX_WORKERS)})]


def _bandwidth(threads: int) -> float:
    """Triad a = b + c, which reads twice what it writes, in equal parts."""
    count = ARRAY_BYTES // 4 // threads
    parts = [[np.full(count, value, np.float32) for value in (0, 1, 2)] for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def run() -> None:
            list(pool.map(lambda part: np.add(part[1], part[2], out=part[0]), parts))

        run()
        return 3 * 4 * count * threads / min(seconds(run) for _ in range(REPEATS))


def _matrix_product(threads: int) -> float:
    """A large matrix product, which is all multiplying and adding."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one, other = torch.rand(2, MATRIX, MATRIX)
        out = torch.empty(MATRIX, MATRIX)
        torch.mm(one, other, out=out)
        return 2 * MATRIX**3 / min(seconds(lambda: torch.mm(one, other, out=out)) for _ in range(REPEATS))
    finally:
        torch.set_num_threads(before)


def show(table: list[Machine]) -> None:
    for row in table:
        rates = f"{row.bytes_per_s / 1e9:.1f} GB/s, {row.flops_per_s / 1e9:.0f} GFlop/s (float32)"
        print(f"This machine, {row.threads} thread{'s' if row.threads > 1 else ''}: {rates}")
