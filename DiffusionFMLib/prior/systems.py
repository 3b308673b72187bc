"""Small symmetric systems of all voxels at once, with derivatives: `fitting.cholesky` inside autograd.

Matrices are packed as there: lower triangles, shape (P (P + 1) / 2, V), in the order of `packed_pairs`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import TINY, PackedSolver, diagonal_entries, packed_pairs


def size_of(packed: Tensor) -> int:
    """Unknowns P of packed matrices, shape (P (P + 1) / 2, V)."""
    return round(((8 * len(packed) + 1) ** 0.5 - 1) / 2)


@lru_cache(maxsize=8)
def entry(size: int) -> dict[tuple[int, int], int]:
    """Where row and column of a symmetric matrix stand in its packed form, in either order."""
    places = {pair: k for k, pair in enumerate(packed_pairs(size))}
    return {**places, **{(column, row): k for (row, column), k in places.items()}}


def pack(matrix: Tensor) -> Tensor:
    """Packed form of symmetric matrices, shape (P, P, V)."""
    rows, columns = zip(*packed_pairs(len(matrix)), strict=True)
    return matrix[list(rows), list(columns)]


def unpack(packed: Tensor) -> Tensor:
    """Symmetric matrices, shape (P, P, V), of their packed form."""
    size = size_of(packed)
    places = entry(size)
    return packed[[places[i, j] for i in range(size) for j in range(size)]].reshape(size, size, *packed.shape[1:])


def add_diagonal(packed: Tensor, diagonal: Tensor | float) -> Tensor:
    """Packed matrices plus a diagonal: a number, or shape (P, V)."""
    result = packed.clone()
    result[diagonal_entries(size_of(packed))] += diagonal
    return result


def multiply(packed: Tensor, vector: Tensor) -> Tensor:
    """Symmetric matrices times vectors (P, V), shape (P, V)."""
    # taken apart once: the derivative of each single selection would be as large as all of them
    entries, parts = packed.unbind(), vector.unbind()
    places = entry(len(parts))
    rows = []
    for i in range(len(parts)):
        row = entries[places[i, 0]] * parts[0]
        for j in range(1, len(parts)):
            row = torch.addcmul(row, entries[places[i, j]], parts[j])
        rows.append(row)
    return torch.stack(rows)


def solve(packed: Tensor, rhs: Tensor) -> Tensor:
    """Solutions x of matrix @ x = rhs, positive definite, shape (P, V); differentiable in both."""
    return _Solve.apply(packed, rhs)


def log_determinant(packed: Tensor) -> Tensor:
    """Logarithm of the determinant of positive definite matrices, shape (V,); differentiable."""
    return _LogDeterminant.apply(packed)


def inverse(packed: Tensor) -> Tensor:
    """Inverses of positive definite matrices, packed too; not differentiable."""
    with torch.no_grad():
        size = size_of(packed)
        solver, result = _solver(packed), torch.empty_like(packed)
        start = 0
        for column in range(size):
            solver.matrix.copy_(packed)
            solver.rhs.zero_()
            solver.rhs[column] = 1
            solution = solver.solve()
            result[start : start + size - column] = solution[column:]
            start += size - column
        return result


def _solver(like: Tensor) -> PackedSolver:
    size = size_of(like)
    memory = torch.empty(PackedSolver.rows(size), like.shape[1], device=like.device, dtype=like.dtype)
    return PackedSolver(size, memory)


def _solved(packed: Tensor, rhs: Tensor) -> Tensor:
    solver = _solver(packed)
    solver.matrix.copy_(packed)
    solver.rhs.copy_(rhs)
    return solver.solve().clone()


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, rhs: Tensor) -> Tensor:
        solution = _solved(packed.detach(), rhs.detach())
        ctx.save_for_backward(packed, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        packed, solution = ctx.saved_tensors
        adjoint = _solved(packed, gradient)
        by_entry = [
            -(adjoint[i] * solution[j] + adjoint[j] * solution[i]) if i != j else -adjoint[i] * solution[i]
            for i, j in packed_pairs(len(solution))
        ]
        return torch.stack(by_entry), adjoint


class _LogDeterminant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        solver = _solver(packed)
        solver.matrix.copy_(packed.detach())
        solver.rhs.zero_()
        solver.solve()
        # the decomposition in place leaves the pivots on the diagonal
        return solver.matrix[diagonal_entries(size_of(packed))].clamp_min(TINY).log().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        by_entry = 2 * inverse(packed)
        by_entry[diagonal_entries(size_of(packed))] *= 0.5
        return by_entry * gradient
