"""The MRML scene and Slicer's logics on it, as the desktop program sets them up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

from EmbeddedSlicer.hierarchy import HierarchyKeeper

_LOGICS = {
    "Volumes": "vtkSlicerVolumesLogic",
    "Models": "vtkSlicerModelsLogic",
    "Colors": "vtkSlicerColorLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
}
"""Logics by the module that owns them in Slicer. Each registers the node classes of its module with the scene."""

_MORE_NODE_CLASSES = (
    "vtkMRMLColorLegendDisplayNode",
    "vtkMRMLScriptedModuleNode",
    "vtkMRMLSequenceNode",
    "vtkMRMLTextNode",
)


SHARE = "share"
"""Folder of Slicer's own data files, of which slicer-core has none."""


class CoreModule(SimpleNamespace):
    """``slicer.modules.volumes`` and its like: a module of Slicer's core, of which this host has the logic alone."""

    def logic(self) -> Any:
        """The module's VTK logic."""
        return self.vtkLogic

    def widgetRepresentation(self) -> None:
        """None: core modules have no panels here."""


class Scene:
    """The scene with its logics.

    Parameters
    ----------
    folder : Path
        Where Slicer would be installed, for the logics that look for files there.

    Attributes
    ----------
    mrml : vtkMRMLScene
    applicationLogic : vtkSlicerApplicationLogic
    layoutLogic : vtkMRMLLayoutLogic
        Makes the view nodes that the layout node asks for.
    modules : dict[str, CoreModule]
    """

    def __init__(self, folder: Path) -> None:
        self.mrml = slicer.vtkMRMLScene()
        slicer.mrmlScene = self.mrml
        self.applicationLogic = slicer.vtkSlicerApplicationLogic()
        self.applicationLogic.SetHomeDirectory(str(folder))
        (folder / SHARE / "ColorFiles").mkdir(parents=True)
        self.applicationLogic.SetShareDirectory(SHARE)
        self.applicationLogic.SetTemporaryPath(str(folder))
        self.applicationLogic.SetSliceLogics(vtk.vtkCollection())
        self.applicationLogic.SetViewLogics(vtk.vtkCollection())
        self.modules: dict[str, CoreModule] = {}
        for name in _MORE_NODE_CLASSES:
            if not self.mrml.IsNodeClassRegistered(name):
                self.mrml.RegisterNodeClass(getattr(slicer, name)())
        self.applicationLogic.SetMRMLScene(self.mrml)
        self._setDataIO(folder)
        for name, kind in _LOGICS.items():
            self._addLogic(name, kind)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.mrml)
        self._ensureSingletons()
        self._hierarchy = HierarchyKeeper(self.mrml)
        self.layoutLogic = slicer.vtkMRMLLayoutLogic()
        self.layoutLogic.SetMRMLApplicationLogic(self.applicationLogic)
        self.layoutLogic.SetMRMLScene(self.mrml)
        self.mrml.AddObserver(self.mrml.EndCloseEvent, lambda *_: self._ensureSingletons())

    def _setDataIO(self, folder: Path) -> None:
        # bundles (.mrb) are unpacked into the cache
        cache = folder / "cache"
        cache.mkdir()
        self._remoteIO = slicer.vtkMRMLRemoteIOLogic()
        self._remoteIO.SetMRMLApplicationLogic(self.applicationLogic)
        self._remoteIO.GetCacheManager().SetRemoteCacheDirectory(str(cache))
        self._dataIO = slicer.vtkDataIOManagerLogic()
        self._dataIO.SetMRMLApplicationLogic(self.applicationLogic)
        self._dataIO.SetAndObserveDataIOManager(self._remoteIO.GetDataIOManager())
        self.applicationLogic.SetMRMLSceneDataIO(self.mrml, self._remoteIO, self._dataIO)

    def _addLogic(self, name: str, kind: str) -> None:
        logic = getattr(slicer, kind)()
        logic.SetMRMLApplicationLogic(self.applicationLogic)
        # others ask the application for these by name already while the scene is set
        self.applicationLogic.SetModuleLogic(name, logic)
        if name == "Colors":
            self.applicationLogic.SetColorLogic(logic)
        logic.SetMRMLScene(self.mrml)
        self.modules[name] = CoreModule(name=name, title=name, vtkLogic=logic, path="", hidden=True)

    def _ensureSingletons(self) -> None:
        if self.mrml.GetSingletonNode("default", "vtkMRMLCrosshairNode") is None:
            crosshair = slicer.vtkMRMLCrosshairNode()
            crosshair.SetCrosshairName("default")
            self.mrml.AddNode(crosshair)
        # a button of Slicer's toolbar, which this host does not have
        mode = slicer.vtkMRMLInteractionNode.AdjustWindowLevel
        self.applicationLogic.GetInteractionNode().SetCurrentInteractionMode(mode)
        # made by the scene when it is first asked for
        self.mrml.GetSubjectHierarchyNode()
