"""The host's scene, modules and `slicer.util`: saving, reopening, closing, reloading, and the display probe."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import host_scenes
import numpy as np
import pytest

MODULE = """
import qt, slicer
from slicer.i18n import tr as _, translate
from slicer.ScriptedLoadableModule import *
from slicer.util import VTKObservationMixin

events = []

class Toy(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Toy module")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Diffusion")]
        slicer.app.connect("startupCompleted()", lambda: events.append("startup"))

class ToyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = ToyLogic()
        self.button = qt.QPushButton(_("Press {VERSION}"))
        self.button.objectName = "pressButton"
        self.layout.addWidget(self.button)
        self.layout.addStretch(1)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, lambda c, e: events.append("start close"))
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, lambda c, e: events.append("end close"))

    def enter(self): events.append("enter")
    def exit(self): events.append("exit")
    def cleanup(self):
        events.append("cleanup")
        self.removeObservers()

class ToyLogic(ScriptedLoadableModuleLogic):
    pass

class ToyTest(ScriptedLoadableModuleTest):
    def runTest(self):
        events.append("test")
"""


@pytest.fixture
def toy(slicerHost, slicerWindow, tmp_path):
    """The toy module's widget, shown in the window; the module is taken out again."""
    import slicer

    path = tmp_path / "Toy.py"
    path.write_text(MODULE.replace("{VERSION}", "1"), encoding="utf-8")
    widget = slicerHost.loadModule(path)
    yield widget
    slicer.modules.ToyWidget.cleanup()
    slicerWindow.hideModule()
    for name in [n for n in vars(slicer.modules) if n.lower().startswith("toy")]:
        delattr(slicer.modules, name)
    del slicer.moduleNames.Toy
    sys.modules.pop("Toy")
    sys.path.remove(str(tmp_path))


# --- modules ------------------------------------------------------------------------------------------------------


def test_module_is_loaded_shown_and_known(toy, slicerWindow):
    import slicer
    import Toy

    assert slicer.modules.toy.title == "Toy module"
    assert slicer.modules.toy.categories == ["Diffusion"]
    assert slicer.modules.ToyWidget is toy
    assert slicer.util.getModuleWidget("Toy") is toy
    assert slicer.util.getModuleLogic("Toy") is toy.logic
    assert Path(slicer.util.modulePath("Toy")).name == "Toy.py"
    assert "Toy" in slicer.util.moduleNames()
    assert Toy.events == ["startup", "enter"]
    assert toy.button.visible
    assert slicer.util.findChild(slicer.util.mainWindow(), "pressButton") is toy.button


def test_module_reloads_its_changed_source(toy):
    import slicer

    path = Path(slicer.modules.toy.path)
    before = sys.modules["Toy"]
    path.write_text(MODULE.replace("{VERSION}", "2").replace("Press", "Push it,"), encoding="utf-8")
    os.utime(path, (0, 0))
    slicer.util.reloadScriptedModule("Toy")
    widget = slicer.modules.ToyWidget
    slicer.app.processEvents()
    assert widget is not toy
    assert widget.button.text == "Push it, 2"
    assert widget.button.visible
    assert before.events == ["startup", "enter", "cleanup"]
    assert sys.modules["Toy"].events == ["enter"]


def test_selecting_another_module_leaves_this_one(toy, slicerHost, tmp_path):
    import slicer
    import Toy

    other = tmp_path / "ToyTwo.py"
    other.write_text(MODULE.replace("Toy", "ToyTwo"), encoding="utf-8")
    slicerHost.loadModule(other)
    assert Toy.events[-2:] == ["exit", "startup"] or "exit" in Toy.events
    slicer.util.selectModule("Toy")
    assert Toy.events[-1] == "enter"
    slicer.modules.ToyTwoWidget.cleanup()
    sys.modules.pop("ToyTwo")
    del slicer.moduleNames.ToyTwo


def test_module_test_class_runs(toy):
    import slicer
    import Toy

    slicer.modules.ToyInstance.runTest()
    assert Toy.events[-1] == "test"


