"""``slicer.parameterNodeWrapper`` in the host: types, defaults, checks, widgets, survival of saving."""

from __future__ import annotations

import enum
import pathlib
from typing import Annotated

import pytest

pytestmark = pytest.mark.usefixtures("slicerScene")


class Method(enum.Enum):
    """How to fit."""

    WLS = 1
    OLS = 2


def wrapperClass():
    import slicer
    from slicer.parameterNodeWrapper import Choice, Decimals, Default, WithinRange, parameterNodeWrapper

    # evaluated here, not as text: the names are only there once the host has started
    hints = {
        "volume": slicer.vtkMRMLScalarVolumeNode,
        "name": str,
        "on": bool,
        "count": Annotated[int, WithinRange(1, 10)],
        "level": Annotated[float, WithinRange(0, 1), Decimals(3)],
        "color": Annotated[str, Choice(["red", "green"])],
        "folder": pathlib.Path,
        "method": Method,
        "parts": list[int],
        "note": Annotated[str, Default("as noted")],
        "maybe": float | None,
    }
    return parameterNodeWrapper(type("Parameters", (), {"__annotations__": hints, "level": 0.25, "on": True}))


def makeNode():
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

    logic = ScriptedLoadableModuleLogic()
    logic.moduleName = "Toy"
    return logic.getParameterNode()


@pytest.fixture
def node():
    return makeNode()


@pytest.fixture
def parameters(node):
    return wrapperClass()(node)


def test_defaults(parameters):
    assert parameters.volume is None
    assert (parameters.name, parameters.on, parameters.count, parameters.level) == ("", True, 1, 0.25)
    assert (parameters.color, parameters.method, parameters.parts) == ("red", Method.WLS, [])
    assert (parameters.note, parameters.maybe) == ("as noted", None)
    assert parameters.default("level") == 0.25


def test_defaults_are_written_to_the_node_but_spare_what_is_there(node):
    node.SetParameter("count", "7")
    parameters = wrapperClass()(node)
    assert parameters.count == 7
    assert node.GetParameter("level") == "0.25"


def test_values_keep_their_types(parameters, node):
    parameters.count, parameters.level, parameters.on = 3, 1, False
    parameters.folder, parameters.method, parameters.parts = "a/b", Method.OLS, [1, 2]
    parameters.maybe = 0.5
    again = wrapperClass()(node)
    assert (again.count, again.level, again.on) == (3, 1.0, False)
    assert isinstance(again.level, float)
    assert (again.folder, again.method, again.parts) == (pathlib.Path("a/b"), Method.OLS, [1, 2])
    assert again.maybe == 0.5


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("count", 11, ValueError),
        ("level", -0.1, ValueError),
        ("color", "blue", ValueError),
        ("name", 3, TypeError),
        ("name", None, ValueError),
        ("count", 2.5, TypeError),
    ],
)
def test_wrong_values_are_refused_and_change_nothing(parameters, name, value, error):
    before = getattr(parameters, name)
    with pytest.raises(error):
        setattr(parameters, name, value)
    assert getattr(parameters, name) == before


def test_node_is_a_reference(parameters, node):
    import slicer

    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    parameters.volume = volume
    assert node.GetNodeReference("volume") is volume
    with pytest.raises(TypeError):
        parameters.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    slicer.mrmlScene.RemoveNode(volume)
    assert parameters.volume is None


def test_type_that_cannot_be_kept_is_refused():
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(TypeError, match="'thing'"):
        parameterNodeWrapper(type("Bad", (), {"__annotations__": {"thing": object}}))


def test_default_outside_of_the_range_is_refused():
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

    hints = {"x": Annotated[int, WithinRange(0, 5)]}
    with pytest.raises(ValueError, match="within range"):
        parameterNodeWrapper(type("Bad", (), {"__annotations__": hints, "x": 9}))


