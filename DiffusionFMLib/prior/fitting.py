"""Maps of a whole scan by the generative prior: the counterpart of `fitting.fit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from DiffusionFMLib.fitting.estimate import DEFAULTS, Fit, Output, provenance_of, usable_voxels
from DiffusionFMLib.fitting.uncertainty import spread_to_maps
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import DATA_FRACTION, DISAGREEMENT, RESIDUAL, STATUS, FitStatus, standard_deviation
from DiffusionFMLib.physics import METHODS, NODDI, SignalModel
from DiffusionFMLib.preprocessing.noise import NoiseEstimate, estimate_noise, noise_between_neighbours
from DiffusionFMLib.prior.adaptation import adapt, can_adapt
from DiffusionFMLib.prior.disagreement import empirical_null, in_sigma
from DiffusionFMLib.prior.estimate import PriorEstimate, ScanPosterior, estimate
from DiffusionFMLib.prior.neurites import noddi_covariance, noddi_of
from DiffusionFMLib.prior.sampling import sample
from DiffusionFMLib.prior.weights import TrainedPrior, carrier, digest_of, load_weights, weights_file
from DiffusionFMLib.settings import FitSettings

CHUNK: Final = 1 << 15
"""Voxels whose maps are made at once."""

SAMPLES: Final = 8
"""Of the posterior, when they are asked for."""

DRAWS: Final = 16
"""Of the parameters, that standard deviations of maps come from."""

ROUNDING: Final = 1e-4
"""Of covariances in single precision, relative."""

MAX_CENTRE: Final = 1.0
"""Half of all voxels above it is worth a warning."""

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
        If the mask is empty, or the weights cannot be read or are another model's.
    DeviceError
        If the chosen device is absent.
    JobCancelled
        If the user cancelled.
    """
    gtab = acquisition.gtab
    if problem := METHODS[settings.method].unsupported(model, gtab):
        raise ProtocolError(problem, "Choose another method, or a scan that has them.")
    mask = np.ones(acquisition.shape, bool) if acquisition.mask is None else acquisition.mask
    usable = np.zeros_like(mask)
    usable[mask] = usable_voxels(torch.from_numpy(acquisition.signal[mask].T), gtab, options.min_signal).numpy()
    if not usable.any():
        msg = f"The brain mask of {acquisition.name} is empty, or there is no signal in it."
        raise InputError(msg, "Draw one, or let it be made automatically.")
    device = choose_device(settings.device)
    path = weights_file(settings.weights, model)
    trained = load_weights(path, device)
    expected = carrier(model)
    if trained.model.name != expected.name:
        msg = f"{path} was trained for {trained.model.title}; expected {expected.title}."
        raise InputError(msg, "Choose weights of that model.")
    noise = _noise_of(acquisition, usable, report)
    output = Output(model, METHODS[settings.method].map_specs(model, False), mask, _places(mask))
    # most of the time goes into many small operations
    with one_thread_per_operation():
        try:
            result, adapted = _estimate(acquisition, usable, noise, trained, model, settings, report, device)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            report.warning("gpu-memory", "The GPU has too little free memory; the fit starts again on the CPU.")
            trained.network.cpu()
            cpu = torch.device("cpu")
            result, adapted = _estimate(acquisition, usable, noise, trained, model, settings, report, cpu)
        null = _null(result.posterior, len(gtab), report)
        _write(output, acquisition, usable, result, null, report)
    facts = {
        "weights": {"file": path.name, "sha256": digest_of(path), "training": trained.training},
        "noise": {
            "sigma": float(f"{noise.sigma:.4g}"),
            "correlation": [round(part, 3) for part in noise.correlation],
            "freedom": noise.freedom,
        },
        **adapted,
        "disagreement_null": [round(part, 3) for part in null],
        "conventional_fit": METHODS[settings.method].beside(model, gtab),
    }
    return output.finish(acquisition, {**provenance_of(acquisition, model, settings, options), **facts})


def _noise_of(acquisition: Acquisition, mask: NDArray[np.bool_], report: Report) -> NoiseEstimate:
    """The scan's noise, by the best way that its protocol allows."""
    noise = estimate_noise(acquisition, mask)
    if noise is not None:
        return noise
    report.warning(
        "noise",
        "This protocol repeats too little to tell noise from anatomy: the noise level comes from differences between "
        "neighbouring voxels, and standard deviations and disagreement are rough.",
    )
    noise = noise_between_neighbours(acquisition, mask)
    if not noise.sigma > 0:
        msg = f"{acquisition.name} has no noise, by which the prior weighs its measurements."
        raise InputError(msg, "Choose another method, or a scan that was neither made nor denoised by a program.")
    return noise


@dataclass(frozen=True, eq=False)
class _Result:
    """Posterior of V voxels in a model's own parameters.

    Parameters
    ----------
    posterior : PriorEstimate
        Of the parameters that the prior is of.
    theta : array, shape (P, V), float32
        The model's.
    sampled : dict of str to array, shape (V,)
        Standard deviations of the scalar maps over samples; empty when none were drawn.
    """

    posterior: PriorEstimate
    theta: NDArray[np.float32]
    sampled: dict[str, NDArray[np.float64]]


