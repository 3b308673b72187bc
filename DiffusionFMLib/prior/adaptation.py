"""Zero-shot adaptation: how far the network is to be believed on this scan, learnt from the scan itself.

Volumes that were left out judge. What is adapted are a few factors of the network's output, and not its weights: those
would refit motion and eddy currents, which other volumes share.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.device import cpu_workers
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.left_out import Box, judged_channels, leave_out
from DiffusionFMLib.prior.neighbourhood import SHIFTS, START_WEIGHTS

STEPS: Final = 60
CROPS: Final = 2
"""Per step."""

EDGE, MARGIN = 24, 4
"""Of a crop, voxels, and how many at each face are only there as neighbours."""

LEARNING_RATE: Final = 0.05

LEFT_OUT: Final = 1 / 6
"""Share of the weighted volumes, at least one, that judge each crop."""

MIN_VOLUMES: Final = 5
"""Weighted volumes; of fewer none can be spared."""

RELUCTANCE: Final = 0.1
"""Cost of a factor that differs by 1 from what the training chose, times the number of weighted volumes: few of them
judge badly."""


class Adjustment(nn.Module):
    """Factors and offsets of a network's raw output.

    What volumes left out cannot judge stays as it is; see `judged_channels`.

    Parameters
    ----------
    orders : tuple of int
        See `Coordinates.orders`; the change of the mean has a factor for each, as rotations mix only their coordinates.

    Attributes
    ----------
    gains : Parameter, shape (harmonics of order 2 and more,)
        Of what the network adds to the neighbours' estimate.
    choice : Parameter, shape (1,)
        Factor of its neighbours' log weights.
    offsets : Parameter, shape (15,)
        Added to these weights: neighbours that face each other have one, the wide neighbourhood the last.
    contrast : Parameter, shape (1,)
        Factor of how the logarithm of the prior's precision differs from that which training starts from, for the same
        coordinates: at 0 it is the same in all voxels.
    log_precision : Parameter, shape (1,)
        Added to that logarithm.
    """

    def __init__(self, orders: tuple[int, ...]) -> None:
        super().__init__()
        harmonics = [count > 1 for count in orders]
        self.gains = nn.Parameter(torch.ones(sum(harmonics)))
        self.choice = nn.Parameter(torch.ones(1))
        self.offsets = nn.Parameter(torch.zeros(len(SHIFTS) // 2 + 2))
        self.contrast = nn.Parameter(torch.ones(1))
        self.log_precision = nn.Parameter(torch.zeros(1))
        size = sum(orders)
        self._split = (size, size * (size + 1) // 2, len(START_WEIGHTS), len(START_WEIGHTS))
        # which gain each coordinate has; the last, which stays 1, is that of means over directions
        number = [sum(harmonics[:k]) if harmonic else -1 for k, harmonic in enumerate(harmonics)]
        self._gain = torch.tensor([n for n, count in zip(number, orders, strict=True) for _ in range(count)])
        last = len(SHIFTS) - 1
        self._group = torch.tensor([*(min(k, last - k) for k in range(len(SHIFTS))), len(SHIFTS) // 2 + 1])
        self._diagonal = judged_channels(orders).split(self._split)[1].float()[:, None, None, None]

    def forward(self, raw: Tensor) -> Tensor:
        """The adjusted output, shape (C, X, Y, Z), of the network's; see `PriorNetwork.forward`."""
        change, triangle, weights, b0 = raw.split(self._split)
        gains = torch.cat([self.gains, self.gains.new_ones(1)])[self._gain]
        directed = self._diagonal.to(raw.device)
        return torch.cat(
            [
                change * gains[:, None, None, None],
                triangle * (1 + (self.contrast - 1) * directed) + self.log_precision * directed,
                weights * self.choice + self.offsets[self._group, None, None, None],
                b0,
            ]
        )

    def change(self) -> Tensor:
        """How far this is from no change, squared."""
        factors = torch.cat([self.gains, self.choice, self.contrast])
        return (factors - 1).square().sum() + self.offsets.square().sum() / 4

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {name: [round(float(v), 3) for v in value.detach().cpu()] for name, value in self.named_parameters()}


