"""What a resident worker remembers between requests: the last scan, its quality, its fits; and answers from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from DiffusionFMLib.errors import InputError, NotEncodedError, SettingsError
from DiffusionFMLib.events import Report, SilentReport
from DiffusionFMLib.physics import METHODS, MODELS
from DiffusionFMLib.settings import ComputeSettings, FitSettings, ScanSettings

if TYPE_CHECKING:
    from DiffusionFMLib.acquisition import Acquisition
    from DiffusionFMLib.maps import ParameterMap
    from DiffusionFMLib.overlays.encoded import EncodedScan
    from DiffusionFMLib.quality import QualitySummary

_READING = ("series", "b0_threshold")
"""Settings that decide what is read, beside the files."""

_PREPARING = ("denoise", "gibbs", "motion")
"""Settings that change the scan before the fit."""


@dataclass
class Fitted:
    """Maps of one fit.

    Parameters
    ----------
    settings : FitSettings
        What they were made with.
    maps : mapping of str to ParameterMap
    """

    settings: FitSettings
    maps: Mapping[str, ParameterMap]


@dataclass
class _Scan:
    """A scan as read, and what was derived from it."""

    key: tuple[Any, ...]
    acquisition: Acquisition
    warnings: list[tuple[str, str]]
    digest: str = ""
    quality: QualitySummary | None = None
    prepared: dict[tuple[Any, ...], Acquisition] = field(default_factory=dict)
    fits: dict[str, Fitted] = field(default_factory=dict)
    encoded: tuple[str, EncodedScan] | None = None


_DOUBTS = ("no-orientation", "orientation-conflict")
"""Codes of the reader's warnings that make a scan's quality amber."""


class _Recorder:
    """Passes everything on to a report, and keeps the warnings so that a later run can tell them again."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.warnings: list[tuple[str, str]] = []
        self.progress = report.progress
        self.check = report.check

    def warning(self, code: str, message: str) -> None:
        """See `Report`."""
        self.warnings.append((code, message))
        self._report.warning(code, message)


