"""From a scan to maps, tile by tile, whatever the model and its estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.contract import Estimator, FitOptions, Plan, maps_in_rows
from DiffusionFMLib.fitting.device import choose_device, one_thread_per_operation
from DiffusionFMLib.fitting.estimators import plan
from DiffusionFMLib.fitting.tiles import MIN_TILE, Voxels, for_each_tile, tile_size
from DiffusionFMLib.fitting.uncertainty import scan_variance, standard_errors, working_rows
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus, MapSpec, ParameterMap, with_fit_maps
from DiffusionFMLib.physics import SignalModel
from DiffusionFMLib.settings import FitSettings

MAX_LOG_S0: Final = 80.0
"""Beyond this S0 is not a float32 number any more."""

MAX_PARAMETER: Final = 1e3
"""No signal of a scanner gives a larger parameter (diffusivities in um2/ms); what does is noise in the solution."""

SAMPLE: Final = 1024
"""Voxels that a plan is calibrated on."""

DEFAULTS: Final = FitOptions()


@dataclass(frozen=True, eq=False)
class Fit:
    """Result of a fit.

    Parameters
    ----------
    model : SignalModel
    mask : array, shape (X, Y, Z), bool
        Voxels that were fitted.
    maps : dict of str to ParameterMap
        The model's maps in its order, then ``residual`` and ``status``.
    provenance : dict
        How it was made; plain JSON types, the same wherever it was computed.
    theta : array, shape (P, V), float32
        Model parameters of each fitted voxel, in the order in which they were fitted.
    places : array, shape (V,)
        Position of each of these voxels in an (X, Y, Z) array in Fortran order.
    """

    model: SignalModel
    mask: NDArray[np.bool_]
    maps: dict[str, ParameterMap]
    provenance: dict[str, Any]
    theta: NDArray[np.float32] = field(repr=False)
    places: NDArray[np.intp] = field(repr=False)

    @cached_property
    def parameters(self) -> NDArray[np.float32]:
        """Model parameters, shape (V, P), physics' units: ``volume[fit.mask] = fit.parameters``."""
        order = np.empty(self.mask.size, np.intp)
        order[self.places] = np.arange(len(self.places))
        return self.theta[:, order.reshape(self.mask.shape, order="F")[self.mask]].T


def fit(
    acquisition: Acquisition,
    model: SignalModel,
    settings: FitSettings,
    report: Report,
    options: FitOptions = DEFAULTS,
) -> Fit:
    """Fit a model to every voxel of the mask (to all voxels when there is none).

    Parameters
    ----------
    acquisition : Acquisition
    model : SignalModel
    settings : FitSettings
        Its method, device and memory_mib.
    report : Report
        Told after each tile of voxels, which is also where a cancelled job stops.
    options : FitOptions

    Raises
    ------
    ProtocolError
        If the scan's protocol cannot feed the model.
    SettingsError
        If the model cannot be fitted with that method.
    InputError
        If the mask is empty.
    DeviceError
        If the chosen device is absent.
    JobCancelled
        If the user cancelled.
    """
    if problem := model.unsupported(acquisition.gtab):
        raise ProtocolError(problem, "Choose another model, or a scan that has more directions or b-values.")
    mask = np.ones(acquisition.shape, bool) if acquisition.mask is None else acquisition.mask
    if not mask.any():
        msg = f"The brain mask of {acquisition.name} is empty."
        raise InputError(msg, "Draw one, or let it be made automatically.")

    voxels = Voxels.of(acquisition.signal, mask)
    output = Output(model, with_fit_maps(model.map_specs, settings.standard_errors), mask, voxels.target)
    run = TileFit(acquisition.gtab, model, settings, options, voxels, output)
    device = choose_device(settings.device)
    with one_thread_per_operation():
        if device.type == "cuda":
            _run_on_gpu(run, device, settings.memory_mib, report)
        else:
            run.all_tiles(device, run.tile_size(device, settings.memory_mib), report)
    return output.finish(acquisition, {**provenance_of(acquisition, model, settings, options), **run.facts})


