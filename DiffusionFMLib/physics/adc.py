"""The apparent diffusion coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.model import LogLinearModel, Parameter, beyond_gaussian, few_directions, weighting_problem

if TYPE_CHECKING:
    from torch import Tensor


class ADC(LogLinearModel):
    """Apparent diffusion coefficient, S = S0 exp(-b ADC), of the directions' geometric mean.

    For orthogonal directions, and for evenly spread ones, the geometric mean of the signals of a shell is
    S0 exp(-b trace(D) / 3): the ADC is a third of the tensor's trace, however anisotropic the tissue. Log-linear
    fits give it because all volumes of a shell have the same predicted signal, hence the same weight; a nonlinear
    fit averages the signals themselves, which anisotropy biases, so it gets each shell's geometric mean.

    Examples
    --------
    >>> import torch
    >>> from DiffusionFMLib.gradients import GradientTable
    >>> gtab = GradientTable([0, 1000], [[0, 0, 0], [1, 0, 0]])
    >>> ADC().signal(torch.tensor([0.7, 0.0], dtype=torch.float64), gtab)
    tensor([1.0000, 0.4966], dtype=torch.float64)
    """

    name = "adc"
    label = "adc"
    title = "Apparent diffusion coefficient (ADC)"
    citation = "Le Bihan D, et al. Radiology 1986;161(2):401-407. doi:10.1148/radiology.161.2.3763909"
    parameters: ClassVar = (Parameter("ADC", "um2/ms", (0.0, 5.0)), Parameter("lnS0", "", (-20.0, 20.0)))
    map_specs: ClassVar = (
        MapSpec("adc", "ADC", "mm2/s", "Apparent diffusion coefficient, averaged over directions.", (0.0, 3e-3)),
        MapSpec("s0", "S0", "", "Signal without diffusion weighting, in the scan's units.", (0.0, 0.0)),
    )
    methods: ClassVar = ("wls", "ols", "nlls")

    def unsupported(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        return weighting_problem(gtab) or few_directions("ADC", gtab)

    def doubtful(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        return beyond_gaussian("The ADC", "ADC", gtab)

    def design(self, gtab: GradientTable) -> NDArray[np.float64]:
        """See `LogLinearModel`."""
        return np.stack([-gtab.bvals / 1000, np.ones(len(gtab))], axis=1)

    def geometric_groups(self, gtab: GradientTable) -> NDArray[np.float64]:
        """See `LogLinearModel`."""
        members = [np.flatnonzero(gtab.b0_mask), *(np.array(shell.indices) for shell in gtab.shells)]
        return np.stack([np.isin(np.arange(len(gtab)), m) / len(m) for m in members if len(m)])

    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """See `SignalModel`."""
        return {"adc": theta[..., 0].clamp_min(0) * 1e-3, "s0": theta[..., 1].exp()}

    def unphysical(self, theta: Tensor) -> Tensor:
        """See `SignalModel`."""
        return theta[..., 0] < 0
