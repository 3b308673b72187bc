"""The gradient table, and every sign and frame rule of diffusion gradients, in one place.

Inside DiffusionFM a direction is a unit vector in scanner RAS+ (x to the patient's right, y to anterior, z to
superior), whatever file it came from. Files differ:

========  =====================================================================================
FSL       relative to the image's axes; x is flipped when the affine's determinant is positive
NRRD      the measurement frame maps it to the header's space (LPS, LAS or RAS)
DICOM     patient coordinates, LPS
MRtrix3   scanner RAS, one row ``x y z b`` per volume
========  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from DiffusionFMLib.errors import GradientError

B0_THRESHOLD: Final = 50.0
"""b-values at or below this count as b0, s/mm2."""

SHELL_TOLERANCE: Final = 0.05
"""Relative half-width of a shell."""

UNIT_TOLERANCE: Final = 0.05
"""Directions whose length is off by more than this are rejected; by less, normalised and noted."""

SPACE_TO_RAS: Final[dict[str, tuple[float, float, float]]] = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
}


@dataclass(frozen=True)
class Shell:
    """Volumes acquired at the same b-value.

    Parameters
    ----------
    bval : float, s/mm2
        Mean b-value.
    indices : tuple of int
        Their positions in the table.
    """

    bval: float
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, eq=False)
class GradientTable:
    """b-values and gradient directions of a scan, validated.

    Parameters
    ----------
    bvals : array, shape (N,), s/mm2
    bvecs : array, shape (N, 3), unit vectors in scanner RAS+
        Those of b0 volumes are set to zero, whatever the file says. A zero vector at b > `b0_threshold` marks
        a vendor's trace volume (see `trace_mask`).
    b0_threshold : float, s/mm2
        Volumes at or below it are b0.
    notes : tuple of str
        What was normalised on the way in.

    Raises
    ------
    GradientError
        If the arrays do not match, hold NaN or negative b-values, or directions are not unit vectors.

    Examples
    --------
    >>> GradientTable([0, 1000], [[0, 0, 0], [1, 0, 0]])
    GradientTable(2 volumes: 1 b0, 1 at b = 1000)
    """

    bvals: NDArray[np.float64]
    bvecs: NDArray[np.float64]
    b0_threshold: float = B0_THRESHOLD
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        bvals = np.array(self.bvals, np.float64).reshape(-1)
        bvecs = np.array(self.bvecs, np.float64)
        if bvecs.ndim != 2 or bvecs.shape[1] != 3:
            msg = f"Gradient directions have shape {bvecs.shape}; expected one row of three numbers per volume."
            raise GradientError(msg, "Check that the bvec file holds three rows (or three columns).")
        if len(bvals) != len(bvecs):
            msg = f"There are {len(bvals)} b-values but {len(bvecs)} gradient directions; expected as many of each."
            raise GradientError(msg, "Check that bval and bvec belong to the same scan.")
        for name, values in (("b-values", bvals), ("gradient directions", bvecs)):
            broken = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
            if len(broken):
                msg = f"The {name} of volume(s) {listed(broken)} are not finite numbers."
                raise GradientError(msg, "Correct the bval/bvec files, or remove those volumes from all three files.")
        if (bvals < 0).any():
            msg = f"The b-value of volume(s) {listed(np.flatnonzero(bvals < 0))} is negative."
            raise GradientError(msg, "Correct the bval file.")

        notes = list(self.notes)
        b0 = bvals <= self.b0_threshold
        length = np.linalg.norm(bvecs, axis=1)
        if (b0 & (length > 0)).any():
            notes.append(f"{int((b0 & (length > 0)).sum())} b0 volume(s) had a gradient direction; it was set to zero.")
        bvecs[b0] = 0.0
        weighted = ~b0 & (length > 0)
        off = weighted & (np.abs(length - 1) > UNIT_TOLERANCE)
        if off.any():
            worst = int(np.flatnonzero(off)[0])
            msg = (
                f"The gradient direction of volume {worst} (b = {bvals[worst]:g}) has length {length[worst]:.3g}; "
                f"expected a unit vector."
            )
            raise GradientError(msg, "Normalise the bvec file, or convert the scan again with a current dcm2niix.")
        if (np.abs(length[weighted] - 1) > 1e-3).any():
            notes.append("Gradient directions were normalised to unit length.")
        bvecs[weighted] /= length[weighted, None]

        for name, values in (("bvals", bvals), ("bvecs", bvecs)):
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        object.__setattr__(self, "notes", tuple(notes))

    # --- from files' conventions -------------------------------------------------------------------------

    @classmethod
    def from_fsl(
        cls, bvals: ArrayLike, bvecs: ArrayLike, affine: ArrayLike, b0_threshold: float = B0_THRESHOLD
    ) -> GradientTable:
        """Table from FSL's bval and bvec.

        Parameters
        ----------
        bvals : array, shape (N,), s/mm2
        bvecs : array, shape (N, 3)
            In FSL's frame of the image (rows are volumes).
        affine : array, shape (4, 4)
            Voxel to RAS mm of that image.
        b0_threshold : float, s/mm2
        """
        bvecs = np.asarray(bvecs, np.float64)
        return cls(np.asarray(bvals), bvecs @ fsl_to_ras(affine).T, b0_threshold)

    @classmethod
    def from_nrrd(
        cls,
        bvals: ArrayLike,
        gradients: ArrayLike,
        measurement_frame: ArrayLike,
        space: str,
        b0_threshold: float = B0_THRESHOLD,
    ) -> GradientTable:
        """Table from a DWI NRRD header.

        Parameters
        ----------
        bvals : array, shape (N,), s/mm2
        gradients : array, shape (N, 3), unit vectors
        measurement_frame : array, shape (3, 3)
            The header's vectors as columns.
        space : str
            The header's ``space``, as ``left-posterior-superior``.
        b0_threshold : float, s/mm2
        """
        if space not in SPACE_TO_RAS:
            msg = f"The NRRD header's space is '{space}'; expected one of {', '.join(SPACE_TO_RAS)}."
            raise GradientError(msg, "Save the scan again with an anatomical space.")
        to_ras = np.diag(SPACE_TO_RAS[space]) @ np.asarray(measurement_frame, np.float64)
        return cls(np.asarray(bvals), np.asarray(gradients, np.float64) @ to_ras.T, b0_threshold)

    @classmethod
    def from_dicom(cls, bvals: ArrayLike, directions: ArrayLike, b0_threshold: float = B0_THRESHOLD) -> GradientTable:
        """Table from DICOM's diffusion gradient orientations, shape (N, 3), patient coordinates (LPS)."""
        lps_to_ras = np.array(SPACE_TO_RAS["left-posterior-superior"])
        return cls(np.asarray(bvals), np.asarray(directions, np.float64) * lps_to_ras, b0_threshold)

    @classmethod
    def from_mrtrix(cls, grad: ArrayLike, b0_threshold: float = B0_THRESHOLD) -> GradientTable:
        """Table from MRtrix3's rows ``x y z b``, shape (N, 4), scanner RAS."""
        grad = np.asarray(grad, np.float64)
        return cls(grad[:, 3], grad[:, :3], b0_threshold)

    # --- to files' conventions ---------------------------------------------------------------------------

    def to_fsl(self, affine: ArrayLike) -> NDArray[np.float64]:
        """Directions in FSL's frame of an image with this affine, shape (N, 3)."""
        return self.bvecs @ fsl_to_ras(affine)

    def to_mrtrix(self) -> NDArray[np.float64]:
        """Rows ``x y z b``, shape (N, 4)."""
        return np.column_stack([self.bvecs, self.bvals])

    # --- what the table holds ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.bvals)

    @property
    def b0_mask(self) -> NDArray[np.bool_]:
        """Which volumes are b0, shape (N,)."""
        return self.bvals <= self.b0_threshold

    @property
    def trace_mask(self) -> NDArray[np.bool_]:
        """Which volumes have b > 0 and no direction (vendors' trace or ADC volumes), shape (N,)."""
        return ~self.b0_mask & ~self.bvecs.any(axis=1)

    @property
    def shells(self) -> tuple[Shell, ...]:
        """Shells above b0, by rising b-value."""
        shells: list[list[int]] = []
        order = np.argsort(self.bvals, kind="stable")
        for index in order[~self.b0_mask[order]]:
            if shells and self.bvals[index] <= self.bvals[shells[-1][0]] * (1 + 2 * SHELL_TOLERANCE):
                shells[-1].append(int(index))
            else:
                shells.append([int(index)])
        return tuple(Shell(float(self.bvals[s].mean()), tuple(sorted(s))) for s in shells)

    @property
    def n_directions(self) -> int:
        """Number of distinct gradient axes (g and -g are one) above b0."""
        g = self.bvecs[~self.b0_mask & ~self.trace_mask]
        if not len(g):
            return 0
        same = np.abs(g @ g.T) > np.cos(np.deg2rad(2.0))
        return int((same.argmax(axis=1) == np.arange(len(g))).sum())

    def subset(self, indices: ArrayLike) -> GradientTable:
        """Table of some volumes (indices or a boolean mask), in that order."""
        indices = np.asarray(indices)
        return GradientTable(self.bvals[indices], self.bvecs[indices], self.b0_threshold, self.notes)

    def rotated(self, rotations: ArrayLike) -> GradientTable:
        """Table with each direction rotated, as motion correction needs it.

        Parameters
        ----------
        rotations : array, shape (3, 3) or (N, 3, 3)
            Orthonormal, acting on column vectors in RAS.
        """
        rotations = np.broadcast_to(np.asarray(rotations, np.float64), (len(self), 3, 3))
        bvecs = np.einsum("nij,nj->ni", rotations, self.bvecs)
        return GradientTable(self.bvals, bvecs, self.b0_threshold, self.notes)

    def summary(self) -> str:
        """One line of facts, as ``b 0 1000: 2+30``."""
        counts = "+".join(str(n) for n in (int(self.b0_mask.sum()), *map(len, self.shells)))
        return f"b {' '.join(['0', *(f'{shell.bval:.0f}' for shell in self.shells)])}: {counts}"

    def __repr__(self) -> str:
        parts = [f"{int(self.b0_mask.sum())} b0", *(f"{len(s)} at b = {s.bval:.0f}" for s in self.shells)]
        return f"GradientTable({len(self)} volumes: {', '.join(parts)})"


