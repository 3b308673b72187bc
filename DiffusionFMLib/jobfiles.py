"""What every job does with files: reads its scan, and announces what it wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib import __version__
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.events import Artifact
from DiffusionFMLib.physics import support
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import ComputeSettings, ScanSettings

if TYPE_CHECKING:
    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.maps import ParameterMap

READ, CHECK, WRITE = "Reading", "Checking the scan", "Writing"
FIT, PRIOR, TRACK, CONNECT = "Fitting", "Generative prior", "Tracking", "Connecting regions"
ENCODE, SURPRISE, ATTENTION, INFLUENCE = "Encoding", "Surprise", "Attention", "Influence"
"""Titles of the stages of jobs."""

SMALLEST_EDGE: Final = 1.0
"""Of voxels that what is learnt was trained for, mm; a scan warns of large ones itself."""

_NOT_IN_KEY = {"attention", "device", "memory_mib", "series"}
"""Settings beside paths that do not change what results hold."""


def read_scan(settings: ScanSettings, report: JobReport, session: Session) -> Acquisition:
    """Read the scan of a job's settings, by way of the session that may still hold it.

    Raises
    ------
    DiffusionFMError
        If none was given, or it cannot be read.
    """
    report.enter(READ)
    if not settings.dwi:
        msg = "No diffusion scan was given."
        raise SettingsError(msg, "Name a NIfTI or NRRD file, or a DICOM folder.")
    if settings.t1w:
        from DiffusionFMLib.io import read_image

        image = read_image(Path(settings.t1w), report)
        report.warning("t1w-unused", f"{image.name} was read, but no model of this version uses a T1w image.")
    return session.read(settings, report)


def warn_of_voxels(acquisition: Acquisition, report: JobReport) -> None:
    """Tell when a scan's voxels are smaller than what is learnt knows."""
    # headers round: a voxel of .9999 mm is one of 1 mm
    if acquisition.voxel_sizes.min() < 0.99 * SMALLEST_EDGE:
        size = " x ".join(f"{edge:.3g}" for edge in acquisition.voxel_sizes)
        report.warning(
            "voxel-size",
            f"Voxels are {size} mm; what is learnt was trained for edges of {SMALLEST_EDGE:g} mm and more: resample "
            "the scan, or do not rely on it.",
        )


def result_key(digest: str, settings: ComputeSettings, kind: type[ComputeSettings], *more: str) -> str:
    """SHA-256 of all that decides a result: scan, settings of that class, version, and more."""
    parts = [digest, _relevant(settings, kind), __version__, *more]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def provenance(
    key: str, settings: ComputeSettings, kind: type[ComputeSettings], findings: Sequence[str]
) -> dict[str, Any]:
    """What a result's sidecar says of how it was made; plain JSON."""
    return {
        "key": key,
        "settings": _relevant(settings, kind),
        "version": __version__,
        "quality_findings": list(findings),
    }


def _relevant(settings: ComputeSettings, kind: type[ComputeSettings]) -> dict[str, Any]:
    """The settings that decide a result: neither paths nor where it was computed."""
    return {
        f.name: getattr(settings, f.name) for f in fields(kind) if not f.metadata["path"] and f.name not in _NOT_IN_KEY
    }


def supported(acquisition: Acquisition) -> dict[str, Any]:
    """Why a model cannot be fitted to the scan, or null: with any method, by model, and with each, by both."""
    methods = support(acquisition.gtab)
    models = {
        name: None if None in reasons.values() else next(iter(reasons.values())) for name, reasons in methods.items()
    }
    return {"models": models, "methods": methods}


def announce_file(report: JobReport, path: Path, role: str, name: str) -> None:
    """Tell of a file that was written."""
    report.artifact(Artifact(report.id, str(path), role, name))


def announce_map(report: JobReport, map: ParameterMap, path: Path, arrays: Path | None, method: str = "") -> None:
    """Tell of a map that was written, with a raw copy in `arrays` where a viewer wants one."""
    spec = map.spec
    copy = None
    if arrays is not None:
        # Slicer's arrays run k, j, i
        copy = save_array(arrays / f"{path.name.removesuffix('.nii.gz')}.npy", np.swapaxes(map.data, 0, 2))
    window = spec.window if spec.window[1] > spec.window[0] else None
    affine = map.affine.tolist()
    report.artifact(
        Artifact(
            report.id, str(path), "map", spec.name, spec.title, spec.unit, window, spec.colors, copy, affine, method
        )
    )


def save_array(path: Path, array: NDArray[Any]) -> str:
    """Write a raw float32 copy of an array; returns its path."""
    from DiffusionFMLib.io import outputs

    with outputs.replacing(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(file, header)
        # plane by plane: a scan's copy in this order would take its memory again
        for plane in array:
            file.write(np.ascontiguousarray(plane, "<f4").data)
    return str(path)
