"""Weighted least squares under linear constraints: of all solutions that are physical, the one that fits best.

For each voxel this is a quadratic programme: minimise (z - z0)' A (z - z0) / 2, where z0 is the unconstrained fit and A
its matrix, subject to G z >= h. It is solved by augmented Lagrangians: constraints that are broken, or that hold a
multiplier, enter as penalties. For given multipliers the minimum is found by Newton steps, exact as soon as a step
leaves the set of active constraints as it is; then the multipliers are updated. A penalty has the form of a measured
volume with a weight, so that a step costs about as much as a reweighting of the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.fitting.cholesky import PackedSolver, packed_pairs
from DiffusionFMLib.fitting.device import empty
from DiffusionFMLib.fitting.least_squares import REST_FRACTION, Design, LeastSquares, Problem
from DiffusionFMLib.physics import LogLinearModel

PENALTY: Final = 30.0
"""Weight of a broken constraint beside the mean diagonal entry of A: larger ones need fewer updates of the multipliers,
and more Newton steps between them."""

TOLERANCE: Final = 3e-4
"""Constraints, as unit rows, may be broken by so much, in units of the log signal."""

FIRST_STEPS: Final = 8
"""After so many, most voxels are done; the rest goes on in smaller tiles."""

MAX_STEPS: Final = 60

STEPS_PER_UPDATE: Final = 8
"""Multipliers are updated after so many Newton steps at the latest, lest these go in circles."""


@dataclass(frozen=True, eq=False)
class Constraints:
    """Constraints G z >= h on the unknowns z of a `Design`, on one device and in one precision.

    Parameters
    ----------
    rows : Tensor, shape (M, P)
        Unit vectors.
    rows_t : Tensor, shape (P, M)
    bounds : Tensor, shape (M, 1)
    products : Tensor, shape (P (P + 1) / 2, N + M)
        Products of pairs of columns of the design's basis and, below it, of `rows`, in the order of `packed_pairs`.
    """

    rows: Tensor
    rows_t: Tensor
    bounds: Tensor
    products: Tensor

    @classmethod
    def of(cls, model: LogLinearModel, design: Design) -> Constraints:
        """The constraints of a model.

        Raises
        ------
        SettingsError
            If it declares none.
        """
        declared = model.constraints()
        if declared is None:
            msg = f"{model.title} declares no constraints."
            raise SettingsError(msg, "Choose another method.")
        matrix, bounds = (torch.as_tensor(part, dtype=torch.float64) for part in declared)
        rows = matrix @ design.to_theta.double().cpu()
        length = rows.norm(dim=1, keepdim=True)
        rows = rows / length
        first, second = zip(*packed_pairs(rows.shape[1]), strict=True)
        stacked = torch.cat([design.basis.double().cpu(), rows])
        products = (stacked[:, list(first)] * stacked[:, list(second)]).T
        parts = (rows, rows.T, bounds[:, None] / length, products)
        return cls(*(part.contiguous().to(design.basis.device, design.basis.dtype) for part in parts))


@dataclass
class State:
    """Where the iteration of some voxels stands.

    Parameters
    ----------
    start : Tensor, shape (P, V)
        The unconstrained fit.
    weights : Tensor, shape (N, V)
        Of the volumes, scaled so that the mean diagonal entry of A is 1.
    z : Tensor, shape (P, V)
    multipliers : Tensor, shape (M, V)
    steps : Tensor, shape (V,)
        Newton steps since the last update of the multipliers.
    done : Tensor, shape (V,), bool
    """

    start: Tensor
    weights: Tensor
    z: Tensor
    multipliers: Tensor
    steps: Tensor
    done: Tensor

    def at(self, index: Tensor) -> State:
        """The state of some of the voxels."""
        return State(*(getattr(self, name)[..., index] for name in self.__dataclass_fields__))

    def put(self, index: Tensor, part: State) -> None:
        """Take over the first voxels of a part, as many as there are indices."""
        self.z[:, index], self.done[index] = part.z[:, : len(index)], part.done[: len(index)]


class ConstrainedLeastSquares:
    """Constrained fits of one tile of voxels after another.

    Parameters
    ----------
    problem : Problem
    constraints : Constraints
    voxels : int
        Number V of voxels in every tile.
    """

    def __init__(self, problem: Problem, constraints: Constraints, voxels: int) -> None:
        basis = problem.design.basis
        volumes, unknowns = basis.shape
        rows = volumes + len(constraints.rows), PackedSolver.rows(unknowns)
        self.problem, self.constraints, self.voxels = problem, constraints, voxels
        self._weights, work = empty(sum(rows), voxels, basis.device, basis.dtype).split(rows)
        self._solver = PackedSolver(unknowns, work)
        self._rest: ConstrainedLeastSquares | None = None

    def solve(self, fitter: LeastSquares, log_signal: Tensor, reweightings: int) -> tuple[Tensor, Tensor]:
        """Weighted least squares on the log signal under the constraints.

        Parameters
        ----------
        fitter : LeastSquares
            For tiles of the same size; does the unconstrained fit.
        log_signal : Tensor, shape (N, V)
        reweightings : int
            Of the unconstrained fit, whose last weights are kept.

        Returns
        -------
        theta : Tensor, shape (P, V)
        converged : Tensor, shape (V,), bool
        """
        design, constraints = self.problem.design, self.constraints
        theta = fitter.weighted(log_signal, reweightings)
        start = design.basis_t @ (design.matrix @ theta)
        # written so that NaN counts as broken
        broken = ~((constraints.rows @ start - constraints.bounds).amin(0) > -TOLERANCE)
        if not bool(broken.any()):
            return theta, ~broken
        weights = fitter.weights
        scale = design.basis.square().sum(1) @ weights / len(start)
        state = State(
            start,
            weights / scale,
            start.clone(),
            start.new_zeros(len(constraints.rows), start.shape[1]),
            torch.zeros_like(scale),
            ~broken,
        )
        if int(broken.sum()) > self.voxels // 2:
            self._iterate(state, FIRST_STEPS)
        if not bool(state.done.all()):
            self._iterate_rest(state)
        return torch.where(broken, design.to_theta @ state.z, theta), state.done

    def _iterate_rest(self, state: State) -> None:
        """Go on with the voxels that are not done, in smaller tiles."""
        size = max(1, self.voxels // REST_FRACTION)
        for index in (~state.done).nonzero()[:, 0].split(size):
            if self._rest is None:
                self._rest = ConstrainedLeastSquares(self.problem, self.constraints, size)
            # filled up by repeating the last voxel, so that every product has the same shape and the same rounding
            part = state.at(torch.cat([index, index[-1:].expand(size - len(index))]))
            self._rest._iterate(part, MAX_STEPS)
            state.put(index, part)

    def _iterate(self, state: State, steps: int) -> None:
        design, constraints, solver = self.problem.design, self.constraints, self._solver
        volumes = len(design.basis)
        self._weights[:volumes] = state.weights
        slack = constraints.rows @ state.z - constraints.bounds
        for _ in range(steps):
            force = torch.add(state.multipliers, slack, alpha=-PENALTY).clamp_min_(0)
            active = force > 0
            torch.mul(active, PENALTY, out=self._weights[volumes:])
            torch.mm(constraints.products, self._weights, out=solver.matrix)
            pull = (design.basis @ (state.start - state.z)).mul_(state.weights)
            torch.mm(design.basis_t, pull, out=solver.rhs).addmm_(constraints.rows_t, force)
            state.z = torch.where(state.done, state.z, state.z + solver.solve())
            slack = constraints.rows @ state.z - constraints.bounds
            force = torch.add(state.multipliers, slack, alpha=-PENALTY).clamp_min_(0)
            settled = ((force > 0) == active).all(0)
            state.done |= settled & (slack.amin(0) > -TOLERANCE)
            if bool(state.done.all()):
                return
            state.steps += 1
            update = settled | (state.steps >= STEPS_PER_UPDATE)
            state.multipliers = torch.where(update, force, state.multipliers)
            state.steps = torch.where(update, 0, state.steps)
