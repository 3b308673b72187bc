"""The encoder at its work: a whole scan, air and all, in a fresh process; and a viewer's questions about places.

There is no peer that runs here: the public code of the paper has no weights and asks for two GPUs.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from growth import measured_apart, resident

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.shape import PRESETS
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import EncodingOptions, encode
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.overlays.attention import watch
from DiffusionFMLib.overlays.encoded import EncodedScan
from DiffusionFMLib.overlays.features import features_of
from DiffusionFMLib.physics.tensor_arrays import spread_directions

SIZE, SHELLS = (96, 96, 60), {1000.0: 16, 2500.0: 16}
QUESTIONS = 20
MEMORY_MIB = 2048
TARGETS = {"encode": 60.0, "similarity": 0.1, "raw": 0.1, "directions": 0.1}
"""Seconds; and 4 GiB for the first."""


@dataclass(frozen=True)
class EncodingRow:
    """One measurement; `growth_mib` is how far the process grew, where the system tells."""

    name: str
    seconds: float
    target_s: float
    growth_mib: float | None


def scan(depth: int) -> Acquisition:
    """Noise everywhere: time does not depend on what is in a scan."""
    counts = list(SHELLS.values())
    bvals = np.r_[0.0, np.repeat(list(SHELLS), counts)]
    bvecs = np.vstack([np.zeros((1, 3)), *(spread_directions(count) for count in counts)])
    size = (*SIZE[:2], depth)
    signal = np.random.default_rng(0).random((*size, len(bvals)), dtype=np.float32) + 0.5
    return Acquisition(signal, np.diag([2.0, 2, 2, 1]), GradientTable(bvals, bvecs), np.ones(size, bool))


def untrained() -> TrainedEncoder:
    """Time does not depend on the weights either."""
    torch.manual_seed(0)
    return TrainedEncoder(DiffusionTransformer(PRESETS["small"]).eval())


def measure() -> None:
    """In a fresh process: prints all rows as JSON."""
    trained, report = untrained(), SilentReport()
    encode(scan(4), trained, report)
    whole = scan(SIZE[2])
    before = resident("VmRSS", reset=True)
    start = time.perf_counter()
    encode(whole, trained, report, EncodingOptions(memory_mib=MEMORY_MIB))
    seconds, peak = time.perf_counter() - start, resident("VmHWM")
    growth = peak - before if peak is not None and before is not None else None
    found = [EncodingRow("encode", seconds, TARGETS["encode"], growth)]
    part = scan(12)
    asked = EncodedScan(part, features_of(part, trained, report), None, watch(part, trained, report, MEMORY_MIB))
    calls = {
        "similarity": lambda ijk: asked.overlay({"overlay": "similarity", "ijk": ijk}),
        "raw": lambda ijk: asked.overlay({"overlay": "raw", "ijk": ijk, "block": 1, "head": 2}),
        "directions": lambda ijk: asked.directions({"ijk": ijk}),
    }
    for name, call in calls.items():
        times = []
        for ijk in np.random.default_rng(1).integers([0, 0, 0], part.shape, (QUESTIONS, 3)).tolist():
            start = time.perf_counter()
            json.dumps(call(ijk))
            times.append(time.perf_counter() - start)
        found.append(EncodingRow(name, median(times), TARGETS[name], None))
    print(json.dumps([vars(row) for row in found]))


def rows() -> list[EncodingRow]:
    """Lines of the table."""
    return [EncodingRow(**row) for row in measured_apart("encoding")]


def show(table: list[EncodingRow]) -> None:
    """Print it."""
    print(f"{'x'.join(map(str, SIZE))} and {sum(SHELLS.values())} directions, all air included; questions of 12 slices")
    print(f"{'':<14}{'s':>9}{'target s':>10}{'MiB':>8}")
    for row in table:
        print(f"{row.name:<14}{row.seconds:9.4f}{row.target_s:10.1f}{row.growth_mib or float('nan'):8.0f}")
