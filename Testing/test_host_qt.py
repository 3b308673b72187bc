"""The host's qt, ctk and MRML widgets behave as Slicer's do from Python."""

from __future__ import annotations

import logging

import pytest

pytestmark = pytest.mark.usefixtures("slicerScene")

UI = """<?xml version="1.0" encoding="UTF-8"?>
<ui version="4.0"><class>Toy</class>
<widget class="qMRMLWidget" name="Toy"><layout class="QVBoxLayout" name="column">
 <item><widget class="ctkCollapsibleButton" name="section">
  <property name="text"><string>More</string></property>
  <property name="collapsed"><bool>true</bool></property>
  <layout class="QFormLayout" name="form">
   <item row="0" column="0"><widget class="QLabel" name="caption"/></item>
   <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="selector">
    <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
    <property name="noneEnabled"><bool>true</bool></property></widget></item>
  </layout></widget></item>
 <item><widget class="ctkPathLineEdit" name="folder"><property name="filters">
  <set>ctkPathLineEdit::Dirs|ctkPathLineEdit::Writable</set></property></widget></item>
 <item><widget class="ctkSliderWidget" name="slider"><property name="maximum"><double>1</double></property>
  <property name="singleStep"><double>0.05</double></property>
  <property name="value"><double>0.5</double></property></widget></item>
 <item><widget class="QCheckBox" name="box">
  <property name="SlicerParameterName" stdset="0"><string>flag</string></property></widget></item>
</layout></widget>
<customwidgets><customwidget><class>qMRMLWidget</class><extends>QWidget</extends><container>1</container>
</customwidget></customwidgets>
<connections><connection><sender>Toy</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
 <receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections>
</ui>"""


@pytest.fixture
def loaded(tmp_path):
    import slicer

    path = tmp_path / "Toy.ui"
    path.write_text(UI, encoding="utf-8")
    widget = slicer.util.loadUI(str(path))
    widget.setMRMLScene(slicer.mrmlScene)
    return widget, slicer.util.childWidgetVariables(widget)


def test_property_is_attribute():
    import qt

    button = qt.QPushButton("Apply")
    assert (button.text, button.enabled, button.checkable) == ("Apply", True, False)
    button.text, button.enabled, button.checkable = "Stop", False, True
    assert (button.text, button.enabled) == ("Stop", False)
    button.setText("Go")
    assert button.text == "Go"
    box = qt.QDoubleSpinBox()
    box.maximum, box.decimals, box.value = 5, 3, 7
    assert box.value == 5


def test_enumeration_property_reads_back():
    import qt

    label = qt.QLabel("x")
    label.alignment = qt.Qt.AlignRight
    assert label.alignment & qt.Qt.AlignRight
    label.focusPolicy = qt.Qt.StrongFocus
    assert label.focusPolicy == qt.Qt.StrongFocus


def test_misspelt_attribute_fails_as_in_slicer():
    import qt

    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="'txet' does not exist on QPushButton"):
        button.txet = "Apply"
    with pytest.raises(AttributeError, match="Slot 'click' can not be overwritten"):
        button.click = None
    with pytest.raises(AttributeError, match="does not accept"):
        button.text = object()


def test_python_subclass_has_own_attributes():
    import qt

    class Mine(qt.QWidget):
        pass

    mine = Mine()
    mine.note = 3
    assert mine.note == 3
    assert isinstance(mine, qt.QWidget)
    assert not isinstance(qt.QWidget(), Mine)


def test_connect_by_signature_and_by_attribute():
    import qt

    box, seen = qt.QCheckBox(), []
    box.connect("toggled(bool)", seen.append)
    box.checked = True
    box.disconnect("toggled(bool)", seen.append)
    box.toggled.connect(lambda on: seen.append(("attribute", on)))
    box.checked = False
    assert seen == [True, ("attribute", False)]


