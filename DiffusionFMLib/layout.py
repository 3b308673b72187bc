"""Which way the axes of an array run, and the same array along the axes nearest to the patient's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

RAS: Final = np.array([[0, 1], [1, 1], [2, 1]])
"""Orientation of arrays whose axes run to right, anterior and superior, as nibabel writes it."""

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which way a scan's axes run, and how they are turned.

    Parameters
    ----------
    turn : array, shape (3, 2)
        Orientation of the scan's axes, as nibabel writes it; `RAS` where they stay.
    affine : array, shape (4, 4), float64
        Voxel to RAS mm after turning.
    """

    turn: NDArray[np.float64]
    affine: NDArray[np.float64]

    @classmethod
    def of(cls, affine: NDArray[np.float64], shape: tuple[int, int, int]) -> Layout:
        """Turns to the order and sense nearest to right, anterior and superior, in which nothing is interpolated."""
        from nibabel.orientations import inv_ornt_aff, io_orientation

        turn = io_orientation(affine)
        return cls(turn, affine @ inv_ornt_aff(turn, shape))

    @classmethod
    def as_stored(cls, affine: NDArray[np.float64]) -> Layout:
        """Turns nothing."""
        return cls(RAS, affine)

    def turned(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """View of an array, shape (X, Y, Z, ...), along the turned axes."""
        from nibabel.orientations import apply_orientation

        return apply_orientation(values, self.turn)

    def restored(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """The inverse of `turned`."""
        from nibabel.orientations import apply_orientation, ornt_transform

        return apply_orientation(values, ornt_transform(RAS, self.turn))

    def voxel(self, ijk: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
        """Where a voxel of the scan lies in turned arrays of that size, shape (3,)."""
        found = [0, 0, 0]
        for index, (axis, sign) in zip(ijk, self.turn.astype(int), strict=True):
            found[axis] = int(index) if sign > 0 else size[axis] - 1 - int(index)
        return found[0], found[1], found[2]
