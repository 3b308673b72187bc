"""The line under the panel that says what is under the mouse."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
from PySide6 import QtWidgets
from vtkmodules.util.numpy_support import vtk_to_numpy

from EmbeddedSlicer.observers import Observers

_LAYERS = ("L", "GetLabelLayer"), ("F", "GetForegroundLayer"), ("B", "GetBackgroundLayer")
_TENSOR = "FA {:.3f}, MD {:.3g}"


def valueText(volume: Any, ijk: tuple[int, int, int]) -> str:
    """A voxel's value as people read it; nothing outside of the volume.

    Parameters
    ----------
    volume : vtkMRMLVolumeNode
    ijk : tuple of int
    """
    image = volume.GetImageData()
    if image is None or any(not 0 <= i < n for i, n in zip(ijk, image.GetDimensions(), strict=True)):
        return ""
    point = image.ComputePointId(ijk)
    data = image.GetPointData()
    if volume.IsA("vtkMRMLDiffusionTensorVolumeNode") and data.GetTensors() is not None:
        return _tensorText(vtk_to_numpy(data.GetTensors())[point])
    if data.GetScalars() is None:
        return ""
    value = np.atleast_1d(vtk_to_numpy(data.GetScalars())[point])
    display = volume.GetDisplayNode()
    if volume.IsA("vtkMRMLDiffusionWeightedVolumeNode") and display is not None:
        index = display.GetDiffusionComponent()
        return f"{value[index]:g} (volume {index}, b {volume.GetBValue(index):g})"
    if volume.IsA("vtkMRMLLabelMapVolumeNode") and display is not None and display.GetColorNode() is not None:
        return f"{value[0]:g} {display.GetColorNode().GetColorName(int(value[0])) or ''}".strip()
    return _numberText(value[0]) if value.size == 1 else f"({', '.join(_numberText(v) for v in value[:6])})"


def _numberText(value: float) -> str:
    return f"{value:.4g}"


def _tensorText(tensor: np.ndarray[Any, Any]) -> str:
    evals = np.linalg.eigvalsh(tensor.reshape(3, 3).astype(float))
    mean, norm = evals.mean(), np.linalg.norm(evals)
    fa = np.sqrt(1.5) * np.linalg.norm(evals - mean) / norm if norm > 0 else 0.0
    return _TENSOR.format(fa, mean)


class DataProbe(QtWidgets.QFrame):
    """Shows the position under the mouse, and name and value of each volume there.

    Parameters
    ----------
    applicationLogic : vtkMRMLApplicationLogic
    """

    def __init__(self, applicationLogic: Any, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("DataProbeCollapsibleWidget")
        self._logic = applicationLogic
        self._place = QtWidgets.QLabel()
        self._values = {letter: QtWidgets.QLabel() for letter, _ in _LAYERS}
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(8, 4, 8, 6)
        layout.setSpacing(1)
        layout.addWidget(self._place)
        for label in self._values.values():
            label.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Preferred)
            layout.addWidget(label)
        self._observers = Observers(self)
        self.observe()

    def observe(self) -> None:
        """Follow the scene's crosshair node, which knows where the mouse is."""
        node = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        self._observers.clear()
        self._observers.add(node, slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, self._show)
        self._show(node)

    def text(self) -> str:
        """All that is shown, line by line."""
        return "\n".join([self._place.text(), *(label.text() for label in self._values.values())])

    def _show(self, node: Any, *_: Any) -> None:
        xyz, ras = [0.0] * 3, [0.0] * 3
        # without the mouse in a slice view there is no position
        view = node.GetCursorPositionXYZ(xyz)
        if view is None or not view.IsA("vtkMRMLSliceNode") or not node.GetCursorPositionRAS(ras):
            self._place.setText("Point at a slice to read its values.")
            for label in self._values.values():
                label.setText("")
            return
        self._place.setText(
            f"{view.GetLayoutName()}   {_side(ras[0], 'RL')}   {_side(ras[1], 'AP')}   {_side(ras[2], 'SI')}  mm"
        )
        logic = self._logic.GetSliceLogic(view)
        for letter, layer in _LAYERS:
            text = self._layerText(getattr(logic, layer)(), xyz) if logic is not None else ""
            self._values[letter].setText(f"{letter}:  {text}")

    def _layerText(self, layer: Any, xyz: list[float]) -> str:
        volume = layer.GetVolumeNode() if layer is not None else None
        if volume is None:
            return "none"
        transform = layer.GetXYToIJKTransform()
        ijk = tuple(int(i) for i in np.floor(np.array(transform.TransformPoint(xyz)) + 0.5))
        return f"{volume.GetName()} {ijk}  {valueText(volume, ijk) or 'outside'}"  # type: ignore[arg-type]


def _side(value: float, letters: str) -> str:
    return f"{letters[0] if value >= 0 else letters[1]} {abs(value):.1f}"