def test_module_without_tests_says_so(slicerHost, caplog):
    from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

    class UntestedTest(ScriptedLoadableModuleTest):
        pass

    UntestedTest().runTest()
    assert "UntestedTest defines no test." in caplog.messages


def test_missing_module_is_named(slicerHost):
    with pytest.raises(FileNotFoundError, match=r"Nowhere\.py"):
        slicerHost.loadModule("Nowhere.py")


def test_parameter_node_is_one_per_module(toy):
    node = toy.logic.getParameterNode()
    assert toy.logic.getParameterNode() is node
    assert (node.GetModuleName(), node.GetSingletonTag()) == ("Toy", "Toy")


# --- closing ------------------------------------------------------------------------------------------------------


def test_closing_the_scene_tells_the_module_and_keeps_the_views(toy, slicerHost, slicerScene):
    import slicer
    import Toy

    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "gone")
    slicerHost.closeScene()
    assert Toy.events[-2:] == ["start close", "end close"]
    assert slicerScene.GetFirstNodeByName("gone") is None
    manager = slicer.app.layoutManager()
    assert manager.sliceWidget("Red").mrmlSliceNode().GetScene() is slicerScene
    assert slicerScene.GetSingletonNode("default", "vtkMRMLCrosshairNode") is not None
    assert slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicerScene) is not None
    matrix = host_scenes.affine()
    slicer.util.setSliceViewerLayers(
        background=host_scenes.addVolume(host_scenes.ball(matrix, (0, 0, 0), 20), matrix, "b"), fit=True
    )
    assert manager.sliceWidget("Red").view.grab().max() > 100


# --- saving and reopening -----------------------------------------------------------------------------------------


def onGrid(node, matrix) -> np.ndarray:
    """Values of a volume, in RAS where they are tensors, at the voxels of another grid.

    Slicer's readers may flip an axis, and say so in the affine.
    """
    import slicer
    import vtk
    from vtkmodules.util.numpy_support import vtk_to_numpy

    read, data = vtk.vtkMatrix4x4(), node.GetImageData().GetPointData()
    node.GetIJKToRASMatrix(read)
    tensors = data.GetTensors()
    values = vtk_to_numpy(tensors if tensors is not None else data.GetScalars())
    values = values.reshape(*node.GetImageData().GetDimensions()[::-1], -1)
    if tensors is not None:
        frame = vtk.vtkMatrix4x4()
        node.GetMeasurementFrameMatrix(frame)
        turn = slicer.util.arrayFromVTKMatrix(frame)[:3, :3]
        values = turn @ values.reshape(*values.shape[:3], 3, 3) @ turn.T
    back = np.linalg.inv(slicer.util.arrayFromVTKMatrix(read)) @ matrix
    k, j, i = np.indices(host_scenes.SHAPE)
    index = np.stack([i, j, k], axis=-1) @ back[:3, :3].T + back[:3, 3]
    np.testing.assert_allclose(index, np.rint(index), atol=0.01)
    i, j, k = np.rint(index).astype(int).transpose(3, 0, 1, 2)
    found = values[k, j, i]
    return found if tensors is not None else found[..., 0]


