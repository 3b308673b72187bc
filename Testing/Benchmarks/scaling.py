"""How our time grows with voxels, volumes and threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dki
import noddi
import numpy as np
from phantom import phantom
from timing import ours, typical_seconds

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.fitting.device import MAX_WORKERS, cpu_workers

FRACTIONS = (8, 2, 1)
"""A brain's voxels are divided by these."""

DIRECTIONS = (6, 30, 95, 287)
THREADS = (1, 2)
METHODS = {"dti": "wls", "dki": "wls", "noddi": "map"}
NODDI_SNR = 20


@dataclass(frozen=True)
class ScalingRow:
    """Time of a fit by one number, the others fixed."""

    model: str
    by: str
    voxels: int
    volumes: int
    threads: int
    seconds: float
    voxels_per_s: float


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let fits use so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def noddi_scan() -> Acquisition:
    """The dense scheme of `noddi`."""
    count, shells = noddi.SCHEMES["c"]
    gtab = noddi.gradient_table(shells, count)
    truth = noddi.tissue()
    return noddi.scan(truth, noddi.noiseless(truth, gtab), gtab, NODDI_SNR)


def rows() -> list[ScalingRow]:
    """Lines of the table."""
    head, kurtosis, tissue = phantom(), dki.phantom(), noddi_scan()
    found = [_row("dti", "voxels", head.with_mask(_part(head.mask, fraction))) for fraction in FRACTIONS]
    found += [_row("dki", "voxels", kurtosis.with_mask(_part(kurtosis.mask, fraction))) for fraction in FRACTIONS]
    found += [_row("dti", "volumes", phantom(directions)) for directions in DIRECTIONS]
    for count in THREADS:
        if count <= min(os.cpu_count() or 1, MAX_WORKERS):
            with threads(count):
                found += [
                    _row(model, "threads", acquisition)
                    for model, acquisition in (("dti", head), ("dki", kurtosis), ("noddi", tissue))
                ]
    return found


def _part(mask: np.ndarray, fraction: int) -> np.ndarray:
    """The first voxels of a mask, slice by slice."""
    places = np.flatnonzero(mask.ravel(order="F"))[: mask.sum() // fraction]
    part = np.zeros(mask.size, bool)
    part[places] = True
    return part.reshape(mask.shape, order="F")


def _row(model: str, by: str, acquisition: Acquisition) -> ScalingRow:
    method = METHODS[model]
    ours(acquisition, model, method)
    seconds, voxels = typical_seconds(acquisition, model, method), int(acquisition.mask.sum())
    return ScalingRow(model, by, voxels, len(acquisition.gtab), cpu_workers(), seconds, voxels / seconds)


def show(table: list[ScalingRow]) -> None:
    print(f"{'Scaling':<18}{'voxels':>8}{'volumes':>9}{'threads':>9}{'seconds':>10}{'voxels/s':>11}")
    for row in table:
        print(
            f"{row.model.upper() + ' by ' + row.by:<18}{row.voxels:8d}{row.volumes:9d}{row.threads:9d}"
            f"{row.seconds:10.4f}{row.voxels_per_s:11.0f}"
        )
