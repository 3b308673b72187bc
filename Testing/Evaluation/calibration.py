"""Whether the prior's standard deviations are true, and how much smaller than those of weighted least squares.

    python Testing/Evaluation/calibration.py build/prior_small/prior.safetensors

In simulated heads with lesions that no training saw: how often the 50 % and 90 % intervals of FA and MD hold the truth,
by tissue, in lesions and by decile of the sd; and the error's root mean square over the sd's, which is 1 when it is
right on the whole. The rank correlation of sd and error has a ceiling, since errors are random: the one in brackets is
what right standard deviations would reach.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from methods import PER_UNIT, by_prior, scalars, wls_errors
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scores import coverage, coverage_by_sd, rmse, spearman
from simulated_scans import PATHOLOGIES, TISSUES, Head, Scan, brain, phantom, protocol

FIRST_SEED, COUNT = 1002, 4
"""Of simulated brains and of random phantoms, and how many of each: a head's tissue makes its errors alike."""

DIAMETERS = (4.0, 7.0, 10.0)

SHARES, NEAR = (0.5, 0.9), 0.05
"""Of truths that intervals should hold, and how near to that they have to come."""

DETERMINED = 6
"""Directions from which on there are estimates to compare with."""


@lru_cache
def heads(count: int) -> list[Head]:
    """Brains and phantoms, with one lesion of each pathology and size, where there is room."""
    wanted = [(name, size) for size in DIAMETERS for name in PATHOLOGIES]
    return [
        Head.of(anatomy, seed).with_lesions(wanted, seed)
        for seed in range(FIRST_SEED, FIRST_SEED + count)
        for anatomy in (brain(seed), phantom(seed))
    ]


def places(head: Head) -> dict[str, NDArray[np.bool_]]:
    """Masked voxels, shape (V,), that are healthy and of each tissue, and those that are lesion."""
    inside, tissue = head.mask.ravel(), head.tissue
    found = {name: (head.healthy & (tissue == k))[inside] for k, name in enumerate(TISSUES)}
    ill = np.zeros(len(tissue), bool)
    for lesion in head.lesions:
        ill[lesion.voxels] = True
    return {**found, "lesion": ill[inside]}


def judged(directions: int, snr: float, weights: Path, count: int) -> dict[str, dict[str, NDArray]]:
    """Of FA and of MD error, sd, and sd of least squares in the voxels of so many brains and phantoms, and where."""
    collected: dict[str, dict[str, list[NDArray]]] = {name: defaultdict(list) for name in PER_UNIT}
    for seed, head in enumerate(heads(count)):
        scan = Scan.of(head, protocol(directions, snr), seed)
        found, true = by_prior(scan.acquisition, weights), scalars(scan.theta)
        known = wls_errors(scan.theta, scan.acquisition.gtab, scan.sigma) if directions >= DETERMINED else {}
        for name, to in collected.items():
            to["error"].append(found[name] - true[name])
            to["sd"].append(found[f"{name}_sd"])
            to["wls"].append(known.get(name, np.full(len(true[name]), np.nan)))
            for place, here in places(head).items():
                to[place].append(here)
    return {name: {key: np.concatenate(parts) for key, parts in to.items()} for name, to in collected.items()}


def held(coverages: Iterable[float], share: float) -> tuple[int, int]:
    """How many coverages are near enough to the share of truths that they should be, and of how many."""
    near = [abs(found - share) <= NEAR for found in coverages]
    return sum(near), len(near)


def table(directions: list[int], snrs: list[float], weights: Path, heads: int = COUNT) -> Table:
    """Coverage at every protocol, in so many brains and phantoms."""
    result = Table(
        "dirs", "SNR", "map", *TISSUES, "lesion", "50 % by decile", "90 % by decile", "sd / wls", "rank corr.",
        title="How often the prior's 50 % and 90 % intervals hold the truth, and error over sd",
    )  # fmt: skip
    kept = []
    for count in directions:
        for snr in snrs:
            for name, values in judged(count, snr, weights, heads).items():
                error, sd = values["error"], values["sd"]
                cells, deciles = [], []
                for place in (*TISSUES, "lesion"):
                    here = values[place]
                    shares = [coverage(error[here], sd[here], share) for share in SHARES]
                    kept += [held([found], share) for found, share in zip(shares, SHARES, strict=True)]
                    ratio = rmse(error[here]) / rmse(sd[here])
                    cells.append(f"{shares[0]:.0%} {shares[1]:.0%} {ratio:.2f}")
                for share in SHARES:
                    parts = coverage_by_sd(error, sd, share)
                    kept.append(held(parts, share))
                    deciles.append(f"{parts.min():.0%} to {parts.max():.0%}")
                ideal = spearman(sd, np.abs(np.random.default_rng(0).normal(0, sd)))
                width = np.median(sd / values["wls"])
                cells += [*deciles, f"{width:.2f}" if np.isfinite(width) else ""]
                rank = f"{spearman(sd, np.abs(error)):.2f} ({ideal:.2f})"
                result.add_row(str(count), f"{snr:g}", name.upper(), *cells, rank)
    good, of = np.sum(kept, axis=0)
    result.caption = f"{good} of {of} coverages, deciles among them, are within {100 * NEAR:.0f} points"
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--directions", type=int, nargs="*", default=[3, 6, 12, 30])
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 20.0])
    parser.add_argument("--heads", type=int, default=COUNT, help="simulated brains, and as many random phantoms")
    arguments = parser.parse_args()
    Console(width=150).print(table(arguments.directions, arguments.snr, arguments.weights, arguments.heads))


if __name__ == "__main__":
    main()
