"""Pictures of what the tables say: simulated scans, and FA of real ones where they are.

    python Testing/Evaluation/figures.py WEIGHTS [--out build/figures] [--scans FOLDER]

``acceleration.png``: errors by the number of directions. ``maps.png``: what six directions give in a brain with a
lesion, beside the truth, with the standard deviation and the disagreement. ``intervals.png``: how often intervals hold
the truth, by the share that they should. ``scanners.png``: FA of six directions of real scans, beside that of all.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from baselines import DENOISED_WLS, RIDGE, SMOOTHED, WLS, conventional, least_squares, maps
from calibration import judged
from methods import PRIOR, by_prior
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from prior import MIN_FA, REAL, SCANS, angle, well_conditioned
from scores import coverage, rmse
from simulated_scans import Head, Scan, brain, protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.preprocessing.noise import estimate_noise
from DiffusionFMLib.settings import ScanSettings, SimulateSettings
from DiffusionFMLib.simulation.scanner import simulate
from DiffusionFMLib.simulation.tissue import WM_S0

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SHOWN = (WLS, DENOISED_WLS, SMOOTHED, PRIOR)

DIRECTIONS = (3, 6, 9, 12, 20, 30, 45, 60)
SNR = 15.0
SEED = 1000
SPARSE = 6
HEADS = 2
"""Brains, and phantoms, that intervals are judged in."""

Maps = dict[str, NDArray[np.floating]]
"""``fa``, ``md`` in um2/ms and ``v1``; of V voxels, or of a volume."""


def by_every_method(scan: Acquisition, sigma: NDArray, weights: Path) -> dict[str, Maps]:
    """Maps of a scan with a mask, shape (V, ...), by all of `SHOWN`, and what comes with the prior's."""
    found = {}
    for name, theta in conventional(scan, scan.mask, sigma, denoise=True).items():
        if name != RIDGE:
            made = maps(theta)
            found[name] = {"fa": made["fa"], "md": made["md"] * 1e3, "v1": made["v1"]}
    return {**found, PRIOR: by_prior(scan, weights)}


# --- acceleration ------------------------------------------------------------------------------------------


def acceleration(weights: Path) -> Figure:
    """Root mean square errors of FA and MD, and the angle of V1, by the number of directions."""
    head = Head.of(brain(SEED), SEED)
    errors: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in SHOWN}
    for count in DIRECTIONS:
        scan = Scan.of(head, protocol(count, SNR), SEED)
        true = maps(scan.theta)
        tissue = true["md"] * 1e3 < 1.5
        fibres = tissue & (true["fa"] > MIN_FA)
        for name, found in by_every_method(scan.acquisition, scan.sigma, weights).items():
            errors[name]["FA"].append(rmse((found["fa"] - true["fa"])[tissue]))
            errors[name]["MD, um2/ms"].append(rmse((found["md"] - 1e3 * true["md"])[tissue]))
            errors[name]["V1, degrees"].append(float(angle(found["v1"], true["v1"])[fibres].mean()))
    figure = _figure(11, 3.6)
    axes = figure.subplots(1, 3)
    for ax, what in zip(axes, errors[PRIOR], strict=True):
        for name, values in errors.items():
            ax.plot(DIRECTIONS, values[what], "o-", label=name, linewidth=3 if name == PRIOR else 1.2, markersize=4)
        ax.set(title=f"Error of {what}", xlabel="directions", xscale="log", yscale="log")
        ax.set_xticks(DIRECTIONS, [str(count) for count in DIRECTIONS], minor=False)
        ax.minorticks_off()
        low, high = ax.get_ylim()
        ticks = [t for t in (0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 2, 3, 5, 10, 20, 40) if low <= t <= high]
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"A simulated brain that no training saw, one b0, SNR {SNR:g}")
    return figure


# --- maps --------------------------------------------------------------------------------------------------


def sparse_maps(weights: Path) -> Figure:
    """One slice through a lesion: colour FA and MD by every method; the prior's own maps of its trust."""
    simulated = simulate(SimulateSettings(shells=f"1000:{SPARSE}", n_b0=1, snr=SNR, seed=SEED), SilentReport())
    scan, truth = simulated.acquisition, simulated.truth
    mask = scan.mask
    found = by_every_method(scan, np.full(int(mask.sum()), WM_S0 / SNR), weights)
    true = {name: truth[name].data[mask] for name in ("fa", "md", "v1")}
    shown: dict[str, Maps] = {"truth": {**true, "md": true["md"] * 1e3}, **{name: found[name] for name in SHOWN}}
    level = int(np.median(np.argwhere(canonical(truth["lesion"].data, scan.affine))[:, 2]))
    shows = Slice(mask, scan.affine, level)

    figure = _figure(2 * len(shown) + 2, 6.2)
    axes = figure.subplots(2, len(shown) + 1)
    for column, (name, values) in zip(axes.T, shown.items(), strict=False):
        colours = np.clip(values["fa"][:, None] * np.abs(values["v1"]), 0, 1)
        shows.draw(column[0], colours)
        column[0].set_title(name)
        drawn = shows.draw(column[1], values["md"], (0, 2.2))
    _scale(figure, drawn, axes[1, :-1], "MD, um2/ms")
    for ax, name, high, colours, label in (
        (axes[0, -1], "md_sd", 0.15, "viridis", "sd of MD, um2/ms"),
        (axes[1, -1], "disagreement", 6, "inferno", "disagreement"),
    ):
        drawn = shows.draw(ax, found[PRIOR][name], (0, high), colours)
        _scale(figure, drawn, np.array([ax]), label)
    axes[0, -1].set_title("prior's trust")
    figure.suptitle(f"One b0 and {SPARSE} directions, SNR {SNR:g}: a simulated brain with a lesion")
    return figure


