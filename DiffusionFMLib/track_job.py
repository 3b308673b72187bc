"""Streamlines through a scan's tensors, from files to files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.events import Artifact
from DiffusionFMLib.fit_job import fit, key_of
from DiffusionFMLib.jobfiles import TRACK, provenance, read_scan
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import MODELS, TRACKED
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import TrackSettings

if TYPE_CHECKING:
    from DiffusionFMLib.maps import ParameterMap
    from DiffusionFMLib.tractography import Tracts


def track(settings: TrackSettings, report: JobReport, session: Session, arrays: Path | None) -> dict[str, Any]:
    """Fit a tensor to a scan, and write its maps and streamlines; returns plain JSON."""
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
    result, fitted, acquisition = fit(settings, report, session, arrays)

    report.enter(TRACK)
    label = MODELS[settings.model].label
    name = f"{acquisition.name}_model-{label}{_seed_entity(settings)}_desc-{settings.tracker}_tractography"
    path = Path(settings.out) / f"{name}.{settings.tract_format}"
    seeded = "" if seeds is None else hashlib.sha256(np.packbits(seeds).data).hexdigest()
    key = key_of(session.digest(report), settings, TrackSettings, seeded)
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
                "Provenance": provenance(key, settings, TrackSettings, result["quality"]["findings"]),
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
    from DiffusionFMLib.io import outputs

    return f"_seed-{outputs.entity_value(settings.seed_mask)}{settings.seed_label or ''}"


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
