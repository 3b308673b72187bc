"""The grid that overlays are made on: half patches, which two passes of patches half a patch apart both fill."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.slabs import ScanSlabs


def half_patch(shape: EncoderShape) -> tuple[int, int, int]:
    """How far the second pass is shifted, voxels."""
    x, y, z = (max(1, edge // 2) for edge in shape.patch)
    return x, y, z


class Cells:
    """Half patches of a scan, from its first voxel on.

    Parameters
    ----------
    slabs : ScanSlabs
        Of a pass over the scan.

    Attributes
    ----------
    grid : tuple of int
        Cells along each axis.
    affine : array, shape (4, 4)
        Cell to scanner RAS mm of its centre.
    """

    def __init__(self, slabs: ScanSlabs) -> None:
        self._layout, self._size, self._patch = slabs.layout, slabs.size, slabs.shape.patch
        self._step = half_patch(slabs.shape)
        x, y, z = (-(-size // step) for size, step in zip(self._size, self._step, strict=True))
        self.grid = (x, y, z)
        to_voxel = np.diag([*map(float, self._step), 1.0])
        to_voxel[:3, 3] = (np.array(self._step) - 1) / 2
        self.affine: NDArray[np.float64] = slabs.layout.affine @ to_voxel

    def mean(self, passes: Iterable[tuple[ScanSlabs, NDArray[np.float32]]]) -> NDArray[np.float32]:
        """Mean over passes that have a token there, shape (*grid, ...), of values of their patches; 0 without any."""
        total: NDArray[np.float32] | float = 0.0
        count: NDArray[np.float32] | float = 0.0
        for slabs, values in passes:
            present = slabs.present.reshape(*slabs.grid, *[1] * (values.ndim - 3)).astype(np.float32)
            total = total + self._spread(slabs, values * present)
            count = count + self._spread(slabs, present)
        return np.asarray(total / np.maximum(count, 1), np.float32)

    def touched(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which cells have a voxel of a mask, shape (X, Y, Z), in them."""
        found = self._layout.turned(mask)
        for axis, (size, step) in enumerate(zip(self._size, self._step, strict=True)):
            found = np.logical_or.reduceat(found, np.arange(0, size, step), axis=axis)
        return found

    def on_scan(self, cells: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of cells, shape (*grid, ...), at the scan's voxels, shape (X, Y, Z, ...); not smoothed."""
        for axis, (size, step) in enumerate(zip(self._size, self._step, strict=True)):
            cells = cells.take(np.arange(size) // step, axis=axis)
        return self._layout.restored(cells)

    def patch_of(self, slabs: ScanSlabs, ijk: tuple[int, int, int]) -> tuple[int, int, int]:
        """The patch of a pass that a voxel of the scan lies in."""
        voxel = self._layout.voxel(ijk, self._size)
        x, y, z = ((v - int(first)) // edge for v, first, edge in zip(voxel, slabs.start, self._patch, strict=True))
        return x, y, z

    def _spread(self, slabs: ScanSlabs, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of a pass's patches at the cells."""
        for axis, (count, step, edge) in enumerate(zip(self.grid, self._step, self._patch, strict=True)):
            values = values.take((np.arange(count) * step - slabs.start[axis]) // edge, axis=axis)
        return values
