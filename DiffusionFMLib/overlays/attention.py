"""Attention of the encoder, as it is: over the directions at each place, and over the places of each slab.

Weights say where a network looks, and not what matters to its result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.slabs import ScanSlabs, Slab
from DiffusionFMLib.encoder.transformer import DiffusionTransformer, with_class
from DiffusionFMLib.errors import DeviceError, InputError, SettingsError
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.device import one_thread_per_operation
from DiffusionFMLib.fitting.tiles import for_each_tile
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.overlays.memory import slabs_at_once, thinned, volume_bytes, working_bytes

MIN_VOLUMES: Final = 2
"""Directions, of which attention is worth looking at."""

PLACES_AT_ONCE: Final = 128
"""Whose attention over directions is held at a time."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention weights of a scan, for each block and head.

    Parameters
    ----------
    slabs : ScanSlabs
        What was encoded.
    gtab : GradientTable
        Of the T volumes, in scanner RAS.
    places : tuple of arrays, shape (blocks, heads, 1 + S, 1 + S), float16
        Of each slab: from row to column, mean over directions. First comes the class token.
    directions, geometry : array, shape (blocks, heads, T, X', Y', Z'), float32
        What each volume receives at a place, mean over the volumes that attend to it; and what it would receive if all
        volumes of a shell had the same signal, their mean; the latter None unless asked for.
    """

    slabs: ScanSlabs
    gtab: GradientTable
    places: tuple[NDArray[np.float16], ...]
    directions: NDArray[np.float32]
    geometry: NDArray[np.float32] | None

    def of_point(self, patch: tuple[int, int, int], block: int | None, head: int | None) -> NDArray[np.float32]:
        """What a patch attends to in its slab, over attending to all alike, shape of the grid of patches.

        Parameters
        ----------
        patch : tuple of int
        block, head : int or None
            None takes the mean.

        Raises
        ------
        InputError
            If the patch is no token.
        """
        number = patch[2] // self.slabs.shape.slab
        row = 1 + self._row(patch, number)
        weights = _chosen(self.places[number][:, :, row, 1:], block, head)
        return self._on_grid(number, weights / max(weights.mean(), 1e-12))

    def rollout(self) -> NDArray[np.float32]:
        """What class tokens draw on through all blocks, over drawing on all alike, shape of the grid of patches.

        Attention and the residual path count alike (Abnar and Zuidema, 2020, arXiv 2005.00928).
        """
        result = np.zeros(self.slabs.grid, np.float32)
        for number, places in enumerate(self.places):
            if places.shape[-1] < 2:
                continue
            flow = np.eye(places.shape[-1], dtype=np.float32)
            for weights in places.astype(np.float32).mean(1):
                flow = (weights + np.eye(len(weights), dtype=np.float32)) @ flow / 2
            drawn = flow[0, 1:]
            result += self._on_grid(number, drawn / max(drawn.mean(), 1e-12))
        return result

    def apart_from_geometry(self, block: int | None, head: int | None) -> NDArray[np.float32]:
        """Total variation between what volumes receive and what geometry gives them, shape of the grid of patches.

        Raises
        ------
        SettingsError
            If the latter was not asked for.
        """
        geometry = self._geometry()
        return np.abs(_chosen(self.directions, block, head) - _chosen(geometry, block, head)).sum(0) / 2

    def received(
        self, patch: tuple[int, int, int], block: int | None, head: int | None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What each volume receives at a patch, and what geometry alone gives it, shape (T,) each.

        Raises
        ------
        InputError
            If the patch is no token.
        SettingsError
            If the latter was not asked for.
        """
        geometry = self._geometry()
        self._row(patch, patch[2] // self.slabs.shape.slab)
        here = (..., *patch)
        return _chosen(self.directions[here], block, head), _chosen(geometry[here], block, head)

    def _geometry(self) -> NDArray[np.float32]:
        if self.geometry is None:
            msg = "What geometry alone gives was not kept of this scan."
            raise SettingsError(msg, "Compute all overlays.")
        return self.geometry

    def _row(self, patch: tuple[int, int, int], number: int) -> int:
        """Which of the slab's tokens a patch is."""
        x, y, z = patch
        _, width, depth = self.slabs.grid_of(number)
        flat = (x * width + y) * depth + z - number * self.slabs.shape.slab
        row = (self.slabs.kept(number) == flat).nonzero()
        if not len(row):
            msg = f"There is no attention at patch {patch}: it lies outside the brain."
            raise InputError(msg, "Point into the brain.")
        return int(row[0, 0])

    def _on_grid(self, number: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of a slab's tokens, shape (S,), on the whole grid; 0 elsewhere."""
        grid = self.slabs.grid_of(number)
        part = np.zeros(grid, np.float32)
        part.reshape(-1)[self.slabs.kept(number).numpy()] = values
        first = number * self.slabs.shape.slab
        result = np.zeros(self.slabs.grid, np.float32)
        result[:, :, first : first + grid[2]] = part
        return result


def watch(
    acquisition: Acquisition,
    trained: TrainedEncoder,
    report: Report,
    memory_mib: int,
    device: torch.device | None = None,
    *,
    geometry: bool = True,
) -> Attention:
    """Encode a scan and keep its attention.

    Parameters
    ----------
    acquisition : Acquisition
    trained : TrainedEncoder
        On `device`.
    report : Report
    memory_mib : int, MiB
        What it may take; where that is not enough for all directions, some are left out.
    device : torch.device, optional
    geometry : bool
        Whether to find out too what geometry alone gives, which takes as long again.

    Raises
    ------
    DeviceError
        If that does not do.
    """
    device = device or torch.device("cpu")
    network, shape = trained.network, trained.network.shape
    slabs = ScanSlabs(acquisition, shape, (0, 0, 0), with_b0=False)
    each, sizes = shape.blocks * shape.heads, [(1 + int(count)) ** 2 for count in slabs.places()]
    allowed = working_bytes(memory_mib) - 2 * each * sum(sizes)
    # of each volume, what it receives is kept; and one slab goes through at a time
    volume = 8 * each * int(np.prod(slabs.grid))
    through = volume + volume_bytes(slabs)
    count = allowed // through
    if count < MIN_VOLUMES:
        least = (memory_mib << 20) - allowed + MIN_VOLUMES * through
        msg = f"Attention takes {least / 2**20:.0f} MiB at least; {memory_mib} are allowed."
        raise DeviceError(msg, "Allow more memory (--memory-mib).")
    if count < len(slabs.volumes):
        note = f"Attention is that of {count} of {len(slabs.volumes)} directions, within the memory allowed."
        report.warning("attention", note)
        acquisition = thinned(acquisition, count, note)
        slabs = ScanSlabs(acquisition, shape, (0, 0, 0), with_b0=False)
    at_once = slabs_at_once(slabs, allowed - volume * len(slabs.volumes), device, "Attention")
    protocol = EncoderProtocol.of(slabs.gtab, shape, device=device)
    size = (shape.blocks, shape.heads, len(slabs.volumes), *slabs.grid)
    directions, alone = np.zeros(size, np.float32), np.zeros(size if geometry else 0, np.float32)
    places = [np.zeros((shape.blocks, shape.heads, 1, 1), np.float16) for _ in sizes]

    def work(number: int) -> None:
        slab = slabs.slab(number)
        if not len(slab.where):
            return
        slab = replace(slab, patches=slab.patches.to(device), positions=slab.positions.to(device))
        received, places[number] = _watched(network, slab, protocol)
        _flat(directions)[..., slab.where] = received
        if not geometry:
            return
        same = replace(slab, patches=_without_directions(slab.patches, slabs.gtab))
        _flat(alone)[..., slab.where] = _watched(network, same, protocol)[0]

    with one_thread_per_operation():
        for_each_tile(len(slabs), 1, device, lambda: work, report, "Attention", at_once)
    gtab = acquisition.gtab.subset(slabs.volumes)
    return Attention(slabs, gtab, tuple(places), directions, alone if geometry else None)


@torch.no_grad()
def _watched(
    network: DiffusionTransformer, slab: Slab, protocol: EncoderProtocol
) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
    """What volumes receive, shape (blocks, heads, T, S), and places from places, (blocks, heads, 1 + S, 1 + S)."""
    x = network.tokens(slab.patches[None], slab.positions[None], [protocol])
    cls = network.cls_token[0]
    received, places = [], []
    for block in network.blocks:
        normed = block.norm1_diffusion(x)  # type: ignore[operator]
        parts = normed.split(PLACES_AT_ONCE, dim=2)
        weights = [block.attn_diffusion.to_directions(part, protocol).mean(2) for part in parts]  # type: ignore[union-attr, operator]
        received.append(torch.cat(weights).permute(1, 2, 0).float().cpu())
        x = block.over_directions(x, [protocol])  # type: ignore[operator]
        normed = block.norm1_space(with_class(x, cls))  # type: ignore[operator]
        total = sum(block.attn_space.to_places(each[:, None])[0] for each in normed.unbind(1))  # type: ignore[union-attr, operator]
        places.append((total / x.shape[1]).half().cpu())
        x, told = block.over_places(x, cls)  # type: ignore[operator]
        cls = block.after_mean(told.mean(1))  # type: ignore[operator]
    return torch.stack(received).numpy(), torch.stack(places).numpy()


def _without_directions(patches: Tensor, gtab: GradientTable) -> Tensor:
    """Patches, shape (T, S, voxels), with the mean of each shell in the place of its volumes."""
    result = torch.empty_like(patches)
    for shell in gtab.shells:
        volumes = list(shell.indices)
        result[volumes] = patches[volumes].mean(0)
    return result


def _flat(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """View with the grid's axes as one."""
    return values.reshape(*values.shape[:3], -1)


def _chosen(values: NDArray[np.floating], block: int | None, head: int | None) -> NDArray[np.float32]:
    """Of some block and head; the mean of all where none is given."""
    part = values.astype(np.float32, copy=False)
    part = part.mean(0) if block is None else part[block]
    return part.mean(0) if head is None else part[head]
