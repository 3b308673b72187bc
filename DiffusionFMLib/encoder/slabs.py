"""A scan cut into slabs of patches, as the encoder takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.embedding import patch_centres, patch_rows
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.gradients import GradientTable, listed
from DiffusionFMLib.layout import Layout, Scalar

MAX_RATIO: Final = 1.5
"""Signal over the mean b0 is clipped to it."""


@dataclass(frozen=True, eq=False)
class Slab:
    """Tokens of some layers of patches.

    Parameters
    ----------
    patches : Tensor, shape (T, S, voxels of a patch)
    positions : Tensor, shape (S, 3), voxels
    where : array, shape (S,), intp
        Places in the grid, flat.
    """

    patches: Tensor
    positions: Tensor
    where: NDArray[np.intp]


class ScanSlabs:
    """The slabs of a scan.

    Parameters
    ----------
    acquisition : Acquisition
        Its mask says what is brain; without one, all with signal at b = 0 is.
    shape : EncoderShape
    shift : tuple of int, voxels
        How far the first patches reach beyond the volume.
    with_b0 : bool
        Whether b0 volumes are among those encoded.

    Attributes
    ----------
    volumes : array, shape (T,), intp
        Positions of the encoded volumes in the scan. Trace volumes are never among them.
    gtab : GradientTable
        Theirs, in the network's frame.
    grid : tuple of int
        Patches along each axis.
    start : array, shape (3,), intp
        Voxel at which the first patch begins.
    present : array, shape `grid`, bool
        Which patches are tokens.

    Raises
    ------
    ProtocolError
        If the scan has no b0, or no direction.
    InputError
        If there is no signal in the mask.
    """

    def __init__(
        self, acquisition: Acquisition, shape: EncoderShape, shift: tuple[int, int, int], with_b0: bool
    ) -> None:
        gtab = acquisition.gtab
        affine, turns = acquisition.affine, shape.axes == "scanner"
        self.shape = shape
        self.layout = Layout.of(affine, acquisition.shape) if turns else Layout.as_stored(affine)
        if not gtab.b0_mask.any():
            msg = f"{acquisition.name} has no b0, by which the encoder divides its signal."
            raise ProtocolError(msg, "Choose a scan with one.")
        encoded = ~gtab.trace_mask & (~gtab.b0_mask | with_b0)
        self.volumes = np.flatnonzero(encoded)
        if not (encoded & ~gtab.b0_mask).any():
            msg = f"{acquisition.name} has no volume with a gradient direction."
            raise ProtocolError(msg, "Choose a scan with directions.")
        self.gtab = gtab.subset(self.volumes)
        if shape.axes == "image":
            self.gtab = GradientTable(self.gtab.bvals, self.gtab.to_fsl(acquisition.affine), gtab.b0_threshold)
        self._signal = self.layout.turned(acquisition.signal)
        self.size = self._signal.shape[:3]
        b0 = np.flatnonzero(gtab.b0_mask)
        mean = self._signal[..., b0].mean(-1)
        # its inverse is finite
        inside = np.asarray(mean > np.finfo(np.float32).tiny)
        if acquisition.mask is not None:
            inside &= self.layout.turned(acquisition.mask)
        if not inside.any():
            msg = f"The brain mask of {acquisition.name} is empty, or there is no signal at b = 0 in it."
            raise InputError(msg, "Draw one, or let it be made automatically.")
        # what is outside counts as zero
        self._weight = np.zeros(self.size, np.float32)
        np.divide(1, mean, out=self._weight, where=inside)
        self.start = -np.asarray(shift, np.intp)
        x, y, z = (-(-(size + more) // step) for size, more, step in zip(self.size, shift, shape.patch, strict=True))
        self.grid = (x, y, z)
        whole = self._padded(inside[..., None], 0, z)
        full = patch_rows(torch.from_numpy(whole.transpose(3, 0, 1, 2)[None]), shape.patch).any(-1)
        self.present = full.view(x, y, z).numpy() if shape.brain_only else np.ones(self.grid, bool)
        self.left_out = listed(np.flatnonzero(gtab.trace_mask)) if gtab.trace_mask.any() else ""

    def __len__(self) -> int:
        return -(-self.grid[2] // self.shape.slab)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Patch to scanner RAS mm of its centre, shape (4, 4)."""
        patch = np.asarray(self.shape.patch)
        to_voxel = np.diag([*patch, 1.0])
        to_voxel[:3, 3] = self.start + (patch - 1) / 2
        return self.layout.affine @ to_voxel

    def places(self) -> NDArray[np.intp]:
        """Tokens per volume of each slab, shape (slabs,)."""
        return np.array([self.present[:, :, self._layers(number)].sum() for number in range(len(self))])

    def slab(self, number: int) -> Slab:
        """One of the slabs, counted from the lowest of the grid; it may have no tokens."""
        layers, patch = self._layers(number), self.shape.patch
        begin = self.start + np.array([0, 0, layers.start * patch[2]])
        ratio = self._signal[:, :, (depth := self._depth(number)), self.volumes] * self._weight[:, :, depth, None]
        np.clip(ratio, 0, MAX_RATIO, out=ratio)
        kept = self.kept(number)
        positions = patch_centres(self.grid_of(number), patch, begin)[kept]
        return Slab(self._rows(ratio, number)[:, kept], positions, self.where(number))

    def rows(self, values: NDArray[np.float32], number: int) -> Tensor:
        """Patches of an image, shape (S, voxels of a patch), at the tokens of a slab; 0 beyond the volume.

        Parameters
        ----------
        values : array, shape (X, Y, Z)
            Along the scan's axes.
        number : int
        """
        part = self.layout.turned(values)[:, :, self._depth(number), None]
        return self._rows(part, number)[0, self.kept(number)]

    def grid_of(self, number: int) -> tuple[int, int, int]:
        """Patches of a slab along each axis."""
        layers = self._layers(number)
        return (*self.grid[:2], layers.stop - layers.start)

    def where(self, number: int) -> NDArray[np.intp]:
        """Places of a slab's tokens in the grid, flat, shape (S,)."""
        layers = self._layers(number)
        inside = np.zeros(self.grid, bool)
        inside[:, :, layers] = self.present[:, :, layers]
        return np.flatnonzero(inside)

    def kept(self, number: int) -> Tensor:
        """Which patches of a slab are tokens, flat in its own grid, shape (S,)."""
        return torch.from_numpy(np.flatnonzero(self.present[:, :, self._layers(number)]))

    def _depth(self, number: int) -> slice:
        """The layers of voxels that a slab has part in."""
        layers, step = self._layers(number), self.shape.patch[2]
        first = int(self.start[2])
        return slice(max(layers.start * step + first, 0), min(layers.stop * step + first, self.size[2]))

    def _rows(self, values: NDArray[np.float32], number: int) -> Tensor:
        """Patches of the whole slab, shape (C, places, voxels of a patch), of its voxels, shape (X, Y, some Z, C)."""
        padded = self._padded(values, self._layers(number).start, self.grid_of(number)[2])
        return patch_rows(torch.from_numpy(padded).permute(3, 0, 1, 2)[None], self.shape.patch)[0]

    def _layers(self, number: int) -> slice:
        first = number * self.shape.slab
        return slice(first, min(first + self.shape.slab, self.grid[2]))

    def _padded(self, values: NDArray[Scalar], layer: int, layers: int) -> NDArray[Scalar]:
        """Values, shape (X, Y, some of Z, C), of all voxels of some layers of patches; zero beyond the volume."""
        patch = self.shape.patch
        wanted = (self.grid[0] * patch[0], self.grid[1] * patch[1], layers * patch[2])
        before = [max(0, -int(first)) for first in (*self.start[:2], self.start[2] + layer * patch[2])]
        after = [want - size - front for want, size, front in zip(wanted, values.shape, before, strict=False)]
        return np.pad(values, [*zip(before, after, strict=True), (0, 0)])
