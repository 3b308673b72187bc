"""Fine-tuning of the encoder's last blocks, whole or by low-rank changes, with a perceptron as head.

What comes before them never changes: it is computed once for each scan.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.downstream import lora
from DiffusionFMLib.downstream.heads import CLS, INSIDE, check_pooling
from DiffusionFMLib.downstream.learning import Perceptron, Standardised
from DiffusionFMLib.encoder.checkpoint import LORA_ALPHA, TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import SettingsError

WHOLE, LOW_RANK = "whole", "lora"


@dataclass(frozen=True)
class FineTuning:
    """What is trained.

    Parameters
    ----------
    change : {"whole", "lora"}
        All of the last blocks' weights, or low-rank changes of their attention.
    blocks : int
        How many, from the end.
    pooling : {"cls", "tokens"}
        See `heads.POOLINGS`.
    rank : int
    alpha : float
        Of low-rank changes.
    inside : int
        Width of the perceptron.

    Raises
    ------
    SettingsError
        If there is no such change or pooling.
    """

    change: str = WHOLE
    blocks: int = 1
    pooling: str = CLS
    rank: int = lora.RANK
    alpha: float = LORA_ALPHA
    inside: int = INSIDE

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        if self.change not in (WHOLE, LOW_RANK) or self.blocks < 1:
            msg = (
                f"Blocks can be tuned as '{WHOLE}' or by '{LOW_RANK}', one or more; not {self.blocks} '{self.change}'."
            )
            raise SettingsError(msg, "Correct it.")


DEFAULTS: Final = FineTuning()


@dataclass(frozen=True, eq=False)
class FrozenSlab:
    """Tokens of a slab before the blocks that are trained.

    Parameters
    ----------
    x : Tensor, shape (1, T, S, C)
    cls : Tensor, shape (1, C)
    protocol : EncoderProtocol
    """

    x: Tensor
    cls: Tensor
    protocol: EncoderProtocol


Subject = tuple[FrozenSlab, ...]


@torch.no_grad()
def frozen_part(acquisition: Acquisition, trained: TrainedEncoder, tuning: FineTuning = DEFAULTS) -> Subject:
    """A scan's slabs, as far as nothing is trained.

    Raises
    ------
    SettingsError
        If the encoder has fewer blocks than are to be trained.
    ProtocolError, InputError
        As of `encoder.slabs.ScanSlabs`.
    """
    network = trained.network
    if tuning.blocks > len(network.blocks):
        msg = f"{tuning.blocks} blocks cannot be tuned of an encoder that has {len(network.blocks)}."
        raise SettingsError(msg, "Choose fewer.")
    slabs = ScanSlabs(acquisition, network.shape, (0, 0, 0), with_b0=False)
    device = network.cls_token.device
    protocol = EncoderProtocol.of(slabs.gtab, network.shape, device=device)
    found = []
    for number in range(len(slabs)):
        slab = slabs.slab(number)
        if not len(slab.where):
            continue
        x = network.tokens(slab.patches[None].to(device), slab.positions[None].to(device), [protocol])
        cls = network.cls_token[0]
        for block in network.blocks[: -tuning.blocks]:
            x, cls = block(x, cls, [protocol])
        found.append(FrozenSlab(x, cls, protocol))
    return tuple(found)


class TunedEncoder(nn.Module):
    """The last blocks and a head, from what comes before them.

    Parameters
    ----------
    network : DiffusionTransformer
        Of which copies are trained.
    tuning : FineTuning
    subjects : sequence of Subject
        Whose representation, before any training, tells the head's scale.
    """

    def __init__(self, network: DiffusionTransformer, tuning: FineTuning, subjects: Sequence[Subject]) -> None:
        super().__init__()
        self.tuning = tuning
        self.blocks = copy.deepcopy(network.blocks[-tuning.blocks :])
        self.ln = copy.deepcopy(network.ln)
        if tuning.change == LOW_RANK:
            lora.adapt(self.blocks, tuning.rank, tuning.alpha)
            self.ln.requires_grad_(False)
        with torch.no_grad():
            start = self.representation(subjects)
        scale = Standardised(start.mean(0), start.std(0))
        self.head = nn.Sequential(scale, Perceptron(network.shape.hidden, tuning.inside)).to(start)

    def representation(self, subjects: Sequence[Subject]) -> Tensor:
        """Of each subject, shape (n, C); see `heads.representation`."""
        return torch.stack([self._of(subject) for subject in subjects])

    def forward(self, subjects: Sequence[Subject]) -> Tensor:
        """Z-scores or logits, shape (n,)."""
        return self.head(self.representation(subjects))

    def onto(self, network: DiffusionTransformer) -> DiffusionTransformer:
        """The whole encoder with what was trained in it, low-rank changes merged; to be saved as any other."""
        whole = copy.deepcopy(network)
        blocks, ln = copy.deepcopy(self.blocks), copy.deepcopy(self.ln)
        lora.merge(blocks)
        for place, block in enumerate(blocks, len(whole.blocks) - len(blocks)):
            whole.blocks[place] = block
        whole.ln = ln
        return whole.requires_grad_(True).eval()

    def _of(self, subject: Subject) -> Tensor:
        parts, places = [], []
        for slab in subject:
            x, cls = slab.x, slab.cls
            for block in self.blocks:
                x, cls = block(x, cls, [slab.protocol])
            parts.append(self.ln(cls)[0] if self.tuning.pooling == CLS else self.ln(x)[0].mean((0, 1)))
            places.append(x.shape[2])
        share = torch.tensor(places, dtype=parts[0].dtype, device=parts[0].device) / sum(places)
        return share @ torch.stack(parts)


def builder(network: DiffusionTransformer, tuning: FineTuning) -> Callable[[Sequence[Subject]], TunedEncoder]:
    """What `NetworkLearner` makes its networks by."""
    return lambda subjects: TunedEncoder(network, tuning, subjects)
