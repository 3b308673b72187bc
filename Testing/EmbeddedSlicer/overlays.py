"""Text over the slices: which volumes are shown, and the sides of the patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from PySide6 import QtCore, QtGui

_SIDES = ("R", "L"), ("A", "P"), ("S", "I")

LETTER_ROOM = 14
"""Half the width that a letter needs at an edge, pixels."""


def placeText(sliceNode: Any) -> str:
    """How far a slice lies from the origin, and to which side of the patient, as ``"L 12.5 mm"``.

    An oblique slice's distance is along its normal; the side is that which the normal points to most.
    """
    matrix = sliceNode.GetSliceToRAS()
    normal = np.array([matrix.GetElement(i, 2) for i in range(3)])
    axis = int(np.argmax(np.abs(normal)))
    offset = sliceNode.GetSliceOffset() * np.sign(normal[axis])
    return f"{_SIDES[axis][0 if offset >= 0 else 1]} {abs(offset):.1f} mm"


def sideOf(direction: np.ndarray[Any, Any]) -> str:
    """Letter of the patient's side that a direction (RAS) points to most."""
    axis = int(np.argmax(np.abs(direction)))
    return _SIDES[axis][0 if direction[axis] > 0 else 1]


def drawSliceText(painter: QtGui.QPainter, area: QtCore.QRect, view: Any) -> None:
    """Draw the sides of the patient at the edges, and the volumes' names in the corner.

    Slicer names the volumes too; the letters are this host's, so that nobody has to guess which side is which.
    """
    composite = view.compositeNode
    shown = [line for line in _layers(view) if line]
    font = painter.font()
    font.setPixelSize(12)
    painter.setFont(font)
    area = area.adjusted(6, 4, -6, -4)
    align = QtCore.Qt.AlignmentFlag
    metrics = painter.fontMetrics()
    shown = [metrics.elidedText(line, QtCore.Qt.TextElideMode.ElideMiddle, area.width()) for line in shown]
    _drawText(painter, area, align.AlignLeft | align.AlignBottom, "\n".join(shown))
    if composite is None or not shown:
        return
    reach = max(metrics.horizontalAdvance(line) for line in shown)
    # a name that reaches the middle would run into the lower letter
    lifted = metrics.lineSpacing() * len(shown) if reach > area.width() / 2 - LETTER_ROOM else 0
    matrix = view.node.GetSliceToRAS()
    right = np.array([matrix.GetElement(i, 0) for i in range(3)])
    up = np.array([matrix.GetElement(i, 1) for i in range(3)])
    font.setPixelSize(13)
    font.setBold(True)
    painter.setFont(font)
    # above the middle, where colour legends stand
    high = area.adjusted(0, area.height() // 9, 0, 0)
    _drawText(painter, high, align.AlignLeft | align.AlignTop, sideOf(-right))
    _drawText(painter, high, align.AlignRight | align.AlignTop, sideOf(right))
    _drawText(painter, area, align.AlignHCenter | align.AlignTop, sideOf(up))
    _drawText(painter, area.adjusted(0, 0, 0, -lifted), align.AlignHCenter | align.AlignBottom, sideOf(-up))


def _layers(view: Any) -> list[str]:
    composite, logic = view.compositeNode, view.logic
    if composite is None:
        return []
    label, front, back = (
        logic.GetNthLayerVolumeNode(i) for i in (logic.LayerLabel, logic.LayerForeground, logic.LayerBackground)
    )
    return [
        f"L: {label.GetName()}" if label is not None else "",
        f"F: {front.GetName()} ({100 * composite.GetForegroundOpacity():.0f} %)" if front is not None else "",
        f"B: {back.GetName()}" if back is not None else "",
    ]


def _drawText(painter: QtGui.QPainter, area: QtCore.QRect, alignment: QtCore.Qt.AlignmentFlag, text: str) -> None:
    painter.setPen(QtGui.QColor(0, 0, 0, 200))
    painter.drawText(area.translated(1, 1), alignment, text)
    painter.setPen(QtGui.QColor(235, 235, 235))
    painter.drawText(area, alignment, text)