# --- widgets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gui(parameters):
    import ctk
    import qt
    import slicer

    window = qt.QWidget()
    column = qt.QVBoxLayout(window)
    made = {
        "volume": slicer.qMRMLNodeComboBox(),
        "name": qt.QLineEdit(),
        "on": qt.QCheckBox(),
        "count": qt.QSpinBox(),
        "level": ctk.ctkSliderWidget(),
        "color": qt.QComboBox(),
        "folder": ctk.ctkPathLineEdit(),
        "method": qt.QComboBox(),
    }
    made["volume"].nodeTypes = ["vtkMRMLScalarVolumeNode"]
    made["volume"].noneEnabled = True
    made["volume"].setMRMLScene(slicer.mrmlScene)
    for name, widget in made.items():
        widget.setProperty("SlicerParameterName", name)
        column.addWidget(widget)
    tag = parameters.connectGui(window)
    yield made, tag, window
    made["volume"].setMRMLScene(None)


def test_widgets_take_value_range_and_choices(gui):
    made, _, _ = gui
    assert (made["count"].minimum, made["count"].maximum, made["count"].value) == (1, 10, 1)
    assert (made["level"].minimum, made["level"].maximum, made["level"].value) == (0, 1, 0.25)
    assert made["level"].decimals == 3
    assert [made["color"].itemText(i) for i in range(made["color"].count)] == ["red", "green"]
    assert made["method"].currentText == "WLS"
    assert made["on"].checked


def test_widget_sets_parameter(gui, parameters):
    import slicer

    made, _, _ = gui
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    made["volume"].setCurrentNode(volume)
    made["name"].text = "typed"
    made["on"].checked = False
    made["count"].value = 4
    made["level"].value = 0.75
    made["color"].currentText = "green"
    made["folder"].currentPath = "out"
    made["method"].currentIndex = 1
    assert parameters.volume is volume
    assert (parameters.name, parameters.on, parameters.count) == ("typed", False, 4)
    assert (parameters.level, parameters.color) == (0.75, "green")
    assert (parameters.folder, parameters.method) == (pathlib.Path("out"), Method.OLS)


def test_parameter_shows_in_widget(gui, parameters):
    import slicer

    made, _, _ = gui
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    parameters.volume, parameters.name, parameters.count = volume, "set", 9
    parameters.level, parameters.color, parameters.method = 0.5, "green", Method.OLS
    assert made["volume"].currentNode() is volume
    assert (made["name"].text, made["count"].value, made["level"].value) == ("set", 9, 0.5)
    assert (made["color"].currentText, made["method"].currentText) == ("green", "OLS")


def test_disconnected_widgets_and_parameters_go_their_own_ways(gui, parameters):
    made, tag, _ = gui
    parameters.disconnectGui(tag)
    made["count"].value = 5
    assert parameters.count == 1
    parameters.name = "set"
    assert made["name"].text == ""


def test_connection_outlives_its_wrapper():
    """The scene keeps a node that Python forgot: a collected observer of it would be called all the same."""
    import gc

    import qt
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode", "forgotten")
    edit = qt.QLineEdit()
    wrapperClass()(node).connectParametersToGui({"name": edit})
    del node
    gc.collect()
    slicer.mrmlScene.GetFirstNodeByName("forgotten").SetParameter("name", "set")
    assert edit.text == "set"


def test_unknown_parameter_name_is_an_error(parameters):
    import qt

    edit = qt.QLineEdit()
    with pytest.raises(ValueError, match="typo"):
        parameters.connectParametersToGui({"typo": edit})
    with pytest.raises(ValueError, match="No way to show"):
        parameters.connectParametersToGui({"name": qt.QLabel()})


def test_parameters_survive_saving_and_reopening(parameters, tmp_path, slicerHost):
    import numpy as np
    import slicer

    volume = slicer.util.addVolumeFromArray(np.ones((3, 4, 5), np.float32), name="kept")
    parameters.volume, parameters.level, parameters.method = volume, 0.875, Method.OLS
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    slicerHost.closeScene()
    slicer.util.loadScene(str(path))
    again = wrapperClass()(makeNode())
    assert (again.level, again.method) == (0.875, Method.OLS)
    assert again.volume.GetName() == "kept"
