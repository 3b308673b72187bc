"""Scene nodes that the Slicer module exported: a raw array (.npy) and a description (.json) beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import GradientError, InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io.images import READING, ImageFile

FORMAT: Final = "diffusionfm-exported-node"
VERSION: Final = 1
NPY_MAGIC: Final = b"\x93NUMPY"

_HINT = "Export the volume from Slicer again."


class ExportedNode(ImageFile):
    """A volume node as Slicer holds it: axes k, j, i and, for a diffusion scan, volumes; see `ImageFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._description = self._read_description()
        try:
            self._array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            msg = f"{path.name} is not a whole NumPy array: {error}."
            raise InputError(msg, _HINT) from error
        if self._array.ndim not in (3, 4) or self._array.dtype.kind not in "iufb":
            msg = f"{path.name} has shape {self._array.shape} and type {self._array.dtype}; expected k, j, i, volumes."
            raise InputError(msg, _HINT)
        k, j, i, *volumes = self._array.shape
        self.shape = (i, j, k, *volumes)
        self.affine = self._matrix("affine", (4, 4))
        name = self._description.get("name")
        if isinstance(name, str) and name:
            self.stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or self.stem

    def gradients(self, b0_threshold: float) -> GradientTable | None:
        """See `ImageFile.gradients`; directions are scanner RAS already."""
        if "bvals" not in self._description:
            return None
        count = self.n_volumes
        bvals, bvecs = self._matrix("bvals", (count,)), self._matrix("bvecs", (count, 3))
        try:
            return GradientTable(bvals, bvecs, b0_threshold)
        except GradientError as error:
            msg = f"{self.stem}: {error.message}"
            raise GradientError(msg, error.hint) from error

    def _values(self, report: Report, volumes: Sequence[int] | None, mapped: bool) -> NDArray[np.float32]:
        """The volumes of a voxel stay next to each other, as in the file; never mapped, since the file goes away."""
        out = np.empty(
            (*self._array.shape[:3], *([len(volumes)] if volumes is not None else self.shape[3:])), np.float32
        )
        for k, plane in enumerate(self._array):
            report.progress(k, len(self._array), READING)
            out[k] = plane if volumes is None else plane[..., list(volumes)]
        return np.swapaxes(out, 0, 2)

    def _read_description(self) -> dict[str, Any]:
        path = self.path.with_suffix(".json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            msg = f"{self.path.name} has no readable {path.name} beside it: {error}."
            raise InputError(msg, _HINT) from error
        if not isinstance(values, dict) or values.get("format") != FORMAT or values.get("version") != VERSION:
            msg = f"{path.name} does not describe an exported volume of version {VERSION}."
            raise InputError(msg, _HINT)
        return values

    def _matrix(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        try:
            values = np.array(self._description.get(name), np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != shape:
            msg = f"{self.path.with_suffix('.json').name} has {name} of shape {values.shape}; expected {shape}."
            raise InputError(msg, _HINT)
        return values
