"""What fits one tile of voxels: the contract, and the estimator that is meant by a model and a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.fitting.cholesky import PackedSolver
from DiffusionFMLib.fitting.constrained import ConstrainedLeastSquares, Constraints
from DiffusionFMLib.fitting.least_squares import LeastSquares, Problem
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import LogLinearModel, SignalModel
from DiffusionFMLib.settings import FitSettings

MIN_SIGNAL: Final = 1e-4
"""Signals are raised to this before their logarithm is taken, as DIPY does (its MIN_POSITIVE_SIGNAL)."""

MAX_RESIDUAL: Final = 1e6
"""Residuals are cut off here, where S0 is next to nothing."""

WORKING_ARRAYS: Final = {"ols": 5, "wls": 5, "nlls": 12, "constrained": 7}
"""Arrays as large as a tile's signal that a method of log-linear models holds at once."""

CONSTRAINT_ARRAYS: Final = 6
"""Numbers a voxel that each constraint takes."""

MAP_ROWS: Final = 200
"""Numbers a voxel that maps take while they are made."""


@dataclass(frozen=True)
class FitOptions:
    """What people have no reason to change, and tests do.

    Parameters
    ----------
    min_signal : float
        In the scan's unit; see `MIN_SIGNAL`.
    max_iterations : int
        Of the nonlinear fit.
    double : bool
        Compute in float64; maps are float32 all the same.
    """

    min_signal: float = MIN_SIGNAL
    max_iterations: int = 30
    double: bool = False


@dataclass(frozen=True, eq=False)
class Solution:
    """A tile's fit.

    Parameters
    ----------
    theta : Tensor, shape (P, V)
        Model parameters; the last is ln S0 in every model.
    converged : Tensor, shape (V,), bool, or None
        None where nothing is iterated.
    """

    theta: Tensor
    converged: Tensor | None = None


class Estimator(ABC):
    """Fits one tile of voxels after another, with buffers that are made once.

    Attributes
    ----------
    signal : Tensor, shape (N, V)
        For the caller to fill before `solve`, which leaves it as it is.
    """

    signal: Tensor

    @abstractmethod
    def solve(self) -> Solution:
        """Fit the tile in `signal`. Voxels without a usable signal may come out as anything, NaN too."""

    @abstractmethod
    def residual(self, theta: Tensor) -> Tensor:
        """Root mean square of measured minus fitted signal over S0 of parameters (P, V), shape (V,)."""


class Plan(ABC):
    """An estimator made ready for one protocol, before it is known how large tiles are."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Numbers of working memory that each voxel of a tile takes."""

    @abstractmethod
    def calibrate(self, sample: Tensor) -> None:
        """Learn what a fit has to know of the scan from typical voxels, shape (N, V)."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What decides the estimate beside the settings' method, for provenance; plain JSON types."""

    @abstractmethod
    def estimator(self, voxels: int) -> Estimator:
        """Make one, with buffers for tiles of this many voxels; one for each thread."""


class LogLinearPlan(Plan):
    """Least squares of models whose log signal is linear; see `plan`."""

    def __init__(
        self, model: LogLinearModel, gtab: GradientTable, settings: FitSettings, options: FitOptions,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.settings, self.options = settings, options
        self._model = model
        self._shape = len(gtab), len(model.parameters)
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
        if method != "ols":
            facts["reweightings"] = self.settings.reweightings
        if method == "nlls":
            facts["max_iterations"] = self.options.max_iterations
        return facts

    def estimator(self, voxels: int) -> Estimator:
        """See `Plan`."""
        constrained = None
        if self.constraints is not None:
            constrained = ConstrainedLeastSquares(self.problem, self.constraints, voxels)
        return LogLinearEstimator(LeastSquares(self.problem, voxels), constrained, self.settings, self.options)


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


def plan(
    model: SignalModel,
    gtab: GradientTable,
    settings: FitSettings,
    options: FitOptions,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """The estimator that settings ask for.

    Raises
    ------
    SettingsError
        If the model cannot be fitted with that method.
    """
    if settings.method not in model.methods:
        msg = f"The method is {settings.method}; {model.title} can be fitted with {', '.join(model.methods)}."
        raise SettingsError(msg, "Choose one of them.")
    if isinstance(model, LogLinearModel):
        return LogLinearPlan(model, gtab, settings, options, device, dtype)
    # needs the contract above
    from DiffusionFMLib.fitting.noddi import NoddiPlan

    return NoddiPlan(gtab, settings, options, device, dtype)
