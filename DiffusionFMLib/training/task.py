"""What a training run is asked for: a network, examples, losses; and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from DiffusionFMLib.events import Report
from DiffusionFMLib.training.anatomies import Anatomy, random_phantoms, simulated_brains
from DiffusionFMLib.training.scan_anatomies import scan_anatomies


@dataclass(frozen=True, eq=False)
class Losses:
    """Loss of a batch, and errors to watch.

    Parameters
    ----------
    total : Tensor, shape ()
    parts : dict of str to float
        Terms before they are weighted.
    squares : dict of str to (float, float, int)
        By kind and place, as ``snr5_wm``: summed square error of what is trained and of what it is compared with, and
        the number of values.
    """

    total: Tensor
    parts: dict[str, float]
    squares: dict[str, tuple[float, float, int]]


class Task(Protocol):
    """What a network is trained for; the loop knows no more of it.

    Attributes
    ----------
    kind : str
        Names the file of weights.
    compared_with : str
        What watched errors are divided by, in a word.
    batch, steps : int
        Examples per step and process, and steps in all.
    precision : str
        As Lightning Fabric names it.
    """

    kind: str
    compared_with: str
    batch: int
    steps: int
    precision: str

    @property
    def network(self) -> nn.Module:
        """What is trained, of which one call is a step's."""

    def prepare(self, pool: Path, device: torch.device, report: Report) -> None:
        """Get ready what examples are drawn from, kept in `pool` between runs."""

    def optimiser(self) -> torch.optim.Optimizer:
        """A new one for the network."""

    def set_rates(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> float:
        """Give the optimiser what it is to go by in a step; returns the learning rate."""

    def losses(self, network: nn.Module, step: int, steps: int, rng: np.random.Generator) -> Losses:
        """Losses of a new batch; `network` is the task's own, as it is to be called."""

    def save(self, path: Path, network: nn.Module, facts: dict[str, Any]) -> None:
        """Write weights and what is known of their training."""


def anatomies(brains: int, phantoms: int, scans: str, pool: Path, report: Report) -> list[list[Anatomy]]:
    """Simulated heads, random anatomies, and those of scans when there are any: groups, none of them empty."""
    groups = [list(simulated_brains(pool, brains, report)), list(random_phantoms(pool, phantoms, report))]
    if scans:
        groups.append(list(scan_anatomies(Path(scans), pool, report)))
    return [group for group in groups if group]
