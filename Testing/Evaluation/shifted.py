"""Whether the prior stays right where scans are not what it was trained on: other phantoms, and other orientations.

    python Testing/Evaluation/shifted.py build/prior_small/prior.safetensors

Phantoms of other anatomy, other tissue, sharp borders and correlated noise: RMSE of FA and MD outside fluid. The same
scan on a grid turned by 90 degrees, and of a head that lies so: how far FA moves. A grid turned by 20 degrees is
another simulation with other noise, so there the errors are compared, not the maps.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from baselines import DENOISED_WLS, SMOOTHED, WLS, conventional
from methods import PRIOR, by_prior, scalars
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation
from scores import rmse
from simulated_scans import TISSUES, VOXEL, Head, Scan, brain, phantom, protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.training.anatomies import WEIGHTS
from DiffusionFMLib.training.rendering import TissueProperties

SEED = 1003
EDGE = 24
"""Of the phantoms, voxels."""

TURNED_EDGE = 32
"""Of heads that are scanned in several orientations."""

OTHER_TISSUE = TissueProperties(
    inside_axons=0.3, inside_neurites=0.1, along=2.9, beside_along=2.3, beside_across=1.3, grey=1.4, fluid=3.2,
    grey_s0=1.7, fluid_s0=4.5,
)  # fmt: skip
"""Each of them beyond what training draws."""

CORRELATION = (0.5, 0.5, 0.2)

NO_WORSE = 1.02
"""Than weighted least squares: the bar."""

MARK = " !"

STORED = {
    "grid 90 deg about x": ((0, 2, 1), (1, 1, -1)),
    "grid 90 deg about y": ((2, 1, 0), (-1, 1, 1)),
    "grid 90 deg about z": ((1, 0, 2), (1, -1, 1)),
    "grid left-handed": ((0, 1, 2), (-1, 1, 1)),
}
"""Order and sense of the voxel axes; the head stays."""

LYING = {f"head 90 deg about {axis}": Rotation.from_euler(axis, 90, degrees=True).as_matrix() for axis in "xyz"}
"""Heads that lie otherwise in the scanner, and the grid with them."""

TURN = Rotation.from_rotvec(np.radians(20) * np.array([0.6, -0.48, 0.64])).as_matrix()


# --- phantoms --------------------------------------------------------------------------------------------


def hardened(head: Head) -> Head:
    """Each voxel all of what it has most of, and its fibres all one population."""
    fields = head.contents.fields.clone()
    white = fields[0] + fields[1]
    most = torch.stack([white, fields[2], fields[3]]).argmax(0)
    second = (fields[1] > fields[0]).float()
    fields[WEIGHTS] = torch.stack([(most == 0) * (1 - second), (most == 0) * second, most == 1, most == 2]).float()
    return replace(head, contents=replace(head.contents, fields=fields))


def phantoms() -> dict[str, tuple[Head, tuple[float, float, float]]]:
    """Heads and how their noise is correlated."""
    plain = Head.of(phantom(SEED), SEED, EDGE)
    white = (0.0, 0.0, 0.0)
    return {
        "other anatomy": (plain, white),
        "other tissue": (replace(plain, contents=replace(plain.contents, properties=OTHER_TISSUE)), white),
        "sharp borders": (hardened(plain), white),
        "correlated noise": (plain, CORRELATION),
    }


def errors(title: str, directions: list[int], snrs: list[float], denoised: set[int], weights: Path) -> Table:
    """RMSE of one phantom, by every method; MP-PCA only at some numbers of directions."""
    head, correlation = phantoms()[title]
    methods = (WLS, DENOISED_WLS, SMOOTHED, PRIOR)
    table = Table(
        "dirs", "SNR", *(f"{name} {method}" for name in ("FA", "MD") for method in methods), "data fraction",
        title=f"{title}: RMSE outside fluid;{MARK} where the prior is worse than {WLS} by more than 2 %",
    )  # fmt: skip
    fractions: dict[float, list[float]] = {snr: [] for snr in snrs}
    worst, better = 0.0, []
    for count in directions:
        for snr in snrs:
            scan = Scan.of(head, protocol(count, snr, correlation), SEED)
            tissue = (head.tissue != TISSUES.index("fluid"))[scan.mask.ravel()]
            thetas = conventional(scan.acquisition, scan.mask, scan.sigma, count in denoised)
            posterior = by_prior(scan.acquisition, weights)
            found = {**{method: scalars(theta) for method, theta in thetas.items()}, PRIOR: posterior}
            true, cells = scalars(scan.theta), []
            for name in ("fa", "md"):
                off = {method: rmse((maps[name] - true[name])[tissue]) for method, maps in found.items()}
                worst = max(worst, off[PRIOR] / off[WLS])
                if DENOISED_WLS in off:
                    better.append(off[PRIOR] / off[DENOISED_WLS])
                cells += [f"{off[method]:.3f}" if method in off else "" for method in methods]
                cells[-1] += MARK if off[PRIOR] > NO_WORSE * off[WLS] else ""
            fractions[snr].append(float(posterior["datafraction"][tissue].mean()))
            table.add_row(str(count), f"{snr:g}", *cells, f"{fractions[snr][-1]:.2f}")
    grows = all(np.all(np.diff(shares) > 0) for shares in fractions.values())
    table.caption = (
        f"at most {worst:.2f} times {WLS}; data fraction {'grows' if grows else 'DOES NOT GROW'} with directions"
    )
    if better:
        table.caption += f"; {np.mean(better):.2f} times {DENOISED_WLS} on average"
    return table


# --- orientations ----------------------------------------------------------------------------------------


def stored(scan: Acquisition, order: tuple[int, ...], signs: tuple[int, ...]) -> Acquisition:
    """The same scan with its voxel axes in another order and sense; the gradients are in RAS and stay."""
    flips = tuple(slice(None, None, sign) for sign in signs)
    signal = np.ascontiguousarray(scan.signal.transpose(*order, 3)[flips])
    mask = np.ascontiguousarray(scan.mask.transpose(order)[flips])
    affine = scan.affine.copy()
    affine[:3, :3] = scan.affine[:3, :3][:, list(order)] * signs
    return replace(scan, signal=signal, mask=mask, affine=affine)


def lying(scan: Acquisition, turn: NDArray) -> Acquisition:
    """The same scan, of a head that was turned in the scanner together with the grid."""
    affine = scan.affine.copy()
    affine[:3] = turn @ scan.affine[:3]
    return replace(scan, affine=affine, gtab=GradientTable(scan.gtab.bvals, scan.gtab.bvecs @ turn.T))


def restored(values: NDArray, mask: NDArray[np.bool_], order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray:
    """Values of `stored`'s masked voxels, shape (V,), in the order of the first scan's."""
    flips = tuple(slice(None, None, sign) for sign in signs)
    volume = np.zeros(mask.shape, values.dtype)
    volume[mask] = values
    back, inside = (stack[flips].transpose(np.argsort(order)) for stack in (volume, mask))
    return back[inside]


def orientations(directions: list[int], snr: float, weights: Path) -> Table:
    """How far FA moves when a scan is stored otherwise, its head lies otherwise, or its directions are turned."""
    table = Table(
        "dirs", "what", "median |dFA|", "in WM", "95 % |dFA|", "median |dMD|",
        title=f"the same scan of a simulated head, stored or lying otherwise, SNR {snr:g}",
    )  # fmt: skip
    head = Head.of(brain(SEED), SEED, TURNED_EDGE)
    for count in directions:
        scan = Scan.of(head, protocol(count, snr), SEED)
        first = by_prior(scan.acquisition, weights)
        white = (head.tissue == TISSUES.index("WM"))[scan.mask.ravel()]

        moved = {}
        for what, (order, signs) in STORED.items():
            other = stored(scan.acquisition, order, signs)
            found = by_prior(other, weights)
            moved[what] = {name: restored(found[name], other.mask, order, signs) for name in ("fa", "md")}
        for what, turn in LYING.items():
            moved[what] = by_prior(lying(scan.acquisition, turn), weights)
        gtab = scan.acquisition.gtab
        turned = GradientTable(gtab.bvals, gtab.bvecs @ TURN.T)
        moved["20 deg, voxels stay"] = by_prior(replace(scan.acquisition, gtab=turned), weights)
        for what, found in moved.items():
            fa, md = (np.abs(found[name] - first[name]) for name in ("fa", "md"))
            cells = (np.median(fa), np.median(fa[white]), np.quantile(fa, 0.95), np.median(md))
            table.add_row(str(count), what, *(f"{value:.4f}" for value in cells))
    return table


def resimulated(directions: list[int], snr: float, weights: Path) -> Table:
    """Errors of FA in a head and in the same head on a grid turned by 20 degrees, where both have the same anatomy."""
    table = Table(
        "dirs", "tissue", "median error", "turned", "change", "RMSE", "turned",
        title=f"FA in a simulated head and on a grid turned by 20 degrees, SNR {snr:g}",
    )  # fmt: skip
    for count in directions:
        collected: dict[str, list[NDArray]] = {name: [] for name in TISSUES}
        for turn in (None, TURN):
            head = Head.of(brain(SEED, turn), SEED)
            scan = Scan.of(head, protocol(count, snr), SEED)
            error = by_prior(scan.acquisition, weights)["fa"] - scalars(scan.theta)["fa"]
            grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in head.shape), indexing="ij"), axis=-1)
            ball = (np.linalg.norm(grid, axis=-1) * VOXEL < 0.5 * VOXEL * head.shape[0]).ravel()
            for k, name in enumerate(TISSUES):
                collected[name].append(error[(ball & (head.tissue == k))[scan.mask.ravel()]])
        for name, (one, other) in collected.items():
            before, after = np.median(one), np.median(other)
            table.add_row(
                str(count), name, f"{before:+.4f}", f"{after:+.4f}", f"{abs(after - before):.4f}", f"{rmse(one):.3f}",
                f"{rmse(other):.3f}",
            )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 12, 30, 60])
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 20.0, 30.0])
    parser.add_argument(
        "--turned", type=int, nargs="*", default=[6, 30], help="directions of the scans that are turned"
    )
    parser.add_argument(
        "--mppca", type=int, nargs="*", default=[12], help="directions at which MP-PCA is run; it is slow"
    )
    parser.add_argument("--only", choices=("phantoms", "turned"))
    arguments = parser.parse_args()
    console, weights = Console(width=150), arguments.weights
    if arguments.only != "turned":
        for title in phantoms():
            console.print(errors(title, arguments.directions, arguments.snr, set(arguments.mppca), weights))
    if arguments.only != "phantoms":
        console.print(orientations(arguments.turned, 20.0, weights))
        console.print(resimulated(arguments.turned, 20.0, weights))


if __name__ == "__main__":
    main()
