"""How well the encoder makes up for what it is not shown, beside predictions that need no training.

    python Testing/Evaluation/reconstruction.py [WEIGHTS ...] [--without WEIGHTS ...] [--seeds 5] [--only real]

Hidden tokens are reconstructed by: the mean of the visible volumes of the shell at that place; the tensor of the
visible volumes; their spherical harmonics; and networks, with D-RoPE and without (`train --model encoder --no-rotary`).
PSNR is 10 log10(1 / mean square error) of the signal over b0; SSIM is that of whole volumes, hidden voxels counted; FA
and MD are those of a tensor fitted to visible and reconstructed volumes together. Simulated heads no training saw are
compared with their noise-free truth, each seed another head. Real scans are compared with what was measured, noise and
all; their seeds are other masks and volumes of the same head, so that intervals say nothing of other heads. Of several
weights, of trainings with other seeds, each seed takes the next: intervals are then over trainings too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from baselines import least_squares, maps
from numpy.typing import NDArray
from predictions import harmonic_prediction, tensor_prediction
from rich.console import Console
from rich.table import Table
from scores import paired, psnr, rmse, similarity
from simulated_scans import Head, Scan, brain

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import load_encoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.mae import MASKS, Sample, draw_mask, reconstruct, same_shell_mean
from DiffusionFMLib.encoder.shape import PRESETS
from DiffusionFMLib.encoder.slabs import MAX_RATIO
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.preprocessing.noise import estimate_noise
from DiffusionFMLib.settings import ScanSettings
from DiffusionFMLib.simulation.scanner import repelled_directions
from DiffusionFMLib.training.protocols import Protocol
from DiffusionFMLib.training.signal_scans import SignalScan

ROOT = Path(__file__).resolve().parents[2]
SCANS = ROOT.parent / "shared" / "data" / "test"
REAL = (
    "philips_bangalore_32dir/dwi", "siemens_xa30_b2500_APPA_T1/dwi_AP", "mrtrix_msmt_3shell_crop/dwi",
)  # fmt: skip

ALTERNATING = "alternating"
KINDS = (*MASKS, ALTERNATING)

MEAN, TENSOR, HARMONICS = "shell's mean", "tensor", "harmonics"
ROTARY, PLAIN = "D-RoPE", "without D-RoPE"

SNR = 25.0
SCHEMES = {
    "12 at b 1000": {1000.0: 12},
    "7 at b 1000, 7 at b 2500": {1000.0: 7, 2500.0: 7},
    "30 at b 1000": {1000.0: 30},
}
"""Training has 8 to 15 directions: the last is one that it has not seen. Not six of a shell: evenly spread, all are as
far from each other, so that harmonics predict the mean of the visible ones."""

MIN_TOKENS = 8
"""Slabs with less brain are left out."""

THICKNESS = 4
"""Of a slab of a real scan, slices."""

REAL_SIGMA = 0.05
"""Noise over b0 where it cannot be estimated."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scan, and what its reconstructions are compared with.

    Parameters
    ----------
    scan : SignalScan
    reference : array, shape (T, X, Y, Z)
        Signal over b0.
    fa, md : array, shape (X, Y, Z)
        MD in um2/ms.
    sigma : float
        Noise over b0.
    """

    scan: SignalScan
    reference: NDArray
    fa: NDArray
    md: NDArray
    sigma: float


def simulated(shells: dict[float, int], seed: int) -> Case:
    """A head of its own for each seed."""
    counts = list(shells.values())
    bvals = np.r_[0.0, np.repeat(list(shells), counts)]
    bvecs = np.vstack([np.zeros((1, 3)), *(repelled_directions(count) for count in counts)])
    protocol = Protocol(bvals, bvecs, 1 / SNR, np.zeros(3))
    # without folds, as the heads that the encoder learnt from
    head = Head.of(brain(1000 + seed, folding=0.0), seed)
    made = Scan.of(head, protocol, seed)
    clean = head.signal(bvals / 1000, bvecs).numpy().reshape(-1, *head.shape)
    truth = {name: np.zeros(head.shape) for name in ("fa", "md")}
    for name, values in maps(made.theta).items():
        if name in truth:
            truth[name][made.mask] = values
    with np.errstate(invalid="ignore", divide="ignore"):
        reference = np.nan_to_num(clean[1:] / clean[0]).clip(0, MAX_RATIO)
    return Case(SignalScan.of(made.acquisition), reference, truth["fa"], 1e3 * truth["md"], 1 / SNR)


def real(acquisition: Acquisition, sigma: float, count: int, slabs: int, seed: int) -> Case:
    """Some volumes of the middle slabs of a scan with a mask, drawn by seed."""
    whole = SignalScan.of(acquisition)
    volumes = np.sort(np.random.default_rng([seed, 20]).permutation(len(whole.gtab))[:count])
    thickness = slabs * THICKNESS
    centre = int(np.average(np.arange(whole.inside.shape[2]), weights=whole.inside.sum((0, 1))))
    middle = slice(max(0, centre - thickness // 2), max(0, centre - thickness // 2) + thickness)
    scan = SignalScan(whole.signal[volumes][..., middle], whole.inside[..., middle], whole.gtab.subset(volumes))
    measured = scan.signal.astype(np.float32)
    return Case(scan, measured, *refitted(scan, measured, sigma), sigma)


def refitted(scan: SignalScan, signal: NDArray, sigma: float) -> tuple[NDArray, NDArray]:
    """FA, and MD in um2/ms, of the tensor of volumes, shape (T, X, Y, Z); each (X, Y, Z), 0 outside the brain."""
    gtab = GradientTable(np.r_[0, scan.gtab.bvals], np.vstack([np.zeros((1, 3)), scan.gtab.bvecs]))
    with_b0 = np.concatenate([np.ones_like(signal[:1]), signal]).transpose(1, 2, 3, 0)
    mask = scan.inside
    acquisition = Acquisition(with_b0, np.eye(4), gtab, mask)
    found = maps(least_squares(acquisition, mask, np.full(int(mask.sum()), sigma), ridge=False))
    fa, md = np.zeros(mask.shape), np.zeros(mask.shape)
    fa[mask], md[mask] = found["fa"], 1e3 * found["md"]
    return fa, md


# --- reconstruction --------------------------------------------------------------------------------------

Method = Callable[[Sample, torch.Tensor], torch.Tensor]


def methods(networks: dict[str, DiffusionTransformer], gtab: GradientTable, sigma: float) -> dict[str, Method]:
    """All of them, for one protocol."""

    def of_network(network: DiffusionTransformer) -> Method:
        protocol = EncoderProtocol.of(gtab, network.shape)
        return lambda sample, masked: reconstruct(network, replace(sample, protocol=protocol), masked)

    return {
        MEAN: same_shell_mean,
        TENSOR: lambda sample, masked: tensor_prediction(sample, masked, gtab, sigma),
        HARMONICS: lambda sample, masked: harmonic_prediction(sample, masked, gtab),
        **{name: of_network(network) for name, network in networks.items()},
    }


def patch_of(networks: dict[str, DiffusionTransformer]) -> tuple[int, int, int]:
    """The networks' patch, which is to be one and the same: tokens are hidden alike for all methods."""
    patches = {network.shape.patch for network in networks.values()} or {PRESETS["small"].patch}
    if len(patches) > 1:
        msg = f"The networks have patches of {' and '.join(map(str, patches))} voxels; expected one size."
        raise SystemExit(msg)
    return patches.pop()


