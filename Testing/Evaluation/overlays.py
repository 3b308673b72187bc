"""The gate that decides which overlays are on by default: whether they are about the scan, and about what was learnt.

    python Testing/Evaluation/overlays.py WEIGHTS [--seeds 3] [--points 8] [--influence] [--only simulated|real]

Only patches wholly within the brain count: those at its rim are odd to any network. For each overlay: rank correlation
over them between the maps from two disjoint halves of the scan's directions
(on by default: .7 or more); between the maps of trained and of randomised weights (less than .3, of either sign); and
how much a readout changes when the tenth of a slab's patches that the overlay marks most is hidden, over the change
with random patches hidden (above 1 throughout the interval). The readout is what features say of FA, linearly: at all
other patches of the slab, or at the point that the overlay is about. Colours mark nothing, so nothing of theirs is
hidden. Intervals are over scans.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from reconstruction import SCANS
from rich.console import Console
from rich.table import Table
from scipy import stats
from scores import spearman
from simulated_scans import Head, Scan, brain

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder, load_encoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.overlays.attention import watch
from DiffusionFMLib.overlays.encoded import EncodedScan
from DiffusionFMLib.overlays.features import features_of
from DiffusionFMLib.overlays.influence import Readout, influence
from DiffusionFMLib.overlays.kinds import OVERLAYS
from DiffusionFMLib.overlays.surprise import surprise
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.settings import FitSettings, ScanSettings
from DiffusionFMLib.simulation.scanner import repelled_directions
from DiffusionFMLib.training.protocols import Protocol

REAL = ("philips_bangalore_32dir/dwi", "siemens_xa30_b2500_APPA_T1/dwi_AP")

DIRECTIONS, BVAL, SNR = 30, 1000.0, 25.0
"""Of simulated scans."""

THICKNESS = 12
"""Slices of a real scan, about the middle."""

HIDDEN = 0.1
"""Share of a slab's patches that is hidden."""

DRAWS = 5
"""Of random patches, for each that are chosen."""

MIN_TOKENS = 20
"""Slabs with fewer are left out of what is hidden."""

STABLE, UNLIKE = 0.7, 0.3
MEMORY_MIB = 4096
SILENT = SilentReport()


@dataclass
class Scores:
    """Of one scan, by overlay.

    Parameters
    ----------
    stability, randomised : dict of str to float
        Rank correlations.
    hiding : dict of str to float
        Log of the change of the readout over that with random patches.
    """

    stability: dict[str, float]
    randomised: dict[str, float]
    hiding: dict[str, float]


def simulated(seed: int) -> Acquisition:
    """A head of its own for each seed."""
    bvals = np.r_[0.0, 0.0, np.full(DIRECTIONS, BVAL)]
    bvecs = np.vstack([np.zeros((2, 3)), repelled_directions(DIRECTIONS)])
    # without folds, as the heads that the encoder learnt from
    head = Head.of(brain(1000 + seed, folding=0.0), seed)
    return Scan.of(head, Protocol(bvals, bvecs, 1 / SNR, np.zeros(3)), seed).acquisition


