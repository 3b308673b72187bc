"""Results on disk: BIDS derivative names, sidecars, and files that are either whole or absent."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from DiffusionFMLib import __version__
from DiffusionFMLib.errors import InputError, OutputError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io.compressed import compress
from DiffusionFMLib.io.nifti import NiftiFile
from DiffusionFMLib.maps import MapSpec, ParameterMap

BIDS_VERSION: Final = "1.10.0"

STALE_AFTER: Final = 600.0
"""Seconds without a change after which a half-written file is nobody's."""

_temporaries: set[Path] = set()
_processes: set[subprocess.Popen[bytes]] = set()


# --- whole files or none -----------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Name to write to in the same folder; it becomes `path` when the block ends well, and is removed otherwise.

    Raises
    ------
    OutputError
        If the folder cannot be made, or the file not be written.
    """
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    _temporaries.add(temporary)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        msg = f"{path.name} could not be written to {path.parent}: {error.strerror or error}."
        hint = "Free some space" if full else "Check the folder's permissions"
        raise OutputError(msg, f"{hint}, or choose another output folder.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _temporaries.discard(temporary)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can read; it goes away afterwards, also when the process has to end at once."""
    folder = Path(tempfile.mkdtemp(prefix="diffusionfm-"))
    _temporaries.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _temporaries.discard(folder)


