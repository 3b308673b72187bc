"""DiffusionFM in 3D Slicer: the entry classes. What they do is in `DiffusionFMSlicer`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


def _findLibrary() -> None:
    # an installed extension has the library on Python's path; in a source tree only this module's folder is there
    if find_spec("DiffusionFMLib") is None:
        sys.path.append(str(Path(__file__).resolve().parent.parent))


class DiffusionFM(ScriptedLoadableModule):
    """What Slicer's module list says of the module."""

    def __init__(self, parent) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("DiffusionFM")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Diffusion")]
        self.parent.dependencies = []
        self.parent.contributors = ["The DiffusionFM developers"]
        self.parent.helpText = _(
            "Microstructure maps and tracts from a brain diffusion MRI scan, computed in the background. "
            "Choose or open a scan and press Apply. For research: not a medical device."
        )
        self.parent.acknowledgementText = _("Uses PyTorch, DIPY, NiBabel, trx-python and dcm2niix.")
        _findLibrary()


class DiffusionFMWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Lifetime of the panel: made, shown, hidden, and in step with the scene."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self._timer = None
        self._refreshWanted = False

    def setup(self) -> None:
        """Build the panel; see `ScriptedLoadableModuleWidget`."""
        ScriptedLoadableModuleWidget.setup(self)
        from DiffusionFMSlicer.jobfolder import removeStale
        from DiffusionFMSlicer.panel import Panel
        from DiffusionFMSlicer.process import POLL_INTERVAL_MS

        widget = slicer.util.loadUI(self.resourcePath("UI/DiffusionFM.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = DiffusionFMLogic()
        resources = Path(self.resourcePath("UI/DiffusionFM.ui")).parent.parent
        self.panel = Panel(slicer.util.childWidgetVariables(widget), self.logic.parameters(), resources)
        removeStale()

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneReplaced)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneReplaced)
        self.addObserver(scene, scene.NodeAddedEvent, self.onSceneEdited)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onSceneEdited)
        # a run goes on, and its results come in, while another module is shown
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_INTERVAL_MS)
        self._timer.timeout.connect(self.onTimer)
        self._timer.start()

    def enter(self) -> None:
        """Show the present state of the scene, and values under the mouse; see `ScriptedLoadableModuleWidget`."""
        self.panel.setParameters(self.logic.parameters())
        self._followMouse(True)
        self.panel.attention.setActive(True)

    def exit(self) -> None:
        """Follow the mouse no longer; see `ScriptedLoadableModuleWidget`."""
        self._followMouse(False)
        self.panel.attention.setActive(False)

    def _followMouse(self, follow: bool) -> None:
        from DiffusionFMSlicer.inspector import crosshairNode

        crosshair = crosshairNode()
        events = {
            slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent: self.onCursorMoved,
            vtk.vtkCommand.ModifiedEvent: self.onCrosshairMoved,
        }
        for event, callback in events.items():
            if crosshair is not None and follow != self.hasObserver(crosshair, event, callback):
                (self.addObserver if follow else self.removeObserver)(crosshair, event, callback)

    def cleanup(self) -> None:
        """End the worker: the module is reloaded, or Slicer quits; see `ScriptedLoadableModuleWidget`."""
        if self._timer is not None:
            self._timer.stop()
        self.removeObservers()
        if self.panel is not None:
            self.panel.runner.close()

    def onReload(self) -> None:
        """Load all of this module's files again, not only this one."""
        for name in [n for n in sys.modules if n.partition(".")[0] == "DiffusionFMSlicer"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onTimer(self) -> None:
        """Take in what the worker said."""
        self.panel.runner.poll()
        if self._refreshWanted:
            self._refreshWanted = False
            self.panel.refresh()

    def onCursorMoved(self, caller=None, event=None) -> None:
        """Show the values under the mouse."""
        self.panel.showValues()

    def onCrosshairMoved(self, caller=None, event=None) -> None:
        """Ask for overlays at the new point."""
        self.panel.attention.pointMoved()

    def onSceneStartClose(self, caller=None, event=None) -> None:
        """Cancel what runs: the scene that it belongs to goes away."""
        self.panel.runner.abandon()

    def onSceneReplaced(self, caller=None, event=None) -> None:
        """Show the parameters of the scene that is there now."""
        self.panel.forgetScene(self.logic.parameters())

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onSceneEdited(self, caller=None, event=None, node=None) -> None:
        """Look at the results again soon; many nodes come at once when a scene is loaded."""
        self._refreshWanted = True


class DiffusionFMLogic(ScriptedLoadableModuleLogic):
    """The module's parameter node, for the panel and for scripts."""

    def parameters(self):
        """Typed view of the scene's parameter node: a `DiffusionFMSlicer.parameters.Parameters`."""
        from DiffusionFMSlicer.parameters import Parameters

        return Parameters(self.getParameterNode())


class DiffusionFMTest(ScriptedLoadableModuleTest):
    """Self-test for Slicer's own test runner; the thorough ones are in Testing/."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all."""
        self.setUp()
        self.test_parametersAreKept()

    def test_parametersAreKept(self) -> None:
        """A setting survives in the parameter node, and a wrong one is refused."""
        from DiffusionFMLib.errors import SettingsError

        parameters = DiffusionFMLogic().parameters()
        parameters.set("method", "ols")
        self.assertEqual(DiffusionFMLogic().parameters().get("method"), "ols")  # noqa: PT009
        with self.assertRaises(SettingsError):  # noqa: PT027
            parameters.set("method", "magic")
        self.delayDisplay("Test passed")
