"""What a busy core costs: the rule beside a viewer, and a trap for threads that wait for each other.

Another process spins while a fit runs. With as many threads as cores, a fit that shares its work out well loses what
that process takes and no more: half as long again on two cores, since three threads then share them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import dki
from phantom import phantom
from scaling import METHODS, noddi_scan
from timing import ours, typical_seconds

from DiffusionFMLib.fitting.device import cpu_workers

ROUNDS = 3
LIMIT = 2.0
"""More than this is no fair share."""


@dataclass(frozen=True)
class BusyRow:
    """Seconds of a fit with all cores free and with one busy; `fair` is the ratio that sharing alone explains."""

    model: str
    free_s: float
    busy_s: float
    ratio: float
    fair: float


@contextmanager
def busy_core() -> Iterator[None]:
    """Another process that computes as much as it is let."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def rows() -> list[BusyRow]:
    """Lines of the table; free and busy runs alternate."""
    found = []
    cores, workers = os.cpu_count() or 1, cpu_workers()
    for model, acquisition in (("dti", phantom()), ("dki", dki.phantom()), ("noddi", noddi_scan())):
        method, free, busy = METHODS[model], [], []
        ours(acquisition, model, method)
        for _ in range(ROUNDS):
            free.append(typical_seconds(acquisition, model, method))
            with busy_core():
                busy.append(typical_seconds(acquisition, model, method))
        fair = max(1.0, (workers + 1) / cores)
        found.append(BusyRow(model, median(free), median(busy), median(busy) / median(free), fair))
    return found


def show(table: list[BusyRow]) -> None:
    print(f"{'One core busy':<18}{'free s':>9}{'busy s':>9}{'ratio':>7}{'fair':>7}")
    for row in table:
        verdict = "" if row.ratio <= LIMIT else f"  more than {LIMIT:g}: threads wait for each other"
        print(f"{row.model.upper():<18}{row.free_s:9.4f}{row.busy_s:9.4f}{row.ratio:7.2f}{row.fair:7.2f}{verdict}")
