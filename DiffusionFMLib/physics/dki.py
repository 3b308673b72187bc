"""Diffusion kurtosis."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import SHELL_TOLERANCE, GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.dti import (
    LOG_S0,
    MIN_DIFFUSIVITY,
    OTHER_MAPS,
    RANK_TOLERANCE,
    SCALAR_MAPS,
    TENSOR_PARAMETERS,
    tensor_maps,
)
from DiffusionFMLib.physics.model import LogLinearModel, Parameter, weighting_problem
from DiffusionFMLib.physics.tensor_arrays import QUARTIC, quadratic_form, quartic_form, spread_directions

if TYPE_CHECKING:
    from torch import Tensor

MIN_KURTOSIS: Final = -3 / 7
"""Of water in spherical pores, below which tissue cannot be (Jensen et al., 2005)."""

MAX_KURTOSIS: Final = 10.0
"""Kurtosis is clipped to this range, as in DIPY."""

MIN_EIGENVALUE: Final = 2e-4
"""Where an eigenvalue is below this (um2/ms), MK, AK and RK are 0, as in DIPY: there is no diffusion to divide by."""

MAX_BVAL: Final = 2500.0
"""s/mm2; the expansion of the log signal is cut off after b squared, and does not hold far beyond."""

CONSTRAINED_DIRECTIONS: Final = 60

MIN_DIRECTIONAL: Final = 0.02
"""Least diffusivity of a constrained fit along any of these, um2/ms: between them it stays positive too."""

DIRECTIONS: Final = 15
"""A tensor of fourth order has so many components."""


class DKI(LogLinearModel):
    """Diffusion kurtosis, ln S = ln S0 - b D(g) + b^2/6 MD^2 W(g) (Jensen et al., 2005).

    The parameters hold V = MD^2 W rather than W, so that ln S is linear in them; its components are in the order of
    `tensor_arrays.QUARTIC`, which is DIPY's. The kurtosis along a direction is K(n) = V(n) / D(n)^2. MK is its mean
    over all directions and RK its mean across the main one, both exact (Tabesh et al., 2011); AK is K along it.

    Examples
    --------
    >>> import torch
    >>> from DiffusionFMLib.gradients import GradientTable
    >>> gtab = GradientTable([0, 1000, 2000], [[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    >>> isotropic = [1.0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0]
    >>> theta = torch.tensor(isotropic, dtype=torch.float64)
    >>> DKI().signal(theta, gtab)
    tensor([1.0000, 0.4346, 0.2636], dtype=torch.float64)
    >>> round(float(DKI().maps(theta)["mk"]), 6)
    1.0
    """

    name = "dki"
    label = "dki"
    title = "Diffusion kurtosis (DKI)"
    citation = "Jensen JH, et al. Magn Reson Med 2005;53(6):1432-1440. doi:10.1002/mrm.20508"
    parameters: ClassVar = (
        *TENSOR_PARAMETERS,
        *(Parameter(f"V{axes}", "um4/ms2", (-10.0, 30.0)) for axes in QUARTIC),
        LOG_S0,
    )
    map_specs: ClassVar = (
        MapSpec("mk", "MK", "", "Mean kurtosis: how far diffusion is from free, over all directions.", (0.0, 1.5)),
        MapSpec("ak", "AK", "", "Axial kurtosis: along the main direction.", (0.0, 1.5)),
        MapSpec("rk", "RK", "", "Radial kurtosis: mean across the main direction.", (0.0, 2.0)),
        MapSpec("mkt", "MKT", "", "Mean of the kurtosis tensor W over all directions.", (0.0, 1.5)),
        MapSpec("kfa", "KFA", "", "Anisotropy of the kurtosis tensor, 0 to 1.", (0.0, 1.0)),
        *SCALAR_MAPS,
        *OTHER_MAPS,
    )
    methods: ClassVar = ("wls", "ols", "constrained", "prior")
    prior_directions = 6

    def unsupported(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        if problem := weighting_problem(gtab):
            return problem
        if problem := self.too_few_shells(gtab):
            return problem
        count = gtab.n_directions
        if count < DIRECTIONS:
            return f"Kurtosis needs {DIRECTIONS} distinct directions; this scan has {count} ({gtab.summary()})."
        design = self.design(gtab)
        # columns differ in size with the b-values; only how they depend on each other matters here
        design /= np.linalg.norm(design, axis=0).clip(1e-9)
        rank = np.linalg.matrix_rank(design, RANK_TOLERANCE)
        if rank < len(self.parameters):
            return (
                f"Kurtosis, tensor and S0 are {len(self.parameters)} unknowns; this scan's b-values and directions "
                f"determine only {rank} ({gtab.summary()})."
            )
        return None

    def too_few_shells(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        if len(gtab.shells) < 2:
            return f"Kurtosis needs two shells, for instance b = 1000 and 2000; this scan has one ({gtab.summary()})."
        return None

    def doubtful(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        top = gtab.bvals.max()
        if top > MAX_BVAL * (1 + SHELL_TOLERANCE):
            return (
                f"b-values reach {top:.0f} s/mm2: the kurtosis model holds to about {MAX_BVAL:g}, beyond which "
                "MK comes out too low."
            )
        return None

    def design(self, gtab: GradientTable) -> NDArray[np.float64]:
        """See `LogLinearModel`."""
        b = gtab.bvals[:, None] / 1000
        return np.column_stack(
            [-b * quadratic_form(gtab.bvecs), b * b / 6 * quartic_form(gtab.bvecs), np.ones(len(gtab))]
        )

    def constraints(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """See `LogLinearModel`: D(g) >= `MIN_DIRECTIONAL` and K(g) >= 0 along evenly spread directions."""
        g = spread_directions(CONSTRAINED_DIRECTIONS)
        matrix = np.zeros((2 * len(g), len(self.parameters)))
        matrix[: len(g), :6], matrix[len(g) :, 6:21] = quadratic_form(g), quartic_form(g)
        return matrix, np.repeat([MIN_DIRECTIONAL, 0.0], len(g))

    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """See `SignalModel`."""
        from DiffusionFMLib.physics.kurtosis_algebra import kurtosis_anisotropy

        shared, eigenvalues, v1 = tensor_maps(theta[..., :6], theta[..., 21])
        means = {name: mean.clamp(MIN_KURTOSIS, MAX_KURTOSIS) for name, mean in _means(theta, eigenvalues, v1).items()}
        return {**means, "kfa": kurtosis_anisotropy(theta[..., 6:21]), **shared}

    def unphysical(self, theta: Tensor) -> Tensor:
        """See `SignalModel`: where the tensor is not positive, or a map of kurtosis had to be clipped."""
        from DiffusionFMLib.physics.tensor_algebra import principal_axis

        eigenvalues, v1 = principal_axis(theta[..., :6])
        l1, l2, l3 = (value.clamp_min(MIN_DIFFUSIVITY) for value in eigenvalues)
        found = eigenvalues[2] <= 0
        for mean in _means(theta, (l1, l2, l3), v1).values():
            found |= (mean < MIN_KURTOSIS) | (mean > MAX_KURTOSIS)
        return found


def _means(
    theta: Tensor, eigenvalues: tuple[Tensor, Tensor, Tensor], v1: tuple[Tensor, Tensor, Tensor]
) -> dict[str, Tensor]:
    """MK, AK, RK and the mean of W, by their maps' names, not clipped."""
    import torch

    from DiffusionFMLib.physics import kurtosis_algebra as algebra

    tensor, kurtosis = theta[..., :6], theta[..., 6:21]
    frame = algebra.in_frame(kurtosis, v1, algebra.second_axis(tensor, v1))
    functions = {"mk": algebra.mean_kurtosis, "ak": algebra.axial_kurtosis, "rk": algebra.radial_kurtosis}
    defined = eigenvalues[2] > MIN_EIGENVALUE
    means = {name: torch.where(defined, function(eigenvalues, frame), 0.0) for name, function in functions.items()}
    md = (eigenvalues[0] + eigenvalues[1] + eigenvalues[2]) / 3
    return {**means, "mkt": algebra.trace(kurtosis) / (5 * md * md)}
