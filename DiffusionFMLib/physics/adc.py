"""The apparent diffusion coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.model import Parameter, SignalModel

if TYPE_CHECKING:
    from torch import Tensor


class ADC(SignalModel):
    """Apparent diffusion coefficient, S = S0 exp(-b ADC), of the directions' geometric mean."""

    name = "adc"
    label = "adc"
    title = "Apparent diffusion coefficient (ADC)"
    parameters: ClassVar = (Parameter("ADC", "um2/ms", (0.0, 5.0)), Parameter("lnS0", "", (-20.0, 20.0)))
    map_specs: ClassVar = (
        MapSpec("adc", "ADC", "mm2/s", "Apparent diffusion coefficient, averaged over directions.", (0.0, 3e-3)),
        MapSpec("s0", "S0", "", "Signal without diffusion weighting, in the scan's units.", (0.0, 0.0)),
    )
    methods: ClassVar = ("wls", "ols", "nlls")

    def unsupported(self, gtab: GradientTable) -> str | None:
        """See `SignalModel`."""
        raise NotImplementedError

    def signal(self, theta: Tensor, gtab: GradientTable) -> Tensor:
        """See `SignalModel`."""
        raise NotImplementedError

    def maps(self, theta: Tensor) -> dict[str, Tensor]:
        """See `SignalModel`."""
        raise NotImplementedError
