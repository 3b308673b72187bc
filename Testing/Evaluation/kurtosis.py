"""Whether sparse kurtosis is right in simulated heads, and predicts volumes that it was not given of a real scan.

    python Testing/Evaluation/kurtosis.py [WEIGHTS] [--only simulated]

A scan is one b0 and as many directions on a low shell as on a high one. In simulated heads with lesions, that no
training saw: RMSE of FA, MD, MK and the tensor's mean kurtosis MKT in healthy tissue and in lesions, and how often the
50 % and 90 % intervals of the prior hold the truth. On the real scan: mean square of what is left of the volumes held
out, over the noise's, and its mean.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from baselines import RIDGE, SMOOTHED, least_squares, smoothed
from calibration import heads
from numpy.typing import NDArray
from prior import MAX_TISSUE_MD, SCANS, residuals
from rich.console import Console
from rich.table import Table
from scores import coverage, rmse
from simulated_scans import TISSUES, Head, Scan

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import Fit
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.physics import DKI
from DiffusionFMLib.preprocessing.noise import NoiseEstimate, estimate_noise
from DiffusionFMLib.prior.adaptation import adapt, can_adapt
from DiffusionFMLib.prior.estimate import ScanPosterior, estimate
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.prior.weights import TrainedPrior, load_weights, weights_file
from DiffusionFMLib.settings import FitSettings, ScanSettings
from DiffusionFMLib.simulation.scanner import repelled_directions
from DiffusionFMLib.training.protocols import Protocol

MODEL = DKI()
MAPS = ("fa", "md", "mk", "mkt")
UNADAPTED, PRIOR = "prior, not adapted", "prior"
HEADS = 1
"""Brains, and phantoms."""

SHELLS = (1000.0, 2000.0)

NAME = "mrtrix_msmt_3shell_crop/dwi"
REAL_SHELLS = (700.0, 2800.0)
"""Of its three."""

CLIP = 8.0
"""Residuals beyond it, sigma, are of volumes that moved."""


def by_smoothers(scan: Acquisition, noise: NoiseEstimate) -> dict[str, NDArray]:
    """Parameters, shape (22, V) each, of a scan with a mask by what needs no training."""
    ridge = least_squares(scan, scan.mask, noise.sigma_map[scan.mask], ridge=True, model=MODEL)
    return {RIDGE: ridge, SMOOTHED: smoothed(ridge, scan.mask, 0.5)}


def by_prior(scan: Acquisition, noise: NoiseEstimate, trained: TrainedPrior) -> dict[str, NDArray]:
    """Parameters, shape (22, V) each, by the prior, as it was trained and adapted, where the noise is known."""
    posterior = ScanPosterior(scan, scan.mask, noise, trained)
    found = {UNADAPTED: estimate(posterior, SilentReport()).theta}
    if can_adapt(posterior):
        posterior.trained = replace(trained, adjustment=adapt(posterior, 0, SilentReport()))
        found[PRIOR] = estimate(posterior, SilentReport()).theta
    return found


def as_given(scan: Acquisition, weights: Path) -> dict[str, Fit]:
    """The same as a user gets it, who does not know the noise, with standard deviations."""
    settings = FitSettings(model=MODEL.name, method="prior", weights=str(weights), device="cpu")
    return {
        name: fit(scan, MODEL, replace(settings, adaptation=adaptation), SilentReport())
        for name, adaptation in ((UNADAPTED, "none"), (PRIOR, "adapt"))
    }


def maps_of(theta: NDArray) -> dict[str, NDArray]:
    """Scalar maps, shape (V,) each; MD in um2/ms."""
    made = MODEL.maps(torch.as_tensor(theta.T.astype(np.float32)))
    return {name: made[name].numpy() * (1e3 if name == "md" else 1) for name in MAPS}


def sparse(directions: int, snr: float) -> Protocol:
    """One b0, and so many directions on each shell, those of the second between those of the first."""
    first = repelled_directions(2 * directions)
    bvecs = np.vstack([np.zeros((1, 3)), first[::2], first[1::2]])
    return Protocol(np.r_[0, np.repeat(SHELLS, directions)], bvecs, 1 / snr, np.zeros(3))


def simulated(directions: int, snr: float, weights: Path) -> Table:
    """Errors in simulated heads."""
    table = Table(
        "method", "where", *(f"{name.upper()}" for name in MAPS), *(f"{name.upper()} held" for name in MAPS[1:]),
        title=f"Simulated heads, 1 b0 and {directions} directions at b = 1000 and 2000, SNR {snr:g}",
    )  # fmt: skip
    errors: dict[tuple[str, str], dict[str, list[NDArray]]] = {}
    for seed, head in enumerate(heads(HEADS)):
        scan = Scan.of(head, sparse(directions, snr), seed, MODEL)
        mask, sigma = scan.mask, float(scan.sigma[0])
        noise = NoiseEstimate(sigma, np.where(mask, sigma, 0).astype(np.float32), (0.0, 0.0, 0.0), 99)
        true, given = maps_of(scan.theta), as_given(scan.acquisition, weights)
        thetas = by_smoothers(scan.acquisition, noise) | {name: one.parameters.T for name, one in given.items()}
        for method, theta in thetas.items():
            made = maps_of(theta)
            sd = {name: given[method].maps[f"{name}_sd"].data[mask] for name in MAPS} if method in given else {}
            for where, some in _places(head).items():
                kept = errors.setdefault((method, where), {})
                for name in MAPS:
                    kept.setdefault(name, []).append((made[name] - true[name])[some])
                    if name in sd:
                        unit = 1e3 if name == "md" else 1
                        kept.setdefault(f"{name} sd", []).append(unit * sd[name][some])
    for (method, where), kept in errors.items():
        joined = {name: np.concatenate(parts) for name, parts in kept.items()}
        held = [
            " ".join(f"{coverage(joined[name], joined[f'{name} sd'], share):.0%}" for share in (0.5, 0.9))
            if f"{name} sd" in joined else "" for name in MAPS[1:]
        ]  # fmt: skip
        cells = [f"{rmse(joined[name]):.3f} {joined[name].mean():+.3f}" for name in MAPS]
        table.add_row(method, where, *cells, *held)
    return table


def _places(head: Head) -> dict[str, NDArray[np.bool_]]:
    """Masked voxels, shape (V,), of healthy tissue and of lesions; no fluid."""
    inside, ill = head.mask.ravel(), np.zeros(len(head.tissue), bool)
    for lesion in head.lesions:
        ill[lesion.voxels] = True
    solid = head.tissue != TISSUES.index("fluid")
    return {"healthy": (head.healthy & solid)[inside], "lesion": ill[inside]}


def real(path: Path, directions: int, subsets: int, trained: TrainedPrior) -> Table:
    """What is left of volumes that were held out of a real scan."""
    scan = read_acquisition(ScanSettings(dwi=str(path)), SilentReport())
    # a crop within a head: all that has signal is brain
    mask = scan.signal[..., scan.gtab.b0_mask].mean(-1) > 0
    scan, noise = scan.with_mask(mask), estimate_noise(scan, mask)
    if noise is None:
        msg = f"The noise of {path} cannot be estimated."
        raise SystemExit(msg)
    shells = [np.array(s.indices) for s in scan.gtab.shells if round(s.bval, -2) in REAL_SHELLS]
    table = Table(
        "method", "left", "mean",
        title=f"{path.parent.name}: {directions} directions at b = 700 and 2800, others predicted; {subsets} subsets",
    )  # fmt: skip
    # by all volumes, the same for every method
    tissue = maps_of(by_smoothers(scan, noise)["ridge"])["md"] < MAX_TISSUE_MD
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(subsets):
        rng = np.random.default_rng(seed)
        first = np.flatnonzero(scan.gtab.b0_mask)[:1]
        chosen = np.sort(np.concatenate([first, *(rng.permutation(shell)[:directions] for shell in shells)]))
        held = np.setdiff1d(np.concatenate(shells), chosen)
        part = replace(
            scan, signal=np.ascontiguousarray(scan.signal[..., chosen]), gtab=scan.gtab.subset(chosen), mask=mask
        )
        for method, theta in (by_smoothers(part, noise) | by_prior(part, noise, trained)).items():
            left = residuals(theta, scan, mask, held, noise.sigma_map[mask], MODEL)[tissue].clip(-CLIP, CLIP)
            found.setdefault(method, []).append((float((left**2).mean()), float(left.mean())))
    for method, values in found.items():
        left, mean = np.median(values, axis=0)
        table.add_row(method, f"{left:.3f}", f"{mean:+.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path, nargs="?", help="else those that are shipped")
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 30], help="of each shell of simulated scans")
    parser.add_argument("--snr", type=float, default=20.0)
    parser.add_argument("--scan", type=Path, default=SCANS / f"{NAME}.nii.gz")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--only", choices=("simulated", "real"))
    arguments = parser.parse_args()
    weights = arguments.weights or weights_file("", MODEL)
    console = Console(width=150)
    if arguments.only != "real":
        for directions in arguments.directions:
            console.print(simulated(directions, arguments.snr, weights))
    if arguments.only != "simulated":
        if arguments.scan.is_file():
            console.print(real(arguments.scan, 6, arguments.subsets, load_weights(weights)))
        else:
            console.print(f"no scan: {arguments.scan} is not there")


if __name__ == "__main__":
    main()
