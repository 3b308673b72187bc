"""Calibration of a trained prior: how large its maps' errors are, on simulated scans that it fits as for a user."""

from __future__ import annotations

import time
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import Report, SilentReport
from DiffusionFMLib.fitting import fit as fit_voxels
from DiffusionFMLib.fitting.uncertainty import MAX_ERROR
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import digest_of, outputs
from DiffusionFMLib.physics import METHODS, MODELS, LogLinearModel, SignalModel
from DiffusionFMLib.prior.calibration import FEATURES, Calibration, calibrated_maps, features
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.fitting import uncalibrated_fit
from DiffusionFMLib.prior.weights import TrainedPrior, carrier, load_weights, save_weights, weights_file
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.training.anatomies import WEIGHTS, Anatomy
from DiffusionFMLib.training.examples import DENSE_DIRECTIONS, draw_crop, measured, noise_free_fit, noise_free_signal
from DiffusionFMLib.training.protocols import FAMILIES, Protocol
from DiffusionFMLib.training.rendering import Contents, draw_contents
from DiffusionFMLib.training.settings import PRESETS, TrainSettings
from DiffusionFMLib.training.task import anatomies

NOT_HERE: Final = ("sampler", "crop", "measured")
"""Options that only training has."""

UNCALIBRATED: Final = "uncalibrated.safetensors"
"""Beside the scans that were fitted with it."""

SCANS: Final = 800
EDGE, MARGIN = 28, 2
"""Of a scan, voxels, and how many at each face are only there as neighbours."""

ADAPTED: Final = 6
"""Every so many scans the prior is adapted to the scan, which takes ten times as long."""

FLUID, LESION = 0.2, 0.5
"""Share of a voxel from which it is counted as fluid, or lesion."""

TINY: Final = 1e-12
"""Of a standard deviation, so that nothing is divided by none."""

FEW: Final = 50
"""Voxels of a kind of tissue that count for little more than one."""

VOXELS: Final = 4000
"""That are kept of a scan, of each kind of tissue in proportion to the root of how often it is."""

MIN_VOXELS: Final = 3000
"""In the brain: other scans are nearly all border, and left out."""

QUANTILES: Final = {0.5: 0.67449, 0.9: 1.64485}
"""Shares of the errors that are to be within so many standard deviations."""

STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 4000, 8192, 5e-3, 1e-4
"""Of the regression."""

MIN_ERROR: Final = 1e-3
"""In standard deviations: what is nearer to the truth counts as that near."""


def calibrate(settings: TrainSettings, report: Report) -> Path:
    """Learn factors of the standard deviations that a prior's maps have; returns the file of the calibrated weights.

    Parameters
    ----------
    settings : TrainSettings
        `start` names the weights. Scans of that seed that are in the folder already are kept: the same settings give
        the same weights, in however many pieces they are made.
    report : Report

    Raises
    ------
    SettingsError
        If no folder is given, or that of other weights; if there is no prior for the model, or no scan to learn from;
        or if an option of training is given.
    InputError
        If the weights, or a scan in the folder, cannot be read, or the weights are another model's.
    """
    if not settings.out:
        msg = "No folder for the calibration is given."
        raise SettingsError(msg, "Name one with --out.")
    carried = MODELS[settings.model]
    if not isinstance(carried, LogLinearModel):
        msg = f"There is no prior for {carried.title}."
        raise SettingsError(msg, "Choose another model.")
    if unused := [name for name in NOT_HERE if getattr(settings, name) != getattr(TrainSettings, name)]:
        msg = f"{' and '.join(unused)}: no option for --calibrate, which trains no network."
        raise SettingsError(msg, "Leave it out, or train first.")
    start = weights_file(settings.start, carried)
    trained = load_weights(start, expected=carried)
    models = [model for model in MODELS.values() if "prior" in model.methods and carrier(model) == carried]
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    plain = _uncalibrated(trained, folder, settings)
    preset = PRESETS[settings.preset]
    pool = Path(settings.anatomies) if settings.anatomies else folder / "anatomies"
    groups = anatomies(preset.brains, preset.phantoms, settings.scans, pool, report)
    count, end = settings.steps or SCANS, time.monotonic() + 60 * (settings.minutes or np.inf)
    kept = [folder / f"seed{settings.seed}-scan{number:04d}.npz" for number in range(count)]
    for number, file in enumerate(kept):
        report.progress(number, count, "Scans")
        if not file.is_file():
            rng = np.random.default_rng([settings.seed, number])
            adaptation = "none" if number % ADAPTED else "adapt"
            fitting = FitSettings(method="prior", weights=str(plain), adaptation=adaptation, device=settings.device)
            judged = _judged_scan(groups, models, fitting, rng)
            with outputs.replacing(file) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **judged)  # type: ignore[arg-type]
        if time.monotonic() > end:
            break
    done = [_arrays(file) for file in kept if file.is_file()]
    calibrations = {model.name: _learned(model, done, settings.seed) for model in models}
    facts = {"scans": len(done), "seed": settings.seed, "weights": digest_of(start)}
    weights = folder / "prior.safetensors"
    save_weights(weights, trained.network, carried, {**trained.training, "calibration": facts}, calibrations)
    return weights


