"""Slicer's widgets of the MRML scene: ``slicer.qMRML*``.

What they leave out: editing, colouring and searching nodes; the subject-hierarchy and markups widgets.
"""

from __future__ import annotations

from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from EmbeddedSlicer import qt
from EmbeddedSlicer.nodecombobox import NodeComboBox
from EmbeddedSlicer.sliders import RangeWidget, SliderWidget
from EmbeddedSlicer.uiloader import registerWidget


class MRMLWidget(QtWidgets.QWidget):
    """``qMRMLWidget``: a widget that tells its children of the scene."""

    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def mrmlScene(self) -> Any:
        """The scene, or None."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene; `mrmlSceneChanged` passes it on."""
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class _OfScene:
    """A scene that a widget of numbers takes, for its units, and has no use for here."""

    _scene: Any = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene


class MRMLSliderWidget(SliderWidget, _OfScene):
    """``qMRMLSliderWidget``, without units of the scene."""


class MRMLRangeWidget(RangeWidget, _OfScene):
    """``qMRMLRangeWidget``, without units of the scene."""


class MRMLSpinBox(QtWidgets.QDoubleSpinBox, _OfScene):
    """``qMRMLSpinBox``, without units of the scene."""


class SlicerWidget(MRMLWidget):
    """``qSlicerWidget``: the same as `MRMLWidget`."""


class ColorTableComboBox(NodeComboBox):
    """``qMRMLColorTableComboBox``: a choice of colour nodes, as a plain list."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.setNodeTypes(["vtkMRMLColorTableNode", "vtkMRMLProceduralColorNode"])
        self._addEnabled = self._removeEnabled = False
        self._showHidden = True


def install() -> None:
    """Put the widgets into the ``slicer`` package and let .ui files use them."""
    kinds = {
        "qMRMLWidget": MRMLWidget,
        "qSlicerWidget": SlicerWidget,
        "qMRMLNodeComboBox": NodeComboBox,
        "qMRMLColorTableComboBox": ColorTableComboBox,
        "qMRMLSliderWidget": MRMLSliderWidget,
        "qMRMLRangeWidget": MRMLRangeWidget,
        "qMRMLSpinBox": MRMLSpinBox,
    }
    for name, kind in kinds.items():
        made = qt.pythonqt(kind, name)
        setattr(slicer, name, made)
        registerWidget(name, made)
