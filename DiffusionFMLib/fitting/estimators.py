"""The estimator that is meant by a model and a method."""

from __future__ import annotations

import torch

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.fitting.contract import FitOptions, Plan
from DiffusionFMLib.fitting.log_linear import LogLinearPlan
from DiffusionFMLib.fitting.noddi import NoddiPlan
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import METHODS, LogLinearModel, SignalModel
from DiffusionFMLib.settings import FitSettings


def plan(
    model: SignalModel,
    gtab: GradientTable,
    settings: FitSettings,
    options: FitOptions,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """The estimator that settings ask for.

    Raises
    ------
    SettingsError
        If the model cannot be fitted with that method.
    """
    methods = [name for name in model.methods if METHODS[name].voxelwise]
    if settings.method not in methods:
        msg = f"The method is {settings.method}; {model.title} can be fitted voxel by voxel with {', '.join(methods)}."
        raise SettingsError(msg, "Choose one of them.")
    if isinstance(model, LogLinearModel):
        return LogLinearPlan(model, gtab, settings, options, device, dtype)
    return NoddiPlan(gtab, settings, options, device, dtype)