def test_every_widget_is_a_widget():
    import qt
    import slicer

    assert isinstance(qt.QPushButton(), qt.QWidget)
    assert isinstance(qt.QPushButton(), qt.QAbstractButton)
    assert isinstance(slicer.qMRMLNodeComboBox(), qt.QWidget)
    assert not isinstance(qt.QLabel(), qt.QAbstractButton)


def test_timer_has_property_and_static_function(slicerHost):
    import qt

    timer, fired = qt.QTimer(), []
    timer.singleShot = True
    assert timer.singleShot is True
    qt.QTimer.singleShot(0, lambda: fired.append(1))
    assert slicerHost.wait(lambda: fired, 5)


def test_file_dialog_returns_path_alone(monkeypatch):
    import qt
    from PySide6 import QtWidgets

    def answer(*args):
        return "scan.nii.gz", "All files (*)"

    monkeypatch.setattr(QtWidgets.QFileDialog, "getOpenFileName", staticmethod(answer))
    assert qt.QFileDialog.getOpenFileName(None, "Open", "") == "scan.nii.gz"
    assert issubclass(qt.QFileDialog, QtWidgets.QFileDialog)


def test_progress_bar_paints_its_text(slicerHost):
    import qt

    bar = qt.QProgressBar()
    bar.value = 40
    bar.show()
    slicerHost.application().processEvents()
    assert bar.text == "40%"
    bar.hide()


def test_unknown_name_is_an_attribute_error():
    import qt

    with pytest.raises(AttributeError, match="no attribute 'QTextCodec'"):
        _ = qt.QTextCodec


# --- .ui files ----------------------------------------------------------------------------------------------------


def test_ui_makes_slicers_widgets(loaded):
    import ctk
    import slicer

    _, ui = loaded
    assert type(ui.section) is ctk.ctkCollapsibleButton
    assert type(ui.selector) is slicer.qMRMLNodeComboBox
    assert (ui.section.text, ui.section.collapsed) == ("More", True)
    assert list(ui.selector.nodeTypes) == ["vtkMRMLScalarVolumeNode"]
    assert ui.folder.filters == ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Writable
    assert ui.slider.value == pytest.approx(0.5)
    assert ui.box.property("SlicerParameterName") == "flag"


def test_ui_connection_passes_the_scene_on(loaded):
    import slicer

    _, ui = loaded
    assert ui.selector.mrmlScene() is slicer.mrmlScene


