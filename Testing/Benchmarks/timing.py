"""Timing of fits, ours between the peers' so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from growth import peak_memory

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.fitting.estimate import Fit
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.settings import FitSettings

BETWEEN_S = 1.0
"""Ours runs for so long before each round of the peers and after it, and once at least."""


@dataclass(frozen=True)
class SpeedRow:
    """One line of the table of speed; seconds are medians of wall-clock time."""

    name: str
    ours_s: float
    peer: str
    peer_s: float | None
    ratio: float | None
    voxels: int
    volumes: int
    peak_mib: float | None


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(acquisition: Acquisition, model: str, method: str) -> Fit:
    """Our fit, on the CPU."""
    return fit(acquisition, MODELS[model], FitSettings(model=model, method=method, device="cpu"), SilentReport())


def repeated(work: Callable[[], object]) -> list[float]:
    """Times of a call, made again and again for `BETWEEN_S`."""
    times: list[float] = []
    while sum(times) < BETWEEN_S:
        times.append(seconds(work))
    return times


def typical_seconds(acquisition: Acquisition, model: str, method: str) -> float:
    """Median time of our fit."""
    return median(repeated(partial(ours, acquisition, model, method)))


def compare(name: str, model: str, method: str, acquisition: Acquisition, peers: dict, rounds: int) -> list[SpeedRow]:
    """Rows of ours beside each peer, a dictionary of names and calls; one row without when there is none."""
    own_fit = partial(ours, acquisition, model, method)
    # what is compiled or loaded at first use is not the fit's
    own_fit()
    own, theirs = [], {peer: [] for peer in peers}
    for _ in range(rounds):
        own += repeated(own_fit)
        for peer, work in peers.items():
            theirs[peer].append(seconds(work))
        own += repeated(own_fit) if peers else []
    ours_s, peak = median(own), peak_memory(acquisition, model, method)
    facts = (int(acquisition.mask.sum()), len(acquisition.gtab), peak)
    if not peers:
        return [SpeedRow(name, ours_s, "", None, None, *facts)]
    return [SpeedRow(name, ours_s, peer, median(t), median(t) / ours_s, *facts) for peer, t in theirs.items()]
