"""How far tracts and connectomes of a few directions agree with those of the truth.

    python Testing/Evaluation/tracts.py WEIGHTS [--directions 6 12 30] [--picture FILE]

A simulated whole brain is tracked deterministically in the tensors of each method and in those of the noise-free
signal of many directions, with the same seeds and settings. Agreement is the overlap of the voxels that streamlines
pass through (weighted Dice, by how many do) and the correlation of the logarithms of the connectomes' counts, between
parcels of grey matter that are near each other in space.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from baselines import SMOOTHED, WLS, conventional
from methods import PRIOR, by_prior
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.cluster.vq import kmeans2

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.connectome import connect
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import LabelImage
from DiffusionFMLib.settings import SimulateSettings, TrackSettings
from DiffusionFMLib.simulation.scanner import Simulated, simulate
from DiffusionFMLib.simulation.tissue import WM_S0
from DiffusionFMLib.tractography import Tracts, track

METHODS = (WLS, SMOOTHED, PRIOR)

SNR = 10.0
"""Of white matter at b0."""

TRUE_DIRECTIONS = 60
SEED = 7
PARCELS = 60
RADIUS = 4.0
"""From the end of a streamline to its parcel, mm."""

TRACKING = TrackSettings(max_count=0, seed_density=0.5, seed_fa=0.3)


@dataclass(frozen=True, eq=False)
class Tracked:
    """What was tracked in one field of tensors.

    Parameters
    ----------
    tracts : Tracts
    density : array, shape (X, Y, Z)
        Points of streamlines in each voxel.
    counts : array, shape (R, R)
        Streamlines between parcels.
    """

    tracts: Tracts
    density: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, tensor: NDArray[np.float32], scan: Acquisition, parcels: LabelImage) -> Tracked:
        """Track a field of tensors, shape (X, Y, Z, 6), mm2/s."""
        tracts = track(tensor, scan.mask, scan.affine, TRACKING, SilentReport())
        inverse = np.linalg.inv(scan.affine)
        voxels = np.rint(tracts.points @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        density = np.zeros(scan.shape)
        np.add.at(density, tuple(voxels.T), 1)
        return cls(tracts, density, connect(tracts.streamlines, parcels, RADIUS).counts)

    def overlap(self, other: Tracked) -> float:
        """Weighted Dice of the densities, each of which sums to 1."""
        return float(np.minimum(self.density / self.density.sum(), other.density / other.density.sum()).sum())

    def likeness(self, other: Tracked) -> float:
        """Correlation of the logarithms of counts + 1, of all pairs of different parcels."""
        pairs = np.triu_indices(len(self.counts), 1)
        return float(np.corrcoef(np.log1p(self.counts[pairs]), np.log1p(other.counts[pairs]))[0, 1])


def parcellation(simulated: Simulated) -> LabelImage:
    """Parcels of the true grey matter."""
    grey = simulated.truth["tissue"].data[..., 1] > 0.5
    scan = simulated.acquisition
    places = np.argwhere(grey) @ scan.affine[:3, :3].T
    centres, label = kmeans2(places, PARCELS, seed=0, minit="++")
    # left before right, each from the back to the front, so that matrices can be read
    order = np.lexsort((centres[:, 1], centres[:, 0] > np.median(centres[:, 0])))
    labels = np.zeros(scan.shape, np.int32)
    labels[grey] = 1 + np.argsort(order)[label]
    return LabelImage(labels, scan.affine, "parcels")


def simulated_brain(directions: int) -> Simulated:
    """The same brain at any number of directions, one b0."""
    return simulate(
        SimulateSettings(shells=f"1000:{directions}", n_b0=1, snr=SNR, seed=SEED, lesion=False), SilentReport()
    )


def tensors(simulated: Simulated, weights: Path) -> dict[str, NDArray[np.float32]]:
    """Tensors by every method, shape (X, Y, Z, 6), mm2/s."""
    scan = simulated.acquisition
    sigma = np.full(int(scan.mask.sum()), WM_S0 / SNR)
    thetas = conventional(scan, scan.mask, sigma, denoise=False)
    inside = {PRIOR: by_prior(scan, weights)["tensor"]}
    for name in (WLS, SMOOTHED):
        inside[name] = thetas[name][:6].T * 1e-3
    found = {name: np.zeros((*scan.shape, 6), np.float32) for name in METHODS}
    for name, values in inside.items():
        found[name][scan.mask] = values
    return found


def compared(directions: list[int], weights: Path) -> tuple[Tracked, dict[tuple[int, str], Tracked]]:
    """The truth's tracts, and those of each method at each number of directions."""
    true = simulated_brain(TRUE_DIRECTIONS)
    parcels = parcellation(true)
    reference = Tracked.of(true.truth["tensor"].data, true.acquisition, parcels)
    found = {}
    for count in directions:
        scan = simulated_brain(count)
        for name, tensor in tensors(scan, weights).items():
            found[count, name] = Tracked.of(tensor, scan.acquisition, parcels)
    return reference, found


def table(reference: Tracked, found: dict[tuple[int, str], Tracked]) -> Table:
    """Agreement with the truth."""
    result = Table(
        "directions", "method", "streamlines", "overlap", "connectome r",
        title=f"Tracts of a simulated brain, SNR {SNR:g}, beside the truth's {len(reference.tracts)} streamlines",
    )  # fmt: skip
    for (count, name), tracked in found.items():
        numbers = f"{tracked.overlap(reference):.2f}", f"{tracked.likeness(reference):.2f}"
        result.add_row(str(count), name, str(len(tracked.tracts)), *numbers)
    return result


def picture(path: Path, reference: Tracked, found: dict[tuple[int, str], Tracked]) -> None:
    """Connectomes and densities seen from above: the truth, and every method with the fewest directions."""
    from matplotlib.figure import Figure

    fewest = min(count for count, _ in found)
    shown = {"truth": reference, **{f"{name}, {fewest} directions": found[fewest, name] for name in METHODS}}
    figure = Figure(figsize=(3.2 * len(shown), 6.4), layout="constrained")
    axes = figure.subplots(2, len(shown))
    for column, (title, tracked) in zip(axes.T, shown.items(), strict=True):
        column[0].imshow(np.log1p(tracked.counts), cmap="viridis", vmin=0, vmax=np.log1p(reference.counts).max())
        column[0].set_title(title)
        column[1].imshow(np.log1p(tracked.density.sum(2)).T, cmap="magma", origin="lower")
        for ax in column:
            ax.set_xticks([])
            ax.set_yticks([])
    axes[0, 0].set_ylabel("connectome, log of counts")
    axes[1, 0].set_ylabel("density from above, log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 12, 30])
    parser.add_argument("--picture", type=Path, help="Draw connectomes and densities here.")
    arguments = parser.parse_args()
    reference, found = compared(arguments.directions, arguments.weights)
    Console(width=120).print(table(reference, found))
    if arguments.picture:
        picture(arguments.picture, reference, found)


if __name__ == "__main__":
    main()
