"""The diffusion tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec
from DiffusionFMLib.physics.model import Parameter, SignalModel

if TYPE_CHECKING:
    from torch import Tensor

_DIFFUSIVITY = (0.0, 3e-3)


class DTI(SignalModel):
    """Diffusion tensor, S = S0 exp(-b g'Dg) (Basser et al., 1994)."""

    name = "dti"
    label = "tensor"
    title = "Diffusion tensor (DTI)"
    parameters: ClassVar = (
        *(Parameter(f"D{axes}", "um2/ms", (-3.0, 3.0)) for axes in ("xx", "xy", "xz", "yy", "yz", "zz")),
        Parameter("lnS0", "", (-20.0, 20.0)),
    )
    map_specs: ClassVar = (
        MapSpec("fa", "FA", "", "Fractional anisotropy: how directional diffusion is, 0 to 1.", (0.0, 0.8)),
        MapSpec("md", "MD", "mm2/s", "Mean diffusivity.", _DIFFUSIVITY),
        MapSpec("ad", "AD", "mm2/s", "Axial diffusivity: along the main direction.", _DIFFUSIVITY),
        MapSpec("rd", "RD", "mm2/s", "Radial diffusivity: across the main direction.", _DIFFUSIVITY),
        MapSpec("v1", "V1", "", "Main direction, a unit vector in scanner RAS.", (0.0, 1.0), "rgb", ("x", "y", "z")),
        MapSpec("colorfa", "Colour FA", "", "Main direction as colour: red left-right, green front-back, blue up-down.", (0.0, 1.0), "rgb",
                ("r", "g", "b")),
        MapSpec("tensor", "Tensor", "mm2/s", "Diffusion tensor in scanner RAS.", (-3e-3, 3e-3), "grey",
                ("xx", "xy", "xz", "yy", "yz", "zz")),
        MapSpec("s0", "S0", "", "Signal without diffusion weighting, in the scan's units.", (0.0, 0.0)),
    )  # fmt: skip
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
