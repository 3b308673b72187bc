"""Estimators: from a scan and a signal model to parameter maps."""

from __future__ import annotations

from DiffusionFMLib.fitting.contract import MIN_SIGNAL, FitOptions
from DiffusionFMLib.fitting.estimate import Fit, fit

__all__ = ["MIN_SIGNAL", "Fit", "FitOptions", "fit"]
