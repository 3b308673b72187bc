"""Least-squares estimators of log-linear models, batched over voxels.

Everything is laid out as a structure of arrays, (row, voxel). The design is orthonormalised once (B = Q R), so that
the unknowns z = R theta are well scaled whatever the b-values, and float32 suffices. Weighted and Gauss-Newton
steps share one form: with weights w and residuals e, solve (Q' diag(w) Q) dz = Q' diag(w) e; the products of Q's
columns make the matrices of all voxels one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import PackedSolver, diagonal_entries, packed_pairs
from DiffusionFMLib.fitting.device import empty
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import LogLinearModel

MAX_EXPONENT = 30.0
"""Log signals are kept within +-this when weights are formed, so that their squares stay finite in float32."""

ROBUST_STEPS = 10

TUNING = 4.0
"""Residuals of so many times the scatter have a quarter of their weight; without outliers hardly anything is lost."""

TINY_SCATTER = 1e-5
"""Scatter is at least this fraction of the largest signal: below is rounding."""

START_DAMPING, MIN_DAMPING, MAX_DAMPING = 1e-3, 1e-9, 1e9

FIRST_ITERATIONS = 6
"""After so many, nearly all voxels have converged; the rest goes on in smaller tiles."""

REST_FRACTION = 8
"""How many times smaller these are."""


@dataclass(frozen=True, eq=False)
class Design:
    """A design matrix made ready for many voxels, on one device and in one precision.

    Parameters
    ----------
    basis : Tensor, shape (N, P)
        Orthonormal columns Q.
    basis_t : Tensor, shape (P, N)
    products : Tensor, shape (P (P + 1) / 2, N)
        Products of pairs of columns of Q, in the order of `packed_pairs`.
    to_theta : Tensor, shape (P, P)
        Inverse of R: theta = to_theta @ z.
    matrix : Tensor, shape (N, P)
        The design B itself.
    """

    basis: Tensor
    basis_t: Tensor
    products: Tensor
    to_theta: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, matrix: Tensor, device: torch.device, dtype: torch.dtype) -> Design:
        """Prepare a design matrix, shape (N, P), float64, of full column rank."""
        q, r = torch.linalg.qr(matrix)
        rows, columns = zip(*packed_pairs(q.shape[1]), strict=True)
        products = (q[:, list(rows)] * q[:, list(columns)]).T
        parts = (q, q.T, products, torch.linalg.inv(r), matrix)
        return cls(*(part.contiguous().to(device, dtype) for part in parts))


@dataclass(frozen=True)
class Problem:
    """What a tile of voxels is fitted with.

    Parameters
    ----------
    design : Design
        Of all volumes.
    groups : Tensor, shape (G, N), or None
        Averages log signals before a nonlinear fit (see `LogLinearModel.geometric_groups`).
    group_design : Design
        Of the groups; `design` when there are none.
    group_weights : Tensor, shape (G, 1), or None
        Square root of the number of volumes in each group.
    """

    design: Design
    groups: Tensor | None
    group_design: Design
    group_weights: Tensor | None

    @classmethod
    def of(cls, model: LogLinearModel, gtab: GradientTable, device: torch.device, dtype: torch.dtype) -> Problem:
        """Prepare a model for a protocol."""
        matrix = torch.as_tensor(model.design(gtab), dtype=torch.float64)
        design = Design.of(matrix, device, dtype)
        averaging = model.geometric_groups(gtab)
        if averaging is None:
            return cls(design, None, design, None)
        groups = torch.as_tensor(averaging, dtype=torch.float64)
        counts = (groups > 0).sum(1, keepdim=True).double()
        group_design = Design.of(groups @ matrix, device, dtype)
        return cls(design, groups.to(device, dtype), group_design, counts.sqrt().to(device, dtype))


class LeastSquares:
    """Estimators over one tile of voxels after another, with buffers that are made once.

    Parameters
    ----------
    problem : Problem
    voxels : int
        Number V of voxels in every tile.

    Attributes
    ----------
    signal, log_signal : Tensor, shape (N, V)
        For the caller to fill; `signal` is not touched here.
    weights : Tensor, shape (N, V)
        What `weighted` weighed volumes with at last.
    """

    def __init__(self, problem: Problem, voxels: int) -> None:
        basis = problem.design.basis
        volumes, unknowns = basis.shape
        sizes = [volumes] * 4 + [PackedSolver.rows(unknowns)]
        memory = empty(sum(sizes), voxels, basis.device, basis.dtype)
        self.problem = problem
        self.signal, self.log_signal, self._predicted, self.weights, work = memory.split(sizes)
        self._solver = PackedSolver(unknowns, work)
        self._rest: LeastSquares | None = None

    def ordinary(self, log_signal: Tensor) -> Tensor:
        """Ordinary least squares on the log signal.

        Parameters
        ----------
        log_signal : Tensor, shape (N, V)

        Returns
        -------
        Tensor, shape (P, V)
            Parameters theta.
        """
        design = self.problem.design
        return design.to_theta @ (design.basis_t @ log_signal)

    def weighted(self, log_signal: Tensor, reweightings: int) -> Tensor:
        """Weighted least squares on the log signal, weights the square of the predicted signal.

        Measured signals as weights would bias the fit, because their noise enters twice; the prediction of the fit
        before does not (Veraart et al., 2013). One reweighting of the ordinary fit is DIPY's WLS.

        Parameters
        ----------
        log_signal : Tensor, shape (N, V)
        reweightings : int

        Returns
        -------
        Tensor, shape (P, V)
            Parameters theta.
        """
        design, solver, predicted, weights = self.problem.design, self._solver, self._predicted, self.weights
        z = design.basis_t @ log_signal
        for _ in range(reweightings):
            torch.mm(design.basis, 2 * z, out=predicted)
            torch.clamp(predicted, -2 * MAX_EXPONENT, 2 * MAX_EXPONENT, out=weights).exp_()
            # solving for the change keeps the digits that a solution for z itself would lose in float32
            residual = torch.sub(log_signal, predicted, alpha=0.5, out=predicted).mul_(weights)
            torch.mm(design.products, weights, out=solver.matrix)
            torch.mm(design.basis_t, residual, out=solver.rhs)
            z += solver.solve()
        return design.to_theta @ z

    def robust(self, log_signal: Tensor) -> Tensor:
        """Weighted least squares that leaves out volumes that do not fit the others: spikes, lost slices, movement.

        Weights are the square of the predicted signal times Geman and McClure's function of the residual over the
        voxel's own scatter, the median absolute deviation (as in RESTORE, Chang et al., 2005, and REKINDLE, Tax et
        al., 2015).

        Parameters
        ----------
        log_signal : Tensor, shape (N, V)

        Returns
        -------
        Tensor, shape (P, V)
            Parameters theta.
        """
        design, solver = self.problem.design, self._solver
        volumes, unknowns = design.basis.shape
        spread = 1.4826 * (volumes / max(volumes - unknowns, 1)) ** 0.5
        z = design.basis_t @ log_signal
        for _ in range(ROBUST_STEPS):
            torch.mm(design.basis, z, out=self._predicted).clamp_(-MAX_EXPONENT, MAX_EXPONENT)
            residual = log_signal - self._predicted
            predicted = self._predicted.exp_()
            misfit = (residual * predicted).abs_()
            scale = (spread * TUNING * misfit.median(0).values).clamp_min(TINY_SCATTER * predicted.amax(0))
            down = misfit.div_(scale).square_().add_(1).square_()
            weights = torch.div(predicted.square_(), down, out=self.weights)
            torch.mm(design.products, weights, out=solver.matrix)
            torch.mm(design.basis_t, residual.mul_(weights), out=solver.rhs)
            z += solver.solve()
        return design.to_theta @ z

    def nonlinear(self, log_signal: Tensor, theta: Tensor, max_iterations: int) -> tuple[Tensor, Tensor]:
        """Nonlinear least squares on the signal (Gaussian noise), by Levenberg-Marquardt.

        Parameters
        ----------
        log_signal : Tensor, shape (N, V)
        theta : Tensor, shape (P, V)
            Where to start.
        max_iterations : int

        Returns
        -------
        theta : Tensor, shape (P, V)
        converged : Tensor, shape (V,), bool
        """
        theta, converged = self._levenberg_marquardt(log_signal, theta, min(FIRST_ITERATIONS, max_iterations))
        left = max_iterations - FIRST_ITERATIONS
        if left <= 0 or bool(converged.all()):
            return theta, converged
        size = max(1, log_signal.shape[1] // REST_FRACTION)
        if self._rest is None:
            self._rest = LeastSquares(self.problem, size)
        for index in (~converged).nonzero()[:, 0].split(size):
            # filled up by repeating the last voxel, so that every product has the same shape and the same rounding
            padded = torch.cat([index, index[-1:].expand(size - len(index))])
            part, done = self._rest._levenberg_marquardt(log_signal[:, padded], theta[:, padded], left)
            theta[:, index], converged[index] = part[:, : len(index)], done[: len(index)]
        return theta, converged

    def _levenberg_marquardt(self, log_signal: Tensor, theta: Tensor, max_iterations: int) -> tuple[Tensor, Tensor]:
        problem, solver = self.problem, self._solver
        design = problem.group_design
        target = log_signal if problem.groups is None else problem.groups @ log_signal
        scale = target.amax(0)
        target = (target - scale).exp_()
        start = (design.matrix @ theta).sub_(scale).clamp_(-MAX_EXPONENT, MAX_EXPONENT).exp_()
        if problem.group_weights is not None:
            target *= problem.group_weights
            start *= problem.group_weights

        predicted, residual = self._predicted[: len(target)], self.weights[: len(target)]
        diagonal = diagonal_entries(len(theta))
        eps = torch.finfo(theta.dtype).eps
        tolerance, slack = 8 * eps**0.75, 1 + 8 * eps
        best, trial = torch.zeros_like(theta), torch.zeros_like(theta)
        best_cost = torch.full_like(scale, torch.inf)
        damping = torch.full_like(scale, START_DAMPING)
        converged = torch.zeros_like(scale, dtype=torch.bool)
        gram, gradient = torch.zeros_like(solver.matrix), torch.zeros_like(theta)
        for iteration in range(max_iterations):
            torch.mm(design.basis, trial, out=predicted).clamp_(-MAX_EXPONENT, MAX_EXPONENT).exp_().mul_(start)
            torch.sub(target, predicted, out=residual)
            cost = residual.square().sum(0)
            better = cost <= best_cost * slack
            if iteration:
                # a step too small to matter ends the search, whichever side of rounding its cost fell on
                converged |= (trial - best).abs().amax(0) < tolerance
            accept = better & ~converged
            best = torch.where(accept, trial, best)
            best_cost = torch.where(accept, cost, best_cost)
            if bool(converged.all()):
                break
            damping = torch.where(better, damping * 0.1, damping * 10).clamp_(MIN_DAMPING, MAX_DAMPING)
            gradient = torch.where(better, design.basis_t @ residual.mul_(predicted), gradient)
            gram = torch.where(better, design.products @ predicted.square_(), gram)
            solver.matrix.copy_(gram)
            solver.matrix[diagonal] *= 1 + damping
            solver.rhs.copy_(gradient)
            trial = best + solver.solve()
        return theta + design.to_theta @ best, converged
