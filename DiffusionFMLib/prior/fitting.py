"""Maps of a whole scan by the generative prior: the counterpart of `fitting.fit`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.contract import MAX_RESIDUAL, FitOptions, maps_in_rows
from DiffusionFMLib.fitting.device import choose_device, one_thread_per_operation
from DiffusionFMLib.fitting.estimate import DEFAULTS, Fit, Output, possible, provenance_of, usable_voxels
from DiffusionFMLib.fitting.tiles import for_each_tile
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import digest_of
from DiffusionFMLib.layout import Layout
from DiffusionFMLib.maps import DATA_FRACTION, DISAGREEMENT, RESIDUAL, STATUS, FitStatus, standard_deviation
from DiffusionFMLib.physics import METHODS, SignalModel
from DiffusionFMLib.preprocessing.noise import NoiseEstimate, estimate_noise, noise_in_blocks
from DiffusionFMLib.prior.adaptation import adapt, can_adapt
from DiffusionFMLib.prior.calibration import Calibration
from DiffusionFMLib.prior.disagreement import empirical_null, in_sigma, together
from DiffusionFMLib.prior.estimate import PriorEstimate, ScanPosterior, estimate
from DiffusionFMLib.prior.readout import CHUNK, SAMPLES, Readout
from DiffusionFMLib.prior.weights import TrainedPrior, carrier, load_weights, weights_files
from DiffusionFMLib.settings import FitSettings

MAX_CENTRE: Final = 1.0
"""Of disagreement, in standard deviations: a median above it is worth a warning."""

BRAIN_MD: Final = (0.45, 1.35)
"""Median mean diffusivity of a head, um2/ms: that of children and of b = 3000 s/mm2 is in it, that of water, muscle and
fixed tissue is not."""

MIN_SNR: Final = 3.0
"""Median S0 over the noise: below, there is little but noise in weighted volumes."""

MAPS: Final = "Maps"
"""The stage after the estimate."""


def fit(
    acquisition: Acquisition,
    model: SignalModel,
    settings: FitSettings,
    report: Report,
    options: FitOptions = DEFAULTS,
) -> Fit:
    """Fit a model to a scan with the generative prior.

    Parameters
    ----------
    acquisition : Acquisition
    model : SignalModel
    settings : FitSettings
        Its weights and device.
    report : Report
    options : FitOptions

    Raises
    ------
    ProtocolError
        If the scan has no b0 or too few directions.
    InputError
        If the mask is empty or shows no noise, or the weights cannot be read or are another model's.
    DeviceError
        If the chosen device is absent.
    JobCancelled
        If the user cancelled.
    """
    found, calibration = uncalibrated_fit(acquisition, model, settings, report, options)
    # samples have a spread of their own
    if settings.adaptation != "sample":
        if calibration is None:
            report.warning(
                "calibration",
                f"The weights {found.provenance['weights'][0]['file']} were not calibrated: standard deviations are "
                "rough. diffusionfm train --calibrate --start calibrates weights.",
            )
        else:
            calibration.apply_to(found, acquisition.gtab)
    disagreement = found.maps[DISAGREEMENT.name].data
    known = found.mask & (found.maps[STATUS.name].data != FitStatus.DEGENERATE)
    disagreement[known] = together(torch.from_numpy(disagreement[known]), known).numpy()
    return found


def uncalibrated_fit(
    acquisition: Acquisition, model: SignalModel, settings: FitSettings, report: Report, options: FitOptions = DEFAULTS
) -> tuple[Fit, Calibration | None]:
    """What `fit` starts from: standard deviations as the posterior has them, disagreement of each voxel by itself.

    With it comes what the weights make standard deviations right with, if they have it.
    """
    gtab = acquisition.gtab
    if problem := METHODS[settings.method].unsupported(model, gtab):
        raise ProtocolError(problem, "Choose another method, or a scan that has them.")
    brain = np.ones(acquisition.shape, bool) if acquisition.mask is None else acquisition.mask
    # along the axes nearest to the patient's, so that how a scan is stored changes nothing
    layout = Layout.of(acquisition.affine, acquisition.shape)
    mask = layout.turned(brain)
    scan = replace(acquisition, signal=layout.turned(acquisition.signal), affine=layout.affine, mask=None)
    usable = np.zeros_like(mask)
    usable[mask] = usable_voxels(torch.from_numpy(scan.signal[mask].T), gtab, options.min_signal).numpy()
    if not usable.any():
        if not mask.any():
            msg = f"The brain mask of {acquisition.name} is empty."
            raise InputError(msg, "Draw one, or let it be made automatically.")
        msg = f"{acquisition.name} has no usable signal in the brain mask: it is zero, or the same in all volumes."
        raise InputError(msg, "Look at the scan, and draw a mask where it has signal.")
    device = choose_device(settings.device)
    # the last one is sampled, where samples are asked for
    paths = weights_files(settings.weights, model, settings.adaptation == "sample")
    priors = [load_weights(path, device, carrier(model)) for path in paths]
    noise = _noise_of(scan, usable, report)
    output = Output(model, METHODS[settings.method].map_specs(model, False), brain, _places(layout, brain))
    # most of the time goes into many small operations
    with one_thread_per_operation():
        estimated = None
        # an error that is still at hand would keep the memory of what failed
        with suppress(torch.cuda.OutOfMemoryError):
            estimated = _estimate(scan, usable, noise, priors, model, settings, report, device)
        if estimated is None:
            torch.cuda.empty_cache()
            report.warning("gpu-memory", "The GPU has too little free memory; the fit starts again on the CPU.")
            for trained in priors:
                trained.network.cpu()
            cpu = torch.device("cpu")
            estimated = _estimate(scan, usable, noise, priors, model, settings, report, cpu)
        found, readout, adapted = estimated
        sound = usable.copy()
        sound[usable] = possible(torch.from_numpy(found.theta)).numpy()
        if not sound.any():
            msg = f"No voxel of {acquisition.name} has a signal that the prior can make parameters of."
            raise InputError(msg, "Look for voxels with values that are far too large, and mask them out.")
        _warn_of_what_is_no_brain(found, noise, report)
        null = _null(found, len(gtab), report)
        _write(output, gtab, scan.signal[mask], usable[mask], sound[mask], found, readout, null, report)
    facts = {
        "weights": [
            {"file": path.name, "sha256": digest_of(path), "training": trained.training}
            for path, trained in zip(paths, priors, strict=True)
        ],
        "noise": {
            "sigma": float(f"{noise.sigma:.4g}"),
            # along the axes as stored
            "correlation": [round(noise.correlation[int(axis)], 3) for axis in layout.turn[:, 0]],
            "freedom": noise.freedom,
        },
        **adapted,
        "disagreement_null": [round(part, 3) for part in null],
        "conventional_fit": METHODS[settings.method].beside(model, gtab),
    }
    result = output.finish(acquisition, {**provenance_of(acquisition, model, settings, options), **facts})
    return result, priors[0].calibrations.get(model.name)


def _noise_of(acquisition: Acquisition, mask: NDArray[np.bool_], report: Report) -> NoiseEstimate:
    """The scan's noise, by the best way that its protocol allows."""
    noise = estimate_noise(acquisition, mask)
    if noise is not None:
        return noise
    report.warning(
        "noise",
        "This protocol repeats too little to tell noise from anatomy voxel by voxel: the noise level comes from small "
        "blocks of voxels, and standard deviations and disagreement are rough.",
    )
    noise = noise_in_blocks(acquisition, mask)
    if not noise.sigma > 0:
        msg = (
            f"{acquisition.name} has no noise in blocks of 3 x 3 x 3 voxels of its mask, by which the prior weighs it."
        )
        raise InputError(
            msg, "Choose another method, a larger mask, or a scan that was neither made nor denoised by a program."
        )
    return noise


