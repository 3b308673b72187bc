"""The jobs, from files to files: read, check, prepare, fit, write. The worker and the command line both run these."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from DiffusionFMLib import __version__
from DiffusionFMLib.errors import ProtocolError, SettingsError
from DiffusionFMLib.events import Artifact, SilentReport
from DiffusionFMLib.jobfiles import READ, WRITE, announce_file, announce_map, read_scan, save_array
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import METHODS, MODELS, TRACKED, Method, SignalModel, support
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.scan_jobs import convert, simulate_scan
from DiffusionFMLib.session import Fitted, Session
from DiffusionFMLib.settings import (
    ConvertSettings,
    FitSettings,
    ScanSettings,
    Settings,
    SimulateSettings,
    TrackSettings,
)

if TYPE_CHECKING:
    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.fitting import Fit
    from DiffusionFMLib.gradients import GradientTable
    from DiffusionFMLib.maps import ParameterMap
    from DiffusionFMLib.tractography import Tracts

CHECK, FIT, PRIOR, TRACK = "Checking the scan", "Fitting", "Generative prior", "Tracking"

TITLES = {
    "quality": CHECK,
    "denoise": "Denoising",
    "gibbs": "Removing Gibbs ringing",
    "motion": "Correcting motion",
    "mask": "Finding the brain",
    "Prior": PRIOR,
    "Maps": PRIOR,
}
"""Titles of the stages that computing code reports by a short name."""

_NOT_IN_KEY = {"device", "memory_mib", "series"}
"""Settings beside paths that do not change what a fit's maps hold."""


def stages(job: str, settings: Settings) -> dict[str, float]:
    """Stages of a job in their order, with their usual cost in seconds (2 mm, 30 directions, two cores)."""
    if job == "simulate":
        return {"Anatomy": 6.0, "Scanning": 6.0, WRITE: 6.0}
    if job == "convert":
        return {READ: 1.0, WRITE: 3.0}
    costs = {READ: 1.0, CHECK: 2.0}
    if isinstance(settings, FitSettings):
        costs |= {TITLES["denoise"]: 60.0} if settings.denoise != "none" else {}
        costs |= {TITLES["gibbs"]: 20.0} if settings.gibbs else {}
        costs |= {TITLES["motion"]: 120.0} if settings.motion else {}
        costs |= {TITLES["mask"]: 2.0, FIT: 3.0}
        costs |= {} if METHODS[settings.method].voxelwise else {PRIOR: 30.0}
        costs[WRITE] = 2.0
    if isinstance(settings, TrackSettings):
        costs[TRACK] = 20.0
    return costs


def run(
    job: str, settings: Settings, report: JobReport, session: Session, arrays: Path | None = None
) -> dict[str, Any]:
    """Do a job.

    Parameters
    ----------
    job : str
        A key of `settings.JOBS`.
    settings : Settings
        Of that job's class.
    report : JobReport
    session : Session
        Remembers the scan for the next call.
    arrays : Path, optional
        Folder for raw copies of maps and tracts, which a viewer can load without reading image files.

    Returns
    -------
    dict
        Plain JSON: what was found and where the results are.

    Raises
    ------
    DiffusionFMError
        If the user can fix it.
    JobCancelled
        If the report says so.
    """
    report.plan(stages(job, settings), TITLES)
    if isinstance(settings, TrackSettings):
        return _track(settings, report, session, arrays)
    if isinstance(settings, FitSettings):
        return _fit(settings, report, session, arrays)[0]
    if isinstance(settings, ConvertSettings):
        return convert(settings, report, session)
    if isinstance(settings, ScanSettings):
        return _info(settings, report, session, arrays)
    if isinstance(settings, SimulateSettings):
        return simulate_scan(settings, report)
    msg = f"{type(settings).__name__} belongs to no job."
    raise TypeError(msg)


def discard_temporaries() -> None:
    """Remove half-written files of this process, when it has to end at once."""
    # without that file nothing was written
    outputs = sys.modules.get("DiffusionFMLib.io.outputs")
    if outputs is not None:
        outputs.discard_temporaries()


def resolve_device(settings: Settings) -> str:
    """``cpu`` or ``cuda``: where a job computes.

    Raises
    ------
    DeviceError
        If the graphics card was asked for and there is none.
    """
    if not isinstance(settings, FitSettings) or settings.device == "cpu":
        return "cpu"
    from DiffusionFMLib.fitting.device import choose_device

    return choose_device(settings.device).type


# --- info ------------------------------------------------------------------------------------------------


