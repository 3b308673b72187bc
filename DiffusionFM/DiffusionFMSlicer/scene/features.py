"""The encoder's overlays in the scene: those that the worker is asked for, and the point that they are about."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from DiffusionFMLib.events import Artifact
from DiffusionFMLib.overlays.kinds import OVERLAYS, Overlay
from DiffusionFMSlicer.scene import display, results, views
from DiffusionFMSlicer.scene.geometry import makeImage, vtkMatrix

FIRST_THRESHOLD = 0.25
"""Part of its range below which a heat overlay is hidden at first: anatomy shows where nothing stands out."""


def runOf(scan: Any) -> results.RunLabel:
    """What the encoder's results of a scan go by."""
    return results.RunLabel(scan, scan.GetName(), *results.FEATURES)


def overlayNode(scan: Any, name: str) -> Any:
    """The node of an overlay of a scan, or None."""
    return results.resultsOf(runOf(scan)).get(name)


def gridOf(scan: Any) -> Any:
    """A map that lies in the grid that the worker read, or None.

    Not the scan's own node: where it was read from a file, Slicer may have reversed an axis.
    """
    found = results.resultsOf(runOf(scan))
    return next((node for name, node in found.items() if name in OVERLAYS and not isAsked(OVERLAYS[name])), None)


def isAsked(overlay: Overlay) -> bool:
    """Whether the worker is asked for an overlay, instead of computing it once."""
    return overlay.of_point or overlay.of_head


def updateOverlay(scan: Any, overlay: Overlay, answer: dict[str, Any]) -> Any:
    """Bring an overlay that the worker was asked for into the scene, in place; returns its node.

    Parameters
    ----------
    scan : vtkMRMLNode
    overlay : Overlay
    answer : dict
        Its ``values`` are the base64 of float32, k slowest, on a grid of ``shape`` and ``affine`` of its own.
    """
    spec = overlay.spec
    values = np.frombuffer(base64.b64decode(answer["values"]), "<f4").reshape(answer["shape"][::-1])
    image = makeImage(values.astype(np.float32, copy=False))
    node = overlayNode(scan, spec.name)
    if node is None:
        low, high = answer["window"]
        event = Artifact(
            "", "", "map", spec.name, spec.title, spec.unit, (low, high), spec.colors, affine=answer["affine"]
        )
        node = results.place(event, image, runOf(scan))
        tune(node)
        return node
    node.SetIJKToRASMatrix(vtkMatrix(np.array(answer["affine"], float)))
    node.SetAndObserveImageData(image)
    return node


def tune(node: Any) -> None:
    """Show a new overlay as patches, since the encoder sees nothing between them, and not where little stands out."""
    node.GetDisplayNode().SetInterpolate(False)
    if display.threshold(node) == 0:
        display.setThreshold(node, FIRST_THRESHOLD)


def point(grid: Any) -> tuple[float, float, float]:
    """Where the crosshair is, RAS mm; it is shown, and put into the middle of the brain if it was never moved."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    ras = tuple(crosshair.GetCrosshairRAS())
    if not any(ras):
        ras = tuple(float(x) for x in views.centreOfMass(grid))
        crosshair.SetCrosshairRAS(*ras)
    if crosshair.GetCrosshairMode() == crosshair.NoCrosshair:
        crosshair.SetCrosshairMode(crosshair.ShowBasic)
    return ras


def mainDirection(scan: Any, ras: tuple[float, float, float]) -> NDArray[np.float64] | None:
    """Main direction of the diffusion at a point, scanner RAS, shape (3,), if a model was fitted there."""
    for node in results.resultNodes():
        if node.GetAttribute(results.NAME) == "v1" and node.GetNodeReference(results.SCAN) is scan:
            value = views.valueAt(node, ras)
            if value is not None and np.any(value):
                return np.array(value, float) / np.linalg.norm(value)
    return None