# --- intervals ---------------------------------------------------------------------------------------------


def intervals(weights: Path) -> Figure:
    """How often intervals hold the truth, in heads with lesions."""
    shares = np.linspace(0.1, 0.95, 18)
    figure = _figure(8, 3.8)
    for ax, count in zip(figure.subplots(1, 2), (SPARSE, 30), strict=True):
        ax.plot([0, 1], [0, 1], color="grey", linewidth=1)
        for name, values in judged(count, SNR, weights, HEADS).items():
            held = [coverage(values["error"], values["sd"], share) for share in shares]
            ax.plot(shares, held, label=name.upper())
        ax.set(title=f"{count} directions", xlabel="share that intervals should hold", ylabel="share that they hold")
        ax.legend()
    return figure


# --- real scans --------------------------------------------------------------------------------------------


def scanners(weights: Path, folder: Path) -> Figure | None:
    """FA of six directions of each real scan, and of all; None where there are no scans."""
    rows = {}
    for name in REAL:
        path = folder / f"{name}.nii.gz"
        if path.is_file():
            scan = read_acquisition(ScanSettings(dwi=str(path)), SilentReport())
            rows[name] = scan.with_mask(brain_mask(scan))
    if not rows:
        return None
    columns = ("all directions", *SHOWN)
    figure = _figure(3 * len(columns), 3.3 * len(rows))
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row, (name, scan) in zip(axes, rows.items(), strict=True):
        noise = estimate_noise(scan, scan.mask)
        sigma = noise.sigma_map[scan.mask] if noise else np.ones(int(scan.mask.sum()))
        few = well_conditioned(scan.gtab, SPARSE, np.random.default_rng(0))
        part = replace(scan, signal=scan.signal[..., few], gtab=scan.gtab.subset(few))
        found = by_every_method(part, sigma, weights)
        everything = maps(least_squares(scan, scan.mask, sigma, ridge=False))
        middle = np.argwhere(canonical(scan.mask, scan.affine))[:, 2].mean()
        shows = Slice(scan.mask, scan.affine, round(float(middle)))
        for ax, column in zip(row, columns, strict=True):
            fa = (found[column] if column in found else everything)["fa"]
            shows.draw(ax, fa)
            ax.set_title(column)
        row[0].set_ylabel(name.split("/")[0], fontsize=7)
    figure.suptitle(f"FA of one b0 and {SPARSE} directions")
    return figure


# --- drawing -----------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@dataclass(frozen=True, eq=False)
class Slice:
    """An axial slice of a scan, cropped to the brain, as radiologists look at it: the patient's right on the left.

    Parameters
    ----------
    mask : array, shape (X, Y, Z), bool
        Its V voxels have values.
    affine : array, shape (4, 4)
    level : int
        Voxels from the bottom.
    """

    mask: NDArray[np.bool_]
    affine: NDArray[np.float64]
    level: int

    def of(self, values: NDArray) -> NDArray:
        """The slice of values, shape (V, ...), as an image."""
        volume = np.zeros((*self.mask.shape, *values.shape[1:]))
        volume[self.mask] = values
        inside = np.argwhere(canonical(self.mask, self.affine))
        (x, y, _), (right, front, _) = inside.min(0), inside.max(0) + 1
        return np.swapaxes(canonical(volume, self.affine)[x:right, y:front, self.level], 0, 1)

    def draw(self, ax: Axes, values: NDArray, window: tuple[float, float] = (0, 1), colours: str = "gray") -> AxesImage:
        """Draw values, shape (V, ...)."""
        edges = np.linalg.norm(self.affine[:3, :3], axis=0)[np.argsort(io_orientation(self.affine)[:, 0])]
        low, high = window
        drawn = ax.imshow(
            self.of(values), origin="lower", cmap=colours, vmin=low, vmax=high, aspect=edges[1] / edges[0]
        )
        ax.invert_xaxis()
        ax.set_xticks([])
        ax.set_yticks([])
        ax.text(0.03, 0.97, "R", color="white", va="top", transform=ax.transAxes)
        return drawn


def canonical(volume: NDArray, affine: NDArray) -> NDArray:
    """A volume with its axes nearest to RAS."""
    return apply_orientation(volume, io_orientation(affine))


def _scale(figure: Figure, drawn: AxesImage, axes: NDArray, label: str) -> None:
    figure.colorbar(drawn, ax=list(axes.ravel()), location="bottom", shrink=0.5, aspect=30, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/figures"))
    parser.add_argument("--scans", type=Path, default=SCANS)
    parser.add_argument("--only", choices=("acceleration", "maps", "intervals", "scanners"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    made = {
        "acceleration": lambda: acceleration(arguments.weights),
        "maps": lambda: sparse_maps(arguments.weights),
        "intervals": lambda: intervals(arguments.weights),
        "scanners": lambda: scanners(arguments.weights, arguments.scans),
    }
    for name, draw in made.items():
        if arguments.only in (None, name):
            figure = draw()
            if figure is None:
                print(f"no real scans: {arguments.scans} has none")
                continue
            figure.savefig(arguments.out / f"{name}.png", dpi=80)
            print(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
