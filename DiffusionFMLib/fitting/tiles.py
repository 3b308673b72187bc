"""Voxels in tiles: how a fit reads a scan without ever copying the whole of it, and shares the work out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.device import cpu_workers, keep_small_allocations

CPU_TILE = 8192
"""Voxels in a tile on the CPU at most: enough to hide the cost of calling an operation."""

CPU_BYTES = 64 << 20
"""What the tiles of all threads may take together on the CPU: more leaves the cache, and less makes tiles of models
with many unknowns so small that calling the operations costs more than they do."""

CUDA_TILE = 1 << 18
"""Voxels in a tile on a GPU, memory allowing."""

MIN_TILE = 1024
"""Tiles are not made smaller than this."""

TILES_EACH = 4
"""Every thread gets so many tiles, if they are not too small then."""


@dataclass(frozen=True, eq=False)
class Voxels:
    """The voxels to fit, in an order that reads the signal from front to back.

    Parameters
    ----------
    flat : Tensor, shape (N, all voxels) or (all voxels, N), by `volumes_first`
        View of the scan's signal.
    volumes_first : bool
    source : Tensor, shape (V,), int64
        Position of each voxel in `flat`.
    target : array, shape (V,), intp
        Its position in an (X, Y, Z) array in Fortran order.
    """

    flat: Tensor
    volumes_first: bool
    source: Tensor
    target: NDArray[np.intp]

    @classmethod
    def of(cls, signal: NDArray[np.float32], mask: NDArray[np.bool_]) -> Voxels:
        """Lay out the voxels of a mask, shape (X, Y, Z), whatever the order the signal lies in memory."""
        axes = sorted(range(3), key=lambda axis: (-abs(signal.strides[axis]), -axis))
        volumes_first = abs(signal.strides[3]) >= abs(signal.strides[axes[0]])
        # contiguous for every array that readers make; anything else (a view with gaps) is copied
        laid = np.ascontiguousarray(signal.transpose((3, *axes) if volumes_first else (*axes, 3)))
        laid = laid.reshape(len(laid), -1) if volumes_first else laid.reshape(-1, laid.shape[3])
        source = target = np.flatnonzero(mask.transpose(axes))
        if axes != [2, 1, 0]:
            places = np.unravel_index(source, tuple(mask.shape[axis] for axis in axes))
            x, y, z = (places[axes.index(axis)] for axis in range(3))
            target = x + mask.shape[0] * (y + mask.shape[1] * z)
        return cls(_shared(laid), volumes_first, torch.from_numpy(source), target)

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, count: int) -> Tensor:
        """Signal of about `count` voxels from all over the mask, shape (N, V)."""
        index = self.source[:: -(-len(self) // count)]
        return self.flat.index_select(1, index) if self.volumes_first else self.flat.index_select(0, index).T

    def read(self, start: int, size: int, out: Tensor) -> int:
        """Signal of `size` voxels from `start` on into `out`, shape (N, size); returns how many there are.

        Places past the last voxel repeat it.
        """
        index = self.source[start : start + size]
        count = len(index)
        if count < size:
            index = torch.cat([index, index[-1:].expand(size - count)])
        if self.volumes_first and out.device == self.flat.device and out.dtype == self.flat.dtype:
            torch.index_select(self.flat, 1, index, out=out)
        elif self.volumes_first:
            out.copy_(self.flat.index_select(1, index))
        else:
            out.copy_(self.flat.index_select(0, index).T)
        return count


def tile_size(device: torch.device, voxel_bytes: int, memory_mib: int, count: int) -> int:
    """Voxels per tile, a power of two.

    Parameters
    ----------
    device : torch.device
    voxel_bytes : int
        Working memory per voxel.
    memory_mib : int, MiB
        What all tiles at work may take together.
    count : int
        Voxels in all.
    """
    size, budget = CUDA_TILE, memory_mib << 20
    if device.type == "cpu":
        size, budget = CPU_TILE, min(CPU_BYTES, budget) // cpu_workers()
        # while the last tiles are at work, other threads idle: small ones, not for long
        while size * TILES_EACH * cpu_workers() > count and size > MIN_TILE:
            size //= 2
    while size * voxel_bytes > budget and size > MIN_TILE:
        size //= 2
    return size


def for_each_tile(
    count: int,
    size: int,
    device: torch.device,
    make_worker: Callable[[], Callable[[int], None]],
    report: Report,
    stage: str = "Fitting",
    workers: int | None = None,
) -> None:
    """Run all tiles, on the CPU by several threads.

    Parameters
    ----------
    count : int
        Voxels in all.
    size : int
        Voxels per tile.
    device : torch.device
    make_worker : callable
        Called once per thread; gives the function that does the tile at a start position.
    report : Report
        Told after each tile; a cancelled job ends here, with all threads at rest.
    stage : str
        What the report calls it.
    workers : int, optional
        Threads; by default as many as fits use.
    """
    starts = range(0, count, size)
    report.progress(0, count, stage)
    if device.type != "cpu":
        work = make_worker()
        for start in starts:
            work(start)
            report.progress(min(start + size, count), count, stage)
        return

    keep_small_allocations()
    memory = local()

    def run(start: int) -> None:
        if not hasattr(memory, "work"):
            memory.work = make_worker()
        memory.work(start)

    with ThreadPoolExecutor(min(workers or cpu_workers(), len(starts))) as pool:
        pending: set[Future[None]] = {pool.submit(run, start) for start in starts}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                report.progress(min(count, (len(starts) - len(pending)) * size), count, stage)
        finally:
            for future in pending:
                future.cancel()


def _shared(array: NDArray[np.float32]) -> Tensor:
    """Tensor on the array's memory."""
    with warnings.catch_warnings():
        # the memory is only read, so it matters not that torch cannot mark it as read-only
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
