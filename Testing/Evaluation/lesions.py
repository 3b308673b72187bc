"""Whether the prior hides what is there, lesions, or invents what is not, in healthy heads and in what is no brain.

    python Testing/Evaluation/lesions.py build/prior_small/prior.safetensors [--scans FOLDER]

Lesions of five kinds and four sizes lie in simulated heads that no training saw. A change that a method finds is the
difference of its maps with and without the lesions, at the same noise: the recovery is its slope on the true change.
The disagreement is judged against the same scan's healthy voxels. On real scans the weighted volumes are multiplied by
exp(-b dD) inside balls, and the recovery is that of dD.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from baselines import RIDGE, SMOOTHED, WLS, conventional
from methods import PRIOR, by_prior, scalars
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scores import auc, detected, lumps, recovery, rmse
from simulated_scans import EDGE, PATHOLOGIES, TISSUES, Head, Scan, brain, phantom, protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.settings import ScanSettings

SCANS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "test"
REAL = "philips_bangalore_32dir/dwi"

SEEDS = (1000, 1001)
"""Of simulated brains; one random phantom comes with them."""

Kind = tuple[str, float]
"""A pathology and a diameter, mm."""

COUNTS = {3.0: 6, 6.0: 3, 9.0: 2, 12.0: 1}
"""Diameters, mm, and how many lesions of each pathology a head has."""

MIN_FA_CHANGE = 0.05
"""Root mean square of what FA changes by, below which there is nothing to recover."""

LARGE, NEARLY_ALL, SMALL_BIAS = 6.0, 0.1, 0.03
"""The bar: from this diameter on, mm, recovery is that near to 1, and the bias of MD that near to 0, um2/ms."""

SEEN = 0.4
"""Changes of MD from which on the disagreement is to show a lesion, um2/ms."""

WRONG = 0.15
"""Errors of MD that hide a lesion, or half hide it, um2/ms; those within the 90 % interval do not claim to know."""

LIMIT = 1.645
"""Of the disagreement: 5 % of voxels are above it by chance."""

FAR_OFF, MIN_CHANGE, LUMP = 3.0, 0.15, 6.0
"""A false lesion: errors of MD above so many of its own sd and so many um2/ms, in a lump of that diameter, mm."""

CHANGES = (0.5, -0.3)
"""Of the diffusivity in balls of real scans, in turn, um2/ms."""


def heads() -> list[Head]:
    """Healthy ones."""
    return [*(Head.of(brain(seed), seed) for seed in SEEDS), Head.of(phantom(SEEDS[0]), SEEDS[0])]


@lru_cache
def healthy_scans(directions: int, snr: float, weights: Path) -> list[tuple[Head, Scan, dict[str, NDArray]]]:
    """Them, their scans, and what the prior makes of these."""
    scans = [(head, Scan.of(head, protocol(directions, snr), seed)) for seed, head in enumerate(heads())]
    return [(head, scan, by_prior(scan.acquisition, weights)) for head, scan in scans]


# --- lesions ---------------------------------------------------------------------------------------------


def found_in(scan: Scan, posterior: dict[str, NDArray], denoise: bool) -> dict[str, dict[str, NDArray]]:
    """Maps by every method, `posterior` being the prior's; by ridge only when it is smoothed."""
    thetas = conventional(scan.acquisition, scan.mask, scan.sigma, denoise)
    found = {name: scalars(theta) for name, theta in thetas.items() if name != RIDGE}
    return {**found, PRIOR: posterior}