@contextmanager
def child_process(command: Sequence[str], log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that writes into a log; it is killed at the end of the block, also when ours has to end at once."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    _processes.add(process)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _processes.discard(process)


def discard_temporaries() -> None:
    """Kill child processes, then remove what is half-written and temporary folders: this process has to end at once."""
    for process in list(_processes):
        process.kill()
        process.wait()
    for temporary in list(_temporaries):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def discard_stale(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; one that still writes changed its file lately."""
    with suppress(OSError):
        for path in folder.glob(".part-*"):
            if time.time() - path.stat().st_mtime > STALE_AFTER:
                path.unlink(missing_ok=True)


def output_folder(name: str, *more: Path | None) -> Path:
    """The output folder, after trying that it can be made and written to; nothing stays of the trial.

    Parameters
    ----------
    name : str
    *more : Path or None
        Other folders to try.

    Raises
    ------
    SettingsError
        If none was given.
    OutputError
        If one cannot be used.
    """
    if not name:
        msg = "No output folder was given."
        raise SettingsError(msg, "Name one (--out).")
    for folder in filter(None, (Path(name), *more)):
        absent = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
            msg = f"Results cannot go to {folder}: {there} cannot be written to ({error.strerror or error})."
            if not there.is_dir():
                msg = f"Results cannot go to {folder}: {there} is a file; expected a folder."
            raise OutputError(msg, "Choose another output folder, or change its permissions.") from error
        finally:
            for path in absent:
                with suppress(OSError):
                    path.rmdir()
    return Path(name)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a whole file or none; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_json(path: Path, values: Mapping[str, Any]) -> Path:
    """Write JSON for people: sorted keys, so that the same values are the same bytes."""
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, f"{text}\n".encode())


# --- images --------------------------------------------------------------------------------------------------


def nifti_bytes(
    data: NDArray[Any], affine: ArrayLike, window: tuple[float, float] = (0, 0), *, compressed: bool = True
) -> bytes:
    """A NIfTI file.

    Parameters
    ----------
    data : array, shape (X, Y, Z) or (X, Y, Z, C)
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm.
    window : tuple of float
        Display range; none when both are equal.
    compressed : bool
        As gzip.
    """
    image = nifti_image(data, affine, window)
    return compress(image.to_bytes()) if compressed else bytes(image.to_bytes())


def nifti_image(data: NDArray[Any], affine: ArrayLike, window: tuple[float, float] = (0, 0)) -> nib.Nifti1Image:
    """A NIfTI image with sform and qform in scanner coordinates, mm; see `nifti_bytes`."""
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["cal_min"], image.header["cal_max"] = window if window[1] > window[0] else (0, 0)
    return image


def map_path(out: Path, stem: str, label: str, name: str, method: str) -> Path:
    """Where a map goes, by BIDS derivatives.

    Parameters
    ----------
    out : Path
        Output folder.
    stem : str
        Name of the scan.
    label, name, method : str
        The model's label (``tensor``), the map's name (``fa``) and the estimator (``wls``). What follows an
        underscore in the map's name says what of it: ``fa_se`` is described as ``wlsse``.
    """
    name, _, error = name.partition("_")
    return out / f"{stem}_model-{label}_param-{name}_desc-{method}{error}_dwimap.nii.gz"


def write_map(map: ParameterMap, path: Path) -> Path:
    """Write a map and its sidecar; see `map_path` for the names of a fit's.

    The sidecar is written last, so that one with the right key stands for a finished map.

    Raises
    ------
    OutputError
        If they cannot be written; nothing half-written stays.
    """
    sidecar = sidecar_path(path)
    with suppress(OSError):
        sidecar.unlink(missing_ok=True)
    kind = np.uint8 if map.spec.colors == "labels" else np.float32
    data = nifti_bytes(np.asarray(map.data, kind), map.affine, map.spec.window)
    write_bytes(path, data)
    write_json(sidecar, _description(map, data))
    return path


def write_sidecar(path: Path, values: Mapping[str, Any]) -> Path:
    """Write the sidecar of a finished file, with its checksum: from then on `finished_map` knows it."""
    return write_json(sidecar_path(path), {**values, "Sha256": hashlib.sha256(path.read_bytes()).hexdigest()})


def _description(map: ParameterMap, data: bytes) -> dict[str, Any]:
    spec = map.spec
    values: dict[str, Any] = {
        "Description": spec.description,
        "Title": spec.title,
        "Units": spec.unit or "1",
        "Colors": spec.colors,
        "Provenance": dict(map.provenance),
        "Sha256": hashlib.sha256(data).hexdigest(),
    }
    if spec.window[1] > spec.window[0]:
        values["Window"] = list(spec.window)
    if spec.components:
        values["Components"] = list(spec.components)
    return values


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a file goes: ``fa.json`` for an image or table, ``tracts.tck.json`` for streamlines.

    The same streamlines may lie there in several formats, each with a checksum of its own.
    """
    return path.with_name(f"{path.name.removesuffix('.nii.gz').removesuffix('.tsv')}.json")


def entity_value(path: str) -> str:
    """A file's name as the value of an entity in another file's: the letters and digits before its extension."""
    return "".join(c for c in Path(path).name.partition(".")[0] if c.isalnum())


# --- resuming ------------------------------------------------------------------------------------------------


def finished_map(path: Path, key: str) -> bool:
    """Whether a map (or other file with a sidecar) is there, whole, and was made from what the key stands for."""
    try:
        sidecar = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        return bool(
            sidecar["Provenance"]["key"] == key and sidecar["Sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finished_maps(out: Path, stem: str, label: str, names: Iterable[str], method: str, key: str) -> dict[str, Path]:
    """Those of the named maps that are finished (see `finished_map`), by name."""
    paths = {name: map_path(out, stem, label, name, method) for name in names}
    return {name: path for name, path in paths.items() if finished_map(path, key)}


def older_maps(out: Path, stem: str, label: str, method: str, key: str) -> list[str]:
    """Names of a scan's maps of a model and method that were not made from what the key stands for."""
    found = []
    for sidecar in sorted(out.glob(f"{glob.escape(stem)}_model-{label}_param-*_dwimap.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            provenance = json.loads(sidecar.read_text(encoding="utf-8"))["Provenance"]
            if provenance["method"] == method and provenance["key"] != key:
                found.append(sidecar.stem)
    return found


def read_map(path: Path) -> ParameterMap:
    """A map that `write_map` wrote, with what its sidecar says.

    Raises
    ------
    InputError
        If the map or its sidecar is missing or damaged.
    """
    sidecar = sidecar_path(path)
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8"))
        spec = MapSpec(
            path.name.partition("_param-")[2].partition("_")[0],
            values["Title"],
            "" if values["Units"] == "1" else values["Units"],
            values["Description"],
            tuple(values.get("Window", (0.0, 0.0))),
            values["Colors"],
            tuple(values.get("Components", ())),
        )
        provenance = dict(values["Provenance"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        msg = f"{sidecar.name} is missing or is not a sidecar of DiffusionFM."
        raise InputError(msg, "Compute the map again.") from error
    image = NiftiFile(path)
    data = image.read(SilentReport())
    if spec.components and data.ndim == 3:
        data = data[..., None]
    return ParameterMap(spec, data, image.affine, provenance)


def read_maps(paths: Mapping[str, Path]) -> dict[str, ParameterMap]:
    """Maps that `write_map` wrote, by name."""
    # a file's name tells a map from its standard error by the method's part only
    maps = {name: read_map(path) for name, path in paths.items()}
    return {name: replace(map, spec=replace(map.spec, name=name)) for name, map in maps.items()}


def write_dataset_description(out: Path) -> Path:
    """Write ``dataset_description.json``, which makes the folder a BIDS derivative; another program's is left alone."""
    path = out / "dataset_description.json"
    if path.exists() and '"DiffusionFM"' not in path.read_text(encoding="utf-8", errors="replace"):
        return path
    values = {
        "Name": "DiffusionFM maps",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "DiffusionFM", "Version": __version__}],
    }
    return write_json(path, values)
