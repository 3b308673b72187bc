"""The ``ctk`` module of Slicer's Python: the widgets of CTK that modules use, drawn anew.

Each keeps the properties, signals and slots of CTK's widget of that name that are documented for its users. What it
leaves out: CTK's own painting and its proxies between units; classes that are not in this file do not exist.
"""

from __future__ import annotations

from PySide6 import QtWidgets

from EmbeddedSlicer import qt
from EmbeddedSlicer.collapsible import CollapsibleButton
from EmbeddedSlicer.sliders import CoordinatesWidget, RangeWidget, SliderWidget
from EmbeddedSlicer.smallwidgets import (
    CheckableComboBox,
    ColorPickerButton,
    ComboBox,
    DirectoryButton,
    PathLineEdit,
    SearchBox,
)
from EmbeddedSlicer.uiloader import registerWidget

ctkCollapsibleButton = qt.pythonqt(CollapsibleButton, "ctkCollapsibleButton")
ctkSliderWidget = qt.pythonqt(SliderWidget, "ctkSliderWidget")
ctkRangeWidget = qt.pythonqt(RangeWidget, "ctkRangeWidget")
ctkCoordinatesWidget = qt.pythonqt(CoordinatesWidget, "ctkCoordinatesWidget")
ctkComboBox = qt.pythonqt(ComboBox, "ctkComboBox")
ctkCheckableComboBox = qt.pythonqt(CheckableComboBox, "ctkCheckableComboBox")
ctkPathLineEdit = qt.pythonqt(PathLineEdit, "ctkPathLineEdit")
ctkDirectoryButton = qt.pythonqt(DirectoryButton, "ctkDirectoryButton")
ctkColorPickerButton = qt.pythonqt(ColorPickerButton, "ctkColorPickerButton")
ctkSearchBox = qt.pythonqt(SearchBox, "ctkSearchBox")


def _alias(name: str, base: type) -> type:
    return qt.pythonqt(type(name, (base,), {"__doc__": f"{base.__name__} under its name in CTK."}))


ctkDoubleSpinBox = _alias("ctkDoubleSpinBox", QtWidgets.QDoubleSpinBox)
ctkCheckBox = _alias("ctkCheckBox", QtWidgets.QCheckBox)
ctkPushButton = _alias("ctkPushButton", QtWidgets.QPushButton)
ctkFittedTextBrowser = _alias("ctkFittedTextBrowser", QtWidgets.QTextBrowser)
ctkExpandableWidget = _alias("ctkExpandableWidget", QtWidgets.QFrame)

for _name in [n for n in dir() if n.startswith("ctk")]:
    registerWidget(_name, globals()[_name])