def real(path: Path) -> Acquisition:
    """The middle slices of a scan along its third axis."""
    scan = read_acquisition(ScanSettings(dwi=str(path)), SILENT)
    scan = scan.with_mask(brain_mask(scan))
    low = max(0, (scan.shape[2] - THICKNESS) // 2)
    part = slice(low, low + THICKNESS)
    affine = scan.affine.copy()
    affine[:3, 3] += low * affine[:3, 2]
    return replace(scan, signal=scan.signal[:, :, part], affine=affine, mask=scan.mask[:, :, part])


def halves(scan: Acquisition, seed: int) -> tuple[Acquisition, Acquisition]:
    """The scan with disjoint halves of its directions, and all b0s."""
    rng, gtab = np.random.default_rng([seed, 30]), scan.gtab
    first = np.zeros(len(gtab), bool)
    for shell in gtab.shells:
        drawn = rng.permutation(np.array(shell.indices))
        first[drawn[: len(drawn) // 2]] = True
    b0 = gtab.b0_mask
    return scan.subset(first | b0, "Half of the directions."), scan.subset(~first, "The other half.")


def randomised(trained: TrainedEncoder, seed: int) -> TrainedEncoder:
    """The same network with weights as before training."""
    torch.manual_seed(seed)
    return TrainedEncoder(DiffusionTransformer(trained.network.shape).eval())


def encoded(scan: Acquisition, trained: TrainedEncoder, with_influence: bool) -> tuple[EncodedScan, Readout]:
    """All overlays, and the readout that influence is on."""
    made = features_of(scan, trained, SILENT)
    fa = fit(scan, DTI(), FitSettings(method="ols", device="cpu"), SILENT).maps["fa"].data
    readout = Readout.of(made.passes[0], fa, scan.mask)
    influential = influence(scan, trained, readout, SILENT) if with_influence else None
    surprised, watched = surprise(scan, trained, SILENT), watch(scan, trained, SILENT, MEMORY_MIB)
    return EncodedScan(scan, made, surprised, watched, influential), readout


def alike(one: EncodedScan, other: EncodedScan, name: str, points: list[tuple[int, int, int]]) -> float:
    """Rank correlation of an overlay over the brain, mean over points; of colours, over components matched by it."""
    if name == "pca":
        cells = [each.cells(name)[_inside(each)] for each in (one, other)]
        table = np.abs([[spearman(a, b) for b in cells[1].T] for a in cells[0].T])
        return float(table.max(1).mean())
    found = []
    for point in points if OVERLAYS[name].of_point else [None]:
        values = [each.cells(name, point) for each in (one, other)]
        inside = _inside(one)
        if OVERLAYS[name].of_point and name != "similarity":
            # attention ends with the slab
            inside = inside & (values[0] > 0) & (values[1] > 0)
        found.append(spearman(values[0][inside], values[1][inside]))
    return float(np.mean(found))


def hiding(
    each: EncodedScan,
    trained: TrainedEncoder,
    readout: Readout,
    name: str,
    points: list[tuple[int, int, int]],
    seed: int,
) -> float:
    """Log of how much more the readout changes with what an overlay marks hidden than with random patches."""
    slabs, chosen, drawn = each.features.passes[0].slabs, [], []
    cells, rng = each.features.cells, np.random.default_rng([seed, 31])
    whole = _whole(slabs, each.acquisition.mask).reshape(-1) > 0
    for point in points if OVERLAYS[name].of_point else [None]:
        marked = _on_patches(each.cells(name, point), slabs)
        patch = None if point is None else cells.patch_of(slabs, point)
        numbers = range(len(slabs)) if patch is None else [patch[2] // slabs.shape.slab]
        for number in numbers:
            where = slabs.where(number)
            if whole[where].sum() < MIN_TOKENS:
                continue
            judged = np.zeros(len(where), bool)
            if patch is not None:
                judged = where == np.ravel_multi_index(patch, slabs.grid)
            candidates = np.flatnonzero(whole[where] & ~judged)
            count = max(1, round(HIDDEN * len(candidates)))
            top = candidates[np.argsort(-marked.reshape(-1)[where][candidates], kind="stable")[:count]]
            random = [rng.permutation(candidates)[:count] for _ in range(DRAWS)]
            changes = [
                _change(slabs, number, trained, readout, hidden, np.flatnonzero(judged)) for hidden in (top, *random)
            ]
            chosen.append(changes[0])
            drawn.append(np.mean(changes[1:]))
    return float(np.log(np.mean(chosen) / np.mean(drawn)))


@torch.no_grad()
def _change(
    slabs: ScanSlabs, number: int, trained: TrainedEncoder, readout: Readout, hidden: NDArray, judged: NDArray
) -> float:
    """Mean change of the readout at some tokens, or at all that stay, when others are hidden."""
    slab, protocol = slabs.slab(number), EncoderProtocol.of(slabs.gtab, trained.network.shape)
    mask = torch.zeros(1, len(slabs.volumes), len(slab.where), dtype=torch.bool)
    mask[:, :, torch.from_numpy(hidden)] = True
    before, after = (
        readout(trained.network(slab.patches[None], slab.positions[None], [protocol], m).tokens[0].mean(0))
        for m in (None, mask)
    )
    where = judged if len(judged) else np.setdiff1d(np.arange(len(slab.where)), hidden)
    return float((after - before)[torch.from_numpy(where)].abs().mean())


def _inside(each: EncodedScan) -> NDArray[np.bool_]:
    """Cells whose patches, in both passes, lie wholly within the brain."""
    cells, mask = each.features.cells, each.acquisition.mask
    return np.minimum(*(cells.mean([(p.slabs, _whole(p.slabs, mask))]) for p in each.features.passes)) > 0


def _whole(slabs: ScanSlabs, mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """1 where a patch has no voxel outside the brain, 0 elsewhere, shape of the grid."""
    result = np.zeros(slabs.grid, np.float32)
    for number in range(len(slabs)):
        result.reshape(-1)[slabs.where(number)] = slabs.rows(mask.astype(np.float32), number).amin(1).numpy()
    return result


def _on_patches(values: NDArray, slabs: ScanSlabs) -> NDArray:
    """Mean of a patch's cells."""
    total, count = np.zeros(slabs.grid), np.zeros(slabs.grid)
    index = [np.arange(n) * slabs.grid[axis] // n for axis, n in enumerate(values.shape)]
    where = np.ix_(*index)
    np.add.at(total, where, values)
    np.add.at(count, where, 1)
    return total / count


def scores_of(scan: Acquisition, trained: TrainedEncoder, points: int, with_influence: bool, seed: int) -> Scores:
    whole, readout = encoded(scan, trained, with_influence)
    parts = [encoded(part, trained, with_influence)[0] for part in halves(scan, seed)]
    blind = encoded(scan, randomised(trained, seed), with_influence)[0]
    slabs, chosen = whole.features.passes[0].slabs, []
    inner = _whole(slabs, scan.mask).reshape(-1) > 0
    for voxel in np.random.default_rng([seed, 32]).permutation(np.argwhere(scan.mask)):
        point = tuple(int(v) for v in voxel)
        patch = whole.features.cells.patch_of(slabs, point)
        # with much else in its slab
        enough = inner[slabs.where(patch[2] // slabs.shape.slab)].sum() > MIN_TOKENS
        if inner[np.ravel_multi_index(patch, slabs.grid)] and enough:
            chosen.append(point)
        if len(chosen) == points:
            break
    names = whole.names
    return Scores(
        {name: alike(*parts, name, chosen) for name in names},
        {name: alike(whole, blind, name, chosen) for name in names},
        {name: hiding(whole, trained, readout, name, chosen, seed) for name in names if name != "pca"},
    )


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval over scans."""
    half = (
        stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    )
    return float(np.mean(values)), float(half)


def table_of(title: str, scores: list[Scores]) -> Table:
    """Means over scans, and what passes."""
    table = Table("overlay", "other directions", "random weights", "hidden / random", "passes", title=title)
    for name in scores[0].stability:
        stability, random = (np.mean([getattr(s, kind)[name] for s in scores]) for kind in ("stability", "randomised"))
        passes, ratio = stability >= STABLE and abs(random) < UNLIKE, "-"
        if name in scores[0].hiding:
            mean, half = _interval([s.hiding[name] for s in scores])
            passes &= mean - (half if np.isfinite(half) else 0) > 0
            ratio = f"{np.exp(mean):.2f} ({np.exp(mean - half):.2f} to {np.exp(mean + half):.2f})"
        table.add_row(name, f"{stability:.2f}", f"{random:.2f}", ratio, "yes" if passes else "no")
    return table


def cases(only: str | None, seeds: int, scans: Path, console: Console) -> Iterator[tuple[str, list[Acquisition]]]:
    if only != "real":
        yield f"{seeds} simulated heads, {DIRECTIONS} directions", [simulated(seed) for seed in range(seeds)]
    if only != "simulated":
        found = [scans / f"{name}.nii.gz" for name in REAL]
        for path in found:
            if not path.is_file():
                console.print(f"no scan: {path} is not there")
        if there := [real(path) for path in found if path.is_file()]:
            yield f"{len(there)} real scans, {THICKNESS} slices", there


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seeds", type=int, default=3, help="simulated heads")
    parser.add_argument("--points", type=int, default=8, help="that overlays are about, in each scan")
    parser.add_argument("--influence", action="store_true", help="that overlay too, which takes minutes a scan")
    parser.add_argument("--scans", type=Path, default=SCANS)
    parser.add_argument("--only", choices=("simulated", "real"))
    arguments = parser.parse_args()
    console, trained = Console(width=110), load_encoder(arguments.weights)
    for title, scans in cases(arguments.only, arguments.seeds, arguments.scans, console):
        each = [
            scores_of(scan, trained, arguments.points, arguments.influence, seed) for seed, scan in enumerate(scans)
        ]
        console.print(table_of(title, each))


if __name__ == "__main__":
    main()
