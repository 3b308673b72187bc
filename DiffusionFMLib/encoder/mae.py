"""The masked autoencoder: slabs of which most is hidden, made up for from the rest.

Masks as in arXiv 2603.25977: three quarters of the places, other ones in each direction, or half of the directions as
a whole. Hidden tokens are seen by no other. Directions that are hidden as a whole are not encoded at all, which is the
same for all others at half the cost; the class token is then the mean over the directions that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from DiffusionFMLib.encoder.embedding import EncoderProtocol, from_patch_rows, patch_centres, patch_rows
from DiffusionFMLib.encoder.transformer import DiffusionTransformer, Encoded
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.gradients import GradientTable

SPATIAL, DIFFUSION = "spatial", "diffusion"
MASKS: Final = (SPATIAL, DIFFUSION)

HIDDEN: Final = {SPATIAL: 0.75, DIFFUSION: 0.5}
"""Share of a slab's places, and of its directions."""

MASKED_WEIGHT: Final = (0.05, 0.95)
"""Of hidden tokens in the loss, when training begins and when it ends."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Some layers of patches, with all that is known of them.

    Parameters
    ----------
    patches : Tensor, shape (T, S, voxels of a patch)
        Signal over the mean b0, 0 outside the brain.
    inside : Tensor, shape (S, voxels of a patch), bool
        Brain.
    positions : Tensor, shape (S, 3), voxels
    where : Tensor, shape (S,), int64
        Places in the grid, flat.
    grid : tuple of int
        Patches along each axis.
    protocol : EncoderProtocol
        Of the T volumes.
    shells : Tensor, shape (T,), int64
        Which of the shells each belongs to, counted from the lowest.
    """

    patches: Tensor
    inside: Tensor
    positions: Tensor
    where: Tensor
    grid: tuple[int, int, int]
    protocol: EncoderProtocol
    shells: Tensor

    @classmethod
    def of(
        cls,
        signal: Tensor,
        inside: Tensor,
        start: NDArray[np.intp],
        gtab: GradientTable,
        protocol: EncoderProtocol,
        patch: tuple[int, int, int],
    ) -> Sample:
        """Of part of a scan; only patches with brain in them are tokens.

        Parameters
        ----------
        signal : Tensor, shape (T, X, Y, Z)
            Over the mean b0; edges are multiples of the patch's.
        inside : Tensor, shape (X, Y, Z), bool
            Brain.
        start : array, shape (3,), voxels
            Where the part begins in the scan.
        gtab : GradientTable
        protocol : EncoderProtocol
            Of it.
        patch : tuple of int

        Raises
        ------
        InputError
            If there is no brain in it.
        """
        x, y, z = (edge // step for edge, step in zip(inside.shape, patch, strict=True))
        brain = patch_rows(inside[None, None], patch)[0, 0]
        where = brain.any(-1).nonzero()[:, 0]
        if not len(where):
            msg = "There is no brain in the part of the scan that is to be reconstructed."
            raise InputError(msg, "Choose another part.")
        return cls(
            patch_rows((signal * inside)[None], patch)[0][:, where],
            brain[where],
            patch_centres((x, y, z), patch, start).to(signal.device)[where],
            where,
            (x, y, z),
            protocol,
            shells_of(gtab).to(signal.device),
        )

    def volumes(self, rows: Tensor, patch: tuple[int, int, int]) -> Tensor:
        """Rows of patches, shape (T, S, voxels), as volumes, shape (T, X, Y, Z); 0 outside the brain."""
        full = rows.new_zeros(len(rows), self.grid[0] * self.grid[1] * self.grid[2], rows.shape[-1])
        full.index_copy_(1, self.where, rows * self.inside)
        return from_patch_rows(full[None], self.grid, patch)[0]


def shells_of(gtab: GradientTable) -> Tensor:
    """Which of the shells each volume belongs to, counted from the lowest, shape (T,), int64."""
    shells = torch.zeros(len(gtab), dtype=torch.int64)
    for number, shell in enumerate(gtab.shells):
        shells[torch.as_tensor(shell.indices)] = number
    return shells


def draw_mask(kind: str, directions: int, places: int, rng: np.random.Generator) -> Tensor:
    """Tokens to hide, shape (T, S), bool; at least one is hidden and one is not, along the axis that is drawn from.

    Parameters
    ----------
    kind : {"spatial", "diffusion"}
    directions, places : int
        T and S; at least two of those that are hidden.
    rng : Generator
    """
    hidden = torch.zeros(directions, places, dtype=torch.bool)
    of = places if kind == SPATIAL else directions
    count = min(max(round(HIDDEN[kind] * of), 1), of - 1)
    if kind == DIFFUSION:
        hidden[torch.from_numpy(rng.permutation(directions)[:count])] = True
        return hidden
    chosen = rng.permuted(np.tile(np.arange(places), (directions, 1)), axis=1)[:, :count]
    return hidden.scatter_(1, torch.from_numpy(chosen), True)


def masked_weight(done: float) -> float:
    """Weight of hidden tokens in the loss when this share of the training is done."""
    first, last = MASKED_WEIGHT
    return first + (last - first) * done


class Batch:
    """Samples and their masks.

    Samples may be of any sizes: each has brain in other places, and other directions. This is no dataclass, since
    Lightning would take those that a network is called with apart.

    Parameters
    ----------
    samples : sequence of Sample
    masks : sequence of Tensor, shape (T, S) each, bool
        Tokens to hide.
    """

    def __init__(self, samples: Sequence[Sample], masks: Sequence[Tensor]) -> None:
        self.samples, self.masks = samples, masks


class MaskedAutoencoder(nn.Module):
    """A transformer that makes up for what it is not shown.

    Parameters
    ----------
    network : DiffusionTransformer
        With a decoder.
    """

    def __init__(self, network: DiffusionTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch) -> list[Tensor]:
        """Signal of all tokens of each sample, shape (T, S, voxels of a patch), from those that are not masked."""
        return [self._reconstructed(sample, mask) for sample, mask in zip(batch.samples, batch.masks, strict=True)]

    def _reconstructed(self, sample: Sample, masked: Tensor) -> Tensor:
        seen = (~masked.all(1)).nonzero()[:, 0]
        hidden, positions = masked[seen], sample.positions[None]
        found = self.network(
            sample.patches[seen][None],
            positions,
            [sample.protocol.subset(seen)],
            hidden[None] if hidden.any() else None,
        )
        shape = (1, *masked.shape, found.tokens.shape[-1])
        tokens = found.tokens.new_zeros(shape).index_copy(1, seen, found.tokens)
        volumes = self.network.decode(
            Encoded(tokens, found.cls), positions, [sample.protocol], sample.grid, masked[None], sample.where
        )
        return patch_rows(volumes, self.network.shape.patch)[0][:, sample.where]


@torch.no_grad()
def reconstruct(network: DiffusionTransformer, sample: Sample, masked: Tensor) -> Tensor:
    """Signal of a sample, shape (T, S, voxels of a patch), from the tokens that are not `masked`, shape (T, S)."""
    return MaskedAutoencoder(network)(Batch([sample], [masked]))[0]


def square_errors(found: Tensor, sample: Sample, tokens: Tensor) -> tuple[Tensor, int]:
    """Summed square error in the brain's voxels of some tokens, shape (T, S), bool; and how many voxels they are."""
    counted = tokens[..., None] & sample.inside
    return ((found.float() - sample.patches).square() * counted).sum(), int(counted.sum())


def same_shell_mean(sample: Sample, masked: Tensor) -> Tensor:
    """The plainest reconstruction, shape (T, S, voxels of a patch): the mean of the shell's visible volumes there.

    Where none is visible, the mean over the brain of the shell's; without one, that of all volumes there.
    """
    result = torch.empty_like(sample.patches)
    visible = (~masked)[..., None] & sample.inside

    def mean(volumes: Tensor, axes: tuple[int, ...], otherwise: Tensor) -> Tensor:
        count = visible[volumes].sum(axes)
        total = (sample.patches[volumes] * visible[volumes]).sum(axes)
        return torch.where(count > 0, total / count.clamp_min(1), otherwise)

    everything = torch.ones_like(sample.shells, dtype=torch.bool)
    overall = mean(everything, (0,), mean(everything, (0, 1, 2), sample.patches.new_zeros(())))
    for shell in sample.shells.unique():
        same = sample.shells == shell
        seen = bool(visible[same].any())
        result[same] = mean(same, (0,), mean(same, (0, 1, 2), overall.mean()) if seen else overall)
    return result
