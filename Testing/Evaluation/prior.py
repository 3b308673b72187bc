"""How far the prior is right, beside weighted least squares and the simplest smoothers.

    python Testing/Evaluation/prior.py build/prior_small/prior.safetensors [--phantom SCRIPT] [--scans FOLDER]

On the phantom: RMSE of FA and MD in parenchyma, and the angle of V1. On real scans, at several numbers of directions
drawn at random: the excess of the error on volumes held out, over what a fit of all volumes leaves; the mean residual
there; and the angle of V1 to that of the held-out volumes, whose own noise is in every method's figure. FA against a
noisy fit is no judge, and not shown.
"""

from __future__ import annotations

import argparse
import runpy
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from baselines import SMOOTHED, TENSOR, conventional, least_squares, maps
from methods import by_prior
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scores import coverage

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.physics import DTI, LogLinearModel
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.preprocessing.noise import NoiseEstimate, estimate_noise
from DiffusionFMLib.prior.adaptation import adapt, can_adapt
from DiffusionFMLib.prior.estimate import ScanPosterior, estimate
from DiffusionFMLib.prior.weights import TrainedPrior, load_weights
from DiffusionFMLib.settings import ScanSettings

ROOT = Path(__file__).resolve().parents[2]
PHANTOM = ROOT.parent / "shared" / "phantom" / "phantom.py"
SCANS = ROOT.parent / "shared" / "data" / "test"
REAL = ("philips_bangalore_32dir/dwi", "siemens_xa30_b2500_APPA_T1/dwi_AP", "siemens_xa30_b2500_APPA_T1/dwi_PA")

MAX_TISSUE_MD = 1.2
MIN_FA = 0.35


def thetas(
    acquisition: Acquisition, mask: NDArray[np.bool_], noise: NoiseEstimate, trained: TrainedPrior, denoise: bool
) -> dict[str, NDArray]:
    """Parameters of the tensor by every method, each (7, V), after MP-PCA only if asked to.

    ``pooled`` is the prior without what was learnt: neighbours' information, and the same vague prior everywhere.
    ``unadapted`` is it as it was trained.
    """
    found = conventional(acquisition, mask, noise.sigma_map[mask], denoise)
    pooled, unadapted = (
        estimate(ScanPosterior(acquisition, mask, noise, one), SilentReport()).theta
        for one in (unlearnt(trained), trained)
    )
    scan = ScanPosterior(acquisition, mask, noise, trained)
    if can_adapt(scan):
        scan.trained = replace(trained, adjustment=adapt(scan, 0, SilentReport()))
    adapted = estimate(scan, SilentReport()).theta
    return {**found, "pooled": pooled, "unadapted": unadapted, "prior": adapted}


def unlearnt(trained: TrainedPrior) -> TrainedPrior:
    """The same without what the network adds to its start."""
    network = deepcopy(trained.network)
    with torch.no_grad():
        for layer in (network.head, network.linear):
            layer.weight.zero_()
            layer.bias.zero_()
    return replace(trained, network=network)


def angle(v1: NDArray, other: NDArray) -> NDArray:
    return np.degrees(np.arccos(np.clip(np.abs((v1 * other).sum(-1)), 0, 1)))


# --- phantom ---------------------------------------------------------------------------------------------


def phantom(script: Path, schemes: tuple[str, ...], snrs: tuple[float, ...], weights: Path, denoise: bool) -> Table:
    """RMSE on the phantom of the published figures, and intervals as a user gets them, who does not know the noise."""
    trained = load_weights(weights)
    code = runpy.run_path(str(script))
    fields = code["fields"](0)
    mask = fields["mask"]
    inside = {name: fields[name][mask] for name in ("ndi", "fwf", "odi", "F", "U", "s0")}
    dense_bvals, dense_bvecs = code["make_scheme"]("ref_dti")
    clean = np.maximum(code["signal"](inside, dense_bvals, dense_bvecs), 1e-6)
    dense = GradientTable(dense_bvals, dense_bvecs * [-1, 1, 1])
    truth = maps((np.log(clean) @ np.linalg.pinv(DTI().design(dense)).T).T)
    parenchyma = fields["csf"][mask] < 0.1
    fibres = parenchyma & (truth["fa"] > 0.3)
    table = Table(
        "phantom", "SNR", "method", "FA", "MD um2/ms", "V1 deg", "MD in 50 %", "MD in 90 %",
        title="RMSE in parenchyma, and how often the prior's intervals hold the truth",
    )  # fmt: skip
    for scheme in schemes:
        bvals, bvecs = code["make_scheme"](scheme)
        clean = code["signal"](inside, bvals, bvecs)
        for snr in snrs:
            sigma = 1000.0 / snr
            noisy = code["rician"](clean, np.float32(sigma), seed=int(snr))
            signal = np.zeros((*mask.shape, len(bvals)), np.float32)
            signal[mask] = noisy
            # the script's directions are in the axes of a left-handed image
            gtab = GradientTable(bvals, bvecs * [-1, 1, 1])
            scan = Acquisition(signal, np.diag([-2.0, 2, 2, 1]), gtab, mask)
            noise = NoiseEstimate(sigma, np.where(mask, sigma, 0).astype(np.float32), (0.0, 0.0, 0.0), 99)
            estimates, given = thetas(scan, mask, noise, trained, denoise), by_prior(scan, weights)
            for method, theta in estimates.items():
                found = maps(theta)
                fa = np.sqrt(np.mean((found["fa"] - truth["fa"])[parenchyma] ** 2))
                md = np.sqrt(np.mean((found["md"] - truth["md"])[parenchyma] ** 2)) * 1e3
                v1 = angle(found["v1"], truth["v1"])[fibres].mean()
                cells = [scheme, f"{snr:g}", method, f"{fa:.3f}", f"{md:.3f}", f"{v1:.1f}"]
                if method == "prior":
                    error, sd = (given["md"] - 1e3 * truth["md"])[parenchyma], given["md_sd"][parenchyma]
                    cells += [f"{coverage(error, sd, share):.2f}" for share in (0.5, 0.9)]
                table.add_row(*cells)
    return table


