"""NODDI: neurites that fan out, hindered water between them, and free water."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.model import Parameter, SignalModel, weighting_problem

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL: Final = 1.7
FREE: Final = 3.0
"""Diffusivities along neurites and of free water that the model fixes, um2/ms."""

MIN_ODI, MAX_ODI = 0.01, 0.99
"""Sharper or blunter fans cannot be told from these."""

MIN_VOLUMES: Final = 7
MIN_SHELL_RATIO: Final = 1.3
"""Shells whose b-values are closer tell no more than one."""


class NODDI(SignalModel):
    """Neurite orientation dispersion and density (Zhang et al., 2012), with a Watson distribution of neurites.

    S = S0 [(1 - FWF) (NDI A_ic + (1 - NDI) A_ec) + FWF exp(-b 3.0)]: sticks inside of neurites, a tensor whose radial
    diffusivity follows from NDI (tortuosity) outside of them, and free water. The direction is a vector of any length.

    Examples
    --------
    >>> import torch
    >>> from DiffusionFMLib.gradients import GradientTable
    >>> gtab = GradientTable([0, 1000, 2000], [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    >>> theta = torch.tensor([1.0, 0, 0, 0.6, 0.2, 0.1, 0], dtype=torch.float64)
    >>> NODDI().signal(theta, gtab)
    tensor([1.0000, 0.3116, 0.4160], dtype=torch.float64)
    """

    name = "noddi"
    label = "noddi"
    title = "NODDI"
    citation = (
        "Zhang H, Schneider T, Wheeler-Kingshott CA, Alexander DC. NeuroImage 2012;61(4):1000-1016. "
        "doi:10.1016/j.neuroimage.2012.03.072"
    )
    parameters: ClassVar = (
        *(Parameter(f"mu{axis}", "", (-1.0, 1.0)) for axis in "xyz"),
        Parameter("ndi", "", (0.0, 1.0), "logit"),
        Parameter("odi", "", (MIN_ODI, MAX_ODI), "logit"),
        Parameter("fwf", "", (0.0, 1.0), "logit"),
        Parameter("lnS0", "", (-20.0, 20.0)),
    )
    map_specs: ClassVar = (
        MapSpec("ndi", "NDI", "", "Neurite density index: share of the tissue's signal from inside neurites.",
                (0.0, 1.0), "inferno"),
        MapSpec("odi", "ODI", "", "Orientation dispersion index: how widely neurites fan out, 0 to 1.",
                (0.0, 1.0), "inferno"),
        MapSpec("fwf", "FWF", "", "Free water fraction: share of the signal from free water.", (0.0, 1.0)),
        MapSpec("v1", "V1", "", "Mean direction of the neurites, a unit vector in scanner RAS.",
                (0.0, 1.0), "direction", ("x", "y", "z")),
        MapSpec("s0", "S0", "", "Signal without diffusion weighting, in the scan's units.", (0.0, 0.0)),
    )  # fmt: skip
    methods: ClassVar = ("map", "nlls", "prior")
    prior_directions = 6

    def unsupported(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        if problem := weighting_problem(gtab):
            return problem
        if problem := self.too_few_shells(gtab):
            return problem
        if not gtab.b0_mask.any():
            return f"NODDI needs a b0; this scan has none ({gtab.summary()})."
        if gtab.n_directions < 6:
            return f"NODDI needs 6 directions; this scan has {gtab.n_directions} ({gtab.summary()})."
        return None

    def too_few_shells(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        bvals = [shell.bval for shell in gtab.shells]
        if max(bvals) < MIN_SHELL_RATIO * min(bvals):
            return (
                f"NODDI needs two b-values beside b0, because one cannot tell neurites from free water; this scan has "
                f"one ({gtab.summary()})."
            )
        return None

    def signal(self, theta: Tensor, gtab: GradientTable) -> Tensor:
        """See `SignalModel`."""
        from DiffusionFMLib.physics.watson import (
            degree_for,
            even_legendre_and_slope,
            stick_coefficients,
            watson_coefficients,
        )

        b = theta.new_tensor(gtab.bvals / 1000)
        mu = theta[..., :3] / theta[..., :3].norm(dim=-1, keepdim=True)
        cosine = mu @ theta.new_tensor(gtab.bvecs).T
        ndi, odi, fwf, ln_s0 = (theta[..., i, None] for i in range(3, 7))
        l_max = degree_for(float(b.max()))
        coefficients = watson_coefficients(kappa_of(odi[..., 0]), l_max)
        sticks = theta.new_tensor(stick_coefficients(gtab.bvals / 1000 * PARALLEL, l_max))
        terms = zip(sticks.unbind(1), coefficients.unbind(-1), even_legendre_and_slope(cosine**2, l_max), strict=True)
        inside = sum(stick * w[..., None] * polynomial for stick, w, (polynomial, _) in terms)
        parallel, perpendicular = hindered_diffusivities(ndi, coefficients[..., 1, None])
        outside = (-b * (perpendicular + (parallel - perpendicular) * cosine**2)).exp()
        tissue = ndi * inside + (1 - ndi) * outside
        return ln_s0.exp() * ((1 - fwf) * tissue + fwf * (-b * FREE).exp())

    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """See `SignalModel`."""
        mu = theta[..., :3]
        return {
            "ndi": theta[..., 3],
            "odi": theta[..., 4],
            "fwf": theta[..., 5],
            "v1": mu / mu.norm(dim=-1, keepdim=True).clamp_min(1e-12),
            "s0": theta[..., 6].exp(),
        }

    def unphysical(self, theta: Tensor) -> Tensor:
        """See `SignalModel`: never, because the fit keeps to the bounds."""
        import torch

        return torch.zeros_like(theta[..., 0], dtype=torch.bool)


def kappa_of(odi: Tensor) -> Tensor:
    """Concentration of the Watson distribution of an ODI: ODI = 2 / pi atan(1 / kappa)."""
    return 1 / (odi * (math.pi / 2)).tan()


def hindered_diffusivities(ndi: Tensor, w2: Tensor) -> tuple[Tensor, Tensor]:
    """Diffusivities along and across the mean direction outside of neurites, um2/ms, any shape.

    Parameters
    ----------
    ndi : Tensor
    w2 : Tensor
        Second Watson coefficient, the mean of P_2.
    """
    tau = (1 + 2 * w2) / 3
    return PARALLEL * (1 - ndi * (1 - tau)), PARALLEL * (1 - ndi * (1 + tau) / 2)
