"""Values of the results under the crosshair, as one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from DiffusionFMLib.maps import FitStatus
from DiffusionFMSlicer.scene.display import scaledUnit
from DiffusionFMSlicer.scene.results import TITLE, UNIT, resultNodes
from DiffusionFMSlicer.scene.views import valueAt


def crosshairNode() -> Any:
    """The scene's crosshair, or None."""
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")


def cursorPosition() -> tuple[float, float, float] | None:
    """Where the mouse points, RAS mm; None outside the views."""
    node = crosshairNode()
    ras = [0.0, 0.0, 0.0]
    if node is None or not node.GetCursorPositionRAS(ras):
        return None
    return ras[0], ras[1], ras[2]


def describe(ras: tuple[float, float, float]) -> str:
    """Values of all scalar results at a point: ``FA 0.62   MD 0.71 10-3 mm2/s``; empty outside of them."""
    parts = []
    for node in resultNodes():
        if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLTensorVolumeNode"):
            continue
        value = valueAt(node, ras)
        if value is None or np.ndim(value):
            continue
        parts.append(f"{node.GetAttribute(TITLE)} {_format(node, value)}")
    return "   ".join(parts)


def _format(node: Any, value: Any) -> str:
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        known = int(value) in set(FitStatus)
        return FitStatus(int(value)).name.lower().replace("_", " ") if known else str(int(value))
    factor, unit = scaledUnit(node.GetAttribute(UNIT) or "", float(value))
    number = float(value) * factor
    return f"{number:.3g} {unit}".strip()