def _estimate(
    acquisition: Acquisition,
    mask: NDArray[np.bool_],
    noise: NoiseEstimate,
    priors: list[TrainedPrior],
    model: SignalModel,
    settings: FitSettings,
    report: Report,
    device: torch.device,
) -> tuple[PriorEstimate, Readout, dict[str, Any]]:
    """The posterior as the settings ask for it, what reads maps from it, and what provenance is to say of it."""
    scans = [ScanPosterior(acquisition, mask, noise, trained, device) for trained in priors]
    scan, facts = scans[0], dict[str, Any]()
    if settings.adaptation != "none":
        if can_adapt(scan):
            facts["adaptation"] = [_adapted(each, settings.seed, report) for each in scans]
        else:
            count = len(scan.weighted)
            report.warning(
                "adaptation",
                f"{count} weighted volumes are too few to leave some out: the prior was not adapted to this scan.",
            )
    found = estimate(scan, report)
    readout = Readout(model, acquisition.gtab, found, report)
    if settings.adaptation == "sample":
        facts["samples"] = SAMPLES
        readout.sample(scans[-1], settings.seed)
    return found, readout, facts


def _adapted(scan: ScanPosterior, seed: int, report: Report) -> dict[str, Any]:
    """Adapt a prior to the scan; returns what provenance is to say of it."""
    adjustment = adapt(scan, seed, report)
    scan.trained = replace(scan.trained, adjustment=adjustment)
    return adjustment.to_dict()


