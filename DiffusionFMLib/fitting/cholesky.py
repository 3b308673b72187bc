"""Many small symmetric systems at once, one operation per matrix entry over all voxels.

LAPACK called for each 7x7 system costs several times the arithmetic; here every entry is a vector over voxels, so
each step runs at the speed of memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-36
"""Keeps the reciprocal of a vanished pivot finite in float32."""


def packed_pairs(size: int) -> list[tuple[int, int]]:
    """Row and column of each stored entry: the lower triangle, column by column."""
    return [(row, column) for column in range(size) for row in range(column, size)]


def diagonal_entries(size: int) -> list[int]:
    """Positions of the diagonal among `packed_pairs`."""
    return [column * size - column * (column - 1) // 2 for column in range(size)]


class PackedSolver:
    """Solves symmetric positive definite systems by LDL' decomposition, in place and again and again.

    The views that each step works on are made once: making them costs more than the arithmetic.

    Parameters
    ----------
    size : int
        Unknowns P of each system.
    memory : Tensor, shape (`rows` (size), V)
        What it works in, for V systems.

    Attributes
    ----------
    matrix : Tensor, shape (P (P + 1) / 2, V)
        Lower triangles in the order of `packed_pairs`; fill it before `solve`, which overwrites it.
    rhs : Tensor, shape (P, V)
        Right-hand sides; `solve` leaves the solutions here.
    """

    def __init__(self, size: int, memory: Tensor) -> None:
        self.matrix, self.rhs, self._floor, inverse, scaled = memory.split([size * (size + 1) // 2, *[size] * 4])
        self._eps = torch.finfo(memory.dtype).eps
        self._diagonal = diagonal_entries(size)
        columns = [self.matrix[start : start + size - j] for j, start in enumerate(self._diagonal)]
        self._forward = [
            (
                column[0],
                self._floor[j],
                inverse[j],
                column[1:],
                scaled[j + 1 :],
                [(columns[k], scaled[k:], column[k - j]) for k in range(j + 1, size)],
                self.rhs[j],
                self.rhs[j + 1 :],
            )
            for j, column in enumerate(columns)
        ]
        self._backward = [
            (self.rhs[j], inverse[j], [(columns[j][i - j], self.rhs[i]) for i in range(j + 1, size)])
            for j in reversed(range(size))
        ]

    @staticmethod
    def rows(size: int) -> int:
        """Rows of memory that systems of this size need."""
        return size * (size + 1) // 2 + 4 * size

    def solve(self) -> Tensor:
        """Solve matrix @ x = rhs for all voxels; returns `rhs`, which then holds x.

        A pivot that rounding has eaten (its unknown is not determined) is replaced by the rounding error of its
        diagonal entry, so that the solution stays finite.
        """
        torch.mul(self.matrix[self._diagonal], self._eps, out=self._floor).add_(TINY)
        for pivot, floor, inverse, below, scaled, updates, rhs, rhs_below in self._forward:
            torch.maximum(pivot, floor, out=inverse).reciprocal_()
            if updates:
                torch.mul(below, inverse, out=scaled)
                for column, factor, row in updates:
                    column.addcmul_(factor, row, value=-1)
                rhs_below.addcmul_(scaled, rhs, value=-1)
        for rhs, inverse, terms in self._backward:
            for entry, solved in terms:
                rhs.addcmul_(entry, solved, value=-1)
            rhs.mul_(inverse)
        return self.rhs
