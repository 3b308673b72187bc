"""Loading of .ui files whose widgets are Qt's, CTK's and Slicer's."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from typing import Any

from PySide6 import QtCore, QtUiTools, QtWidgets

from EmbeddedSlicer import qt

_widgets: dict[str, type] = {}


def registerWidget(name: str, kind: type) -> None:
    """Let .ui files use a class under the name that it has in Slicer."""
    _widgets[name] = kind


class UiLoader(QtUiTools.QUiLoader):
    """``qt.QUiLoader`` that also makes ``ctk*`` and ``qMRML*`` widgets.

    Qt's loader knows neither the enumerations nor the slots of classes that exist in Python alone. So their
    enumeration values are handed on as text, and the connections of the file are made here.
    """

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._made: list[Any] = []

    def createWidget(self, className: str, parent: Any = None, name: str = "") -> Any:
        """Make a widget; called by Qt."""
        kind = _widgets.get(className) or getattr(qt, className, None)
        if kind is None:
            logging.warning("%s is not available in this host: %s is a plain QWidget.", className, name)
            kind = qt.QWidget
        return self._keep(kind(parent), name)

    def createLayout(self, className: str, parent: Any = None, name: str = "") -> Any:
        """Make a layout; called by Qt."""
        kind = getattr(qt, className)
        return self._keep(kind(parent) if isinstance(parent, QtWidgets.QWidget) else kind(), name)

    def createAction(self, parent: Any = None, name: str = "") -> Any:
        """Make an action; called by Qt."""
        return self._keep(qt.QAction(parent), name)

    def load(self, device: Any, parentWidget: Any = None) -> Any:  # noqa: N803 - Qt's name
        """Load a .ui file.

        Parameters
        ----------
        device : QIODevice
            Open for reading.
        """
        root = ElementTree.fromstring(bytes(device.readAll()))
        for widget in root.iter("widget"):
            if widget.get("class", "") in _widgets:
                _enumerationsToText(widget)
        connections = list(root.iter("connection"))
        for parent in root.iter():
            for child in parent.findall("connections"):
                parent.remove(child)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        top = super().load(buffer, parentWidget)
        if top is not None:
            for connection in connections:
                _connect(top, connection)
            # Python's side of a widget has to live as long as Qt's
            QtWidgets.QWidget.__setattr__(top, "_uiObjects", [made for made in self._made if made is not top])
        return top

    def _keep(self, made: Any, name: str) -> Any:
        made.setObjectName(name)
        self._made.append(made)
        return made


qt.provide("QUiLoader", UiLoader)


def _enumerationsToText(widget: ElementTree.Element) -> None:
    for value in [v for p in widget.findall("property") for v in p if v.tag in ("enum", "set")]:
        if "::" in (value.text or "") and not (value.text or "").startswith(("Qt::", "Q")):
            value.tag = "string"


def _connect(top: Any, connection: ElementTree.Element) -> None:
    names = [connection.findtext(part, "") for part in ("sender", "signal", "receiver", "slot")]
    sender, receiver = _named(top, names[0]), _named(top, names[2])
    signal = getattr(sender, names[1].partition("(")[0], None)
    slot = getattr(receiver, names[3].partition("(")[0], None)
    if signal is None or slot is None:
        logging.warning("The connection %s.%s to %s.%s cannot be made.", *names)
        return
    signal.connect(slot)


def _named(top: Any, name: str) -> Any:
    if QtCore.QObject.objectName(top) == name:
        return top
    return QtCore.QObject.findChild(top, QtCore.QObject, name)