def lesions(
    directions: int, snr: float, weights: Path, denoise: bool
) -> tuple[dict[Kind, dict[str, NDArray]], NDArray]:
    """By kind true change, found change, error, sd and disagreement in its voxels; and healthy voxels' disagreement."""
    wanted = [(name, size) for size, count in COUNTS.items() for name in PATHOLOGIES for _ in range(count)]
    collected: dict[Kind, dict[str, list[NDArray]]] = defaultdict(lambda: defaultdict(list))
    normal = []
    for seed, (healthy, before, posterior) in enumerate(healthy_scans(directions, snr, weights)):
        ill = healthy.with_lesions(wanted, seed)
        after = Scan.of(ill, protocol(directions, snr), seed)
        ways = [found_in(before, posterior, denoise), found_in(after, by_prior(after.acquisition, weights), denoise)]
        truths = [scalars(scan.theta) for scan in (before, after)]
        index = np.cumsum(after.mask.ravel()) - 1
        normal.append(ways[1][PRIOR]["disagreement"][ill.healthy[after.mask.ravel()]])
        for lesion in ill.lesions:
            here, to = index[lesion.voxels], collected[lesion.pathology, lesion.diameter]
            for name in ("disagreement", "md_sd"):
                to[name].append(ways[1][PRIOR][name][here])
            for name in ("fa", "md"):
                to[f"{name} true"].append((truths[1][name] - truths[0][name])[here])
                for method in ways[0]:
                    to[f"{name} {method}"].append((ways[1][method][name] - ways[0][method][name])[here])
            for method in ways[0]:
                to[f"error {method}"].append((ways[1][method]["md"] - truths[1]["md"])[here])
    kinds = sorted(collected, key=lambda kind: (list(PATHOLOGIES).index(kind[0]), kind[1]))
    found = {kind: {key: np.concatenate(parts) for key, parts in collected[kind].items()} for kind in kinds}
    return found, np.concatenate(normal)


def recovered(found: dict[Kind, dict[str, NDArray]], title: str) -> Table:
    """Recovery and bias by kind and method."""
    methods = [key.removeprefix("error ") for key in next(iter(found.values())) if key.startswith("error ")]
    table = Table(
        "lesion", "mm", "dMD", *methods,
        title=f"{title}: recovery of MD, of FA (1 is all), and bias of MD in um2/ms",
    )  # fmt: skip
    recoveries, biases = Counter[str](), Counter[str]()
    for (name, size), values in found.items():
        cells = []
        for method in methods:
            md, bias = recovery(values[f"md {method}"], values["md true"]), values[f"error {method}"].mean()
            fa = " -  "
            if rmse(values["fa true"]) > MIN_FA_CHANGE:
                fa = f"{recovery(values[f'fa {method}'], values['fa true']):.2f}"
            cells.append(f"{md:.2f} {fa} {bias:+.3f}")
            if size >= LARGE:
                recoveries[method] += abs(md - 1) <= NEARLY_ALL
                biases[method] += abs(bias) <= SMALL_BIAS
        table.add_row(name, f"{size:g}", f"{values['md true'].mean():+.2f}", *cells)
    large = sum(size >= LARGE for _, size in found)
    counts = (f"{method} {recoveries[method]} and {biases[method]}" for method in methods)
    table.caption = (
        f"of {large} kinds of {LARGE:g} mm and more MD is recovered within {NEARLY_ALL:g}, and its bias within "
        f"{SMALL_BIAS:g}, in: {', '.join(counts)}"
    )
    return table


def separated(found: dict[Kind, dict[str, NDArray]], normal: NDArray, title: str) -> Table:
    """How far the disagreement tells lesions from healthy voxels."""
    table = Table(
        "lesion", "mm", "voxels", "AUC", "found at 5 %", "median", "wrong voxels", "AUC", "found at 5 %",
        title=f"{title}: disagreement in voxels where |dMD| >= {SEEN}, and in those where the prior's MD is wrong",
    )  # fmt: skip
    for (name, size), values in found.items():
        different = np.abs(values["md true"]) >= SEEN
        if not different.any():
            continue
        error = np.abs(values[f"error {PRIOR}"])
        wrong = different & (error >= WRONG) & (error > LIMIT * values["md_sd"])
        cells = told_apart(values["disagreement"][different], normal)
        median = f"{np.median(values['disagreement'][different]):.1f}"
        table.add_row(name, f"{size:g}", *cells, median, *told_apart(values["disagreement"][wrong], normal))
    limit = np.quantile(normal, 0.95)
    table.caption = f"5 % of healthy voxels are above {limit:.2f}; {(normal > LIMIT).mean():.1%} above {LIMIT}"
    return table


