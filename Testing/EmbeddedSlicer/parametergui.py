"""Widgets that show and set parameters of a parameter node wrapper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import ctk
import qt
import shiboken6
import slicer
from PySide6 import QtCore, QtWidgets

from EmbeddedSlicer.parametertypes import Choice, Decimals, Maximum, Minimum, Parameter, SingleStep, WithinRange

PROPERTY = "SlicerParameterName"
"""Dynamic property of a widget in a .ui file that names its parameter."""


def widgetsByParameter(gui: Any) -> dict[str, Any]:
    """Widgets below one, by the parameter that each names."""
    widgets = QtCore.QObject.findChildren(gui, QtWidgets.QWidget)
    return {widget.property(PROPERTY): widget for widget in widgets if widget.property(PROPERTY)}


@dataclass(frozen=True)
class _Kind:
    """How a class of widgets reads and shows a value."""

    signal: str
    get: Callable[[Any, Parameter], Any]
    set: Callable[[Any, Any], None]
    prepare: Callable[[Any, Parameter], None] = lambda widget, parameter: None


def _attribute(signal: str, name: str, prepare: Callable[[Any, Parameter], None] | None = None) -> _Kind:
    get = lambda widget, parameter: getattr(widget, name)  # noqa: E731
    set_ = lambda widget, value: setattr(widget, name, value)  # noqa: E731
    return _Kind(signal, get, set_, prepare or (lambda widget, parameter: None))


def _prepareNumber(widget: Any, parameter: Parameter) -> None:
    span, low, high = parameter.note(WithinRange), parameter.note(Minimum), parameter.note(Maximum)
    if span or low:
        widget.minimum = (span or low).minimum
    if span or high:
        widget.maximum = (span or high).maximum
    if parameter.note(Decimals):
        widget.decimals = parameter.note(Decimals).value
    if parameter.note(SingleStep):
        widget.singleStep = parameter.note(SingleStep).value


def _number(widget: Any, parameter: Parameter) -> Any:
    return parameter.type(round(widget.value) if parameter.type is int else widget.value)


def _prepareCombo(widget: Any, parameter: Parameter) -> None:
    choices = parameter.note(Choice)
    if widget.count == 0 and choices is not None:
        widget.addItems([str(choice) for choice in choices.choices])
    elif widget.count == 0 and issubclass(parameter.container, Enum):
        widget.addItems([_enumText(member) for member in parameter.container])


def _enumText(member: Enum) -> str:
    # an enumeration may say how people read it
    return member.label() if hasattr(member, "label") else member.name


def _comboValue(widget: Any, parameter: Parameter) -> Any:
    text = widget.currentText
    if issubclass(parameter.container, Enum):
        return next(m for m in parameter.container if _enumText(m) == text)
    choices = parameter.note(Choice)
    return next((c for c in choices.choices if str(c) == text), text) if choices is not None else text


def _showCombo(widget: Any, value: Any) -> None:
    text = _enumText(value) if isinstance(value, Enum) else str(value)
    if widget.findText(text) < 0 and widget.editable:
        widget.currentText = text
    else:
        widget.currentIndex = widget.findText(text)


def _textArea(widget: Any, parameter: Parameter) -> str:
    return widget.toPlainText()


def _path(widget: Any, parameter: Parameter) -> Any:
    return parameter.container(widget.currentPath)


def _range(widget: Any, parameter: Parameter) -> Any:
    return parameter.container((widget.minimumValue, widget.maximumValue))


_NUMBER = _Kind("valueChanged", _number, lambda w, v: setattr(w, "value", v), _prepareNumber)
_KINDS: list[tuple[str, str, _Kind]] = [
    (
        "slicer",
        "qMRMLNodeComboBox",
        _Kind("currentNodeChanged", lambda w, p: w.currentNode(), lambda w, v: w.setCurrentNode(v)),
    ),
    ("ctk", "ctkCollapsibleButton", _attribute("contentsCollapsed", "collapsed")),
    ("ctk", "ctkPathLineEdit", _Kind("currentPathChanged", _path, lambda w, v: w.setCurrentPath(str(v)))),
    ("ctk", "ctkSliderWidget", _NUMBER),
    ("ctk", "ctkRangeWidget", _Kind("valuesChanged", _range, lambda w, v: w.setValues(*v), _prepareNumber)),
    ("qt", "QComboBox", _Kind("currentTextChanged", _comboValue, _showCombo, _prepareCombo)),
    ("qt", "QAbstractButton", _attribute("toggled", "checked")),
    ("qt", "QSpinBox", _NUMBER),
    ("qt", "QDoubleSpinBox", _NUMBER),
    ("qt", "QSlider", _NUMBER),
    ("qt", "QLineEdit", _attribute("textChanged", "text")),
    ("qt", "QTextEdit", _Kind("textChanged", _textArea, lambda w, v: w.setPlainText(v))),
    ("qt", "QPlainTextEdit", _Kind("textChanged", _textArea, lambda w, v: w.setPlainText(v))),
]
"""Widgets by module and class, the special before the general."""

_MODULES = {"slicer": slicer, "ctk": ctk, "qt": qt}


class Connection:
    """Ties one widget to one parameter.

    Parameters
    ----------
    wrapper : parameter node wrapper
    parameter : Parameter
    widget : QWidget
        Of a kind that can show the parameter.

    Raises
    ------
    ValueError
        If it cannot.
    """

    def __init__(self, wrapper: Any, parameter: Parameter, widget: Any) -> None:
        found = [kind for module, name, kind in _KINDS if isinstance(widget, getattr(_MODULES[module], name))]
        if not found:
            msg = f"No way to show parameter '{parameter.name}' in a {widget.className()}"
            raise ValueError(msg)
        self._wrapper, self._parameter, self._widget, self._kind = wrapper, parameter, widget, found[0]
        self._showing = False
        self._kind.prepare(widget, parameter)
        getattr(widget, self._kind.signal).connect(self._edited)

    def show(self) -> None:
        """Make the widget, if it still exists, show the parameter."""
        if not shiboken6.isValid(self._widget):
            return
        value = self._parameter.read(self._wrapper.parameterNode)
        shown = self._kind.get(self._widget, self._parameter)
        if value is None and not self._parameter.isNode:
            return
        if value is not shown and value != shown:
            self._showing = True
            try:
                self._kind.set(self._widget, value)
            finally:
                self._showing = False

    def _edited(self, *_: Any) -> None:
        if not self._showing:
            # a half-typed or excluded value stays in the widget only
            with contextlib.suppress(ValueError):
                self._parameter.write(self._wrapper.parameterNode, self._kind.get(self._widget, self._parameter))

    def close(self) -> None:
        """Untie the two."""
        with contextlib.suppress(RuntimeError):
            getattr(self._widget, self._kind.signal).disconnect(self._edited)
