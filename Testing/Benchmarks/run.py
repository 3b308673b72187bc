"""How fast, frugal and exact we are beside our peers, in one run on one machine: ``make bench``.

Prints tables and writes build/bench.json, which has a list of rows for each topic. Compare ratios, not seconds:
machines differ, and so does one machine from minute to minute. Topics, of which ``--only`` takes some:

speed
    Seconds of ours and of the peers, and how far the memory of a fresh process grows during a fit.
accuracy
    Error of FA, MD and MK against the phantoms' truth, ours and DIPY's.
noddi
    Error and speed of NODDI, ours and AMICO's.
scaling
    Ours by voxels, volumes and threads.
busy
    Ours while another process keeps a core busy.
prior
    Time and memory of the generative prior on a whole brain.
drope
    Time and memory of the encoder's attention over directions, ours and the plain formula's.
kernels
    Time of the ways to compute that attention: compiled loop, products of matrices, torch.compile; on a GPU, where
    there is one, also Triton, beside torch's own attention without D-RoPE.
encoding
    Time and memory of a whole scan through the encoder, and of a viewer's questions about places.
machine, roofline
    What the machine allows, and how near to it ours is.
memory
    Peak of the whole command from file to maps; ``--large`` takes a scan of 4.2 GB for it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accuracy
import busy
import dki
import drope
import dti
import encoding
import kernels
import machine
import memory
import noddi
import prior
import roofline
import scaling
from timing import SpeedRow

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench.json"


def speed(rounds: int) -> list[SpeedRow]:
    return [*dti.rows(rounds), *dki.rows(rounds)]


def show_speed(table: list[SpeedRow]) -> None:
    print(f"{'Speed':<18}{'ours s':>9}  {'peer':<22}{'peer s':>8}{'ratio':>8}{'peak MiB':>10}")
    for row in table:
        peer = f"{row.peer:<22}{row.peer_s:8.2f}{row.ratio:8.1f}" if row.peer else " " * 38
        print(f"{row.name:<18}{row.ours_s:9.4f}  {peer}{row.peak_mib or float('nan'):10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often each peer runs (slow ones once)")
    parser.add_argument("--large", action="store_true", help="measure memory on a scan of 4.2 GB")
    topics: dict[str, tuple[Callable[[], list[Any]], Callable[[list[Any]], None]]] = {
        "speed": (lambda: speed(options.rounds), show_speed),
        "accuracy": (accuracy.rows, accuracy.show),
        "noddi": (noddi.rows, noddi.show),
        "scaling": (scaling.rows, scaling.show),
        "busy": (busy.rows, busy.show),
        "prior": (prior.rows, prior.show),
        "drope": (drope.rows, drope.show),
        "kernels": (kernels.rows, kernels.show),
        "encoding": (encoding.rows, encoding.show),
        "machine": (machine.all_measured, machine.show),
        "roofline": (roofline.rows, roofline.show),
        "memory": (lambda: memory.rows(memory.FULL if options.large else memory.SMALL), memory.show),
    }
    parser.add_argument("--only", nargs="+", choices=topics, default=list(topics), metavar="TOPIC")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for topic in options.only:
        start, (rows, show) = time.perf_counter(), topics[topic]
        table = rows()
        print(f"\n# {topic}: {time.perf_counter() - start:.0f} s{_load()}")
        show(table)
        found[topic] = [asdict(row) for row in table]
        # after each, so that an interrupted run leaves what it has
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(json.dumps(found, indent=2) + "\n")


def _load() -> str:
    """How many processes wanted a core in the last minute: with more than ours, seconds say little."""
    return f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""


if __name__ == "__main__":
    main()