def test_bundle_brings_everything_back(slicerHost, slicerWindow, slicerScene, tmp_path):
    import slicer

    matrix = host_scenes.affine(oblique=True)
    fa, tensor = host_scenes.fibreRing(matrix)
    volume = host_scenes.addVolume(fa, matrix, "FA map")
    display = volume.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.1, 0.7)
    table = slicerScene.AddNewNodeByClass("vtkMRMLColorTableNode", "Own colours")
    table.SetTypeToUser()
    table.SetNumberOfColors(2)
    table.SetColor(0, "low", 0, 0, 1)
    table.SetColor(1, "high", 1, 0, 0)
    display.SetAndObserveColorNodeID(table.GetID())
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(volume)
    legend.SetTitleText("FA")
    host_scenes.addTensors(tensor, matrix)
    host_scenes.addRings()
    label = host_scenes.addVolume((fa > 0.3).astype(np.int16), matrix, "seeds", "vtkMRMLLabelMapVolumeNode")
    assert label.GetDisplayNode() is not None
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicerScene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Results")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), folder)
    slicer.util.setSliceViewerLayers(background=volume)
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    slicerHost.closeScene()
    assert slicer.util.getNodesByClass("vtkMRMLModelNode") == [
        n for n in slicer.util.getNodesByClass("vtkMRMLModelNode") if n.GetHideFromEditors()
    ]
    slicer.util.loadScene(str(path))

    again = slicer.util.getNode("FA map")
    np.testing.assert_array_equal(onGrid(again, matrix), fa)
    assert again.GetDisplayNode().GetWindowLevelMax() == pytest.approx(0.7)
    assert again.GetDisplayNode().GetColorNode().GetName() == "Own colours"
    assert slicer.modules.colors.logic().GetColorLegendDisplayNode(again).GetTitleText() == "FA"
    tensors = slicer.util.getNode("tensor")
    np.testing.assert_allclose(onGrid(tensors, matrix), tensor, atol=1e-8)
    assert len(host_scenes.glyphNodes(tensors)) == 3
    rings = slicer.util.getNode("rings")
    assert rings.GetPolyData().GetNumberOfLines() == 150
    assert rings.GetDisplayNode().GetActiveScalarName() == "orientation"
    np.testing.assert_array_equal(onGrid(slicer.util.getNode("seeds"), matrix), fa > 0.3)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicerScene)
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(again))
    assert hierarchy.GetItemName(parent) == "Results"
    red = slicer.app.layoutManager().sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == again.GetID()
    assert red.view.grab().max() > 50


def test_diffusion_weighted_volume_comes_back(slicerHost, slicerScene, tmp_path):
    import slicer

    rng = np.random.default_rng(3)
    signal = rng.random((4, 5, 6, 7)).astype(np.float32)
    matrix = host_scenes.affine(oblique=True)
    node = slicer.util.addVolumeFromArray(signal, matrix, "dwi", "vtkMRMLDiffusionWeightedVolumeNode")
    directions = rng.normal(size=(7, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    node.SetNumberOfGradients(7)
    for index, direction in enumerate(directions):
        node.SetBValue(index, 1000.0 if index else 0.0)
        node.SetDiffusionGradient(index, direction)
    path = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(path))
    slicerHost.closeScene()
    slicer.util.loadScene(str(path))
    again = slicer.util.getNode("dwi")
    np.testing.assert_allclose(slicer.util.arrayFromVolume(again), signal)
    assert again.GetNumberOfGradients() == 7
    np.testing.assert_allclose([again.GetBValue(i) for i in range(7)], [0.0, *[1000.0] * 6])


def test_subject_hierarchy_has_the_data_nodes(slicerScene):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicerScene)
    count = hierarchy.GetNumberOfItems()
    node = slicerScene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    slicerScene.AddNewNodeByClass("vtkMRMLModelDisplayNode")
    item = hierarchy.GetItemByDataNode(node)
    assert hierarchy.GetItemName(item) == "model"
    assert hierarchy.GetNumberOfItems() == count + 1
    slicerScene.RemoveNode(node)
    assert hierarchy.GetNumberOfItems() == count


def test_single_files_are_written_and_read(slicerScene, tmp_path):
    import slicer

    matrix = host_scenes.affine(oblique=True)
    volume = host_scenes.addVolume(host_scenes.ball(matrix, (9, 3, 0), 20), matrix, "ball")
    path = tmp_path / "file.nii.gz"
    assert slicer.util.saveNode(volume, str(path))
    again = slicer.util.loadVolume(str(path), {"show": False})
    assert again.GetName() == "file"
    np.testing.assert_array_equal(onGrid(again, matrix), slicer.util.arrayFromVolume(volume))
    label = slicer.util.loadLabelVolume(str(path))
    assert label.IsA("vtkMRMLLabelMapVolumeNode")


def test_file_that_is_not_there_is_an_error(slicerScene, tmp_path):
    import slicer

    with pytest.raises(RuntimeError, match="There is no file"):
        slicer.util.loadVolume(str(tmp_path / "none.nii.gz"))
    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadScene(str(tmp_path / "none.mrb"))


