"""How far simulated white matter is as fine as real white matter.

    python Testing/Evaluation/anatomy.py [--data FOLDER]

In voxels of high FA: by how many degrees the main direction turns to the next voxel along each axis, median and 90 %
quantile; what share of the brain they are; how many of them lie among their own kind on all six sides; and their FA. Of
real scans, and of simulated heads that no training saw, at about as much noise, which turns directions too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from baselines import least_squares, maps
from calibration import heads
from numpy.typing import NDArray
from prior import MAX_TISSUE_MD, MIN_FA, ROOT, angle
from rich.console import Console
from rich.table import Table
from simulated_scans import Scan, protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.preprocessing.noise import estimate_noise
from DiffusionFMLib.settings import ScanSettings

DATA = ROOT.parent / "shared" / "data"
REAL = (
    "test/philips_bangalore_32dir/dwi",
    "train/philips_elition_16dir_T1/dwi",
    "train/niivue_dsistudio_b2000/dwi",
    "train/siemens_decubitus_b1000_T1/dwi_HFS",
    "train/uih_16dir_b950_T1/dwi_AP",
)
SIMULATED = ((32, 21.0), (16, 26.0), (16, 60.0))
"""Directions and SNR: the first two are those of the first two real scans."""


def turns(v1: NDArray, white: NDArray[np.bool_]) -> list[NDArray]:
    """Degrees between the directions, shape (X, Y, Z, 3), of neighbours that are both white matter, along each axis."""
    found = []
    for axis in range(3):
        direction, inside = np.moveaxis(v1, axis, 0), np.moveaxis(white, axis, 0)
        both = inside[1:] & inside[:-1]
        found.append(angle(direction[1:][both], direction[:-1][both]))
    return found


def surrounded(white: NDArray[np.bool_]) -> float:
    """Share of the white matter's voxels whose six neighbours are white matter too."""
    padded = np.pad(white, 1)
    sides = [np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for step in (1, -1)]
    return float(np.all(sides, axis=0)[white].mean())


def row_of(name: str, scan: Acquisition, mask: NDArray[np.bool_], sigma: NDArray) -> list[str]:
    """What the table tells of a scan's white matter; `sigma`, shape (V,), is the noise of the mask's voxels."""
    found = maps(least_squares(scan, mask, sigma, ridge=True))
    white, v1 = np.zeros(mask.shape, bool), np.zeros((*mask.shape, 3))
    white[mask] = (found["fa"] > MIN_FA) & (found["md"] * 1e3 < MAX_TISSUE_MD)
    v1[mask] = found["v1"]
    steps = [f"{np.median(step):.0f}, {np.quantile(step, 0.9):.0f}" for step in turns(v1, white)]
    size = " x ".join(f"{edge:.1f}" for edge in scan.voxel_sizes)
    fa = found["fa"][white[mask]].mean()
    return [name, size, *steps, f"{white.sum() / mask.sum():.2f}", f"{surrounded(white):.2f}", f"{fa:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real scans")
    parser.add_argument("--heads", type=int, default=2, help="simulated brains, and as many random phantoms")
    arguments = parser.parse_args()
    table = Table(
        "scan", "mm", "turn x", "turn y", "turn z", "of the brain", "surrounded", "FA",
        title="White matter: degrees to the next voxel, median and 90 %; its share; how much lies among its own kind",
    )  # fmt: skip
    for name in REAL:
        path = arguments.data / f"{name}.nii.gz"
        if path.is_file():
            scan = read_acquisition(ScanSettings(dwi=str(path)), SilentReport())
            mask = brain_mask(scan)
            if noise := estimate_noise(scan, mask):
                table.add_row(*row_of(name.split("/")[1], scan, mask, noise.sigma_map[mask]))
    for number, head in enumerate(heads(arguments.heads)):
        for directions, snr in SIMULATED:
            one = Scan.of(head, protocol(directions, snr), 0)
            kind = "phantom" if number % 2 else "brain"
            table.add_row(*row_of(f"{kind} {number // 2}, SNR {snr:g}", one.acquisition, one.mask, one.sigma))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
