"""Signal models: one list that the GUI, the CLI, the writers and the tests read."""

from __future__ import annotations

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.adc import ADC
from DiffusionFMLib.physics.dki import DKI
from DiffusionFMLib.physics.dti import DTI
from DiffusionFMLib.physics.methods import Method, PriorMethod
from DiffusionFMLib.physics.model import LogLinearModel, Parameter, SignalModel
from DiffusionFMLib.physics.noddi import NODDI

MODELS: dict[str, SignalModel] = {model.name: model for model in (ADC(), DTI(), DKI(), NODDI())}
"""Every model, by its name on the command line."""

METHODS: dict[str, Method] = {
    name: PriorMethod(name) if name == "prior" else Method(name) for model in MODELS.values() for name in model.methods
}
"""Every method that some model can be fitted with, by its name on the command line."""

TRACKED: tuple[str, ...] = tuple(m.name for m in MODELS.values() if "tensor" in {spec.name for spec in m.map_specs})
"""Models that streamlines can follow."""


def support(gtab: GradientTable) -> dict[str, dict[str, str | None]]:
    """Why models cannot be fitted to scans of a protocol, or None, by model and method."""
    return {
        name: {method: METHODS[method].unsupported(model, gtab) for method in model.methods}
        for name, model in MODELS.items()
    }


__all__ = [
    "ADC", "DKI", "DTI", "METHODS", "MODELS", "NODDI", "TRACKED",
    "LogLinearModel", "Method", "Parameter", "SignalModel", "support",
]  # fmt: skip
