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
    """Symmetric matrices times vectors (P, V), shape (P, V); differentiable in both."""
    return _Multiply.apply(packed, vector)


def gram(triangle: Tensor) -> Tensor:
    """Products L L' of packed lower triangles, packed; differentiable."""
    return _Gram.apply(triangle)


def solve(packed: Tensor, rhs: Tensor) -> Tensor:
    """Solutions x of matrix @ x = rhs, positive definite, shape (P, V); differentiable in both."""
    return _Solve.apply(packed, rhs)


def log_determinant(packed: Tensor) -> Tensor:
    """Logarithm of the determinant of positive definite matrices, shape (V,); differentiable."""
    return _LogDeterminant.apply(packed)


def inverse(packed: Tensor) -> Tensor:
    """Inverses of positive definite matrices, packed too; not differentiable.

    From the last column to the first, each from those behind it and the decomposition L D L' (Takahashi, 1973): a
    third of P^3 multiplications, where solving for each unit vector takes P times as many as one system.
    """
    with torch.no_grad():
        size = size_of(packed)
        solver = _solver(packed)
        solver.matrix.copy_(packed)
        solver.rhs.zero_()
        solver.solve()
        starts = diagonal_entries(size)
        result = packed.new_empty(size, size, packed.shape[1])
        for j in reversed(range(size)):
            # the decomposition in place leaves the columns of L D
            column = solver.matrix[starts[j] : starts[j] + size - j]
            pivot = column[0].clamp_min(TINY).reciprocal()
            lower = column[1:] * pivot
            behind = result[j + 1 :, j]
            behind.zero_()
            result[j, j] = pivot
            for k in range(j + 1, size):
                behind.addcmul_(result[k, j + 1 :], lower[k - j - 1], value=-1)
            result[j, j + 1 :] = behind
            for k in range(j + 1, size):
                result[j, j].addcmul_(lower[k - j - 1], result[k, j], value=-1)
        return pack(result)


def _solver(like: Tensor) -> PackedSolver:
    size = size_of(like)
    memory = torch.empty(PackedSolver.rows(size), like.shape[1], device=like.device, dtype=like.dtype)
    return PackedSolver(size, memory)


def _solved(packed: Tensor, rhs: Tensor) -> Tensor:
    solver = _solver(packed)
    solver.matrix.copy_(packed)
    solver.rhs.copy_(rhs)
    return solver.solve().clone()


def _multiplied(packed: Tensor, vector: Tensor) -> Tensor:
    result = torch.zeros_like(vector)
    for j, start in enumerate(diagonal_entries(len(vector))):
        column = packed[start : start + len(vector) - j]
        result[j:].addcmul_(column, vector[j])
        for k, below in enumerate(column[1:], j + 1):
            result[j].addcmul_(below, vector[k])
    return result


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """Derivative of first' M second by the entries of packed symmetric matrices M, shape (P (P + 1) / 2, V)."""
    size = len(first)
    result = first.new_empty(size * (size + 1) // 2, first.shape[1])
    for j, start in enumerate(diagonal_entries(size)):
        torch.mul(first[j:], second[j], out=result[start : start + size - j])
        result[start + 1 : start + size - j].addcmul_(second[j + 1 :], first[j])
    return result


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, vector: Tensor) -> Tensor:
        ctx.save_for_backward(packed, vector)
        return _multiplied(packed, vector)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        packed, vector = ctx.saved_tensors
        return _outer(gradient, vector), _multiplied(packed, gradient)


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, triangle: Tensor) -> Tensor:
        ctx.save_for_backward(triangle)
        result = torch.zeros_like(triangle)
        starts = diagonal_entries(size_of(triangle))
        for k, start in enumerate(starts):
            column = triangle[start : start + len(starts) - k]
            for j in range(k, len(starts)):
                result[starts[j] : starts[j] + len(starts) - j].addcmul_(column[j - k :], column[j - k])
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (triangle,) = ctx.saved_tensors
        result = torch.zeros_like(triangle)
        starts = diagonal_entries(size_of(triangle))
        for k, start in enumerate(starts):
            column, by_column = (t[start : start + len(starts) - k] for t in (triangle, result))
            for j in range(k, len(starts)):
                by_entry = gradient[starts[j] : starts[j] + len(starts) - j]
                by_column[j - k :].addcmul_(by_entry, column[j - k])
                by_column[j - k].add_((by_entry * column[j - k :]).sum(0))
        return result


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
        return -_outer(adjoint, solution), adjoint


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