def _info(settings: ScanSettings, report: JobReport, session: Session, arrays: Path | None) -> dict[str, Any]:
    acquisition = read_scan(settings, report, session)
    if arrays is not None:
        # for a viewer that reads no image files
        copy = save_array(arrays / f"{acquisition.name}.npy", np.swapaxes(acquisition.signal, 0, 2))
        affine = acquisition.affine.tolist()
        report.artifact(Artifact(report.id, settings.dwi, "image", acquisition.name, array=copy, affine=affine))
    report.enter(CHECK)
    quality = session.quality(report)
    return {
        "name": acquisition.name,
        "bvals": acquisition.gtab.bvals.tolist(),
        "bvecs": acquisition.gtab.bvecs.tolist(),
        "quality": quality.to_dict(),
        **_support(acquisition),
        "notes": [*acquisition.notes, *acquisition.gtab.notes],
    }


def _support(acquisition: Acquisition) -> dict[str, Any]:
    """Why a model cannot be fitted to the scan, or null: with any method, by model, and with each, by both."""
    methods = support(acquisition.gtab)
    models = {
        name: None if None in reasons.values() else next(iter(reasons.values())) for name, reasons in methods.items()
    }
    return {"models": models, "methods": methods}


# --- fit -------------------------------------------------------------------------------------------------


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


def _fit(
    settings: FitSettings, report: JobReport, session: Session, arrays: Path | None
) -> tuple[dict[str, Any], Fitted, Acquisition]:
    from DiffusionFMLib.io import outputs

    out = outputs.output_folder(settings.out, arrays)
    model = MODELS[settings.model]
    if settings.method not in model.methods:
        msg = f"Model {settings.model} has no method {settings.method}; it has {', '.join(model.methods)}."
        raise SettingsError(msg, "Choose one of them.")
    acquisition = read_scan(settings, report, session)
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
        from DiffusionFMLib.prior.weights import weights_file

        # before anything that takes long
        weights_file(settings.weights, model)
    if settings.standard_errors and settings.denoise != "none":
        report.warning(
            "standard-errors",
            "Standard errors come from the noise that the fit leaves, and denoising took most of that away: they come "
            "out about three times too small.",
        )
    report.enter(CHECK)
    quality = session.quality(report)
    for finding in quality.findings:
        report.warning("quality", finding)

    beside = METHODS[settings.method].beside(model, gtab)
    runs = [_run(replace(settings, method=beside), report, session, out)] if beside else []
    runs.append(_run(settings, report, session, out))
    asked = settings.standard_errors or settings.reweightings != FitSettings().reweightings
    if not METHODS[settings.method].voxelwise and not beside and asked:
        report.warning(
            "unused",
            "Standard errors and reweightings are the conventional fit's, for which there are too few directions.",
        )

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
            path = run.finished.get(name) or outputs.write_map(map, out, acquisition.name, model.label, method)
            announce_map(report, map, path, arrays, method)
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
        "quality": quality.to_dict(), **_support(acquisition),
    }  # fmt: skip
    return result, fitted, acquisition


def _run(settings: FitSettings, report: JobReport, session: Session, out: Path) -> _Run:
    """One fit of the scan that was read last: remembered, or as an earlier run left it in the folder, or made."""
    from DiffusionFMLib.io import outputs

    model, method = MODELS[settings.model], METHODS[settings.method]
    scan = session.read(settings, SilentReport())
    key = _key(session.digest(report), settings, FitSettings)
    names = [spec.name for spec in method.map_specs(model, settings.standard_errors)]
    finished = outputs.finished_maps(out, scan.name, model.label, names, method.name, key)
    fitted = session.fitted(key)
    if fitted is None and len(finished) == len(names):
        report.enter(WRITE)
        fitted = Fitted(settings, outputs.read_maps(finished))
    if fitted is None:
        prepared = session.prepare(settings, report).up_to(settings.max_bval)
        report.enter(FIT if method.voxelwise else PRIOR)
        maps = _fitting(method)(prepared, model, settings, report).maps
        ours = _provenance(key, settings, FitSettings, session.quality(report).findings)
        fitted = Fitted(settings, {n: replace(m, provenance={**m.provenance, **ours}) for n, m in maps.items()})
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