def slabs(scan: SignalScan, patch: tuple[int, int, int]) -> Iterator[tuple[slice, Sample]]:
    """The slabs of a scan with enough brain, and the slices that they are."""
    gtab, sizes = scan.gtab, scan.inside.shape
    margins = [(0, -size % step) for size, step in zip(sizes, patch, strict=True)]
    signal = torch.from_numpy(np.pad(scan.signal.astype(np.float32), [(0, 0), *margins]))
    inside = torch.from_numpy(np.pad(scan.inside, margins))
    protocol = EncoderProtocol.of(gtab, PRESETS["small"])
    for low in range(0, inside.shape[2], patch[2]):
        part = slice(low, low + patch[2])
        if not inside[..., part].any():
            continue
        sample = Sample.of(signal[..., part], inside[..., part], np.array([0, 0, low]), gtab, protocol, patch)
        if len(sample.where) >= MIN_TOKENS:
            yield part, sample


def scores_of(
    case: Case, kind: str, seed: int, networks: dict[str, DiffusionTransformer]
) -> dict[str, dict[str, float]]:
    """Scores of each method, by name of the score."""
    scan, patch = case.scan, patch_of(networks)
    box = tuple(slice(size) for size in scan.inside.shape)
    tried = methods(networks, scan.gtab, case.sigma)
    made = {name: scan.signal.astype(np.float32) for name in tried}
    hidden, judged = np.zeros(scan.signal.shape, bool), np.zeros(scan.inside.shape, bool)
    for number, (part, sample) in enumerate(slabs(scan, patch)):
        chosen = MASKS[number % len(MASKS)] if kind == ALTERNATING else kind
        # whole directions are hidden throughout the scan, places anew in each slab
        rng = np.random.default_rng([seed, 21, number if chosen == MASKS[0] else 0])
        masked = draw_mask(chosen, len(scan.gtab), len(sample.where), rng)
        here = sample.volumes(masked[..., None].expand_as(sample.patches).float(), patch).numpy() > 0
        depth = slice(part.start, min(part.stop, scan.inside.shape[2]))
        crop = (slice(None), *box[:2], slice(depth.stop - depth.start))
        hidden[..., depth], judged[..., depth] = here[crop], scan.inside[..., depth]
        for name, method in tried.items():
            rows = torch.where(masked[..., None], method(sample, masked), sample.patches)
            made[name][..., depth] = sample.volumes(rows, patch).numpy()[crop]
    return {name: _scored(case, signal.clip(0, MAX_RATIO), hidden, judged) for name, signal in made.items()}