class Output:
    """Buffers that tiles write to: Fortran order, which image files and the viewer both read as it lies.

    Parameters
    ----------
    model : SignalModel
    specs : tuple of MapSpec
    mask : array, shape (X, Y, Z), bool
    target : array, shape (V,), intp
        Where each of its voxels, in the order in which they are fitted, lies in an (X, Y, Z) array in Fortran order.
    """

    def __init__(
        self, model: SignalModel, specs: tuple[MapSpec, ...], mask: NDArray[np.bool_], target: NDArray[np.intp]
    ) -> None:
        self.model, self.mask, self.target = model, mask, target
        self.specs = {spec.name: spec for spec in specs}
        heights = [max(1, len(spec.components)) for spec in self.specs.values()]
        # one block, because systems give large ones in large pages, which are ten times faster to touch first
        block = np.split(np.zeros((sum(heights), mask.size), np.float32), np.cumsum(heights)[:-1])
        self._maps = {
            name: rows if spec.components else rows[0]
            for (name, spec), rows in zip(self.specs.items(), block, strict=True)
        }
        self._parameters = np.empty((len(model.parameters), len(target)), np.float32)

    def write(self, start: int, count: int, theta: Tensor, maps: dict[str, Tensor]) -> None:
        """Put the first `count` voxels of a tile in place; last axis of `theta` and `maps` is voxels."""
        place = slice(start, start + count)
        target = self.target[place]
        self._parameters[:, place] = theta[:, :count].cpu().numpy()
        for name, values in maps.items():
            rows, buffer = values[..., :count].cpu().numpy(), self._maps[name]
            if buffer.ndim == 1:
                buffer[target] = rows
            else:
                for component, row in zip(buffer, rows, strict=True):
                    component[target] = row

    def finish(self, acquisition: Acquisition, provenance: dict[str, Any]) -> Fit:
        """The fit, on these buffers."""
        maps = {}
        for name, buffer in self._maps.items():
            volume = buffer.reshape(*buffer.shape[:-1], *self.mask.shape[::-1]).T
            maps[name] = ParameterMap(self.specs[name], volume, acquisition.affine, provenance)
        return Fit(self.model, self.mask, maps, provenance, self._parameters, self.target)


