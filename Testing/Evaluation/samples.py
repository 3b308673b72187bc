"""Samples of the prior: what it makes up when it is told nothing, and whether the truth could be one of them.

    python Testing/Evaluation/samples.py build/sampler/prior.safetensors [--picture samples.png]

Samples start from pure noise. Without any measurement they should be as rich as tissue is: FA and mean diffusivity
should be spread as widely, and neighbours should be as alike as they are in heads. Given a scan they should lie about
the truth as they lie about each other, so that its rank among them is any with the same probability (Talts et al.,
2018).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from methods import scalars
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from simulated_scans import Head, Scan, brain, phantom, protocol, truth

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.sampling import sample
from DiffusionFMLib.prior.weights import load_weights

EDGE = 32
VOXEL = 2.0
SEEDS = (1000, 1001)

SIGMA, DEAF = 0.05, 1e6
"""Noise that the network is told of, where S0 is 1, and that which leaves the measurements nothing to say."""

DIRECTIONS, SNR, SAMPLES = 6, 20.0, 9
GIVEN_EDGE = 28
"""Of the scans that samples are taken of, voxels."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DISTANCES = (1, 2, 4, 8)
"""Voxels between those whose correlation is told."""


def from_nothing(weights: Path, seed: int) -> NDArray[np.float32]:
    """Parameters of a sample that saw no data, shape (EDGE, EDGE, EDGE, 7)."""
    shape = (EDGE,) * 3
    mask, scan = np.ones(shape, bool), protocol(6, 1 / SIGMA)
    signal = np.ones((*shape, len(scan.bvals)), np.float32)
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1])
    acquisition = Acquisition(signal, affine, GradientTable(scan.bvals, scan.bvecs), mask)
    noise = NoiseEstimate(SIGMA, np.full(shape, DEAF, np.float32), (0.0, 0.0, 0.0), 1)
    posterior = ScanPosterior(acquisition, mask, noise, load_weights(weights))
    return posterior.in_ras(sample(posterior, seed, SilentReport())).T.reshape(*shape, -1)


def ranks(weights: Path) -> dict[str, NDArray[np.intp]]:
    """How many of `SAMPLES` samples lie below the truth, in every voxel of sparse scans.

    Of FA they cannot be alike: it is never below 0, where that of grey matter lies.
    """
    found: dict[str, list[NDArray[np.intp]]] = {}
    for seed, anatomy in enumerate((brain(SEEDS[0]), phantom(SEEDS[0]))):
        scan = Scan.of(Head.of(anatomy, SEEDS[0], GIVEN_EDGE), protocol(DIRECTIONS, SNR), seed)
        noise = NoiseEstimate(1 / SNR, np.full(scan.mask.shape, 1 / SNR, np.float32), (0.0, 0.0, 0.0), 1)
        posterior = ScanPosterior(scan.acquisition, scan.mask, noise, load_weights(weights))
        drawn = [values_of(posterior.in_ras(sample(posterior, k, SilentReport()))) for k in range(SAMPLES)]
        for name, true in values_of(scan.theta).items():
            found.setdefault(name, []).append(sum((one[name] < true).astype(int) for one in drawn))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def values_of(theta: NDArray) -> dict[str, NDArray]:
    """MD and, one after another, the tensor's elements off its diagonal, of parameters, shape (7, V)."""
    return {"MD": theta[[0, 3, 5]].mean(0), "Dxy, Dxz, Dyz": theta[[1, 2, 4]].ravel()}


def heads() -> list[NDArray[np.float64]]:
    """Parameters of healthy simulated tissue, shape (X, Y, Z, 7); NaN outside the brain."""
    made = [*(Head.of(brain(seed), seed) for seed in SEEDS), Head.of(phantom(SEEDS[0]), SEEDS[0], EDGE)]
    volumes = []
    for head in made:
        volume = np.full((*head.shape, 7), np.nan)
        volume[head.mask] = truth(head, protocol(6, 1 / SIGMA)).T
        volumes.append(volume)
    return volumes


def maps_of(theta: NDArray) -> dict[str, NDArray]:
    """FA and MD, shape (X, Y, Z), of parameters."""
    return {name: values.reshape(theta.shape[:-1]) for name, values in scalars(theta.reshape(-1, 7).T).items()}


def likeness(volumes: Sequence[NDArray], distance: int) -> float:
    """Correlation of voxels so far from each other along the axes."""
    pairs = [
        np.stack([np.take(v, range(distance, v.shape[k]), k), np.take(v, range(v.shape[k] - distance), k)]).reshape(
            2, -1
        )
        for v in volumes
        for k in range(3)
    ]
    both = np.concatenate(pairs, 1)
    return float(np.corrcoef(both[:, np.isfinite(both).all(0)])[0, 1])


def picture(path: Path, samples: Sequence[NDArray], simulated: Sequence[NDArray]) -> None:
    """Middle slices: FA and MD of samples above those of heads."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, len(samples), figsize=(3 * len(samples), 12))
    for row, (theta, name, high) in enumerate(
        ((samples, "fa", 1), (simulated, "fa", 1), (samples, "md", 3), (simulated, "md", 3))
    ):
        for ax, volume in zip(axes[row], theta, strict=False):
            middle = maps_of(volume)[name][:, :, volume.shape[2] // 2]
            ax.imshow(middle.T, cmap="gray", vmin=0, vmax=high, origin="lower")
            ax.set_title(f"{name.upper()}, {'sample' if theta is samples else 'simulated'}")
            ax.axis("off")
    figure.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--picture", type=Path, help="Draw their middle slices here.")
    arguments = parser.parse_args()
    samples, simulated = [from_nothing(arguments.weights, seed) for seed in range(len(SEEDS))], heads()
    table = Table(title="Samples without data, beside simulated heads")
    for title in ("", *(f"{q:.0%}" for q in QUANTILES), *(f"alike at {d}" for d in DISTANCES)):
        table.add_column(title, justify="right")
    for name in ("fa", "md"):
        for label, group in (("samples", samples), ("heads", simulated)):
            volumes = [maps_of(theta)[name] for theta in group]
            values = np.concatenate([v[np.isfinite(v)] for v in volumes])
            numbers = [*np.quantile(values, QUANTILES), *(likeness(volumes, d) for d in DISTANCES)]
            table.add_row(f"{name.upper()}, {label}", *(f"{value:.2f}" for value in numbers))
    Console(width=120).print(table)
    table = Table(title=f"Rank of the truth among {SAMPLES} samples, {DIRECTIONS} directions, SNR {SNR:g}")
    for title in ("", *map(str, range(SAMPLES + 1))):
        table.add_column(title, justify="right")
    table.add_row("expected", *[f"{1 / (SAMPLES + 1):.0%}"] * (SAMPLES + 1))
    for name, found in ranks(arguments.weights).items():
        table.add_row(name, *(f"{np.mean(found == k):.0%}" for k in range(SAMPLES + 1)))
    Console(width=120).print(table)
    if arguments.picture:
        picture(arguments.picture, samples, simulated)


if __name__ == "__main__":
    main()
