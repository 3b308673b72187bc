"""DICOM folders, through dcm2niix: it knows the vendors' private diffusion fields, and nobody else does as well."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import B0_THRESHOLD
from DiffusionFMLib.io import fsl
from DiffusionFMLib.io.nifti import NiftiFile
from DiffusionFMLib.io.outputs import child_process, temporary_folder

POLL_SECONDS: Final = 0.1
"""How often a running conversion asks whether it was cancelled."""


@dataclass(frozen=True)
class Series:
    """A diffusion series of a DICOM folder.

    Parameters
    ----------
    number : str
        Its number, with a letter when a number holds several images.
    description : str
        What the scanner's protocol calls it.
    volumes : int
    path : Path
        The converted image, which lives as long as the conversion's folder.
    """

    number: str
    description: str
    volumes: int
    path: Path

    @property
    def stem(self) -> str:
        """Name for output files, without anything that could name the patient."""
        return f"series-{self.number}"


@contextmanager
def converted(folder: Path, number: str, report: Report) -> Iterator[Series]:
    """A diffusion series as NIfTI with bval and bvec, in a folder that goes away afterwards.

    Parameters
    ----------
    folder : Path
    number : str
        Which series; may be empty when there is only one.
    report : Report

    Raises
    ------
    InputError
        If there is no diffusion series, or it is not clear which.
    JobCancelled
        If the report says so.
    """
    with temporary_folder() as temporary:
        series = _convert(folder, temporary, report)
        choices = {s.number: f"{s.description}, {s.volumes} volumes" for s in series}
        listed = "; ".join(f"{key} ({text})" for key, text in choices.items())
        chosen = [s for s in series if number in ("", s.number)]
        if not series:
            msg = f"{folder.name} holds no diffusion series: no b-values were found in its DICOM files."
            raise InputError(
                msg, "Choose the folder of the diffusion series, or convert it to NIfTI with bval and bvec."
            )
        if not chosen:
            msg = f"{folder.name} has no diffusion series {number}; it has {listed}."
            raise InputError(msg, "Choose one of them.", choices)
        if len(chosen) > 1:
            msg = f"{folder.name} holds {len(series)} diffusion series: {listed}."
            raise InputError(msg, "Choose one by its number (--series).", choices)
        yield chosen[0]


def _convert(folder: Path, out: Path, report: Report) -> list[Series]:
    # named by number only: a description could hold the patient's name
    names = ("-f", "%s", "-b", "y", "-ba", "y", "-z", "n", "-w", "2")
    command = [_program(), *names, "-o", str(out), str(folder.absolute())]
    with (out / "log.txt").open("w+", encoding="utf-8", errors="replace") as log:
        with child_process(command, log) as process:
            while True:
                try:
                    process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    report.check()
        log.seek(0)
        text = log.read()
    images = sorted(out.glob("*.nii"))
    reason = next((line.strip(" .") for line in text.splitlines() if "rror" in line), "no DICOM image in it")
    if not images:
        msg = f"{folder.name} could not be converted from DICOM: {reason}."
        raise InputError(msg, "Choose a folder with a DICOM series, or a NIfTI or NRRD file.")
    if process.returncode:
        report.warning("dicom-incomplete", f"Not every image in {folder.name} could be converted: {reason}.")
    series = [_describe(path) for path in images if _is_weighted(path.with_suffix(".bval"))]
    return sorted((s for s in series if s.volumes > 1), key=lambda s: (len(s.number), s.number))


def _describe(path: Path) -> Series:
    sidecar = path.with_suffix(".json")
    values: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.exists() else {}
    description = str(values.get("SeriesDescription") or values.get("ProtocolName") or "no description")
    return Series(path.stem, description, NiftiFile(path).n_volumes, path)


def _is_weighted(bval: Path) -> bool:
    return bval.exists() and max(max(row) for row in fsl.read_numbers(bval)) > B0_THRESHOLD


def _program() -> str:
    try:
        import dcm2niix
    except ImportError as error:
        msg = "DICOM cannot be read: dcm2niix is not installed."
        raise InputError(msg, "Install the Python package dcm2niix, or convert the scan to NIfTI.") from error
    return str(dcm2niix.bin)
