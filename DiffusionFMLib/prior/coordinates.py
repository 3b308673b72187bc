"""Coordinates that a model's parameters are estimated in: whitened, and turned by rotations without being stretched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, LogLinearModel

TYPICAL_MD: Final = 0.95
MD_SD: Final = 0.6
"""Mean and standard deviation of mean diffusivity over a head, fluid included, um2/ms."""

DEVIATION_SD: Final = 0.3
"""Standard deviation of each of the five components of a tensor's anisotropic part, um2/ms."""

LOG_S0_SD: Final = 1.0
"""Standard deviation of ln S0 in a scan whose typical S0 is 1."""

_ROOT2, _ROOT6 = 2**0.5, 6**0.5

DEVIATIONS: Final = (
    (1 / _ROOT2, 0, 0, -1 / _ROOT2, 0, 0),
    (-1 / _ROOT6, 0, 0, -1 / _ROOT6, 0, 2 / _ROOT6),
    (0, 1 / _ROOT2, 0, 0, 0, 0),
    (0, 0, 1 / _ROOT2, 0, 0, 0),
    (0, 0, 0, 0, 1 / _ROOT2, 0),
)
"""Traceless tensors xx, xy, xz, yy, yz, zz, orthonormal in the Frobenius norm."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Affine map between parameters theta of a log-linear model and whitened coordinates u: theta = mean + basis @ u.

    Over all tissues u is about standard normal, so that a weak prior is the unit matrix in every direction of space.

    Parameters
    ----------
    mean : array, shape (P,)
    basis : array, shape (P, P)
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.mean)

    def whiten(self, theta: Tensor) -> Tensor:
        """Coordinates u of parameters theta, shape (P, V)."""
        inverse = theta.new_tensor(np.linalg.inv(self.basis))
        return inverse @ (theta - theta.new_tensor(self.mean)[:, None])

    def theta(self, u: Tensor) -> Tensor:
        """Parameters of coordinates u, shape (P, V)."""
        return u.new_tensor(self.mean)[:, None] + u.new_tensor(self.basis) @ u


@dataclass(frozen=True, eq=False)
class WhitenedDesign:
    """A protocol as the prior sees it: ln S = offset + matrix @ u.

    Parameters
    ----------
    matrix : Tensor, shape (N, P)
    offset : Tensor, shape (N, 1)
        Log signal of the mean parameters.
    products : Tensor, shape (P (P + 1) / 2, N)
        Products of pairs of columns, in the order of `fitting.cholesky.packed_pairs`.
    """

    matrix: Tensor
    offset: Tensor
    products: Tensor

    @classmethod
    def of(
        cls,
        model: LogLinearModel,
        gtab: GradientTable,
        coordinates: Coordinates,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> WhitenedDesign:
        """The design of a model for a protocol whose directions are already in voxel axes."""
        from DiffusionFMLib.fitting.cholesky import packed_pairs

        design = model.design(gtab)
        matrix = design @ coordinates.basis
        rows, columns = zip(*packed_pairs(len(coordinates)), strict=True)
        parts = (matrix, (design @ coordinates.mean)[:, None], (matrix[:, list(rows)] * matrix[:, list(columns)]).T)
        return cls(*(torch.as_tensor(np.ascontiguousarray(part), dtype=dtype, device=device) for part in parts))

    def log_signal(self, u: Tensor) -> Tensor:
        """Log signal of coordinates u, shape (P, V): shape (N, V)."""
        return self.offset + self.matrix @ u


def coordinates_of(model: LogLinearModel) -> Coordinates:
    """Whitened coordinates of a model: for the tensor MD, five anisotropic components, and ln S0.

    Raises
    ------
    SettingsError
        If there is no prior for this model.
    """
    if not isinstance(model, DTI):
        msg = f"There is no prior for {model.title}; expected {DTI.title}."
        raise SettingsError(msg, "Choose that model, or another method.")
    basis = np.zeros((7, 7))
    basis[[0, 3, 5], 0] = MD_SD
    basis[:6, 1:6] = DEVIATION_SD * np.array(DEVIATIONS).T
    basis[6, 6] = LOG_S0_SD
    mean = np.array([TYPICAL_MD, 0, 0, TYPICAL_MD, 0, TYPICAL_MD, 0])
    return Coordinates(mean, basis)