def test_loaded_volume_is_shown(slicerWindow, slicerScene, tmp_path):
    import slicer

    matrix = host_scenes.affine()
    volume = host_scenes.addVolume(host_scenes.ball(matrix, (0, 0, 0), 30), matrix, "ball")
    path = tmp_path / "ball.nrrd"
    slicer.util.saveNode(volume, str(path))
    again = slicer.util.loadVolume(str(path))
    for name in slicerWindow.layoutManager.sliceViewNames():
        composite = slicerWindow.layoutManager.sliceWidget(name).mrmlSliceCompositeNode()
        assert composite.GetBackgroundVolumeID() == again.GetID()


# --- slicer.util, i18n, packaging ---------------------------------------------------------------------------------


def test_errors_are_displayed_or_logged(slicerScene, caplog):
    import slicer

    with pytest.raises(ValueError, match="broken"), slicer.util.tryWithErrorDisplay("It failed.", waitCursor=True):
        raise ValueError("broken")
    assert slicer.app.overrideCursor() is None
    with caplog.at_level(logging.ERROR):
        slicer.util.errorDisplay("said so")
    assert "said so" in caplog.text


def test_settings_are_kept_apart_from_slicers_own(slicerScene):
    import qt
    import slicer

    assert slicer.util.settingsValue("Toy/on", False, converter=slicer.util.toBool) is False
    qt.QSettings().setValue("Toy/on", True)
    assert slicer.util.settingsValue("Toy/on", False, converter=slicer.util.toBool) is True
    assert qt.QSettings().fileName().startswith(slicer.app.temporaryPath)


def test_main_window_and_data_probe_are_found(slicerWindow):
    import slicer

    assert slicer.util.mainWindow() is slicerWindow
    slicer.util.setDataProbeVisible(False)
    assert not slicerWindow.dataProbe.isVisible()
    slicer.util.setDataProbeVisible(True)
    slicer.util.setViewControllersVisible(False)
    assert not slicerWindow.layoutManager.sliceWidget("Red").bar.isVisible()
    slicer.util.setViewControllersVisible(True)
    slicer.util.forceRenderAllViews()


def test_packaging_tells_what_lacks_and_installs_nothing(slicerScene, tmp_path):
    import slicer
    import slicer.packaging

    path = tmp_path / "requirements.txt"
    path.write_text(
        "numpy>=1.20  # arrays\n\n# none\nno-such-package>=1\nnumpy>=999; python_version < '3'\n", encoding="utf-8"
    )
    requirements = slicer.packaging.load_requirements(path)
    assert [r.name for r in requirements] == ["numpy", "no-such-package", "numpy"]
    assert not slicer.packaging.pip_check(requirements)
    assert slicer.packaging.pip_check("numpy")
    with pytest.raises(RuntimeError, match="no-such-package"):
        slicer.packaging.pip_ensure(requirements)
    with pytest.raises(RuntimeError, match="numpy>=999"):
        slicer.util.pip_install("numpy>=999")


def test_translation_is_the_text_itself(slicerScene):
    from slicer.i18n import tr, translate

    assert tr("Apply") == translate("context", "Apply") == "Apply"


# --- display ------------------------------------------------------------------------------------------------------


def test_no_display_is_no_usable_display(monkeypatch):
    from EmbeddedSlicer.display import hasUsableDisplay

    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    assert not hasUsableDisplay()


@pytest.mark.skipif(sys.platform != "linux", reason="X11")
def test_broken_display_is_survived_and_the_host_goes_offscreen(tmp_path):
    """Qt would end the process on this display; the probe does instead."""
    code = (
        "from EmbeddedSlicer import host; app = host.start(); host.mainWindow(); "
        f"host.screenshot({str(tmp_path / 'shot.png')!r}); print(app.platformName()); host.stop()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("QT_QPA_PLATFORM", "WAYLAND_DISPLAY")}
    environment |= {"DISPLAY": "localhost:987", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "offscreen"
    assert (tmp_path / "shot.png").stat().st_size > 5000