def told_apart(abnormal: NDArray, normal: NDArray) -> tuple[str, str, str]:
    """How many voxels, their AUC, and the share of them that is found at 5 % false alarms."""
    if not len(abnormal):
        return "0", "", ""
    return str(len(abnormal)), f"{auc(abnormal, normal):.2f}", f"{detected(abnormal, normal)[1]:.0%}"


# --- what is not there -----------------------------------------------------------------------------------


def invented(directions: int, snr: float, weights: Path) -> Table:
    """Healthy heads: how far their disagreement is that of chance, and lesions that are none."""
    table = Table(
        "head", *(f"> {LIMIT} in {name}" for name in TISSUES), "all", "> 3", "mean, sd", "false lesions",
        title=f"{directions} directions, SNR {snr:g}: disagreement in healthy heads (5 % by chance), lumps of false MD",
    )  # fmt: skip
    for seed, (head, scan, found) in enumerate(healthy_scans(directions, snr, weights)):
        true = scalars(scan.theta)
        far, tissue = found["disagreement"], head.tissue[scan.mask.ravel()]
        error = np.abs(found["md"] - true["md"])
        wrong = np.zeros(scan.mask.shape, bool)
        wrong[scan.mask] = (error > FAR_OFF * found["md_sd"]) & (error > MIN_CHANGE)
        shares = [(far[tissue == k] > LIMIT).mean() for k in range(len(TISSUES))]
        table.add_row(
            str(seed), *(f"{share:.1%}" for share in (*shares, (far > LIMIT).mean(), (far > 3).mean())),
            f"{far.mean():+.2f}, {far.std():.2f}", str(lumps(wrong, head.voxel_sizes, LUMP)),
        )  # fmt: skip
    return table


def uniform(tensor: tuple[float, float, float], directions: int, sigma: float) -> Acquisition:
    """A ball of one tensor with these eigenvalues along the axes, um2/ms, and S0 = 1; noise around it."""
    rng = np.random.default_rng(directions)
    how = protocol(directions, 1 / sigma)
    grid = np.stack(np.meshgrid(*(np.arange(EDGE) - (EDGE - 1) / 2 for _ in range(3)), indexing="ij"), axis=-1)
    ball = np.linalg.norm(grid, axis=-1) < 0.4 * EDGE
    clean = ball[..., None] * np.exp(-how.bvals / 1000 * (how.bvecs**2 @ np.array(tensor)))
    real, imaginary = (sigma * rng.standard_normal(clean.shape) for _ in range(2))
    signal = np.hypot(clean + real, imaginary).astype(np.float32)
    return Acquisition(signal, np.diag([2.0, 2, 2, 1]), GradientTable(how.bvals, how.bvecs), ball)


def no_brain(directions: int, snr: float, weights: Path) -> Table:
    """Water, muscle, noise: what the prior makes of them, and whether it says so."""
    table = Table(
        "object", "MD", "prior's MD", "its sd", "bias / sd", "FA", "prior's FA", f"> {LIMIT}", "> 3", "warned",
        title=f"{directions} directions, SNR {snr:g}: what is no brain, share of it that disagreement flags",
    )  # fmt: skip
    objects = {"water, 20 C": (2.0, 2.0, 2.0), "muscle": (2.2, 1.5, 1.3), "noise": None}
    for name, tensor in objects.items():
        scan = uniform(tensor or (50.0,) * 3, directions, 1 / snr)
        if tensor is None:
            # as bright as its noise
            scan = scan.with_signal(np.random.default_rng(1).rayleigh(1, scan.signal.shape).astype(np.float32), "noise")
        report = SilentReport()
        found = by_prior(scan, weights, report)
        far = found["disagreement"]
        warned = any(code == "no-brain" for code, _ in report.warnings)
        flags = (*(f"{(far > limit).mean():.0%}" for limit in (LIMIT, 3)), "yes" if warned else "no")
        sd = f"{np.median(found['md_sd']):.2f}"
        if tensor is None:
            table.add_row(name, "", f"{found['md'].mean():.2f}", sd, "", "", f"{found['fa'].mean():.2f}", *flags)
            continue
        values = np.array(tensor)
        md = values.mean()
        fa = float(np.sqrt(1.5 * ((values - md) ** 2).sum() / (values**2).sum()))
        off = np.mean((found["md"] - md) / found["md_sd"])
        table.add_row(
            name, f"{md:.2f}", f"{found['md'].mean():.2f}", sd, f"{off:+.1f}", f"{fa:.2f}",
            f"{found['fa'].mean():.2f}", *flags,
        )  # fmt: skip
    return table


