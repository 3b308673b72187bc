"""Estimators: from a scan and a signal model to parameter maps."""

from __future__ import annotations

from DiffusionFMLib.fitting.estimate import MIN_SIGNAL, Fit, FitOptions, fit

__all__ = ["MIN_SIGNAL", "Fit", "FitOptions", "fit"]