def _uncalibrated(trained: TrainedPrior, folder: Path, settings: TrainSettings) -> Path:
    """File of the network alone, since an earlier calibration is not to be calibrated; scans beside it are its fits."""
    path = folder / UNCALIBRATED
    facts = {"features": FEATURES, "preset": settings.preset, "scans": settings.scans, "anatomies": settings.anatomies}
    if path.is_file():
        kept = load_weights(path)
        there, ours = kept.network.state_dict(), trained.network.state_dict()
        if there.keys() != ours.keys() or not all(torch.equal(value, there[name]) for name, value in ours.items()):
            msg = f"{folder} holds the calibration of other weights."
            raise SettingsError(msg, "Choose another folder with --out.")
        if kept.training != facts:
            msg = f"{folder} holds scans of another calibration: {kept.training}; expected {facts}."
            raise SettingsError(msg, "Choose another folder with --out.")
    save_weights(path, trained.network, trained.model, facts)
    return path


def _arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """What `_judged_scan` found, from a file."""
    try:
        with np.load(path) as stored:
            return dict(stored)
    except (OSError, ValueError, BadZipFile) as error:
        msg = f"The simulated scan {path} cannot be read: {error}."
        raise InputError(msg, "Delete it: it is made again.") from error


def _judged_scan(
    groups: list[list[Anatomy]], models: list[SignalModel], settings: FitSettings, rng: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Features of some voxels of a simulated scan, and the absolute errors of its maps over their standard deviations.

    Arrays ``<model>_features``, shape (V, C), and ``<model>_errors``, shape (V, maps), NaN where a value was cut off.
    There are none where too little is brain.
    """
    fields, voxel_sizes = draw_crop(groups, EDGE, rng)
    protocol = Protocol.draw(FAMILIES[carrier(models[0]).name], rng)
    contents = draw_contents(fields, voxel_sizes, rng)
    shape: tuple[int, int, int] = tuple(fields.shape[1:])  # type: ignore[assignment]
    signal = measured(contents, shape, protocol, rng).permute(1, 2, 3, 0).contiguous().numpy()
    mask = (contents.fields[WEIGHTS].sum(0) > 0.5).numpy().reshape(shape)
    gtab, affine = GradientTable(protocol.bvals, protocol.bvecs), np.diag([*voxel_sizes, 1.0])
    scan = Acquisition(signal, affine, gtab, mask)
    if mask.sum() < MIN_VOXELS:
        return {}
    inner = np.zeros(shape, bool)
    inner[(slice(MARGIN, -MARGIN),) * 3] = True
    chosen = np.flatnonzero(inner[mask])
    chosen = chosen[_balanced(contents, mask & inner, rng)]
    result = {}
    for model in models:
        if METHODS["prior"].unsupported(model, gtab):
            continue
        found, _ = uncalibrated_fit(scan, model, replace(settings, model=model.name), SilentReport())
        true = _truth(contents, mask, protocol, model, affine)
        errors = []
        for name in calibrated_maps(model):
            value, sd = (found.maps[one].data[mask][chosen] for one in (name, f"{name}_sd"))
            # nothing can be learnt of what was cut off
            errors.append(np.where(sd < MAX_ERROR, np.abs(value - true[name][chosen]) / np.maximum(sd, TINY), np.nan))
        result[f"{model.name}_features"] = features(found, gtab).numpy()[chosen]
        result[f"{model.name}_errors"] = np.stack(errors, axis=1).astype(np.float32)
    return result


def _truth(
    contents: Contents, mask: NDArray[np.bool_], protocol: Protocol, model: SignalModel, affine: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """A model's maps of what a long scan without noise would have measured at the protocol's b-values, (V,) each."""
    bvals, bvecs, counts = protocol.dense(DENSE_DIRECTIONS[carrier(model).name])
    clean, gtab = noise_free_signal(contents, mask.shape, protocol, bvals, bvecs), GradientTable(bvals, bvecs)
    if isinstance(model, LogLinearModel):
        coordinates = coordinates_of(model)
        design = WhitenedDesign.of(model, gtab, coordinates)
        theta = coordinates.theta(noise_free_fit(clean[:, torch.from_numpy(mask)], design, counts))
        return {name: values.numpy() for name, values in model.maps(theta.T).items()}
    scan = Acquisition(clean.permute(1, 2, 3, 0).contiguous().numpy(), affine, gtab, mask)
    settings = FitSettings(model=model.name, method=model.methods[0], device="cpu")
    found = fit_voxels(scan, model, settings, SilentReport())
    return {name: image.data[mask] for name, image in found.maps.items()}


def _balanced(contents: Contents, mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Numbers of some of the masked voxels: each kind of tissue counts as the root of how often it is."""
    white, grey, fluid = (part.numpy()[mask.ravel()] for part in (
        contents.fields[0] + contents.fields[1], contents.fields[2], contents.fields[3]
    ))  # fmt: skip
    ill = torch.stack([lesion.fraction for lesion in contents.lesions] or [torch.zeros(mask.size)]).amax(0)
    kinds = np.select([ill.numpy()[mask.ravel()] > LESION, fluid > FLUID, grey > white], [3, 2, 1], 0)
    weight = 1 / np.sqrt(np.bincount(kinds, minlength=4) + FEW)[kinds]
    return rng.choice(len(kinds), min(VOXELS, len(kinds)), replace=False, p=weight / weight.sum())


def _learned(model: SignalModel, scans: list[dict[str, NDArray[np.float32]]], seed: int) -> Calibration:
    """The factors by which the shares of errors in `QUANTILES` are within their intervals, whatever the features.

    Notes
    -----
    The quantile (pinball) loss of the logarithm of the error: in proportion, it counts alike where errors are small.
    """
    parts = [scan for scan in scans if f"{model.name}_features" in scan]
    if not parts:
        msg = f"None of the {len(scans)} simulated scans made so far can be fitted with {model.title}."
        raise SettingsError(msg, "Go on with more --minutes or --steps.")
    seen = torch.from_numpy(np.concatenate([scan[f"{model.name}_features"] for scan in parts]))
    errors = torch.from_numpy(np.concatenate([scan[f"{model.name}_errors"] for scan in parts]))
    known, errors = ~errors.isnan(), errors.nan_to_num().clamp_min(MIN_ERROR).log()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        calibration = Calibration(model, seen.shape[1])
        calibration.centre.copy_(seen.mean(0))
        calibration.spread.copy_(seen.std(0).clamp_min(1e-6))
        optimiser = torch.optim.AdamW(calibration.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, STEPS)
        for _ in range(STEPS):
            some = torch.randint(len(seen), (BATCH,))
            loss = _pinball(errors[some], calibration(seen[some]))[known[some]].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return calibration.eval()


def _pinball(log_errors: Tensor, log_factors: Tensor) -> Tensor:
    """Quantile loss of `QUANTILES`, of the same shape."""
    losses = torch.zeros_like(log_errors)
    for share, width in QUANTILES.items():
        beyond = log_errors - (log_factors + log(width))
        losses += torch.maximum(share * beyond, (share - 1) * beyond)
    return losses
