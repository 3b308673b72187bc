"""The jobs, from files to files: read, check, prepare, fit, write. The worker and the command line both run these."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib import __version__
from DiffusionFMLib.errors import DeviceError, OutputError, ProtocolError, SettingsError
from DiffusionFMLib.events import Artifact
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.session import Fitted, Session
from DiffusionFMLib.settings import ConvertSettings, FitSettings, ScanSettings, Settings, SimulateSettings, TrackSettings

if TYPE_CHECKING:
    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.maps import ParameterMap

READ, CHECK, PREPARE, FIT, WRITE, TRACK, SIMULATE = (
    "Reading", "Checking the scan", "Preparing", "Fitting", "Writing", "Tracking", "Simulating"
)  # fmt: skip

_NOT_IN_KEY = {"device", "memory_mib"}
"""Settings beside paths that do not change what a fit's maps hold."""


def stages(job: str, settings: Settings) -> dict[str, float]:
    """Stages of a job in their order, with their usual cost in seconds (2 mm, 30 directions, two cores)."""
    costs = {
        "info": {READ: 1.0, CHECK: 2.0},
        "fit": {READ: 1.0, CHECK: 2.0, PREPARE: 2.0, FIT: 3.0, WRITE: 2.0},
        "track": {READ: 1.0, CHECK: 2.0, PREPARE: 2.0, FIT: 3.0, WRITE: 2.0, TRACK: 20.0},
        "convert": {READ: 1.0, WRITE: 3.0},
        "simulate": {SIMULATE: 10.0, WRITE: 3.0},
    }[job]
    if isinstance(settings, FitSettings):
        costs[PREPARE] += 60.0 * (settings.denoise != "none") + 20.0 * settings.gibbs + 120.0 * settings.motion
    return costs


def run(job: str, settings: Settings, report: JobReport, session: Session, arrays: Path | None = None) -> dict[str, Any]:
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
    report.plan(stages(job, settings))
    if isinstance(settings, TrackSettings):
        return _track(settings, report, session, arrays)
    if isinstance(settings, FitSettings):
        return _fit(settings, report, session, arrays)[0]
    if isinstance(settings, ConvertSettings):
        return _convert(settings, report, session)
    if isinstance(settings, ScanSettings):
        return _info(settings, report, session)
    if isinstance(settings, SimulateSettings):
        return _simulate(settings, report)
    msg = f"{type(settings).__name__} belongs to no job."
    raise TypeError(msg)


def discard_temporaries() -> None:
    """Remove half-written files of this process, when it has to end at once."""


def resolve_device(settings: Settings) -> str:
    """``cpu`` or ``cuda``: where a job computes.

    Raises
    ------
    DeviceError
        If the graphics card was asked for and there is none.
    """
    wanted = getattr(settings, "device", "cpu")
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        msg = "The device cuda was chosen, but PyTorch finds no graphics card that it can use."
        raise DeviceError(msg, "Choose the device auto or cpu, or install a PyTorch build for the card.")
    return "cpu"


# --- info ------------------------------------------------------------------------------------------------


def _info(settings: ScanSettings, report: JobReport, session: Session) -> dict[str, Any]:
    acquisition = _read(settings, report, session)
    report.enter(CHECK)
    quality = session.quality(report)
    return {"name": acquisition.name, "quality": quality.to_dict(), "models": _support(acquisition)}


def _read(settings: ScanSettings, report: JobReport, session: Session) -> Acquisition:
    report.enter(READ)
    if not settings.dwi:
        msg = "No diffusion scan was given."
        raise SettingsError(msg, "Name a NIfTI or NRRD file, or a DICOM folder.")
    return session.read(settings, report)


def _support(acquisition: Acquisition) -> dict[str, str | None]:
    """Why a model cannot be fitted to the scan, or null, by model."""
    return {name: model.unsupported(acquisition.gtab) for name, model in MODELS.items()}