class Session:
    """Remembers the last scan, so that a second run and `query` are quick; holds one scan at a time."""

    def __init__(self) -> None:
        self._scan: _Scan | None = None
        self._last_fit: Fitted | None = None

    def clear(self) -> None:
        """Forget everything."""
        self._scan = None
        self._last_fit = None

    def read(self, settings: ScanSettings, report: Report) -> Acquisition:
        """The scan of the settings, read again only when one of its files changed."""
        from DiffusionFMLib.io import read_acquisition

        key = (*(getattr(settings, name) for name in _READING), *_marks(settings))
        if self._scan is not None and self._scan.key == key:
            for code, message in self._scan.warnings:
                report.warning(code, message)
            return self._scan.acquisition
        # the old scan goes first, so that two never share the memory
        self.clear()
        recorder = _Recorder(report)
        self._scan = _Scan(key, read_acquisition(settings, recorder), recorder.warnings)
        return self._scan.acquisition

    def quality(self, report: Report) -> QualitySummary:
        """Quality of the scan that was read last."""
        from DiffusionFMLib.quality import summarise

        scan = self._current()
        if scan.quality is None:
            doubts = [message for code, message in scan.warnings if code in _DOUBTS]
            scan.quality = summarise(scan.acquisition, report, doubts=doubts)
        return scan.quality

    def prepare(self, settings: ComputeSettings, report: Report) -> Acquisition:
        """The scan that was read last, preprocessed and masked."""
        from DiffusionFMLib.preprocessing import prepare

        scan = self._current()
        key = tuple(getattr(settings, name) for name in _PREPARING)
        if key not in scan.prepared:
            scan.prepared.clear()
            scan.prepared[key] = prepare(scan.acquisition, settings, report)
        return scan.prepared[key]

    def digest(self, report: Report) -> str:
        """SHA-256 of the signal, grid, gradients and mask of the scan that was read last."""
        scan = self._current()
        if not scan.digest:
            scan.digest = _digest(scan.acquisition, report)
        return scan.digest

    def fitted(self, key: str) -> Fitted | None:
        """The fit of that key, if it was made or read in this session."""
        return self._current().fits.get(key)

    def keep(self, key: str, fitted: Fitted) -> None:
        """Remember a fit of the scan that was read last; one per model and method."""
        fits = self._current().fits
        kind = fitted.settings.model, fitted.settings.method
        for old in [k for k, f in fits.items() if (f.settings.model, f.settings.method) == kind]:
            del fits[old]
        fits[key] = fitted
        self._last_fit = fitted

    def encoded(self, key: str) -> EncodedScan | None:
        """What the encoder made of the scan that was read last, if it was made with that key."""
        kept = self._current().encoded
        return kept[1] if kept is not None and kept[0] == key else None

    def keep_encoded(self, key: str, encoded: EncodedScan) -> None:
        """Remember what the encoder made of the scan that was read last; the one before is forgotten."""
        self._current().encoded = key, encoded

    def query(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a question about the last scan.

        Parameters
        ----------
        body : mapping
            ``{"what": "voxel", "ijk": [i, j, k]}``, ``{"what": "quality"}``; after a scan was encoded,
            ``{"what": "encoding"}``, ``{"what": "overlay", "overlay", "ijk", "block", "head"}`` and
            ``{"what": "directions", "ijk", "block", "head"}``, see `EncodedScan`.

        Raises
        ------
        SettingsError
            If the question is unknown or incomplete.
        InputError
            If no scan was read yet.
        """
        match body.get("what"):
            case "voxel":
                return self._voxel(body.get("ijk"))
            case "quality":
                return self.quality(SilentReport()).to_dict()
            case "encoding":
                kept = self._current().encoded
                return kept[1].about() if kept else {"encoded": False, "blocks": 0, "heads": 0, "overlays": []}
            case "overlay":
                return self._current_encoded().overlay(body)
            case "directions":
                return self._current_encoded().directions(body)
            case other:
                msg = f"There is no query {other!r}; expected voxel, quality, encoding, overlay or directions."
                raise SettingsError(msg, "Correct the request.")

    def _current(self) -> _Scan:
        if self._scan is None:
            msg = "No scan was read yet."
            raise InputError(msg, "Run info or fit on a scan first.")
        return self._scan

    def _current_encoded(self) -> EncodedScan:
        kept = self._current().encoded
        if kept is None:
            msg = "The scan was not encoded yet."
            raise NotEncodedError(msg, "Run encode on it first.")
        return kept[1]

    def _voxel(self, ijk: Any) -> dict[str, Any]:
        """Measured and fitted signal and the maps' values at a voxel; what was fitted last is the model."""
        scan = self._current()
        where = scan.acquisition.checked_voxel(ijk)
        gtab = scan.acquisition.gtab
        answer: dict[str, Any] = {
            "ijk": ijk,
            "bvals": gtab.bvals.tolist(),
            "bvecs": gtab.bvecs.tolist(),
            "signal": scan.acquisition.signal[where].tolist(),
            "fitted": None,
            "maps": {},
        }
        if self._last_fit is not None:
            fitted = self._last_fit
            answer["model"] = fitted.settings.model
            answer["maps"] = {name: _plain(map.data[where]) for name, map in fitted.maps.items()}
            answer["fitted"] = self._predicted(fitted, where)
        return answer

    def _predicted(self, fitted: Fitted, where: tuple[int, ...]) -> list[float]:
        """The model's signal at a voxel, from maps that may have been read from files.

        Not every model's parameters are among them: where a voxel can be fitted alone, it is fitted again.
        """
        import torch

        from DiffusionFMLib.acquisition import Acquisition
        from DiffusionFMLib.fitting import fit

        scan, settings = self._current(), fitted.settings
        source = scan.prepared.get(tuple(getattr(settings, name) for name in _PREPARING), scan.acquisition)
        model = MODELS[settings.model]
        if not METHODS[settings.method].voxelwise:
            log_s0 = np.log(np.maximum(fitted.maps["s0"].data[where], np.finfo(np.float32).tiny))
            tensor = fitted.maps["tensor"].data[where] * 1e3
            return model.signal(torch.from_numpy(np.append(tensor, log_s0)), source.gtab).tolist()
        signal = source.signal[where][None, None, None]
        voxel = Acquisition(signal, source.affine, source.gtab, np.ones((1, 1, 1), bool), source.name)
        plain = replace(settings, standard_errors=False)
        theta = fit(voxel.up_to(settings.max_bval), model, plain, SilentReport()).parameters
        return model.signal(torch.from_numpy(theta[0]), source.gtab).tolist()


def _marks(settings: ScanSettings) -> tuple[Any, ...]:
    """What tells whether a scan's files are those that were read before."""
    from DiffusionFMLib.io import digest_of, scan_files

    named = {Path(path) for path in (settings.dwi, settings.bval, settings.bvec, settings.mask) if path}
    # every run exports the scene's nodes anew: these are known by what they hold
    exported = {part for path in named if path.suffix == ".npy" for part in (path, path.with_suffix(".json"))}
    paths = sorted(path for path in named | exported | set(scan_files(settings)) if path.exists())
    return tuple(
        (path.name, digest_of(path)) if path in exported else (str(path), stat.st_mtime_ns, stat.st_size)
        for path, stat in ((path, path.stat()) for path in paths)
    )


def _digest(acquisition: Acquisition, report: Report) -> str:
    gtab = acquisition.gtab
    digest = hashlib.sha256(json.dumps([acquisition.signal.shape, gtab.b0_threshold]).encode())
    for array in (acquisition.affine, gtab.bvals, gtab.bvecs):
        digest.update(np.ascontiguousarray(array).data)
    if acquisition.mask is not None:
        digest.update(np.packbits(acquisition.mask).data)
    for volume in range(len(gtab)):
        report.check()
        # in one order whatever the array's own, so that file formats agree; volume by volume to spare a copy
        digest.update(np.asfortranarray(acquisition.signal[..., volume]).T.data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """A map's value as JSON: numbers that are not finite become null."""
    values = np.asarray(value, float).tolist()
    if isinstance(values, list):
        return [v if math.isfinite(v) else None for v in values]
    return values if math.isfinite(values) else None
