"""Widgets of numbers: a slider with its spin box, a range, coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PySide6 import QtCore, QtWidgets

_TICKS = 1000
_HORIZONTAL = QtCore.Qt.Orientation.Horizontal


def _row(widget: QtWidgets.QWidget) -> QtWidgets.QHBoxLayout:
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    return layout


class SliderWidget(QtWidgets.QWidget):
    """``ctkSliderWidget``: a slider of real numbers and a spin box."""

    valueChanged = QtCore.Signal(float)
    valueIsChanging = QtCore.Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(_HORIZONTAL)
        self._box = QtWidgets.QDoubleSpinBox()
        self._box.setRange(0.0, 99.0)
        self._box.setKeyboardTracking(False)
        self._tracking = True
        self._page = 10.0
        layout = _row(self)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._box)
        self._slider.setRange(0, _TICKS)
        self._slider.valueChanged.connect(self._slid)
        self._slider.sliderReleased.connect(self._released)
        self._box.valueChanged.connect(self._typed)

    def _slid(self, tick: int) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        value = low + (high - low) * tick / _TICKS
        step = self._box.singleStep()
        value = min(max(low + round((value - low) / step) * step, low), high) if step > 0 else value
        if self._slider.isSliderDown() and not self._tracking:
            self.valueIsChanging.emit(value)
            return
        self._box.setValue(value)

    def _released(self) -> None:
        if not self._tracking:
            self._box.setValue(
                self._box.minimum() + (self._box.maximum() - self._box.minimum()) * self._slider.value() / _TICKS
            )

    def _typed(self, value: float) -> None:
        self._moveSlider()
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _moveSlider(self) -> None:
        low, high = self._box.minimum(), self._box.maximum()
        blocker = QtCore.QSignalBlocker(self._slider)
        self._slider.setValue(round(_TICKS * (self._box.value() - low) / (high - low)) if high > low else 0)
        blocker.unblock()

    def setValue(self, value: float) -> None:
        """Set the value, clamped to the range."""
        self._box.setValue(float(value))

    def setRange(self, low: float, high: float) -> None:
        """Set the range."""
        self._box.setRange(float(low), float(high))
        self._moveSlider()

    def setMinimum(self, low: float) -> None:
        """Set the lower end."""
        self._box.setMinimum(float(low))
        self._moveSlider()

    def setMaximum(self, high: float) -> None:
        """Set the upper end."""
        self._box.setMaximum(float(high))
        self._moveSlider()

    def _setDecimals(self, decimals: int) -> None:
        self._box.setDecimals(int(decimals))

    def _setTracking(self, tracking: bool) -> None:
        self._tracking = bool(tracking)

    def spinBox(self) -> QtWidgets.QDoubleSpinBox:
        """The spin box."""
        return self._box

    def slider(self) -> QtWidgets.QSlider:
        """The slider; its ticks are this widget's own."""
        return self._slider

    value = QtCore.Property(float, lambda self: self._box.value(), setValue)
    minimum = QtCore.Property(float, lambda self: self._box.minimum(), setMinimum)
    maximum = QtCore.Property(float, lambda self: self._box.maximum(), setMaximum)
    singleStep = QtCore.Property(float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v))
    pageStep = QtCore.Property(float, lambda self: self._page, lambda self, v: setattr(self, "_page", v))
    decimals = QtCore.Property(int, lambda self: self._box.decimals(), _setDecimals)
    prefix = QtCore.Property(str, lambda self: self._box.prefix(), lambda self, v: self._box.setPrefix(v))
    suffix = QtCore.Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))
    tracking = QtCore.Property(bool, lambda self: self._tracking, _setTracking)


class RangeWidget(QtWidgets.QWidget):
    """``ctkRangeWidget``: a lower and an upper value, without CTK's two-handled slider."""

    valuesChanged = QtCore.Signal(float, float)
    minimumValueChanged = QtCore.Signal(float)
    maximumValueChanged = QtCore.Signal(float)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._low, self._high = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        layout = _row(self)
        layout.addWidget(self._low, 1)
        layout.addWidget(self._high, 1)
        self._high.setValue(99.0)
        self._low.valueChanged.connect(self._lowTyped)
        self._high.valueChanged.connect(self._highTyped)

    def _lowTyped(self, value: float) -> None:
        self._high.setValue(max(value, self._high.value()))
        self.minimumValueChanged.emit(value)
        self.valuesChanged.emit(self._low.value(), self._high.value())

    def _highTyped(self, value: float) -> None:
        self._low.setValue(min(value, self._low.value()))
        self.maximumValueChanged.emit(value)
        self.valuesChanged.emit(self._low.value(), self._high.value())

    def setValues(self, low: float, high: float) -> None:
        """Set both values."""
        self._high.setValue(float(high))
        self._low.setValue(float(low))

    def setRange(self, low: float, high: float) -> None:
        """Set what the values may be."""
        self._low.setRange(float(low), float(high))
        self._high.setRange(float(low), float(high))

    def _each(self, method: str, value: Any) -> None:
        getattr(self._low, method)(value)
        getattr(self._high, method)(value)

    minimum = QtCore.Property(float, lambda self: self._low.minimum(), lambda self, v: self._each("setMinimum", v))
    maximum = QtCore.Property(float, lambda self: self._low.maximum(), lambda self, v: self._each("setMaximum", v))
    singleStep = QtCore.Property(
        float, lambda self: self._low.singleStep(), lambda self, v: self._each("setSingleStep", v)
    )
    decimals = QtCore.Property(int, lambda self: self._low.decimals(), lambda self, v: self._each("setDecimals", v))
    suffix = QtCore.Property(str, lambda self: self._low.suffix(), lambda self, v: self._each("setSuffix", v))
    minimumValue = QtCore.Property(float, lambda self: self._low.value(), lambda self, v: self._low.setValue(v))
    maximumValue = QtCore.Property(float, lambda self: self._high.value(), lambda self, v: self._high.setValue(v))


class CoordinatesWidget(QtWidgets.QWidget):
    """``ctkCoordinatesWidget``: three numbers, as text ``"x,y,z"``."""

    coordinatesChanged = QtCore.Signal(list)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        layout = _row(self)
        self._boxes = [QtWidgets.QDoubleSpinBox() for _ in range(3)]
        for box in self._boxes:
            box.setRange(-1e6, 1e6)
            box.valueChanged.connect(lambda _: self.coordinatesChanged.emit([b.value() for b in self._boxes]))
            layout.addWidget(box, 1)

    def setCoordinates(self, values: str | Iterable[float]) -> None:
        """Set the numbers."""
        parts = values.split(",") if isinstance(values, str) else values
        for box, value in zip(self._boxes, parts, strict=True):
            box.setValue(float(value))

    def _text(self) -> str:
        return ",".join(f"{box.value():g}" for box in self._boxes)

    coordinates = QtCore.Property(str, _text, setCoordinates)
