"""The jobs, from files to files: read, check, prepare, fit, write. The worker and the command line both run these."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from DiffusionFMLib.connectome_job import connectome
from DiffusionFMLib.encode_job import encode
from DiffusionFMLib.events import Artifact
from DiffusionFMLib.fit_job import fit
from DiffusionFMLib.jobfiles import (
    ATTENTION,
    CHECK,
    CONNECT,
    ENCODE,
    FIT,
    INFLUENCE,
    PRIOR,
    READ,
    SURPRISE,
    TRACK,
    WRITE,
    read_scan,
    save_array,
    supported,
)
from DiffusionFMLib.overlays.kinds import ON_ATTENTION, wanted
from DiffusionFMLib.physics import METHODS
from DiffusionFMLib.reporting import JobReport
from DiffusionFMLib.scan_jobs import convert, simulate_scan
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import (
    ComputeSettings,
    ConnectomeSettings,
    ConvertSettings,
    EncodeSettings,
    FitSettings,
    ScanSettings,
    Settings,
    SimulateSettings,
    TrackSettings,
)
from DiffusionFMLib.track_job import track

TITLES = {
    "quality": CHECK,
    "denoise": "Denoising",
    "gibbs": "Removing Gibbs ringing",
    "motion": "Correcting motion",
    "mask": "Finding the brain",
    "Adapting": "Adapting the prior",
    "Prior": "Estimating",
    "Sampling": "Drawing samples",
    "Maps": "Making maps",
}
"""Titles of the stages that computing code reports by a short name."""


def stages(job: str, settings: Settings) -> dict[str, float]:
    """Stages of a job in their order, with their usual cost in seconds (2 mm, 30 directions, two cores)."""
    if job == "simulate":
        return {"Anatomy": 6.0, "Scanning": 6.0, WRITE: 6.0}
    if job == "convert":
        return {READ: 1.0, WRITE: 3.0}
    if job == "connectome":
        return {READ: 2.0, CONNECT: 2.0, WRITE: 0.5}
    costs = {READ: 1.0, CHECK: 2.0}
    if isinstance(settings, ComputeSettings):
        costs |= {TITLES["denoise"]: 60.0} if settings.denoise != "none" else {}
        costs |= {TITLES["gibbs"]: 20.0} if settings.gibbs else {}
        costs |= {TITLES["motion"]: 120.0} if settings.motion else {}
        costs[TITLES["mask"]] = 2.0
    if isinstance(settings, FitSettings):
        costs[FIT] = 3.0
        if not METHODS[settings.method].voxelwise:
            costs[PRIOR] = 2.0
            costs |= {TITLES["Adapting"]: 30.0} if settings.adaptation != "none" else {}
            costs[TITLES["Prior"]] = 15.0
            costs |= {TITLES["Sampling"]: 3000.0} if settings.adaptation == "sample" else {}
            costs[TITLES["Maps"]] = 10.0
    if isinstance(settings, EncodeSettings):
        asked = wanted(settings.overlays)
        costs[ENCODE] = 30.0
        costs |= {SURPRISE: 30.0} if "surprise" in asked else {}
        costs |= {ATTENTION: 40.0} if asked & ON_ATTENTION else {}
        costs |= {INFLUENCE: 400.0} if "influence" in asked else {}
    if isinstance(settings, ComputeSettings):
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
        return track(settings, report, session, arrays)
    if isinstance(settings, FitSettings):
        return fit(settings, report, session, arrays)[0]
    if isinstance(settings, EncodeSettings):
        return encode(settings, report, session, arrays)
    if isinstance(settings, ConnectomeSettings):
        return connectome(settings, report)
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
    if not isinstance(settings, ComputeSettings) or settings.device == "cpu":
        return "cpu"
    from DiffusionFMLib.fitting.device import choose_device

    return choose_device(settings.device).type


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
        **supported(acquisition),
        "notes": [*acquisition.notes, *acquisition.gtab.notes],
    }