def image_rotation(affine: ArrayLike) -> NDArray[np.float64]:
    """Orthonormal directions of an image's axes in RAS, as columns, shape (3, 3).

    The nearest orthonormal matrix to the affine's normalised columns, so that shear from a gantry tilt or from
    rounding does not change the gradients' lengths. Its determinant is -1 for left-handed images.
    """
    axes = np.asarray(affine, np.float64)[:3, :3]
    if not np.isfinite(axes).all() or abs(np.linalg.det(axes)) < 1e-9:
        msg = f"The image's axes {axes.tolist()} do not span space."
        raise GradientError(msg, "Convert the scan again from DICOM, so that the orientation is kept.")
    u, _, vt = np.linalg.svd(axes / np.linalg.norm(axes, axis=0))
    return u @ vt


def fsl_to_ras(affine: ArrayLike) -> NDArray[np.float64]:
    """Matrix that takes a column vector from FSL's gradient frame of an image to scanner RAS, shape (3, 3).

    FSL's frame follows the image's axes, and is always left-handed: x is flipped for an image whose affine has a
    positive determinant (FSL's FDT guide, "What conventions do the bvecs use?").
    """
    axes = image_rotation(affine)
    return axes @ np.diag([-1.0, 1.0, 1.0]) if np.linalg.det(axes) > 0 else axes


def listed(indices: NDArray[np.intp]) -> str:
    """The first of some volumes' positions, and how many there are."""
    text = ", ".join(str(i) for i in indices[:5])
    return text if len(indices) <= 5 else f"{text}, ... ({len(indices)} in all)"