class TileFit:
    """Fits tiles of voxels and writes their maps.

    Parameters
    ----------
    gtab : GradientTable
    model : SignalModel
    settings : FitSettings
    options : FitOptions
    voxels : Voxels
    output : Output
    """

    def __init__(
        self,
        gtab: GradientTable,
        model: SignalModel,
        settings: FitSettings,
        options: FitOptions,
        voxels: Voxels,
        output: Output,
    ) -> None:
        self.gtab, self.model, self.settings, self.options = gtab, model, settings, options
        self.voxels, self.output = voxels, output
        self.dtype = torch.float64 if options.double else torch.float32
        self.facts: dict[str, Any] = {}
        self.variance = 0.0
        self._plans: dict[torch.device, Plan] = {}

    def plan(self, device: torch.device) -> Plan:
        """The estimator, made ready for a device."""
        if device not in self._plans:
            self._plans[device] = plan(self.model, self.gtab, self.settings, self.options, device, self.dtype)
        return self._plans[device]

    def tile_size(self, device: torch.device, memory_mib: int) -> int:
        """Voxels per tile that this much memory affords."""
        rows = self.plan(device).rows
        if self.settings.standard_errors:
            rows += working_rows(len(self.gtab), len(self.model.parameters))
        return tile_size(device, rows * self.dtype.itemsize, memory_mib, len(self.voxels))

    def all_tiles(self, device: torch.device, size: int, report: Report) -> None:
        """Fit all voxels on a device, in tiles of this size."""
        ready = self.plan(device)
        sample = self.voxels.sample(SAMPLE).to(device, self.dtype)
        ready.calibrate(sample)
        self.facts = ready.facts()
        if self.settings.standard_errors:
            self.variance = scan_variance(ready.estimator(sample.shape[1]), sample)
            self.facts["residual_sigma"] = float(f"{self.variance**0.5:.4g}")

        def make_worker() -> Callable[[int], None]:
            estimator = ready.estimator(size)
            return lambda start: self._tile(start, estimator)

        for_each_tile(len(self.voxels), size, device, make_worker, report)

    def _tile(self, start: int, estimator: Estimator) -> None:
        signal = estimator.signal
        count = self.voxels.read(start, signal.shape[1], signal)
        solution = estimator.solve()
        theta, maps = solution.theta, solution.maps
        usable = usable_voxels(signal, self.gtab, self.options.min_signal) & possible(theta)
        # most tiles have none that is not, so the test pays
        all_usable = bool(usable.all())
        if not all_usable:
            theta = torch.where(usable, theta, 0.0)
        if maps is None:
            maps = maps_in_rows(self.model, theta)
            maps["residual"] = estimator.residual(theta)
        if self.settings.standard_errors:
            maps |= standard_errors(self.model, theta, estimator.spread(theta), self.variance)
        if not all_usable:
            maps = {name: torch.where(usable, values, 0.0) for name, values in maps.items()}
        status = torch.where(self.model.unphysical(theta.T), FitStatus.CLIPPED, FitStatus.OK)
        if solution.converged is not None:
            status = torch.where(solution.converged, status, FitStatus.NOT_CONVERGED)
        maps["status"] = torch.where(usable, status, FitStatus.DEGENERATE)
        self.output.write(start, count, theta, maps)


def possible(theta: Tensor) -> Tensor:
    """Which parameters, shape (P, V) with ln S0 last, the signal of a scanner can have: bool, shape (V,)."""
    # written so that NaN fails too
    return (theta.abs().amax(0) < MAX_PARAMETER) & (theta[-1].abs() < MAX_LOG_S0)


def usable_voxels(signal: Tensor, gtab: GradientTable, min_signal: float) -> Tensor:
    """Which voxels have a signal, shape (N, V), that tells something: bool, shape (V,)."""
    highest = signal.amax(0)
    usable = (highest > min_signal) & (highest > signal.amin(0))
    b0_rows = torch.as_tensor(np.flatnonzero(gtab.b0_mask))
    if len(b0_rows):
        usable &= signal[b0_rows].amax(0) > min_signal
    return usable


def _run_on_gpu(run: TileFit, device: torch.device, memory_mib: int, report: Report) -> None:
    """Fit on the GPU; when its memory runs out in smaller tiles, and in the end on the CPU."""
    size = run.tile_size(device, memory_mib)
    while True:
        try:
            run.all_tiles(device, size, report)
            return
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        if size // 4 < MIN_TILE:
            break
        size //= 4
        report.warning("gpu-memory", f"The GPU ran out of memory; the fit starts again in tiles of {size} voxels.")
    report.warning("gpu-memory", "The GPU has too little free memory; the fit starts again on the CPU.")
    cpu = torch.device("cpu")
    run.all_tiles(cpu, run.tile_size(cpu, memory_mib), report)


def provenance_of(
    acquisition: Acquisition, model: SignalModel, settings: FitSettings, options: FitOptions
) -> dict[str, Any]:
    """What every fit tells of itself; plain JSON types."""
    gtab = acquisition.gtab
    return {
        "model": model.title,
        "citation": model.citation,
        "method": settings.method,
        "shells": [{"bval": round(shell.bval, 1), "volumes": len(shell)} for shell in gtab.shells],
        "b0_volumes": int(gtab.b0_mask.sum()),
        "precision": "float64" if options.double else "float32",
        "notes": [*acquisition.notes, *gtab.notes],
    }
