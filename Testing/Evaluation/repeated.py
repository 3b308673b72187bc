"""Whether maps of few volumes are those of the other volumes, in real tissue.

    python Testing/Evaluation/repeated.py [WEIGHTS] [--scan SCAN] [--bval 1200]

MD can only be judged where b0 was measured more than once: one b0 and a few directions of a shell are given, and the
judge is weighted least squares of all other volumes of the shell, the other b0s among them. The judge has errors of its
own, of known size: they are in every method's figure, and the prior's intervals are widened by them. Noise makes its FA
too high where that is low, and voxels that are chosen for their high FA are those where noise raised it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from baselines import conventional, least_squares
from calibration import SHARES
from methods import PER_UNIT, PRIOR, by_prior, scalars, wls_errors
from numpy.typing import NDArray
from prior import MAX_TISSUE_MD, MIN_FA, SCANS, well_conditioned
from rich.console import Console
from rich.table import Table
from scores import coverage, rmse

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.preprocessing.noise import estimate_noise
from DiffusionFMLib.prior.weights import weights_file
from DiffusionFMLib.settings import ScanSettings

SCAN = SCANS / "mrtrix_msmt_3shell_crop" / "dwi.nii.gz"

MIN_SPARED = 6
"""Directions of the judge, for a tensor."""

FLUID_MD = 2.0
"""um2/ms."""


def shell_of(path: Path, bval: float) -> Acquisition:
    """The b0s and one shell of a scan that was cropped within a head: all that has signal is brain."""
    scan = read_acquisition(ScanSettings(dwi=str(path)), SilentReport())
    shell = min(scan.gtab.shells, key=lambda shell: abs(shell.bval - bval))
    volumes = np.sort(np.r_[np.flatnonzero(scan.gtab.b0_mask), np.array(shell.indices)])
    return scan.with_mask(scan.signal[..., scan.gtab.b0_mask].mean(-1) > 0).subset(volumes, "a shell")


def compared(
    scan: Acquisition, count: int, seeds: range, weights: Path
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str, str], NDArray]]:
    """How far every method is from the judge when so many directions are given, medians over draws of them.

    Parameters
    ----------
    scan : Acquisition
        Of one shell, with a mask.
    count : int
        Directions that are given, with the first b0.
    seeds : range
        Of the draws.
    weights : path
        Of the prior.

    Returns
    -------
    judges : dict of float
        Median standard deviation of the judge, by place and map; FA, and MD in um2/ms.
    methods : dict of array, shape (3,) or (5,)
        RMSE, bias, correlation, and of the prior how often its 50 % and 90 % intervals hold the judge; by place, map
        and method.

    Raises
    ------
    SystemExit
        If too little is left for the judge.
    """
    b0s, spared = int(scan.gtab.b0_mask.sum()) - 1, int((~scan.gtab.b0_mask).sum()) - count
    if b0s < 1 or spared < MIN_SPARED:
        msg = f"{scan.name} ({scan.gtab.summary()}) leaves {b0s} b0s and {spared} directions to the judge, which needs "
        raise SystemExit(f"{msg}1 and {MIN_SPARED}. Give fewer --directions, or a scan with several b0s.")
    if scan.mask is None or (noise := estimate_noise(scan, scan.mask)) is None:
        msg = f"{scan.name} has no mask, or its noise cannot be estimated. Give another scan."
        raise SystemExit(msg)
    sigma = noise.sigma_map[scan.mask]
    judges, methods = defaultdict(list), defaultdict(list)
    for seed in seeds:
        chosen = well_conditioned(scan.gtab, count, np.random.default_rng(seed))
        given = scan.subset(chosen, "given")
        others = scan.subset(np.setdiff1d(np.arange(len(scan.gtab)), chosen), "the judge's")
        theta = least_squares(others, scan.mask, sigma, ridge=False)
        judge, own = scalars(theta), wls_errors(theta, others.gtab, sigma)
        tissue = judge["md"] < MAX_TISSUE_MD
        places = {
            "white matter": tissue & (judge["fa"] > MIN_FA),
            "other tissue": tissue & (judge["fa"] <= MIN_FA),
            "fluid": judge["md"] > FLUID_MD,
        }
        estimates = {name: scalars(one) for name, one in conventional(given, scan.mask, sigma, True).items()}
        estimates[PRIOR] = prior = by_prior(given, weights)
        for place, here in places.items():
            for name in PER_UNIT:
                judges[place, name].append(np.median(own[name][here]))
                for method, maps in estimates.items():
                    left = (maps[name] - judge[name])[here]
                    row = [rmse(left), left.mean(), np.corrcoef(maps[name][here], judge[name][here])[0, 1]]
                    if method == PRIOR:
                        sd = np.hypot(prior[f"{name}_sd"], own[name])[here]
                        row += [coverage(left, sd, share) for share in SHARES]
                    methods[place, name, method].append(row)
    return (
        {key: float(np.median(values)) for key, values in judges.items()},
        {key: np.median(rows, axis=0) for key, rows in methods.items()},
    )


def table(scan: Acquisition, directions: list[int], subsets: int, weights: Path) -> Table:
    result = Table(
        "directions", "place", "map", "judge's sd", "method", "RMSE", "bias", "correlation", "in 50 %", "in 90 %",
        title=f"{scan.name}, {scan.gtab.summary()}, {subsets} subsets",
    )  # fmt: skip
    for count in directions:
        judges, methods = compared(scan, count, range(subsets), weights)
        for (place, name, method), (error, bias, together, *held) in methods.items():
            result.add_row(
                str(count), place, name.upper(), f"{judges[place, name]:.3f}", method, f"{error:.3f}", f"{bias:+.3f}",
                f"{together:.2f}", *(f"{share:.0%}" for share in held),
            )  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path, nargs="?", help="else those that are shipped")
    parser.add_argument("--scan", type=Path, default=SCAN)
    parser.add_argument("--bval", type=float, default=1200.0)
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 12])
    parser.add_argument("--subsets", type=int, default=5)
    arguments = parser.parse_args()
    console = Console(width=150)
    if not arguments.scan.is_file():
        console.print(f"no scan: {arguments.scan} is not there")
        return
    scan = shell_of(arguments.scan, arguments.bval)
    console.print(table(scan, arguments.directions, arguments.subsets, arguments.weights or weights_file("", DTI())))


if __name__ == "__main__":
    main()