def _key(digest: str, settings: FitSettings, kind: type[FitSettings], *more: str) -> str:
    """SHA-256 of all that decides a result: scan, settings of that class, version, and more."""
    parts = [digest, _relevant(settings, kind), __version__, *more]
    if not METHODS[settings.method].voxelwise:
        from DiffusionFMLib.prior.weights import digest_of, weights_file

        parts.append(digest_of(weights_file(settings.weights, MODELS[settings.model])))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _relevant(settings: FitSettings, kind: type[FitSettings]) -> dict[str, Any]:
    """The settings that decide a result: neither paths nor where it was computed."""
    return {
        f.name: getattr(settings, f.name) for f in fields(kind) if not f.metadata["path"] and f.name not in _NOT_IN_KEY
    }


def _provenance(key: str, settings: FitSettings, kind: type[FitSettings], findings: Sequence[str]) -> dict[str, Any]:
    return {
        "key": key,
        "settings": _relevant(settings, kind),
        "version": __version__,
        "quality_findings": list(findings),
    }


# --- track -----------------------------------------------------------------------------------------------


def _track(settings: TrackSettings, report: JobReport, session: Session, arrays: Path | None) -> dict[str, Any]:
    from DiffusionFMLib import tractography
    from DiffusionFMLib.io import outputs, read_mask, write_tracts

    if settings.model not in TRACKED:
        msg = f"Streamlines follow the diffusion tensor; the model is {settings.model}."
        raise SettingsError(msg, f"Choose one of the models {', '.join(TRACKED)}.")
    if settings.min_length >= settings.max_length:
        msg = f"The minimum length is {settings.min_length:g} mm, the maximum {settings.max_length:g} mm."
        raise SettingsError(msg, "Choose a minimum below the maximum.")
    if settings.seed_label and not settings.seed_mask:
        msg = f"The seed label is {settings.seed_label}, but there is no seed mask to take it from."
        raise SettingsError(msg, "Give the seed mask too, or leave the label out.")
    seeds = None
    if settings.seed_mask:
        # before the fit, so that a mask of another scan does not cost its time
        seeds = read_mask(Path(settings.seed_mask), read_scan(settings, report, session), settings.seed_label)
    result, fitted, acquisition = _fit(settings, report, session, arrays)

    report.enter(TRACK)
    label = MODELS[settings.model].label
    name = f"{acquisition.name}_model-{label}{_seed_entity(settings)}_desc-{settings.tracker}_tractography"
    path = Path(settings.out) / f"{name}.{settings.tract_format}"
    seeded = "" if seeds is None else hashlib.sha256(np.packbits(seeds).data).hexdigest()
    key = _key(session.digest(report), settings, TrackSettings, seeded)
    tracts = _finished_tracts(path, key, fitted.maps["fa"])
    reused = tracts is not None
    if tracts is None:
        inside = fitted.maps["status"].data != FitStatus.OUTSIDE
        tracts = tractography.track(fitted.maps["tensor"].data, inside, acquisition.affine, settings, report, seeds)
        report.check()
        outputs.sidecar_path(path).unlink(missing_ok=True)
        write_tracts(path, tracts.streamlines, acquisition.affine, acquisition.shape, tracts.fa)
        outputs.write_sidecar(
            path,
            {
                "Streamlines": len(tracts),
                "Provenance": _provenance(key, settings, TrackSettings, result["quality"]["findings"]),
            },
        )
    array = None
    if arrays is not None:
        copy = arrays / f"{name}.npz"
        with outputs.replacing(copy) as temporary, temporary.open("wb") as file:
            np.savez(file, points=tracts.points, offsets=tracts.offsets, fa=tracts.fa)
        array = str(copy)
    report.artifact(Artifact(report.id, str(path), "tracts", settings.tracker, "Tracts", array=array))
    report.progress(1, 1, TRACK)
    kept = [*result["reused"], *(["tracts"] if reused else [])]
    return {**result, "tracts": [path.name], "count": len(tracts), "reused": kept}


def _seed_entity(settings: TrackSettings) -> str:
    """Part of the file name that tells a region's streamlines from the whole brain's: ``_seed-motor2``."""
    if not settings.seed_mask:
        return ""
    stem = Path(settings.seed_mask).name.partition(".")[0]
    return f"_seed-{''.join(c for c in stem if c.isalnum())}{settings.seed_label or ''}"


def _finished_tracts(path: Path, key: str, fa: ParameterMap) -> Tracts | None:
    """The streamlines of an earlier run with the same key; TCK has no room for FA, which is taken from its map."""
    from DiffusionFMLib.io import outputs, read_tracts
    from DiffusionFMLib.tractography import Tracts, sample

    if not outputs.finished_map(path, key):
        return None
    lines, along = read_tracts(path)
    points = np.concatenate(lines, dtype=np.float32)
    offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
    return Tracts(points, offsets, sample(fa.data, points, fa.affine) if along is None else along)
