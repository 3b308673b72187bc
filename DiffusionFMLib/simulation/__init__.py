"""Simulated scans with known truth: for the demo, tests, teaching and training.

anatomy (where tissue is) + bundles (which way fibres run) -> tissue (what it looks like) + lesions -> scanner.
"""

from __future__ import annotations

from DiffusionFMLib.simulation.scanner import Simulated, simulate

__all__ = ["Simulated", "simulate"]
