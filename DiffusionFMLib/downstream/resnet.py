"""A residual network of maps, such as FA and MD: what is learnt from scratch, without an encoder (He et al., 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from DiffusionFMLib.downstream.learning import Standardised
from DiffusionFMLib.errors import InputError

DEPTHS: Final = (2, 2, 2, 2)
"""Blocks of each stage: 18 layers, the first and the last counted. Each stage halves the edges of the one before, and
has twice its channels."""

WIDTH: Final = 64
"""Channels of the first stage."""


class ResNet18(nn.Module):
    """ResNet-18 with 3D convolutions.

    Parameters
    ----------
    mean, sd : Tensor, shape (C,)
        Of each map, over the brains that are trained on.
    width : int
        Channels of the first stage.
    """

    def __init__(self, mean: Tensor, sd: Tensor, width: int = WIDTH) -> None:
        super().__init__()
        self.scale = Standardised(mean[:, None, None, None], sd[:, None, None, None])
        self.stem = nn.Sequential(
            nn.Conv3d(len(mean), width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.MaxPool3d(3, stride=2, padding=1),
        )
        blocks, before = [], width
        for stage, depth in enumerate(DEPTHS):
            after = width << stage
            for place in range(depth):
                blocks.append(ResidualBlock(before, after, 2 if stage and not place else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, subjects: Sequence[Tensor]) -> Tensor:
        """Z-scores or logits, shape (n,), of maps, shape (C, X, Y, Z) each; 0 outside the brain.

        Raises
        ------
        InputError
            If the grids differ.
        """
        sizes = {tuple(maps.shape) for maps in subjects}
        if len(sizes) > 1:
            msg = f"Maps of subjects have {' and '.join(map(str, sorted(sizes)))} voxels; expected one grid."
            raise InputError(msg, "Bring them to the same grid first.")
        maps = torch.stack(list(subjects))
        inside = (maps != 0).any(1, keepdim=True)
        return self.head(self.blocks(self.stem(self.scale(maps) * inside)).mean((2, 3, 4)))[:, 0]


class ResidualBlock(nn.Module):
    """Two convolutions, added to what they are made from."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv3d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(after),
            nn.ReLU(),
            nn.Conv3d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm3d(after),
        )
        self.beside: nn.Module = nn.Identity()
        if before != after or stride > 1:
            short = nn.Conv3d(before, after, 1, stride=stride, bias=False)
            self.beside = nn.Sequential(short, nn.BatchNorm3d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Of volumes, shape (n, C, X, Y, Z)."""
        return (self.convolutions(x) + self.beside(x)).relu()


def builder(width: int = WIDTH) -> Callable[[Sequence[Tensor]], ResNet18]:
    """What `NetworkLearner` makes its networks by."""

    def build(subjects: Sequence[Tensor]) -> ResNet18:
        inside = torch.cat([maps[:, (maps != 0).any(0)] for maps in subjects], 1)
        return ResNet18(inside.mean(1), inside.std(1), width).to(inside)

    return build