def without_tract(head: Head) -> tuple[Head, NDArray[np.bool_]]:
    """A head in which a rod of 8 mm lost its fibres to grey matter, and the voxels (V,) whose fibres those were."""
    nx, ny, nz = head.shape
    white = (head.contents.fields[0] + head.contents.fields[1]).numpy().reshape(head.shape)
    x, y = np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij")
    # along z, where most white matter is, and not at the box's edge
    whole = white[6:-6, 6:-6].sum(2)
    cx, cy = np.array(np.unravel_index(whole.argmax(), whole.shape)) + 6
    rod = np.hypot(x - cx, y - cy)[..., None] * head.voxel_sizes[0] <= 4 * np.ones(nz)
    gone = (rod & (white > 0.5)).ravel()
    fields = head.contents.fields.clone()
    fields[2, gone] += fields[0, gone] + fields[1, gone]
    fields[:2, gone] = 0
    return replace(head, contents=replace(head.contents, fields=fields)), gone


def removed_tract(directions: int, snr: float, weights: Path) -> Table:
    """Fibres that the prior draws where they should be and are not."""
    table = Table(
        "head", "FA before", "FA without", WLS, SMOOTHED, PRIOR, f"> {LIMIT}",
        title=f"{directions} directions, SNR {snr:g}: mean FA in a rod of 8 mm whose fibres were taken out",
    )  # fmt: skip
    for seed, (head, untouched, _) in enumerate(healthy_scans(directions, snr, weights)):
        other, gone = without_tract(head)
        scan = Scan.of(other, protocol(directions, snr), seed)
        here = gone[scan.mask.ravel()]
        ways = found_in(scan, by_prior(scan.acquisition, weights), False)
        before = scalars(untouched.theta)["fa"][here].mean()
        means = [scalars(scan.theta)["fa"], *(ways[m]["fa"] for m in (WLS, SMOOTHED, PRIOR))]
        flagged = (ways[PRIOR]["disagreement"][here] > LIMIT).mean()
        table.add_row(str(seed), f"{before:.2f}", *(f"{fa[here].mean():.2f}" for fa in means), f"{flagged:.0%}")
    return table


# --- real scans ------------------------------------------------------------------------------------------


