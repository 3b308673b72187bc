"""The diffusion tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.model import LogLinearModel, Parameter, beyond_gaussian, weighting_problem
from DiffusionFMLib.physics.tensor_arrays import quadratic_form

if TYPE_CHECKING:
    from torch import Tensor

_DIFFUSIVITY = (0.0, 3e-3)


MIN_DIFFUSIVITY = 1e-6
"""Eigenvalues are raised to this before FA, MD, AD and RD are taken, um2/ms (as DIPY does at b = 1000)."""

RANK_TOLERANCE = 1e-3
"""Singular values of a design below this fraction of the largest carry noise, not information."""

TENSOR_PARAMETERS = tuple(Parameter(f"D{axes}", "um2/ms", (-3.0, 3.0)) for axes in ("xx", "xy", "xz", "yy", "yz", "zz"))

LOG_S0 = Parameter("lnS0", "", (-20.0, 20.0))

SCALAR_MAPS = (
    MapSpec("fa", "FA", "", "Fractional anisotropy: how directional diffusion is, 0 to 1.", (0.0, 0.8)),
    MapSpec("md", "MD", "mm2/s", "Mean diffusivity.", _DIFFUSIVITY),
    MapSpec("ad", "AD", "mm2/s", "Axial diffusivity: along the main direction.", _DIFFUSIVITY),
    MapSpec("rd", "RD", "mm2/s", "Radial diffusivity: across the main direction.", _DIFFUSIVITY),
)

OTHER_MAPS = (
    MapSpec("v1", "V1", "", "Main direction, a unit vector in scanner RAS.", (0.0, 1.0), "direction",
            ("x", "y", "z")),
    MapSpec("colorfa", "Colour FA", "", "Main direction as colour: red left-right, green front-back, blue up-down.",
            (0.0, 1.0), "rgb", ("r", "g", "b")),
    MapSpec("tensor", "Tensor", "mm2/s", "Diffusion tensor in scanner RAS.", (-3e-3, 3e-3), "grey",
            ("xx", "xy", "xz", "yy", "yz", "zz")),
    MapSpec("s0", "S0", "", "Signal without diffusion weighting, in the scan's units.", (0.0, 0.0)),
)  # fmt: skip
"""`SCALAR_MAPS` and these are what `tensor_maps` returns."""


class DTI(LogLinearModel):
    """Diffusion tensor, S = S0 exp(-b g'Dg) (Basser et al., 1994).

    FA, MD, AD, RD and V1 come from eigenvalues raised to `MIN_DIFFUSIVITY`; the tensor map is what was fitted.

    Examples
    --------
    >>> import torch
    >>> from DiffusionFMLib.gradients import GradientTable
    >>> gtab = GradientTable([0, 1000], [[0, 0, 0], [1, 0, 0]])
    >>> theta = torch.tensor([1.7, 0, 0, 0.3, 0, 0.3, 0], dtype=torch.float64)
    >>> DTI().signal(theta, gtab)
    tensor([1.0000, 0.1827], dtype=torch.float64)
    >>> round(float(DTI().maps(theta)["fa"]), 4)
    0.799
    """

    name = "dti"
    label = "tensor"
    title = "Diffusion tensor (DTI)"
    citation = "Basser PJ, Mattiello J, LeBihan D. Biophys J 1994;66(1):259-267. doi:10.1016/S0006-3495(94)80775-1"
    parameters: ClassVar = (*TENSOR_PARAMETERS, LOG_S0)
    map_specs: ClassVar = (*SCALAR_MAPS, *OTHER_MAPS)
    methods: ClassVar = ("wls", "ols", "nlls", "robust", "prior")

    def unsupported(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        if problem := weighting_problem(gtab):
            return problem
        count = gtab.n_directions
        if count < 6:
            return f"The tensor needs 6 non-collinear directions; this scan has {count} ({gtab.summary()})."
        design = self.design(gtab)
        rank = np.linalg.matrix_rank(design[~gtab.b0_mask, :6], RANK_TOLERANCE * np.linalg.norm(design, 2))
        if rank < 6:
            return (
                f"The tensor needs directions that determine its 6 components; this scan's {count} determine only "
                f"{rank} (they lie in a plane or on a cone)."
            )
        rank = np.linalg.matrix_rank(design, RANK_TOLERANCE * np.linalg.norm(design, 2))
        if rank < 7:
            return (
                f"The tensor and S0 are 7 unknowns; this scan's b-values and directions determine only {rank} "
                f"({gtab.summary()})."
            )
        return None

    def doubtful(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        return beyond_gaussian("The tensor", "MD", gtab)

    def design(self, gtab: GradientTable) -> NDArray[np.float64]:
        """See `LogLinearModel`."""
        weighted = quadratic_form(gtab.bvecs) * (-gtab.bvals[:, None] / 1000)
        return np.column_stack([weighted, np.ones(len(gtab))])

    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """See `SignalModel`."""
        return tensor_maps(theta[..., :6], theta[..., 6])[0]

    def unphysical(self, theta: Tensor) -> Tensor:
        """See `SignalModel`."""
        from DiffusionFMLib.physics.tensor_algebra import positive_definite

        return ~positive_definite(theta[..., :6])


def tensor_maps(
    tensor: Tensor, log_s0: Tensor
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Maps of every model that has a diffusion tensor.

    Parameters
    ----------
    tensor : Tensor, shape (..., 6), um2/ms
    log_s0 : Tensor, shape (...)

    Returns
    -------
    maps : dict of str to Tensor
        `SCALAR_MAPS` and `OTHER_MAPS`.
    eigenvalues : three Tensors, shape (...), um2/ms
        Falling, raised to `MIN_DIFFUSIVITY`.
    v1 : three Tensors, shape (...)
        Components of the main direction.
    """
    import torch

    from DiffusionFMLib.physics.tensor_algebra import fractional_anisotropy, principal_axis

    eigenvalues, v1 = principal_axis(tensor)
    l1, l2, l3 = (value.clamp_min(MIN_DIFFUSIVITY) for value in eigenvalues)
    fa = fractional_anisotropy(l1, l2, l3)
    # components in front until the end, so that each stays contiguous over voxels
    axis = torch.stack(v1)
    maps = {
        "fa": fa,
        "md": (l1 + l2 + l3) * (1e-3 / 3),
        "ad": l1 * 1e-3,
        "rd": (l2 + l3) * (1e-3 / 2),
        "v1": axis.movedim(0, -1),
        "colorfa": (axis.abs() * fa).movedim(0, -1),
        "tensor": tensor * 1e-3,
        "s0": log_s0.exp(),
    }
    return maps, (l1, l2, l3), v1