def _places(layout: Layout, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Position of a mask's voxels, in the C order of the turned mask, in an array of its shape in Fortran order."""
    positions = np.arange(mask.size).reshape(mask.shape, order="F")
    return layout.turned(positions)[layout.turned(mask)]


def _warn_of_what_is_no_brain(found: PriorEstimate, noise: NoiseEstimate, report: Report) -> None:
    """Say so where the measurements, not yet touched by the prior, are unlike all that it was trained on."""
    md = float(np.median(found.ridge[[0, 3, 5]].mean(0)))
    snr = float(np.exp(np.median(found.ridge[-1]))) / noise.sigma
    unlike = ""
    if not BRAIN_MD[0] <= md <= BRAIN_MD[1]:
        low, high = BRAIN_MD
        unlike = f"Its median mean diffusivity is {md:.2f} um2/ms, that of a living brain {low} to {high}."
    if snr < MIN_SNR:
        unlike = f"Its signal without weighting is {snr:.1f} times the noise; expected {MIN_SNR:g} or more."
    if unlike:
        report.warning(
            "no-brain", f"{unlike} The prior knows nothing like it: use the conventional fit beside its maps."
        )


def _null(found: PriorEstimate, volumes: int, report: Report) -> tuple[float, float]:
    """What disagreement is to be called none in this scan; see `empirical_null`."""
    centre, width = empirical_null(in_sigma(torch.from_numpy(found.distance), volumes))
    if centre > MAX_CENTRE:
        report.warning(
            "disagreement",
            f"This scan as a whole is less like what the prior expects than most (the median voxel lies {centre:.1f} "
            "standard deviations from it): movement, eddy currents or high b-values do that too. The map disagreement "
            "shows what differs from the rest of the scan.",
        )
    return centre, width


def _write(
    output: Output,
    gtab: GradientTable,
    signal: NDArray[np.float32],
    usable: NDArray[np.bool_],
    sound: NDArray[np.bool_],
    found: PriorEstimate,
    readout: Readout,
    null: tuple[float, float],
    report: Report,
) -> None:
    """Make maps of a posterior and of the brain's signal, shape (V, N).

    The posterior is of the usable voxels; those without sound parameters are zero in all maps.
    """
    model = output.model
    centre, width = null
    number = np.cumsum(usable) - 1

    def write(start: int) -> None:
        here = sound[start : start + CHUNK]
        inside, known = torch.from_numpy(here), number[start : start + CHUNK][here]
        if not len(known):
            nothing = torch.zeros(len(model.parameters), len(here))
            output.write(start, len(here), nothing, {STATUS.name: nothing[0] + FitStatus.DEGENERATE})
            return
        theta, sd = readout.of(known)
        measured = torch.from_numpy(signal[start : start + CHUNK][here])
        left = (measured - model.signal(theta.T, gtab)) * (-theta[-1:].T).exp()
        maps = maps_in_rows(model, theta) | {
            standard_deviation(spec).name: sd[spec.name] for spec in model.map_specs if not spec.components
        }
        maps[DATA_FRACTION.name] = torch.from_numpy(found.data_fraction[known])
        maps[DISAGREEMENT.name] = (in_sigma(torch.from_numpy(found.distance[known]), len(gtab)) - centre) / width
        maps[RESIDUAL.name] = left.square().mean(1).sqrt().clamp(max=MAX_RESIDUAL)
        maps[STATUS.name] = torch.where(model.unphysical(theta.T), FitStatus.CLIPPED, FitStatus.OK).float()
        everywhere = {name: _scattered(values, inside, 0.0) for name, values in maps.items()}
        everywhere[STATUS.name] = _scattered(maps[STATUS.name], inside, FitStatus.DEGENERATE)
        output.write(start, len(here), _scattered(theta, inside, 0.0), everywhere)

    for_each_tile(len(signal), CHUNK, torch.device("cpu"), lambda: write, report, MAPS)


def _scattered(values: Tensor, inside: Tensor, elsewhere: float) -> Tensor:
    """Values, last axis of voxels that are inside, among all voxels, shape (..., V)."""
    result = values.new_full((*values.shape[:-1], len(inside)), elsewhere)
    result[..., inside] = values
    return result