def changed(path: Path, counts: list[int], weights: Path) -> Table:
    """Recovery of balls of other diffusivity in a real scan."""
    scan = read_acquisition(ScanSettings(dwi=f"{path}.nii.gz"), SilentReport())
    mask = brain_mask(scan)
    middle = np.argwhere(mask).mean(0).astype(int)
    box = tuple(slice(max(m - EDGE // 2, 0), m + EDGE // 2) for m in middle)
    mask, signal, sizes = mask[box], scan.signal[box], scan.voxel_sizes
    grid = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), axis=-1) * sizes
    rng, room, balls = np.random.default_rng(0), np.full(mask.shape, np.inf), []
    change = np.zeros(mask.shape)
    for diameter in sorted((d for d, count in COUNTS.items() for _ in range(2 * count)), reverse=True):
        for _ in range(300):
            centre = rng.uniform(0, 1, 3) * (np.array(mask.shape) - 1)
            away = np.linalg.norm(grid - centre * sizes, axis=-1) - diameter / 2
            nearest = tuple(np.rint(centre).astype(int))
            if mask[nearest] and room[nearest] > diameter / 2 + 4:
                inside = np.clip(0.5 - away / sizes.mean(), 0, 1)
                change += inside * CHANGES[len(balls) % 2]
                balls.append((diameter, (inside > 0.5) & mask))
                room = np.minimum(room, away)
                break
    table = Table(
        "directions", "mm", *(f"dD {d:+g}" for d in CHANGES), "data fraction", "AUC, AUC",
        title=f"{path.parent.name}: recovery of MD where weighted volumes were multiplied by exp(-b dD)",
    )  # fmt: skip
    weighted = np.flatnonzero(~scan.gtab.b0_mask)
    flagged = []
    for count in counts:
        chosen = np.r_[np.flatnonzero(scan.gtab.b0_mask)[:1], weighted[:: max(len(weighted) // count, 1)][:count]]
        gtab = scan.gtab.subset(chosen)
        before = replace(scan, signal=np.ascontiguousarray(signal[..., chosen]), gtab=gtab, mask=mask)
        factor = np.exp(-gtab.bvals / 1000 * change[..., None]).astype(np.float32)
        after = replace(before, signal=before.signal * factor)
        maps = [by_prior(one, weights) for one in (before, after)]
        flagged.append(f"{(maps[0]['disagreement'] > LIMIT).mean():.1%}")
        index = (np.cumsum(mask.ravel()) - 1).reshape(mask.shape)
        normal = maps[1]["disagreement"][(room > 4)[mask]]
        for diameter in COUNTS:
            cells, areas, fractions = [], [], []
            for sign in range(len(CHANGES)):
                inside = [ball for k, (d, ball) in enumerate(balls) if d == diameter and k % 2 == sign]
                here = index[np.any(inside, axis=0)]
                cells.append(f"{recovery((maps[1]['md'] - maps[0]['md'])[here], change[mask][here]):.2f}")
                areas.append(f"{auc(maps[1]['disagreement'][here], normal):.2f}")
                fractions.append(maps[1]["datafraction"][here])
            share = np.concatenate(fractions).mean()
            table.add_row(str(count), f"{diameter:g}", *cells, f"{share:.2f}", ", ".join(areas))
    table.caption = f"before, the disagreement is above {LIMIT} in {', '.join(flagged)} of voxels (5 % by chance)"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 30])
    parser.add_argument("--snr", type=float, default=20.0)
    parser.add_argument("--scans", type=Path, default=SCANS)
    parser.add_argument("--name", default=REAL, help="scan below that folder, without .nii.gz")
    parser.add_argument("--only", choices=("lesions", "healthy", "other", "real"))
    parser.add_argument(
        "--mppca", type=int, nargs="*", default=[6], help="directions at which MP-PCA is run; it is slow"
    )
    arguments = parser.parse_args()
    console, weights, snr = Console(width=140), arguments.weights, arguments.snr
    for count in arguments.directions:
        if arguments.only in (None, "lesions"):
            found, normal = lesions(count, snr, weights, count in arguments.mppca)
            title = f"{count} directions, SNR {snr:g}"
            console.print(recovered(found, title))
            console.print(separated(found, normal, title))
        if arguments.only in (None, "healthy"):
            console.print(invented(count, snr, weights))
            # where there are few measurements to contradict what is invented
            if count == min(arguments.directions):
                console.print(removed_tract(count, snr, weights))
        if arguments.only in (None, "other"):
            console.print(no_brain(count, snr, weights))
    if arguments.only in (None, "real"):
        path = arguments.scans / arguments.name
        if path.with_name(f"{path.name}.nii.gz").is_file():
            console.print(changed(path, arguments.directions, weights))
        else:
            console.print(f"no scan: {path} is not there")


if __name__ == "__main__":
    main()
