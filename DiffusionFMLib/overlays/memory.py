"""How much of a scan goes through the network at a time, where slabs are not cut into pieces."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.volume import token_bytes
from DiffusionFMLib.errors import DeviceError
from DiffusionFMLib.fitting.device import cpu_workers

HELD: Final = 4.5
"""Of what a token takes in half a block, so much is held at a time at most: 3.5 on one processor, more on another."""

RESERVED: Final = 128 << 20
"""Bytes for the network, the features that are held meanwhile, and what libraries take, which differs between
processors: measured."""


def working_bytes(memory_mib: int) -> int:
    """What the working memory that a setting allows leaves for slabs."""
    return (memory_mib << 20) - RESERVED


def volume_bytes(slabs: ScanSlabs) -> int:
    """What a volume of the fullest slab takes on its way through."""
    return round(HELD * token_bytes(slabs.shape)) * (1 + int(slabs.places().max()))


def slabs_at_once(slabs: ScanSlabs, allowed: int, device: torch.device, what: str) -> int:
    """How many slabs to work on at a time within so many bytes.

    Raises
    ------
    DeviceError
        If not even one fits; `what` says what of.
    """
    slab = volume_bytes(slabs) * len(slabs.volumes)
    fit = allowed // slab
    if fit < 1:
        directions = len(slabs.volumes)
        needed, given = ((part + RESERVED) / 2**20 for part in (slab, allowed))
        msg = f"{what} of {directions} directions takes {needed:.0f} MiB; {given:.0f} are allowed."
        raise DeviceError(msg, "Allow more memory (--memory-mib).")
    return min(fit, cpu_workers()) if device.type == "cpu" else 1


def thinned(acquisition: Acquisition, count: int, note: str) -> Acquisition:
    """The scan with at most so many of its directions, spread over the protocol's order, and all b0s."""
    gtab = acquisition.gtab
    weighted = np.flatnonzero(~gtab.b0_mask & ~gtab.trace_mask)
    if len(weighted) <= count:
        return acquisition
    spread = weighted[np.linspace(0, len(weighted) - 1, count).round().astype(int)]
    return acquisition.subset(np.sort(np.r_[np.flatnonzero(gtab.b0_mask), spread]), note)
