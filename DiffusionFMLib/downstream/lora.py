"""Low-rank changes of linear layers: W + (alpha / r) B A, of which only A and B are trained (Hu et al., 2022).

Parts are named as peft names them, so that `encoder.checkpoint.import_official` reads them too.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from DiffusionFMLib.encoder.checkpoint import LORA_ALPHA

RANK: Final = 12
"""The paper's."""

PROJECTIONS: Final = ("qkv", "out_proj")
"""Layers that it changes: those of attention, over directions and over places."""

ADAPTER: Final = "default"


class LowRankLinear(nn.Module):
    """A frozen linear layer and its change, which begins at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        self.lora_A, self.lora_B = nn.ModuleDict({ADAPTER: down}), nn.ModuleDict({ADAPTER: up})
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Of features, shape (..., C)."""
        return self.base_layer(x) + self.scale * self.lora_B[ADAPTER](self.lora_A[ADAPTER](x))

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The layer with the change in it."""
        base = self.base_layer
        whole = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        change = self.lora_B[ADAPTER].weight @ self.lora_A[ADAPTER].weight  # type: ignore[operator]
        whole.load_state_dict(base.state_dict() | {"weight": base.weight + self.scale * change})
        return whole.to(base.weight)


def adapt(module: nn.Module, rank: int = RANK, alpha: float = LORA_ALPHA) -> None:
    """Freeze a module, such as some of an encoder's blocks, and give its `PROJECTIONS` changes to train."""
    module.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if name in PROJECTIONS and isinstance(child, nn.Linear):
                setattr(parent, name, LowRankLinear(child, rank, alpha).to(child.weight))


def merge(module: nn.Module) -> None:
    """Put all changes of a module into its layers, which are then as before `adapt`, and trained."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.merged())
