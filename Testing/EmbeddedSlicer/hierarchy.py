"""Keeps the subject hierarchy in step with the scene, as Slicer's subject hierarchy plugins do."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

_DATA = (
    "vtkMRMLVolumeNode",
    "vtkMRMLModelNode",
    "vtkMRMLSegmentationNode",
    "vtkMRMLMarkupsNode",
    "vtkMRMLTransformNode",
    "vtkMRMLTableNode",
    "vtkMRMLTextNode",
    "vtkMRMLPlotChartNode",
    "vtkMRMLSequenceNode",
    "vtkMRMLSequenceBrowserNode",
)
"""Classes of the nodes that people see in Slicer's Data module."""


BEFORE_VIEWS = 100.0
"""Priority among the observers of the scene."""


class HierarchyKeeper:
    """Gives each data node an item, and takes it away with the node.

    Parameters
    ----------
    scene : vtkMRMLScene
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        scene.AddObserver(scene.NodeAddedEvent, self._added)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leaving)
        # before the views, which would follow parents that are not yet joined to the scene, for ever
        scene.AddObserver(scene.EndImportEvent, self._imported, BEFORE_VIEWS)
        scene.AddObserver(scene.EndCloseEvent, self._closed)

    def _hierarchy(self) -> Any:
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _added(self, caller: Any, event: str, node: Any) -> None:
        # the file that is being read says itself which items there are
        if not self._scene.IsImporting():
            self._add(node)

    def _imported(self, *_: Any) -> None:
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)
        for index in range(self._scene.GetNumberOfNodes()):
            self._add(self._scene.GetNthNode(index))

    def _closed(self, *_: Any) -> None:
        hierarchy = self._hierarchy()
        if hierarchy.GetScene() is None:
            # somebody's variable kept the old one alive, and the scene's own pointer to it
            self._scene.AddNode(hierarchy)
        # folders have no node that would take them away
        hierarchy.RemoveAllItems(False)

    def _add(self, node: Any) -> None:
        if node.GetHideFromEditors() or not any(node.IsA(kind) for kind in _DATA):
            return
        hierarchy = self._hierarchy()
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, caller: Any, event: str, node: Any) -> None:
        if self._scene.IsClosing() or not any(node.IsA(kind) for kind in _DATA):
            return
        hierarchy = self._hierarchy()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)
