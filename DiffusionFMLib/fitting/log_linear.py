"""Least squares of models whose log signal is linear: ordinary, weighted, robust, nonlinear and constrained."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib import fused
from DiffusionFMLib.fitting.cholesky import PackedSolver
from DiffusionFMLib.fitting.constrained import ConstrainedLeastSquares, Constraints
from DiffusionFMLib.fitting.contract import MAX_RESIDUAL, Estimator, FitOptions, Plan, Solution, Spread, covariance_of
from DiffusionFMLib.fitting.least_squares import MAX_EXPONENT, LeastSquares, Problem
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import RESIDUAL
from DiffusionFMLib.physics import DTI, LogLinearModel
from DiffusionFMLib.physics.dti import MIN_DIFFUSIVITY
from DiffusionFMLib.settings import FitSettings

WORKING_ARRAYS: Final = {"ols": 5, "wls": 5, "nlls": 12, "constrained": 7, "robust": 9}
"""Arrays as large as a tile's signal that a method holds at once."""

CONSTRAINT_ARRAYS: Final = 6
"""Numbers a voxel that each constraint takes."""

MAP_ROWS: Final = 200
"""Numbers a voxel that maps take while they are made."""


class LogLinearPlan(Plan):
    """Least squares of models whose log signal is linear; see `estimators.plan`."""

    def __init__(
        self, model: LogLinearModel, gtab: GradientTable, settings: FitSettings, options: FitOptions,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.settings, self.options = settings, options
        self._model = model
        self._shape = len(gtab), len(model.parameters)
        self._is_fused = (
            isinstance(model, DTI)
            and settings.method in ("ols", "wls")
            and device.type == "cpu"
            and dtype == torch.float32
            and fused.available()
        )
        self._make_problem = partial(Problem.of, model, gtab, device, dtype)

    @cached_property
    def problem(self) -> Problem:
        """The design on the device."""
        return self._make_problem()

    @cached_property
    def constraints(self) -> Constraints | None:
        """The model's constraints on the device; None when the method heeds none."""
        return Constraints.of(self._model, self.problem.design) if self.settings.method == "constrained" else None

    @property
    def rows(self) -> int:
        """See `Plan`."""
        volumes, unknowns = self._shape
        method = self.settings.method
        systems = {"nlls": 12, "constrained": 2}.get(method, 1)
        constraints = 0 if self.constraints is None else CONSTRAINT_ARRAYS * len(self.constraints.rows)
        return WORKING_ARRAYS[method] * volumes + systems * PackedSolver.rows(unknowns) + constraints + MAP_ROWS

    def calibrate(self, sample: Tensor) -> None:
        """See `Plan`: there is nothing to learn."""

    def facts(self) -> dict[str, Any]:
        """See `Plan`."""
        method = self.settings.method
        facts: dict[str, Any] = {"min_signal": self.options.min_signal}
        if method not in ("ols", "robust"):
            facts["reweightings"] = self.settings.reweightings
        if method == "nlls":
            facts["max_iterations"] = self.options.max_iterations
        return facts

    def estimator(self, voxels: int) -> Estimator:
        """See `Plan`."""
        constrained = None
        if self.constraints is not None:
            constrained = ConstrainedLeastSquares(self.problem, self.constraints, voxels)
        kind = FusedTensorEstimator if self._is_fused else LogLinearEstimator
        return kind(LeastSquares(self.problem, voxels), constrained, self.settings, self.options)


class LogLinearEstimator(Estimator):
    """Ordinary, weighted, nonlinear and constrained least squares."""

    def __init__(
        self,
        solver: LeastSquares,
        constrained: ConstrainedLeastSquares | None,
        settings: FitSettings,
        options: FitOptions,
    ) -> None:
        self.solver, self.constrained, self.settings, self.options = solver, constrained, settings, options
        self.signal = solver.signal

    def solve(self) -> Solution:
        """See `Estimator`."""
        solver, method = self.solver, self.settings.method
        log_signal = torch.clamp(self.signal, min=self.options.min_signal, out=solver.log_signal).log_()
        if method == "ols":
            return Solution(solver.ordinary(log_signal))
        if method == "robust":
            return Solution(solver.robust(log_signal))
        if self.constrained is not None:
            return Solution(*self.constrained.solve(solver, log_signal, self.settings.reweightings))
        theta = solver.weighted(log_signal, self.settings.reweightings)
        if method == "nlls":
            return Solution(*solver.nonlinear(log_signal, theta, self.options.max_iterations))
        return Solution(theta)

    def residual(self, theta: Tensor) -> Tensor:
        """See `Estimator`; overwrites the log signal."""
        design = self.solver.problem.design.matrix
        attenuation = torch.mm(design[:, :-1], theta[:-1], out=self.solver.log_signal).exp_()
        difference = attenuation.addcmul_(self.signal, (-theta[-1]).exp(), value=-1)
        return difference.square_().mean(0).sqrt_().clamp_(max=MAX_RESIDUAL)

    def spread(self, theta: Tensor) -> Spread:
        """See `Estimator`.

        Noise of the log signal is that of the signal over it. Robust weights depend on the residuals, and count as in
        the theory of M-estimators (Huber, 1981).
        """
        design = self.solver.problem.design.matrix.double()
        theta = theta.double()
        log_predicted = (design @ theta).clamp(-MAX_EXPONENT, MAX_EXPONENT)
        predicted = log_predicted.exp()
        log_signal = self.signal.double().clamp_min(self.options.min_signal).log()
        noise = (log_signal - log_predicted) * predicted
        freedom = noise.new_tensor(design.shape[0] - design.shape[1]).expand(noise.shape[1])

        precision = predicted.square()
        if self.settings.method == "ols":
            unweighted = covariance_of((design.T @ design)[None])
            covariance = unweighted @ (design.T @ ((1 / precision).T[:, :, None] * design)) @ unweighted
            # what an unweighted fit leaves of noise that is not the same in all volumes
            hat = design @ unweighted[0] @ design.T
            freedom = (1 - 2 * hat.diagonal()).sum() + (precision * (hat.square() @ (1 / precision))).sum(0)
            return Spread(covariance, noise.square().sum(0), freedom)
        covariance = covariance_of(design.T @ (precision.T[:, :, None] * design))
        if self.settings.method == "robust":
            belief = self.solver.weights.double() / precision
            root = belief.sqrt()
            # derivative of residual times belief by the residual
            slope = (belief * (4 * root - 3)).mean(0).clamp_min(1e-3)
            covariance, noise = covariance / slope.square()[:, None, None], noise * belief
        return Spread(covariance, noise.square().sum(0), freedom)


class FusedTensorEstimator(LogLinearEstimator):
    """Ordinary or weighted least squares of the tensor with its maps, as one compiled loop."""

    def solve(self) -> Solution:
        """See `Estimator`."""
        theta, maps = self.theta_and_maps()
        return Solution(theta, maps=maps)

    def theta_and_maps(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters, shape (7, V), and maps with the residual, shape (V,) or (C, V)."""
        from DiffusionFMLib.fused import tensor as kernel

        design, signal = self.solver.problem.design, self.signal
        reweightings = self.settings.reweightings if self.settings.method == "wls" else 0
        theta = torch.empty(len(DTI.parameters), signal.shape[1])
        rows = torch.empty(kernel.MAP_ROWS + 1, signal.shape[1])
        kernel.fit(
            signal.numpy(), design.basis.numpy(), design.basis_t.numpy(), design.products.numpy(),
            design.to_theta.numpy(), self.options.min_signal, reweightings, MIN_DIFFUSIVITY, MAX_RESIDUAL,
            theta.numpy(), rows.numpy(),
        )  # fmt: skip
        heights = [max(1, len(spec.components)) for spec in (*DTI.map_specs, RESIDUAL)]
        parts = zip((*DTI.map_specs, RESIDUAL), rows.split(heights), strict=True)
        return theta, {spec.name: part if spec.components else part[0] for spec, part in parts}
