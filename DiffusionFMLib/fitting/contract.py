"""What fits one tile of voxels, whatever the model: the contract between estimators and the loop over tiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib.physics import SignalModel

MIN_SIGNAL: Final = 1e-4
"""Signals are raised to this before their logarithm is taken, as DIPY does (its MIN_POSITIVE_SIGNAL)."""

MAX_RESIDUAL: Final = 1e6
"""Residuals are cut off here, where S0 is next to nothing."""


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
    maps : dict of str to Tensor, shape (V,) or (C, V), or None
        The model's maps and ``residual``, from estimators that make them on the way.
    """

    theta: Tensor
    converged: Tensor | None = None
    maps: dict[str, Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Spread:
    """How noise of variance 1 in the signal spreads to the parameters, and what a fit says of the noise.

    Parameters
    ----------
    covariance : Tensor, shape (V, P, P), float64
    squares : Tensor, shape (V,), float64
        Sum of squares that the fit leaves, over the variance that noise of variance 1 would have there.
    freedom : Tensor, shape (V,), float64
        Volumes that count, less the unknowns.
    """

    covariance: Tensor
    squares: Tensor
    freedom: Tensor


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

    @abstractmethod
    def spread(self, theta: Tensor) -> Spread:
        """How sure parameters (P, V) of the tile that was solved last are."""


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


def maps_in_rows(model: SignalModel, theta: Tensor) -> dict[str, Tensor]:
    """A model's maps of parameters (P, V), shape (V,) or (C, V) each."""
    maps = model.maps(theta.T)
    return {name: values.movedim(-1, 0) if values.ndim > 1 else values for name, values in maps.items()}


def covariance_of(information: Tensor) -> Tensor:
    """Inverses of information matrices, shape (V, P, P), float64; NaN where they are singular."""
    scale = information.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).rsqrt()
    scaled = information * scale[:, :, None] * scale[:, None, :]
    factor, failed = torch.linalg.cholesky_ex(scaled)
    # where it failed, anything that can be inverted
    factor = torch.where(
        (failed > 0)[:, None, None], torch.eye(scaled.shape[1], dtype=scaled.dtype, device=scaled.device), factor
    )
    inverted = torch.cholesky_inverse(factor) * scale[:, :, None] * scale[:, None, :]
    return torch.where((failed > 0)[:, None, None], torch.nan, inverted)
