"""Estimators: from a scan and a signal model to parameter maps."""

from __future__ import annotations

from DiffusionFMLib.fitting.estimate import Fit, fit
from DiffusionFMLib.fitting.estimators import MIN_SIGNAL, FitOptions

__all__ = ["MIN_SIGNAL", "Fit", "FitOptions", "fit"]
