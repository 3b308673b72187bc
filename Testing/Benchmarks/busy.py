"""What a busy core costs: the rule beside a viewer, and a trap for threads that wait for each other.

Another process spins while a fit runs. With as many threads as cores, a fit that shares its work out well loses what
that process takes and no more: half as long again on two cores, since three threads then share them. The first row is a
control, small pieces of work that threads take one after the other: what it loses, this machine takes just now.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import dki
import numpy as np
from phantom import phantom
from scaling import METHODS, noddi_scan
from timing import ours, repeated

from DiffusionFMLib.fitting.device import cpu_workers

ROUNDS = 3
LIMIT = 2.0
"""More than this, where the control has less, is no fair share."""

PIECES, PIECE_VALUES = 400, 1 << 17
"""Of the control."""


@dataclass(frozen=True)
class BusyRow:
    """Seconds of a fit with all cores free and with one busy; `fair` is the ratio that sharing alone explains."""

    name: str
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


def control() -> None:
    """Pieces of work for as many threads as a fit has."""
    values = np.linspace(0, 1, PIECE_VALUES)
    with ThreadPoolExecutor(cpu_workers()) as pool:
        list(pool.map(lambda _: float(np.exp(values).sum()), range(PIECES)))


def rows() -> list[BusyRow]:
    """Lines of the table; free and busy runs alternate."""
    found = [_row("control", control)]
    for model, acquisition in (("dti", phantom()), ("dki", dki.phantom()), ("noddi", noddi_scan())):
        found.append(_row(model, partial(ours, acquisition, model, METHODS[model])))
    return found


def _row(name: str, work: Callable[[], object]) -> BusyRow:
    free, busy = [], []
    work()
    for _ in range(ROUNDS):
        free.append(median(repeated(work)))
        with busy_core():
            busy.append(median(repeated(work)))
    fair = max(1.0, (cpu_workers() + 1) / (os.cpu_count() or 1))
    return BusyRow(name, median(free), median(busy), median(busy) / median(free), fair)


def show(table: list[BusyRow]) -> None:
    print(f"{'One core busy':<18}{'free s':>9}{'busy s':>9}{'ratio':>7}{'fair':>7}")
    for row in table:
        verdict = "" if row.ratio <= LIMIT else f"  more than {LIMIT:g}"
        print(f"{row.name.upper():<18}{row.free_s:9.4f}{row.busy_s:9.4f}{row.ratio:7.2f}{row.fair:7.2f}{verdict}")
