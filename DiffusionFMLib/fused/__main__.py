"""Compile the loops ahead of their first use: ``python -m DiffusionFMLib.fused``."""

from __future__ import annotations

from DiffusionFMLib import fused

if fused.available():
    from DiffusionFMLib.fused import noddi, rotary, tensor  # noqa: F401
