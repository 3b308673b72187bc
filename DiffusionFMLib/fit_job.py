"""The fit of a model to a scan, from files to files; and what its results are known again by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from DiffusionFMLib.errors import ProtocolError, SettingsError
from DiffusionFMLib.events import NotingReport, Report, SilentReport
from DiffusionFMLib.jobfiles import (
    CHECK,
    FIT,
    PRIOR,
    WRITE,
    announce_file,
    announce_map,
    provenance,
    read_scan,
    result_key,
    supported,
    warn_of_voxels,
)
from DiffusionFMLib.physics import METHODS, MODELS, Method, SignalModel, support
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Fitted, Session
from DiffusionFMLib.settings import FitSettings

if TYPE_CHECKING:
    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.fitting import Fit
    from DiffusionFMLib.gradients import GradientTable

PASSING: Final = frozenset({"gpu-memory"})
"""Codes of warnings of how a fit went, which do not belong to what it gave."""


@dataclass(frozen=True)
class _Run:
    """One fit of a job.

    Parameters
    ----------
    settings : FitSettings
    key : str
    finished : mapping of str to Path
        Maps that are there from an earlier run.
    fitted : Fitted
    """

    settings: FitSettings
    key: str
    finished: Mapping[str, Path]
    fitted: Fitted


def fit(
    settings: FitSettings, report: JobReport, session: Session, arrays: Path | None
) -> tuple[dict[str, Any], Fitted, Acquisition]:
    """Fit a model to a scan, and write its maps.

    Returns
    -------
    result : dict
        Plain JSON.
    fitted : Fitted
    acquisition : Acquisition
    """
    from DiffusionFMLib.io import outputs

    out = outputs.output_folder(settings.out, arrays)
    model = MODELS[settings.model]
    if settings.method not in model.methods:
        msg = f"Model {settings.model} has no method {settings.method}; it has {', '.join(model.methods)}."
        raise SettingsError(msg, "Choose one of them.")
    acquisition = read_scan(settings, report, session)
    _check(settings, acquisition, report)
    report.enter(CHECK)
    quality = session.quality(report)
    for finding in quality.findings:
        report.warning("quality", finding)

    beside = METHODS[settings.method].beside(model, acquisition.up_to(settings.max_bval).gtab)
    runs = [_run(_companion(settings, beside, acquisition, report), report, session, out)] if beside else []
    runs.append(_run(settings, report, session, out))
    asked = settings.standard_errors or settings.reweightings != FitSettings().reweightings
    if not METHODS[settings.method].voxelwise and not beside:
        reason = model.unsupported(acquisition.up_to(settings.max_bval).gtab)
        unused = " Standard errors and reweightings were its, and are not used." if asked else ""
        told = f"There is no conventional fit beside the prior's maps: {reason} Look at the map disagreement.{unused}"
        report.warning("alone", told)

    report.enter(WRITE)
    outputs.discard_stale(out)
    announce_file(report, outputs.write_dataset_description(out), "sidecar", "dataset_description")
    path = out / f"{acquisition.name}_desc-quality_dwi.json"
    announce_file(report, outputs.write_json(path, quality.to_dict()), "sidecar", "quality")
    count = sum(len(run.fitted.maps) for run in runs)
    done = 0
    for run in runs:
        # what was asked for comes last, and is what questions are about
        session.keep(run.key, run.fitted)
        method = run.settings.method
        for name, map in run.fitted.maps.items():
            report.progress(done, count, WRITE)
            written = run.finished.get(name)
            if written is None:
                written = outputs.write_map(map, outputs.map_path(out, acquisition.name, model.label, name, method))
            announce_map(report, map, written, arrays, method)
            done += 1
    report.progress(1, 1, WRITE)
    for run in runs:
        if older := outputs.older_maps(out, acquisition.name, model.label, run.settings.method, run.key):
            report.warning(
                "older", f"The folder also holds {len(older)} map(s) of other settings, such as {older[0]}: do not mix."
            )
    fitted = runs[-1].fitted
    result = {
        "name": acquisition.name, "out": str(out), "maps": list(fitted.maps), "reused": list(runs[-1].finished),
        "beside": {run.settings.method: list(run.fitted.maps) for run in runs[:-1]},
        "quality": quality.to_dict(), **supported(acquisition),
    }  # fmt: skip
    return result, fitted, acquisition


def _check(settings: FitSettings, acquisition: Acquisition, report: JobReport) -> None:
    """Refuse what cannot be done, and warn of what is doubtful, before anything that takes long."""
    model = MODELS[settings.model]
    gtab = acquisition.up_to(settings.max_bval).gtab
    reason = METHODS[settings.method].unsupported(model, gtab)
    if reason is not None:
        left_out = len(acquisition.gtab) - len(gtab)
        above = f" {left_out} volume(s) above b = {settings.max_bval:g} s/mm2 were left out." if left_out else ""
        raise ProtocolError(reason + above, _what_else(model, gtab, left_out))
    doubt = model.doubtful(gtab)
    if doubt is not None:
        report.warning("protocol", doubt)
    if not METHODS[settings.method].voxelwise:
        from DiffusionFMLib.prior.weights import carrier, load_weights, weights_files

        for path in weights_files(settings.weights, model, settings.adaptation == "sample"):
            load_weights(path, expected=carrier(model))
        warn_of_voxels(acquisition, report)
        if settings.denoise != "none":
            msg = "The generative prior weighs each measurement by the scan's own noise, which denoising takes away."
            raise SettingsError(msg, "Leave denoising out (--denoise none): the prior does that work itself.")
        if settings.gibbs:
            report.warning(
                "gibbs",
                "Removing Gibbs ringing evens out some of the noise that the prior weighs measurements by: its "
                "standard deviations come out too small.",
            )
    elif settings.weights:
        report.warning(
            "weights", "Weights are the prior's, and were not used: choose the method prior (--method prior)."
        )
    if settings.standard_errors and settings.denoise != "none":
        report.warning(
            "standard-errors",
            "Standard errors come from the noise that the fit leaves, and denoising took most of that away: they come "
            "out about three times too small.",
        )


def _companion(settings: FitSettings, method: str, acquisition: Acquisition, report: Report) -> FitSettings:
    """Settings of the conventional fit beside the prior's: without standard errors where there are too few volumes."""
    from DiffusionFMLib.fitting.uncertainty import MIN_FREEDOM

    spare = len(acquisition.up_to(settings.max_bval).gtab) - len(MODELS[settings.model].parameters)
    possible = spare >= MIN_FREEDOM
    if settings.standard_errors and not possible:
        report.warning(
            "standard-errors",
            f"The conventional fit beside the prior's has no standard errors: they need {MIN_FREEDOM} volumes more "
            f"than unknowns, and this scan has {spare} more.",
        )
    return replace(settings, method=method, standard_errors=settings.standard_errors and possible)


