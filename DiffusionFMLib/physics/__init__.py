"""Signal models: one list that the GUI, the CLI, the writers and the tests read."""

from __future__ import annotations

from DiffusionFMLib.physics.adc import ADC
from DiffusionFMLib.physics.dki import DKI
from DiffusionFMLib.physics.dti import DTI
from DiffusionFMLib.physics.model import LogLinearModel, Parameter, SignalModel
from DiffusionFMLib.physics.noddi import NODDI

MODELS: dict[str, SignalModel] = {model.name: model for model in (ADC(), DTI(), DKI(), NODDI())}
"""Every model, by its name on the command line."""

METHODS: tuple[str, ...] = tuple(dict.fromkeys(method for model in MODELS.values() for method in model.methods))
"""Every estimator that some model can be fitted with."""

TRACKED: tuple[str, ...] = tuple(m.name for m in MODELS.values() if "tensor" in {spec.name for spec in m.map_specs})
"""Models that streamlines can follow."""

__all__ = ["ADC", "DKI", "DTI", "LogLinearModel", "METHODS", "MODELS", "NODDI", "Parameter", "SignalModel", "TRACKED"]
