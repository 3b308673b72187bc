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
from DiffusionFMLib.physics import DKI, DTI, LogLinearModel, SignalModel
from DiffusionFMLib.physics.tensor_arrays import (
    QUARTIC,
    QUARTIC_COUNTS,
    quadratic_form,
    quartic_form,
    spread_directions,
)

TYPICAL_MD: Final = 0.95
MD_SD: Final = 0.6
"""Mean and standard deviation of mean diffusivity over a head, fluid included, um2/ms."""

DEVIATION_SD: Final = 0.3
"""Standard deviation of each of the five components of a tensor's anisotropic part, um2/ms."""

LOG_S0_SD: Final = 1.0
"""Standard deviation of ln S0 in a scan whose typical S0 is 1."""

TYPICAL_KURTOSIS: Final = 0.8
KURTOSIS_SD: Final = (0.8, 0.08, 0.03)
"""Mean of V = MD^2 W over all directions in a typical voxel, and standard deviations over a head of the factors of its
harmonics of order 0, 2 and 4; um4/ms2."""

HARMONIC_DIRECTIONS: Final = 40
MIN_SQUARE: Final = 1e-9

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
    orders : tuple of int
        How many coordinates belong to each harmonic, one after another: rotations mix only those of one harmonic.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    orders: tuple[int, ...]

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

    def part(self, volumes: Tensor) -> WhitenedDesign:
        """That of some of the volumes."""
        return WhitenedDesign(self.matrix[volumes], self.offset[volumes], self.products[:, volumes])

    @property
    def b0_volumes(self) -> Tensor:
        """Numbers of the volumes that depend on ln S0 alone."""
        return (self.matrix[:, :-1] == 0).all(1).nonzero()[:, 0]

    def log_signal(self, u: Tensor) -> Tensor:
        """Log signal of coordinates u, shape (P, V): shape (N, V)."""
        return self.offset + self.matrix @ u


def coordinates_of(model: SignalModel) -> Coordinates:
    """Whitened coordinates of a model: MD, the tensor's anisotropy, the kurtosis tensor by harmonic order, ln S0.

    Raises
    ------
    SettingsError
        If there is no prior for this model.
    """
    if not isinstance(model, DTI | DKI):
        msg = f"There is no prior for {model.title}; expected {DTI.title} or {DKI.title}."
        raise SettingsError(msg, "Choose one of them, or another method.")
    size = len(model.parameters)
    basis, mean = np.zeros((size, size)), np.zeros(size)
    mean[[0, 3, 5]] = TYPICAL_MD
    basis[[0, 3, 5], 0] = MD_SD
    basis[:6, 1:6] = DEVIATION_SD * np.array(DEVIATIONS).T
    orders: tuple[int, ...] = (1, 5, 1)
    if isinstance(model, DKI):
        orders = (1, 5, 1, 5, 9, 1)
        harmonics = quartic_harmonics()
        mean[6:21] = TYPICAL_KURTOSIS * harmonics[:, 0]
        basis[6:21, 6:21] = harmonics * np.repeat(KURTOSIS_SD, orders[2:5])
    basis[-1, -1] = LOG_S0_SD
    return Coordinates(mean, basis, orders)


def quartic_harmonics() -> NDArray[np.float64]:
    """Tensors of fourth order whose forms are harmonics of order 0, 2 and 4, in columns: shape (15, 15).

    The form of the first is 1 in all directions; those of the others have as large a mean square.
    """
    g = spread_directions(HARMONIC_DIRECTIONS)
    form = quartic_form(g)
    even = np.column_stack([np.ones(len(g)), quadratic_form(g) @ np.array(DEVIATIONS).T])
    columns: list[NDArray[np.float64]] = []
    # monomials fill up what order 0 and 2 leave; the mean over all directions is the product that rotations keep
    product = _sphere_means()
    for tensor in np.concatenate([np.linalg.lstsq(form, even)[0].T, np.eye(15)]):
        rest = tensor - sum((column * (column @ product @ tensor) for column in columns), np.zeros(15))
        square = rest @ product @ rest
        if square > MIN_SQUARE:
            columns.append(rest / np.sqrt(square))
    return np.column_stack(columns)


def _sphere_means() -> NDArray[np.float64]:
    """Means over the sphere of products of two quartic forms' columns, shape (15, 15)."""
    powers = np.array([[name.count(axis) for axis in "xyz"] for name in QUARTIC])
    both = powers[:, None] + powers
    # of x^a y^b z^c with a + b + c = 8: double factorials of a - 1, b - 1, c - 1 over 3 * 5 * 7 * 9, zero when odd
    odd_product = np.array([1, 0, 1, 0, 3, 0, 15, 0, 105])
    counts = np.array(QUARTIC_COUNTS)
    return odd_product[both].prod(-1) / 945 * counts[:, None] * counts


def turning(model: LogLinearModel, rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """What parameters become when axes are turned, shape (P, P): ``turning(model, rotation) @ theta``.

    Parameters
    ----------
    model : LogLinearModel
    rotation : array, shape (3, 3)
        Takes vectors from the axes that theta is in to others; it may mirror them too.
    """
    g = spread_directions(HARMONIC_DIRECTIONS)
    bvals = np.repeat([0.0, 1000.0, 2000.0], len(g))
    before, after = (
        model.design(GradientTable(bvals, np.tile(vectors, (3, 1)) * (bvals > 0)[:, None]))
        for vectors in (g, g @ rotation.T)
    )
    return np.asarray(np.linalg.lstsq(after, before)[0], np.float64)
