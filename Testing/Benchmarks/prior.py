"""The generative prior on a whole brain, in a fresh process: as it was trained, and adapted to the scan.

There is no peer: what else makes maps of a voxel's neighbours too trains for hours first, or looks up a dictionary.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import dki
import torch
from growth import measured_apart, resident
from phantom import phantom

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.settings import FitSettings

VOLUMES = 64
"""Of the tensor's scan; the others' is that of `dki`."""

TARGETS = {"none": {"cpu": 60.0, "cuda": 10.0}, "adapt": {"cpu": 240.0, "cuda": 10.0}}
"""Seconds, by adaptation and device."""

TARGET_MIB = 6 << 10


@dataclass(frozen=True)
class PriorRow:
    """One fit; `growth_mib` is how far the process grew, where the system tells."""

    model: str
    adaptation: str
    device: str
    voxels: int
    volumes: int
    seconds: float
    target_s: float
    growth_mib: float | None


def measure() -> None:
    """In a fresh process: prints all rows as JSON."""
    scans = {"dti": phantom(VOLUMES - 1), "dki": dki.phantom()}
    scans["noddi"] = scans["dki"]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [row for device in devices for model, scan in scans.items() for row in _fits(scan, model, device)]
    print(json.dumps([vars(row) for row in found]))


def _fits(scan: Acquisition, model: str, device: str) -> Iterator[PriorRow]:
    few = scan.mask.copy()
    few[: scan.shape[0] // 2] = False
    for adaptation, targets in TARGETS.items():
        settings = FitSettings(model=model, method="prior", adaptation=adaptation, device=device)
        # what is loaded on first use is not the fit's
        fit(scan.with_mask(few), MODELS[model], replace(settings, adaptation="none"), SilentReport())
        before, start = resident("VmRSS", reset=True), time.perf_counter()
        fit(scan, MODELS[model], settings, SilentReport())
        seconds, peak = time.perf_counter() - start, resident("VmHWM")
        growth = peak - before if peak is not None and before is not None else None
        voxels, volumes = int(scan.mask.sum()), len(scan.gtab)
        yield PriorRow(model, adaptation, device, voxels, volumes, seconds, targets[device], growth)


def rows() -> list[PriorRow]:
    """Lines of the table."""
    return [PriorRow(**row) for row in measured_apart("prior")]


def show(table: list[PriorRow]) -> None:
    """Print it."""
    print(f"{'Prior, a whole brain':<26}{'voxels':>8}{'volumes':>8}{'s':>8}{'target s':>10}{'MiB':>7}{'target':>8}")
    for row in table:
        name = f"{row.model}, {row.adaptation}, {row.device}"
        print(f"{name:<26}{row.voxels:8}{row.volumes:8}{row.seconds:8.1f}{row.target_s:10.0f}", end="")
        print(f"{row.growth_mib or float('nan'):7.0f}{TARGET_MIB:8}")