def test_ui_that_names_an_unknown_widget_says_so(tmp_path, caplog):
    import slicer

    path = tmp_path / "x.ui"
    path.write_text('<ui version="4.0"><widget class="qSlicerWonder" name="w"/></ui>', encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        slicer.util.loadUI(str(path))
    assert "qSlicerWonder" in caplog.text


# --- ctk ----------------------------------------------------------------------------------------------------------


def test_section_folds_and_unfolds(slicerHost):
    import ctk
    import qt

    window = qt.QWidget()
    column = qt.QVBoxLayout(window)
    section = ctk.ctkCollapsibleButton()
    section.text = "Advanced"
    column.addWidget(section)
    inner = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    inner.addWidget(shown)
    inner.addWidget(hidden)
    hidden.visible = False
    window.show()
    slicerHost.application().processEvents()
    tall, seen = section.height, []
    section.contentsCollapsed.connect(seen.append)
    section.collapsed = True
    slicerHost.application().processEvents()
    assert not shown.visible
    assert section.height < tall
    section.click()
    slicerHost.application().processEvents()
    assert shown.visible
    assert not hidden.visible
    assert seen == [True, False]
    window.hide()


def test_widget_shown_while_folded_appears_on_unfolding(slicerHost):
    import ctk
    import qt

    section = ctk.ctkCollapsibleButton()
    inner = qt.QVBoxLayout(section)
    label = qt.QLabel("late")
    inner.addWidget(label)
    label.visible = False
    section.show()
    section.collapsed = True
    label.visible = True
    slicerHost.application().processEvents()
    assert not label.visible
    section.collapsed = False
    assert label.visible
    section.hide()


def test_widget_hidden_while_folded_stays_hidden(slicerHost):
    import ctk
    import qt

    section = ctk.ctkCollapsibleButton()
    inner = qt.QVBoxLayout(section)
    kept, hidden, back = (qt.QLabel(text) for text in ("kept", "hidden", "hidden and shown again"))
    for label in (kept, hidden, back):
        inner.addWidget(label)
    section.show()
    section.collapsed = True
    hidden.visible = False
    back.visible = False
    back.visible = True
    slicerHost.application().processEvents()
    assert not any(label.visible for label in (kept, hidden, back))
    section.collapsed = False
    slicerHost.application().processEvents()
    assert (kept.visible, hidden.visible, back.visible) == (True, False, True)
    section.hide()


def test_slider_keeps_range_and_step():
    import ctk

    slider, seen = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = -1, 1, 0.1, 2
    slider.valueChanged.connect(seen.append)
    slider.value = 0.25
    slider.value = 9
    assert slider.value == 1
    assert seen == [0.25, 1.0]
    slider.slider().setValue(slider.slider().minimum())
    assert slider.value == -1


def test_path_edit_tells_of_changes():
    import ctk

    edit, seen = ctk.ctkPathLineEdit(), []
    edit.currentPathChanged.connect(seen.append)
    edit.currentPath = "scan.nii.gz"
    edit.setCurrentPath("other.nrrd")
    assert seen == ["scan.nii.gz", "other.nrrd"]
    assert edit.currentPath == "other.nrrd"


# --- node combo box -----------------------------------------------------------------------------------------------


@pytest.fixture
def selector():
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(slicer.mrmlScene)
    yield box
    box.setMRMLScene(None)


def add(kind="vtkMRMLScalarVolumeNode", name="volume"):
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


def test_first_node_is_selected_where_none_is_not_offered(selector):
    assert selector.currentNode() is None
    node = add()
    assert selector.currentNode() is node
    assert selector.currentNodeID == node.GetID()


def test_none_stays_selected_where_it_is_offered(selector):
    selector.noneEnabled = True
    add()
    assert selector.currentNode() is None


def test_selection_is_signalled_once_and_follows_removal(selector):
    import slicer

    selector.noneEnabled = True
    first, second = add(name="first"), add(name="second")
    seen = []
    selector.currentNodeChanged.connect(seen.append)
    selector.setCurrentNode(second)
    selector.setCurrentNode(second)
    slicer.mrmlScene.RemoveNode(second)
    selector.currentNodeID = first.GetID()
    assert seen == [second, None, first]


def test_children_of_a_class_can_be_left_out(selector):
    label = add("vtkMRMLLabelMapVolumeNode", "label")
    assert selector.currentNode() is label
    selector.showChildNodeTypes = False
    assert selector.currentNode() is None
    assert selector.nodeCount() == 0


def test_hidden_nodes_and_attributes(selector):
    node, marked = add(), add(name="marked")
    marked.SetAttribute("Role", "mask")
    selector.addAttribute("vtkMRMLScalarVolumeNode", "Role", "mask")
    assert selector.currentNode() is marked
    assert selector.nodeCount() == 1
    selector.showHidden = False
    marked.SetHideFromEditors(True)
    assert selector.currentNode() is None
    assert node.GetName() == "volume"


def test_renamed_node_is_shown_by_its_new_name(selector):
    node = add()
    node.SetName("renamed")
    assert [selector._box.itemText(i) for i in range(selector._box.count())][0] == "renamed"


def test_add_node(selector):
    selector.baseName = "Output"
    made = selector.addNode()
    assert made.GetName() == "Output"
    assert selector.currentNode() is made


def test_destroyed_widget_is_an_error_and_no_crash():
    import qt

    window = qt.QWidget()
    edit = qt.QLineEdit(window)
    del window
    with pytest.raises(ValueError, match="destroyed QLineEdit"):
        _ = edit.text