def _estimate(
    acquisition: Acquisition,
    mask: NDArray[np.bool_],
    noise: NoiseEstimate,
    trained: TrainedPrior,
    model: SignalModel,
    settings: FitSettings,
    report: Report,
    device: torch.device,
) -> tuple[_Result, dict[str, Any]]:
    """The posterior as the settings ask for it, and what provenance is to say of how it was adapted."""
    scan = ScanPosterior(acquisition, mask, noise, trained, device)
    facts: dict[str, Any] = {}
    if settings.adaptation != "none":
        if can_adapt(scan):
            adjustment = adapt(scan, settings.seed, report)
            scan.trained = replace(trained, adjustment=adjustment)
            facts["adaptation"] = adjustment.to_dict()
        else:
            count = len(scan.weighted)
            report.warning(
                "adaptation",
                f"{count} weighted volumes are too few to leave some out: the prior was not adapted to this scan.",
            )
    found = estimate(scan, report)
    gtab = acquisition.gtab
    sampled: dict[str, NDArray[np.float64]] = {}
    if settings.adaptation == "sample":
        facts["samples"] = SAMPLES
        sampled = _sampled(scan, model, gtab, settings.seed, report)
    return _Result(found, _own(model, found.theta, gtab, report), sampled), facts


def _own(model: SignalModel, theta: NDArray[np.float32], gtab: GradientTable, report: Report) -> NDArray[np.float32]:
    """A model's parameters of those that its prior is of."""
    return noddi_of(theta, gtab, report) if isinstance(model, NODDI) else theta


def _sampled(
    scan: ScanPosterior, model: SignalModel, gtab: GradientTable, seed: int, report: Report
) -> dict[str, NDArray[np.float64]]:
    """Standard deviations of a model's scalar maps over samples of the posterior, shape (V,) each."""
    names = [spec.name for spec in model.map_specs if not spec.components]
    sums, squares = (np.zeros((len(names), len(scan))) for _ in range(2))
    for k in range(SAMPLES):
        theta = torch.from_numpy(_own(model, scan.in_ras(sample(scan, seed + k, report)), gtab, report))
        for start in range(0, len(scan), CHUNK):
            part = slice(start, start + CHUNK)
            maps = maps_in_rows(model, theta[:, part])
            values = np.stack([maps[name].numpy() for name in names])
            sums[:, part] += values
            squares[:, part] += values.astype(np.float64) ** 2
    variance = (squares - sums**2 / SAMPLES).clip(0) / (SAMPLES - 1)
    return dict(zip(names, np.sqrt(variance), strict=True))


def _places(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Position of each voxel of a mask, in its C order, in an array of its shape in Fortran order."""
    return np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")


def _null(found: PriorEstimate, volumes: int, report: Report) -> tuple[float, float]:
    """What disagreement is to be called none in this scan; see `empirical_null`."""
    centre, width = empirical_null(in_sigma(torch.from_numpy(found.distance), volumes))
    if centre > MAX_CENTRE:
        report.warning(
            "disagreement",
            f"Half of all voxels lie {centre:.1f} or more standard deviations from what the prior makes "
            "of them: the scan may have moved, or be of something that the prior does not know. The map disagreement "
            "shows only what differs from the rest of the scan.",
        )
    return centre, width


def _spread(model: SignalModel, theta: Tensor, slope: Tensor, covariance: Tensor) -> dict[str, Tensor]:
    """Standard deviations of a model's scalar maps about those of parameters (P, V), shape (V,) each.

    From draws, because FA near 0 is not linear in the tensor; drawn in whitened coordinates, whose covariance, shape
    (V, P, P), this is, so that a turned scan gets the same.
    """
    names = [spec.name for spec in model.map_specs if not spec.components]
    centre = maps_in_rows(model, theta)
    variances = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2).clamp_min(0))
    factor, failed = torch.linalg.cholesky_ex(covariance + ROUNDING * variances)
    # where rounding left no Gaussian, its variances are used
    factor = torch.where((failed > 0)[:, None, None], variances.sqrt(), factor).float()
    generator = torch.Generator().manual_seed(0)
    squares = {name: torch.zeros(theta.shape[1]) for name in names}
    for _ in range(DRAWS):
        drawn = torch.einsum("vij,jv->iv", factor, torch.randn(theta.shape, generator=generator))
        maps = maps_in_rows(model, theta + slope.float() @ drawn)
        for name, total in squares.items():
            total += (maps[name] - centre[name]).square()
    return {name: (total / DRAWS).sqrt() for name, total in squares.items()}


def _write(
    output: Output,
    acquisition: Acquisition,
    usable: NDArray[np.bool_],
    result: _Result,
    null: tuple[float, float],
    report: Report,
) -> None:
    """Make maps of a posterior; voxels of the mask that have no usable signal are zero."""
    model, mask, gtab = output.model, output.mask, acquisition.gtab
    found = result.posterior
    slope = torch.from_numpy(found.slope)
    centre, width = null
    signal = acquisition.signal[mask]
    number = np.cumsum(usable[mask]) - 1
    for start in range(0, len(signal), CHUNK):
        report.progress(start, len(signal), MAPS)
        here = usable[mask][start : start + CHUNK]
        inside, known = torch.from_numpy(here), number[start : start + CHUNK][here]
        theta = torch.from_numpy(result.theta[:, known])
        covariance = torch.from_numpy(found.covariance[..., known]).permute(2, 0, 1).double()
        if isinstance(model, NODDI):
            # its parameters have bounds, which draws would not keep to
            carried = slope @ covariance @ slope.T
            spread = noddi_covariance(theta, torch.from_numpy(found.theta[:, known]), carried, gtab)
            sd = spread_to_maps(model, theta, spread)
        else:
            sd = _spread(model, theta, slope, covariance)
        sd |= {name: torch.from_numpy(values[known]).float() for name, values in result.sampled.items()}
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


def _scattered(values: Tensor, inside: Tensor, elsewhere: float) -> Tensor:
    """Values, last axis of voxels that are inside, among all voxels, shape (..., V)."""
    result = values.new_full((*values.shape[:-1], len(inside)), elsewhere)
    result[..., inside] = values
    return result