def _run(settings: FitSettings, report: JobReport, session: Session, out: Path) -> _Run:
    """One fit of the scan that was read last: remembered, or as an earlier run left it in the folder, or made."""
    from DiffusionFMLib.io import outputs

    model, method = MODELS[settings.model], METHODS[settings.method]
    scan = session.read(settings, SilentReport())
    key = key_of(session.digest(report), settings, FitSettings)
    names = [spec.name for spec in method.map_specs(model, settings.standard_errors)]
    finished = outputs.finished_maps(out, scan.name, model.label, names, method.name, key)
    fitted = session.fitted(key)
    if fitted is None and len(finished) == len(names):
        report.enter(WRITE)
        fitted = Fitted(settings, outputs.read_maps(finished))
    if fitted is None:
        prepared = session.prepare(settings, report).up_to(settings.max_bval)
        report.enter(FIT if method.voxelwise else PRIOR)
        noting = NotingReport(report)
        maps = _fitting(method)(prepared, model, settings, noting).maps
        found = session.quality(report).findings
        ours = {
            **provenance(key, settings, FitSettings, found),
            "warnings": [w for w in noting.warnings if w[0] not in PASSING],
        }
        fitted = Fitted(settings, {n: replace(m, provenance={**m.provenance, **ours}) for n, m in maps.items()})
    for code, message in next(iter(fitted.maps.values())).provenance.get("warnings", []):
        report.warning(code, message)
    return _Run(settings, key, finished, fitted)


def _fitting(method: Method) -> Callable[..., Fit]:
    """What fits a scan with a method."""
    if method.voxelwise:
        from DiffusionFMLib.fitting import fit
    else:
        from DiffusionFMLib.prior.fitting import fit
    return fit


def _what_else(model: SignalModel, gtab: GradientTable, left_out: int) -> str:
    """What to do about a method that a protocol cannot feed."""
    able = [name for name, reason in support(gtab)[model.name].items() if reason is None]
    if able:
        return f"Choose the method {' or '.join(able)}."
    if left_out:
        return "Raise max b-value (--max-bval), or choose another model."
    return "Choose another model, or a scan that has what this one needs."


def key_of(digest: str, settings: FitSettings, kind: type[FitSettings], *more: str) -> str:
    """What a fit, or what stands on one, is known again by; see `result_key`."""
    weights = []
    if not METHODS[settings.method].voxelwise:
        from DiffusionFMLib.io import digest_of
        from DiffusionFMLib.prior.weights import weights_files

        used = weights_files(settings.weights, MODELS[settings.model], settings.adaptation == "sample")
        weights = [digest_of(path) for path in used]
    return result_key(digest, settings, kind, *more, *weights)
