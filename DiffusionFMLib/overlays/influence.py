"""What hiding a place changes: in what the features of other places say of FA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import DEFAULTS, Encoding
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.device import one_thread_per_operation
from DiffusionFMLib.fitting.tiles import for_each_tile
from DiffusionFMLib.overlays.memory import slabs_at_once, thinned, working_bytes

HIDDEN_EDGE: Final = 2
"""Patches along x and y that are hidden together."""

MAX_VOLUMES: Final = 12
"""Directions that it is computed with, spread over the scan's; the time grows with them."""

RIDGE: Final = 1e-2
"""Of the readout, relative to the features' mean variance."""


@dataclass(frozen=True, eq=False)
class Readout:
    """What the mean features of a patch say of its FA: linear, by least squares over the scan itself.

    Parameters
    ----------
    weights : array, shape (C,), float32
    offset : float
    """

    weights: NDArray[np.float32]
    offset: float

    @classmethod
    def of(cls, encoding: Encoding, fa: NDArray[np.float32], mask: NDArray[np.bool_]) -> Readout:
        """Of an encoding, and FA in the scan's grid, shape (X, Y, Z), of the mask's voxels."""
        slabs, tokens, values = encoding.slabs, [], []
        flat = encoding.tokens.reshape(-1, encoding.tokens.shape[-1])
        for number in range(len(slabs)):
            where = slabs.where(number)
            if len(where):
                tokens.append(flat[where])
                brain = slabs.rows(mask.astype(np.float32), number)
                values.append(((slabs.rows(fa, number) * brain).sum(1) / brain.sum(1).clamp_min(1)).numpy())
        x, y = np.concatenate(tokens).astype(np.float64), np.concatenate(values).astype(np.float64)
        mean, target = x.mean(0), y.mean()
        covariance = (x - mean).T @ (x - mean)
        covariance += RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        weights = np.linalg.solve(covariance, (x - mean).T @ (y - target))
        return cls(weights.astype(np.float32), float(target - mean @ weights))

    def __call__(self, tokens: Tensor) -> Tensor:
        """FA, shape (...,), of tokens, shape (..., C)."""
        return tokens @ torch.as_tensor(self.weights, device=tokens.device) + self.offset


def influence(
    acquisition: Acquisition,
    trained: TrainedEncoder,
    readout: Readout,
    report: Report,
    device: torch.device | None = None,
    memory_mib: int = DEFAULTS.memory_mib,
) -> NDArray[np.float32]:
    """Mean change of the readout at a slab's other places when a place is hidden from them, shape of the grid.

    Parameters
    ----------
    acquisition : Acquisition
        With a mask.
    trained : TrainedEncoder
        On `device`.
    readout : Readout
    report : Report
    device : torch.device, optional
    memory_mib : int, MiB

    Raises
    ------
    DeviceError
        If the memory allowed does not do for one slab.
    """
    device = device or torch.device("cpu")
    network = trained.network
    some = thinned(acquisition, MAX_VOLUMES, "Influence is computed with some of the directions.")
    slabs = ScanSlabs(some, network.shape, (0, 0, 0), with_b0=False)
    at_once = slabs_at_once(slabs, working_bytes(memory_mib), device, "Influence")
    protocol = EncoderProtocol.of(slabs.gtab, network.shape, device=device)
    result = np.zeros(slabs.grid, np.float32)

    def work(number: int) -> None:
        slab = slabs.slab(number)
        if len(slab.where):
            grid, kept = slabs.grid_of(number), slabs.kept(number)
            blocks = _blocks(grid, kept).to(device)
            found = _changes(network, slab.patches.to(device), slab.positions.to(device), protocol, readout, blocks)
            result.reshape(-1)[slab.where] = found.cpu().numpy()

    with one_thread_per_operation():
        for_each_tile(len(slabs), 1, device, lambda: work, report, "Influence", at_once)
    return result


def _blocks(grid: tuple[int, int, int], kept: Tensor) -> Tensor:
    """Which block of places each token belongs to, shape (S,), counted from 0."""
    x, y, _ = np.unravel_index(kept.numpy(), grid)
    names = x // HIDDEN_EDGE * grid[1] + y // HIDDEN_EDGE
    return torch.from_numpy(np.unique(names, return_inverse=True)[1])


@torch.no_grad()
def _changes(
    network: DiffusionTransformer,
    patches: Tensor,
    positions: Tensor,
    protocol: EncoderProtocol,
    readout: Readout,
    blocks: Tensor,
) -> Tensor:
    """Change of the readout elsewhere when each block is hidden, at its places, shape (S,)."""
    result = patches.new_zeros(len(blocks))

    def said(hidden: Tensor | None) -> Tensor:
        masked = None if hidden is None else hidden.expand(1, len(patches), -1)
        return readout(network(patches[None], positions[None], [protocol], masked).tokens[0].mean(0))

    before = said(None)
    for block in range(int(blocks.max()) + 1):
        hidden = blocks == block
        if not hidden.all():
            result[hidden] = (said(hidden) - before)[~hidden].abs().mean()
    return result
