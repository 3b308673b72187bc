"""What every image format gives the readers: shape, orientation, gradients if it holds them, and the values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import DeviceError, InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import GradientTable

READING = "Reading"
"""Stage that readers report progress of."""

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".npy")


_MAX_VALUES = 1 << 48
"""More values than any scan has: the header is broken."""


class ImageFile(ABC):
    """An image on disk: its header is read at construction, its values when asked for.

    Attributes
    ----------
    path : Path
    shape : tuple of int
        Voxels along x, y and z, then volumes if there is a fourth axis.
    affine : ndarray, shape (4, 4)
        Voxel to scanner RAS mm.
    stem : str
        File name without its extension.
    notes : list of str
        What was normalised.
    warnings : list of (code, message)
        What the user should know about the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shape: tuple[int, ...] = ()
        self.affine: NDArray[np.float64] = np.eye(4)
        self.stem = stem(path)
        self.notes: list[str] = []
        self.warnings: list[tuple[str, str]] = []

    def gradients(self, b0_threshold: float) -> GradientTable | None:
        """The table that the file itself holds, if any."""
        return None

    def read(self, report: Report, volumes: Sequence[int] | None = None, mapped: bool = False) -> NDArray[np.float32]:
        """Scaled values, shape (X, Y, Z) or (X, Y, Z, N).

        Parameters
        ----------
        report : Report
        volumes : sequence of int, optional
            Only these.
        mapped : bool
            A large image may stay in its file, where that holds the values as they are: memory then takes only what
            is being worked on. The array is read-only, and the file has to stay as it is.

        Raises
        ------
        InputError
            If the file is damaged.
        DeviceError
            If it is larger than the memory.
        JobCancelled
            If the report says so.
        """
        try:
            return self._values(report, volumes, mapped)
        except MemoryError as error:
            size = 4 * math.prod(self.shape) / 2**30
            msg = f"{self.path.name} has shape {self.shape}, which needs {size:.1f} GiB: there is not enough memory."
            raise DeviceError(msg, "Close other programs, or choose a smaller scan.") from error

    @property
    def files(self) -> list[Path]:
        """What the image is read from."""
        return [self.path]

    @abstractmethod
    def _values(self, report: Report, volumes: Sequence[int] | None, mapped: bool) -> NDArray[np.float32]:
        """See `read`."""

    @property
    def n_volumes(self) -> int:
        """Length of the fourth axis; 1 for a 3-D image."""
        return self.shape[3] if len(self.shape) > 3 else 1

    def _check_shape(self) -> None:
        """Squeeze trailing axes of length one, with a note, and reject what no reader can use."""
        given = self.shape
        while len(self.shape) > 4 and self.shape[-1] == 1:
            self.shape = self.shape[:-1]
        if self.shape != given:
            self.notes.append(f"The image had shape {given}; trailing axes of length one were dropped.")
        fits = all(n > 0 for n in self.shape) and math.prod(self.shape) < _MAX_VALUES
        if len(self.shape) not in (3, 4) or not fits:
            msg = f"{self.path.name} has shape {given}; expected x, y, z and volumes."
            raise InputError(msg, "Choose a diffusion series or a 3-D image.")


def stem(path: Path) -> str:
    """File name without its image extension."""
    for extension in EXTENSIONS:
        if path.name.lower().endswith(extension):
            return path.name[: -len(extension)]
    return path.stem if path.suffix else path.name
