"""Widgets of settings: made from, and bound to, the fields of a job's dataclass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any

import ctk
import qt

from DiffusionFMSlicer.parameters import PANEL, Parameters

LABELS = {
    "b0_threshold": "b0 up to",
    "memory_mib": "Memory",
    "weights": "Prior's weights",
    "encoder": "Encoder's weights",
    "overlays": "Maps",
    "standard": "those tested as stable",
    "all": "all, also others",
    "half": "Half precision",
    "attention": "Attention by",
    "products": "products of matrices",
    "torch-compile": "torch.compile",
    "adaptation": "Prior's adaptation",
    "seed": "Random seed",
    "seed_density": "Seeds per voxel",
    "seed_fa": "Start above FA",
    "stop_fa": "Stop below FA",
    "max_angle": "Largest turn",
    "min_length": "Shortest",
    "max_length": "Longest",
    "max_count": "At most",
    "tract_format": "File format",
    "mppca": "MP-PCA",
    "none": "none",
    "wls": "weighted least squares",
    "ols": "ordinary least squares",
    "nlls": "nonlinear least squares",
    "robust": "robust least squares",
    "constrained": "constrained least squares",
    "map": "maximum a posteriori",
    "prior": "generative prior",
    "auto": "automatic",
    "cpu": "CPU",
    "cuda": "GPU (CUDA)",
}
"""What people read instead of a setting's or a choice's name, where capitalising the name is not enough."""


def label(name: str) -> str:
    """Text for a setting or a choice."""
    return LABELS.get(name) or name.replace("_", " ").capitalize()


class Form:
    """Binds widgets to settings, both ways.

    Parameters
    ----------
    onEdited : callable(str, value)
        Called when the user, not the program, changed a widget.
    """

    def __init__(self, onEdited: Callable[[str, Any], None]) -> None:
        self._onEdited = onEdited
        self._widgets: dict[str, Any] = {}
        self._showing = False

    def widget(self, name: str) -> Any:
        """The widget of a setting."""
        return self._widgets[name]

    def addRows(self, layout: Any, settings: Iterable[Field[Any]]) -> None:
        """Append a row for each setting to a form layout."""
        for field in settings:
            widget = self._make(field)
            if isinstance(field.default, bool):
                layout.addRow(widget)
            else:
                caption = qt.QLabel(label(field.name))
                caption.setToolTip(field.metadata["help"])
                layout.addRow(caption, widget)
            self.bind(field.name, widget)

    def bind(self, name: str, widget: Any) -> None:
        """Bind a widget that exists already, as from the .ui file."""
        field = PANEL[name]
        if not widget.toolTip:
            widget.setToolTip(field.metadata["help"])
        if isinstance(field.default, bool):
            widget.toggled.connect(lambda *_: self._edited(name))
        elif field.metadata["choices"]:
            if widget.count == 0:
                for choice in field.metadata["choices"]:
                    widget.addItem(label(choice), choice)
            widget.currentIndexChanged.connect(lambda *_: self._edited(name))
        elif field.metadata["path"]:
            widget.currentPathChanged.connect(lambda *_: self._edited(name))
        else:
            widget.valueChanged.connect(lambda *_: self._edited(name))
        self._widgets[name] = widget

    def show(self, parameters: Parameters) -> None:
        """Make every widget show the parameters."""
        self._showing = True
        try:
            for name, widget in self._widgets.items():
                value = parameters.get(name)
                if value != self._value(name):
                    self._setValue(name, widget, value)
        finally:
            self._showing = False

    def _edited(self, name: str) -> None:
        if not self._showing:
            self._onEdited(name, self._value(name))

    def _value(self, name: str) -> Any:
        field, widget = PANEL[name], self._widgets[name]
        default: Any = field.default
        if isinstance(default, bool):
            return widget.checked
        if field.metadata["choices"]:
            return widget.itemData(widget.currentIndex)
        if field.metadata["path"]:
            return widget.currentPath
        return type(default)(widget.value)

    def _setValue(self, name: str, widget: Any, value: Any) -> None:
        field = PANEL[name]
        if isinstance(field.default, bool):
            widget.checked = value
        elif field.metadata["choices"]:
            widget.currentIndex = widget.findData(value)
        elif field.metadata["path"]:
            widget.currentPath = value
        else:
            widget.value = value

    def _make(self, field: Field[Any]) -> Any:
        default: Any = field.default
        metadata = field.metadata
        if isinstance(default, bool):
            return qt.QCheckBox(label(field.name))
        if metadata["choices"]:
            return qt.QComboBox()
        if metadata["path"]:
            return ctk.ctkPathLineEdit()
        box = qt.QDoubleSpinBox() if isinstance(default, float) else qt.QSpinBox()
        if isinstance(default, float):
            box.decimals = 3 if default < 1 else 1
        box.minimum, box.maximum = metadata["minimum"], metadata["maximum"]
        box.singleStep = 1 if isinstance(default, int) or default >= 1 else 0.05
        if metadata["unit"]:
            box.suffix = f" {metadata['unit']}"
        return box