def _scored(case: Case, signal: NDArray, hidden: NDArray, judged: NDArray) -> dict[str, float]:
    reference, result = np.where(case.scan.inside, case.reference, 0), {}
    for shell in case.scan.gtab.shells:
        volumes = list(shell.indices)
        where = hidden[volumes]
        if not where.any():
            continue
        alike = np.stack([similarity(signal[v], reference[v]) for v in volumes])
        result[f"PSNR b{shell.bval:.0f}"] = psnr((signal[volumes] - reference[volumes])[where])
        result[f"SSIM b{shell.bval:.0f}"] = float(alike[where].mean())
    fa, md = refitted(case.scan, signal, case.sigma)
    return {**result, "FA": rmse((fa - case.fa)[judged]), "MD": rmse((md - case.md)[judged])}


# --- tables ----------------------------------------------------------------------------------------------


def tables(
    title: str, cases: Callable[[int], Case], seeds: int, trained: dict[str, list[DiffusionTransformer]]
) -> Iterator[Table]:
    """Means over seeds; and, where there are networks, their paired differences to all else."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(seeds):
        case = cases(seed)
        networks = {name: each[seed % len(each)] for name, each in trained.items()}
        for kind in KINDS:
            for method, scores in scores_of(case, kind, seed, networks).items():
                for name, value in scores.items():
                    found[kind, method][name].append(value)
    columns = sorted({name for scores in found.values() for name in scores}, key=_order)
    table = Table("mask", "method", *columns, title=f"{title}: hidden tokens, mean of {seeds} seeds; FA, MD: RMSE")
    for (kind, method), scores in found.items():
        table.add_row(kind, method, *(f"{np.mean(scores[name]):.{_digits(name)}f}" for name in columns))
    yield table
    if not trained:
        return
    first = next(iter(trained))
    table = Table("mask", "minus", *columns, title=f"{title}: {first} minus others, with 95 % intervals over seeds")
    for kind, method in found:
        if method == first:
            continue
        cells = []
        for name in columns:
            difference, half = paired(np.array(found[kind, first][name]), np.array(found[kind, method][name]))
            cells.append(f"{difference:+.{_digits(name)}f} ± {half:.{_digits(name)}f}")
        table.add_row(kind, method, *cells)
    yield table


def _order(name: str) -> tuple[int, float]:
    """By kind of score, then by b-value."""
    kind, _, bval = name.partition(" b")
    return ("PSNR", "SSIM", "FA", "MD").index(kind), float(bval or 0)


def _digits(name: str) -> int:
    return 2 if name.startswith("PSNR") else 3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path, nargs="*", help="of encoders; without, only what needs no training")
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="weights of encoders without D-RoPE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--schemes", nargs="*", default=list(SCHEMES), choices=tuple(SCHEMES))
    parser.add_argument("--scans", type=Path, default=SCANS)
    parser.add_argument("--names", nargs="*", default=REAL, help="scans below that folder, without .nii.gz")
    parser.add_argument("--directions", type=int, default=12, help="volumes of a real scan")
    parser.add_argument("--slabs", type=int, default=6, help="of a real scan, in its middle")
    parser.add_argument("--only", choices=("simulated", "real"))
    arguments = parser.parse_args()
    console = Console(width=170)
    given = {ROTARY: arguments.weights, PLAIN: arguments.without}
    networks = {name: [load_encoder(path).network for path in paths] for name, paths in given.items() if paths}
    if not networks:
        console.print("no weights of an encoder: only what needs no training")
    if arguments.only != "real":
        for name in arguments.schemes:
            for table in tables(name, partial(simulated, SCHEMES[name]), arguments.seeds, networks):
                console.print(table)
    if arguments.only != "simulated":
        for name in arguments.names:
            path = arguments.scans / f"{name}.nii.gz"
            if not path.is_file():
                console.print(f"no scan: {path} is not there")
                continue
            scan = read_acquisition(ScanSettings(dwi=str(path)), SilentReport())
            scan = scan.with_mask(brain_mask(scan))
            cases = partial(real, scan, _noise_over_b0(scan), arguments.directions, arguments.slabs)
            for table in tables(name, cases, arguments.seeds, networks):
                console.print(table)


def _noise_over_b0(scan: Acquisition) -> float:
    noise = estimate_noise(scan, scan.mask)
    b0 = scan.signal[..., scan.gtab.b0_mask].mean(-1)
    return REAL_SIGMA if noise is None else float(np.median(noise.sigma_map[scan.mask] / b0[scan.mask].clip(1e-6)))


if __name__ == "__main__":
    main()
