"""The one type that everything below the readers works on: a validated diffusion scan."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.gradients import GradientTable, listed

MAX_BVAL: Final = 4000.0
"""Higher b-values are outside what the models are made for, s/mm2."""

MAX_VOXEL_MM: Final = 4.0
"""Longer voxel edges are too, mm."""

MIN_VOXEL_MM3: Final = 0.3
"""Smaller voxels are those of animals and specimens, mm3."""


@dataclass(frozen=True, eq=False)
class Acquisition:
    """A diffusion scan: a faithful record, nothing dropped or repaired silently.

    Parameters
    ----------
    signal : array, shape (X, Y, Z, N), float32
        Scaled signal (``scl_slope`` applied), finite.
    affine : array, shape (4, 4), float64
        Voxel to scanner RAS mm.
    gtab : GradientTable, N volumes
    mask : array, shape (X, Y, Z), bool, or None
        Brain; None until one was made or read.
    name : str
        Stem of output files. Never a patient's name.
    notes : tuple of str
        What readers and preprocessing changed; it goes into every sidecar.

    Raises
    ------
    InputError
        If shapes do not match, the affine is singular or the signal holds NaN.
    """

    signal: NDArray[np.float32]
    affine: NDArray[np.float64]
    gtab: GradientTable
    mask: NDArray[np.bool_] | None = None
    name: str = "dwi"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        signal = np.asarray(self.signal, np.float32)
        if signal.ndim != 4:
            msg = f"{self.name} has {signal.ndim} dimensions (shape {signal.shape}); expected 4: x, y, z, volume."
            raise InputError(msg, "Choose the whole diffusion series, not a single volume of it.")
        if signal.shape[3] != len(self.gtab):
            msg = f"{self.name} has {signal.shape[3]} volumes but the gradient table has {len(self.gtab)}."
            raise InputError(msg, "Check that image, bval and bvec belong together and that no b0 row was lost.")
        # a sum sees every NaN and infinity in one pass, without a boolean copy of the scan
        if not np.isfinite(signal.sum(dtype=np.float64)):
            broken = np.flatnonzero(~np.isfinite(signal.sum(axis=(0, 1, 2), dtype=np.float64)))
            where = f"volume(s) {listed(broken)} (the first is 0)"
            msg = f"{self.name} holds values that are not finite numbers, in {where}."
            raise InputError(msg, "Export the scan again, or replace them with zeros.")
        affine = np.array(self.affine, np.float64)
        check_affine(affine, self.name)
        object.__setattr__(self, "signal", signal)
        object.__setattr__(self, "affine", affine)
        if self.mask is not None:
            self._set_mask(self.mask)

    def _set_mask(self, mask: ArrayLike) -> None:
        mask = np.asarray(mask, bool)
        if mask.shape != self.shape:
            msg = f"The mask has shape {mask.shape} but {self.name} has {self.shape}."
            raise InputError(msg, "Choose a mask drawn on this scan, or the automatic one.")
        object.__setattr__(self, "mask", mask)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        return self.signal.shape[:3]

    @cached_property
    def voxel_sizes(self) -> NDArray[np.float64]:
        """Edge lengths of a voxel, shape (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel, mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def out_of_protocol(self) -> list[tuple[str, str]]:
        """How the scan lies outside what the models are made for: a code and a sentence for each way."""
        found = []
        top = self.gtab.bvals.max()
        if top > MAX_BVAL:
            found.append(("high-b", f"b-values reach {top:.0f} s/mm2, above {MAX_BVAL:g}: maps may mislead."))
        # headers round
        if self.voxel_sizes.max() > MAX_VOXEL_MM * (1 + 1e-3):
            edges = " x ".join(f"{size:.3g}" for size in self.voxel_sizes)
            found.append(
                ("large-voxels", f"Voxels of {edges} mm are coarse, above {MAX_VOXEL_MM:g} mm: maps may mislead.")
            )
        if self.voxel_volume < MIN_VOXEL_MM3:
            small = f"Voxels are only {self.voxel_volume:.2g} mm3: an animal or a specimen? Models are for people."
            found.append(("small-voxels", small))
        return found

    def with_mask(self, mask: ArrayLike) -> Acquisition:
        """The same scan with another brain mask, shape (X, Y, Z)."""
        # a new one would look through the whole signal again
        other = copy(self)
        other._set_mask(mask)
        return other

    def with_note(self, note: str) -> Acquisition:
        """The same scan with one note more."""
        other = copy(self)
        object.__setattr__(other, "notes", (*self.notes, note))
        return other

    def with_signal(self, signal: ArrayLike, note: str, gtab: GradientTable | None = None) -> Acquisition:
        """The scan after a preprocessing step, with a note of what was done."""
        return replace(self, signal=np.asarray(signal), gtab=gtab or self.gtab, notes=(*self.notes, note))

    def subset(self, indices: ArrayLike, note: str) -> Acquisition:
        """Some volumes (indices or a boolean mask) of the scan, with a note of why."""
        indices = np.asarray(indices)
        return self.with_signal(self.signal[..., indices], note, self.gtab.subset(indices))

    def up_to(self, bval: float) -> Acquisition:
        """The volumes at or below a b-value, s/mm2; all of them when it is 0."""
        kept = self.gtab.bvals <= bval
        if not bval or kept.all():
            return self
        return self.subset(kept, f"{int((~kept).sum())} volume(s) above b = {bval:g} s/mm2 were left out.")

    def checked_voxel(self, ijk: Any) -> tuple[int, int, int]:
        """A voxel of the scan from JSON.

        Raises
        ------
        SettingsError
            If it is none.
        """
        if (
            not isinstance(ijk, list)
            or len(ijk) != 3
            or not all(type(i) is int and 0 <= i < n for i, n in zip(ijk, self.shape, strict=True))
        ):
            msg = f"A voxel's ijk is {ijk!r}; expected three whole numbers inside {self.shape}."
            raise SettingsError(msg, "Point into the scan.")
        return ijk[0], ijk[1], ijk[2]

    def __repr__(self) -> str:
        size = " x ".join(f"{s:.3g}" for s in self.voxel_sizes)
        return f"Acquisition({self.name}: {'x'.join(map(str, self.shape))}, {size} mm, {self.gtab.summary()})"


def check_affine(affine: NDArray[np.float64], name: str) -> None:
    """Check that an affine places every voxel.

    Raises
    ------
    InputError
        If it is not 4x4, not finite, or singular.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        msg = f"{name} has no usable orientation: its affine is {affine.tolist()}."
        raise InputError(msg, "Convert the scan again from DICOM, so that the orientation is kept.")