# --- real scans ------------------------------------------------------------------------------------------


def residuals(
    theta: NDArray,
    scan: Acquisition,
    mask: NDArray[np.bool_],
    volumes: NDArray,
    sigma: NDArray,
    model: LogLinearModel = TENSOR,
) -> NDArray:
    """Measured minus expected signal over sigma, shape (V, volumes)."""
    gtab = scan.gtab.subset(volumes)
    predicted = torch.as_tensor(np.exp(np.clip(model.design(gtab) @ theta, -30, 30)).T)
    expected = RicianNoise().mean(predicted, torch.as_tensor(sigma[:, None])).numpy()
    return (scan.signal[mask][:, volumes] - expected) / sigma[:, None]


def well_conditioned(gtab: GradientTable, count: int, rng: np.random.Generator) -> NDArray:
    """The first b0 and random directions, of 30 draws the one that determines the tensor best."""
    weighted = np.flatnonzero(~gtab.b0_mask)
    b0 = np.flatnonzero(gtab.b0_mask)[:1]
    draws = [np.sort(np.r_[b0, rng.permutation(weighted)[:count]]) for _ in range(30)]
    return min(draws, key=lambda draw: np.linalg.cond(DTI().design(gtab.subset(draw))))


def real(path: Path, directions: list[int], subsets: int, trained: TrainedPrior, denoise: bool) -> Table | None:
    """Excess error on held-out volumes of a real scan."""
    scan = read_acquisition(ScanSettings(dwi=f"{path}.nii.gz"), SilentReport())
    mask = brain_mask(scan)
    noise = estimate_noise(scan, mask)
    if noise is None:
        return None
    sigma = noise.sigma_map[mask]
    volumes = len(scan.gtab)
    everything = least_squares(scan, mask, sigma, ridge=False)
    whole = maps(everything)
    tissue = (whole["md"] * 1e3 < MAX_TISSUE_MD) & (sigma > 0)
    fibres = tissue & (whole["fa"] > MIN_FA)
    weighted = np.flatnonzero(~scan.gtab.b0_mask)
    # what the fit used up of each volume's noise is given back
    used = residuals(everything, scan, mask, weighted, sigma)[tissue]
    floor = (used**2).mean() * volumes / (volumes - 7)
    table = Table(
        "directions", "method", "excess", "of smoother", "mean residual", "V1 deg",
        title=f"{path.parent.name}/{path.name}: held-out volumes, {subsets} subsets, floor {floor:.2f}, "
        f"noise correlation {' '.join(f'{c:.2f}' for c in noise.correlation)}",
    )  # fmt: skip
    for count in directions:
        if count >= len(weighted):
            continue
        found = defaultdict(list)
        for seed in range(subsets):
            chosen = well_conditioned(scan.gtab, count, np.random.default_rng(seed))
            part = replace(scan, signal=scan.signal[..., chosen], gtab=scan.gtab.subset(chosen))
            held_out = np.setdiff1d(weighted, chosen)
            rest = np.r_[np.flatnonzero(scan.gtab.b0_mask), held_out]
            remaining = replace(scan, signal=scan.signal[..., rest], gtab=scan.gtab.subset(rest))
            other = maps(least_squares(remaining, mask, sigma, ridge=True))["v1"]
            for method, theta in thetas(part, mask, noise, trained, denoise).items():
                left = residuals(theta, scan, mask, held_out, sigma)[tissue]
                v1 = angle(maps(theta)["v1"], other)[fibres].mean()
                found[method].append(((left**2).mean() - floor, left.mean(), v1))
        medians = {method: np.median(found[method], axis=0) for method in found}
        for method, (excess, mean, v1) in medians.items():
            share = excess / medians[SMOOTHED][0]
            table.add_row(str(count), method, f"{excess:.3f}", f"{share:.2f}", f"{mean:+.3f}", f"{v1:.1f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--phantom", type=Path, default=PHANTOM)
    parser.add_argument("--schemes", nargs="*", default=["b_ss6", "a_ss30"])
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 20.0])
    parser.add_argument("--scans", type=Path, default=SCANS)
    parser.add_argument("--names", nargs="*", default=REAL, help="scans below that folder, without .nii.gz")
    parser.add_argument("--directions", type=int, nargs="*", default=[6, 12, 20])
    parser.add_argument("--subsets", type=int, default=4)
    parser.add_argument("--only", choices=("phantom", "real"))
    parser.add_argument("--no-mppca", action="store_true", help="leave out MP-PCA, which takes most of the time")
    arguments = parser.parse_args()
    trained, console = load_weights(arguments.weights), Console(width=120)
    if arguments.only != "real":
        if arguments.phantom.is_file():
            schemes, snrs = tuple(arguments.schemes), tuple(arguments.snr)
            console.print(phantom(arguments.phantom, schemes, snrs, arguments.weights, not arguments.no_mppca))
        else:
            console.print(f"no phantom: {arguments.phantom} is not there")
    if arguments.only != "phantom":
        for name in arguments.names:
            if (arguments.scans / f"{name}.nii.gz").is_file():
                table = real(
                    arguments.scans / name, arguments.directions, arguments.subsets, trained, not arguments.no_mppca
                )
                console.print(table if table is not None else f"{name}: its noise cannot be estimated")
            else:
                console.print(f"no scan: {arguments.scans / name} is not there")


if __name__ == "__main__":
    main()