def can_adapt(scan: ScanPosterior) -> bool:
    """Whether the scan has volumes to spare."""
    return len(scan.weighted) >= MIN_VOLUMES


def adapt(scan: ScanPosterior, seed: int, report: Report, steps: int = STEPS) -> Adjustment:
    """What adjusts the prior to a scan; the same seed gives the same.

    Parameters
    ----------
    scan : ScanPosterior
    seed : int
    report : Report
    steps : int
    """
    adjustment = Adjustment(scan.trained.coordinates.orders).to(scan.device)
    factors = list(adjustment.parameters())
    optimiser = torch.optim.Adam(factors, LEARNING_RATE)
    rng = np.random.default_rng(seed)
    places = _Places(scan.mask)
    average = {name: torch.zeros_like(value) for name, value in adjustment.named_parameters()}
    with ThreadPoolExecutor(cpu_workers() if scan.device.type == "cpu" else 1) as pool:
        for step in range(steps):
            report.progress(step, steps, "Adapting")
            crops = [_Crop.drawn(scan, places, rng) for _ in range(CROPS)]
            slopes = list(pool.map(lambda crop: torch.autograd.grad(crop.misfit(scan, adjustment), factors), crops))
            reluctance = RELUCTANCE / len(scan.weighted) * adjustment.change()
            slopes.append(torch.autograd.grad(reluctance, factors, materialize_grads=True))
            for factor, *parts, pull in zip(factors, *slopes, strict=True):
                factor.grad = torch.stack(parts).mean(0) + pull
            optimiser.step()
            if step >= steps // 2:
                for name, value in adjustment.named_parameters():
                    average[name] += value.detach() / (steps - steps // 2)
    adjustment.load_state_dict(average)
    return adjustment.requires_grad_(False)


class _Places:
    """Where the voxels of a mask lie, for crops."""

    def __init__(self, mask: NDArray[np.bool_]) -> None:
        self._inside = np.argwhere(mask)
        self._number = np.full(np.array(mask.shape) + 2 * EDGE, -1, np.int64)
        self._number[tuple((self._inside + EDGE).T)] = np.arange(len(self._inside))

    def crop(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of the voxels in a crop around a random one, and their positions in it, flat."""
        low = self._inside[rng.integers(len(self._inside))] + EDGE - EDGE // 2
        numbers = self._number[tuple(slice(start, start + EDGE) for start in low)].reshape(-1)
        place = np.flatnonzero(numbers >= 0)
        return numbers[place], place


@dataclass(frozen=True, eq=False)
class _Crop:
    """A crop of a scan, and volumes that are to judge it.

    Parameters
    ----------
    held : array of int
        Volumes that it is judged by.
    numbers, place : array of int
        Its voxels among those of the scan, and in the crop.
    """

    held: NDArray[np.intp]
    numbers: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def drawn(cls, scan: ScanPosterior, places: _Places, rng: np.random.Generator) -> _Crop:
        """One at random."""
        held = np.sort(rng.permutation(scan.weighted)[: max(1, round(len(scan.weighted) * LEFT_OUT))])
        return cls(held, *places.crop(rng))

    def misfit(self, scan: ScanPosterior, adjustment: Adjustment) -> Tensor:
        """How badly its posterior predicts volumes that it was not given."""
        network = scan.trained.network
        given = np.setdiff1d(np.arange(scan.volumes), self.held)
        numbers, place = (torch.from_numpy(part).to(scan.device) for part in (self.numbers, self.place))
        box = Box(scan.signal(numbers), scan.sigma(numbers), place, EDGE)
        view, left_out = leave_out(box, scan.design, given, self.held, MARGIN)
        raw = view.outlook(network, scan.told())
        return left_out.misfit(network, adjustment(left_out.inside(raw)))
