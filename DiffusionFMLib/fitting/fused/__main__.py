"""Compile the loops ahead of their first use: ``python -m DiffusionFMLib.fitting.fused``."""

from __future__ import annotations

from DiffusionFMLib.fitting import fused

if fused.available():
    from DiffusionFMLib.fitting.fused import noddi, tensor  # noqa: F401
