"""Where a fit computes, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.errors import DeviceError


def choose_device(name: str) -> torch.device:
    """The device of a settings' name: ``auto``, ``cpu`` or ``cuda``.

    Raises
    ------
    DeviceError
        If a GPU is asked for and torch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        found = "this torch is built for the CPU only" if torch.version.cuda is None else "torch finds no usable GPU"
        msg = f"The device is set to cuda, but {found} (torch {torch.__version__})."
        raise DeviceError(msg, "Choose auto or cpu, or install a torch that matches the graphics driver.")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


ALLOCATION_TO_KEEP = 8 << 20
"""Bytes; twice as much is kept."""

MAX_WORKERS = 4
"""More threads only wait for each other: they share one Python interpreter."""


def cpu_workers() -> int:
    """How many CPU threads a fit uses: the cores this process may run on, fewer if OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wished) if wished.isdigit() else cores, MAX_WORKERS))


def empty(rows: int, voxels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Memory for a tile, shape (rows, voxels); on the CPU by numpy, which asks the system for large pages."""
    if device.type != "cpu":
        return torch.empty(rows, voxels, device=device, dtype=dtype)
    return torch.from_numpy(np.empty((rows, voxels), np.float64 if dtype is torch.float64 else np.float32))


def keep_small_allocations() -> None:
    """Make the C library keep a few freed MiB for the next allocation, instead of returning them to the system.

    The GNU C library returns memory at every chance until a larger block has been freed once; each operation then
    waits for fresh pages, which cost a fit's maps five times the arithmetic. Elsewhere this does nothing.
    """
    torch.empty(ALLOCATION_TO_KEEP, dtype=torch.uint8)


@contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Let each torch operation use one thread, as long as the context lasts.

    Fits share out tiles among threads of their own. Threads inside an operation wait for each other at its end: with
    one core busy elsewhere, which is the rule beside a viewer, that made matrix products nine times slower.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
