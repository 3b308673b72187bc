"""Reading and writing of nodes and scenes: ``slicer.app.coreIOManager()``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
import vtk

from EmbeddedSlicer.scene import Scene

_SUFFIXES = {
    "SceneFile": (".mrml", ".mrb"),
    "SegmentationFile": (".seg.nrrd", ".seg.nhdr"),
    "SequenceFile": (".seq.nrrd", ".seq.mrb"),
    "MarkupsFile": (".mrk.json", ".fcsv"),
    "VolumeFile": (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd", ".hdr"),
    "ModelFile": (".vtp", ".vtk", ".stl", ".ply", ".obj"),
    "ColorTableFile": (".ctbl", ".cxml"),
    "TableFile": (".tsv", ".csv"),
    "TransformFile": (".h5", ".tfm"),
    "TextFile": (".txt", ".json"),
}
"""Endings by Slicer's name of the file type; the first type that fits a name is taken."""

_NODES = {
    "SegmentationFile": "vtkMRMLSegmentationNode",
    "TableFile": "vtkMRMLTableNode",
    "TransformFile": "vtkMRMLTransformNode",
    "TextFile": "vtkMRMLTextNode",
    "SequenceFile": "vtkMRMLSequenceNode",
}
"""Node classes whose own storage node reads a file type."""


class IOManager:
    """Stands in for ``qSlicerCoreIOManager``, behind `slicer.util.loadVolume`, ``saveScene`` and the like.

    What it leaves out: readers and writers of plugins, dialogs, and exporting nodes under a transform.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene

    def fileType(self, fileName: str | Path) -> str:
        """Slicer's name of a file's type, by its ending; ``"NoFile"`` if unknown."""
        name = str(fileName).lower()
        return next((kind for kind, suffixes in _SUFFIXES.items() if name.endswith(suffixes)), "NoFile")

    def loadNodes(self, fileType: str, properties: dict[str, Any], nodes: Any = None, messages: Any = None) -> bool:
        """Load a file into the scene.

        Parameters
        ----------
        fileType : str
            As `fileType` gives it.
        properties : dict
            ``fileName``, and optionally ``name``, ``labelmap``, ``singleFile``, ``show``, ``colorNodeID`` (volumes)
            or ``clear`` (scenes).
        nodes : vtkCollection or None
            Receives the loaded node.
        """
        path = str(properties["fileName"])
        if not Path(path).exists():
            _report(messages, f"There is no file {path}.")
            return False
        if fileType == "SceneFile":
            return self._loadScene(path, properties.get("clear", False), messages)
        node = self._loadNode(fileType, path, properties, messages)
        if node is not None and nodes is not None:
            nodes.AddItem(node)
        return node is not None

    def _loadScene(self, path: str, clear: bool, messages: Any) -> bool:
        scene = self._scene.mrml
        if path.lower().endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, clear, messages))
        scene.SetURL(path)
        scene.SetRootDirectory(str(Path(path).parent))
        return bool(scene.Connect(messages) if clear else scene.Import(messages))

    def _loadNode(self, fileType: str, path: str, properties: dict[str, Any], messages: Any) -> Any:
        modules = self._scene.modules
        name = properties.get("name") or _stem(path)
        if fileType == "VolumeFile":
            # Slicer's bits: 1 label map, 4 one file of a series
            options = int(bool(properties.get("labelmap"))) | 4 * int(bool(properties.get("singleFile")))
            node = modules["Volumes"].logic().AddArchetypeVolume(path, name, options, None)
            self._showVolume(node, properties)
            return node
        if fileType == "ModelFile":
            return modules["Models"].logic().AddModel(path, slicer.vtkMRMLStorageNode.CoordinateSystemLPS, messages)
        if fileType == "ColorTableFile":
            return modules["Colors"].logic().LoadColorFile(path, name)
        if fileType == "MarkupsFile":
            nodeId = modules["Markups"].logic().LoadMarkups(path, name, messages)
            return self._scene.mrml.GetNodeByID(nodeId) if nodeId else None
        if fileType not in _NODES:
            _report(messages, f"No reader for {path}.")
            return None
        return self._readByStorage(_NODES[fileType], path, name, messages)

    def _readByStorage(self, kind: str, path: str, name: str, messages: Any) -> Any:
        scene = self._scene.mrml
        node = scene.AddNewNodeByClass(kind, scene.GenerateUniqueName(name))
        node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        if storage is None or not storage.ReadData(node):
            _report(messages, f"{path} cannot be read.")
            scene.RemoveNode(node)
            return None
        if node.IsA("vtkMRMLDisplayableNode"):
            node.CreateDefaultDisplayNodes()
        return node

    def _showVolume(self, node: Any, properties: dict[str, Any]) -> None:
        if node is None:
            return
        if properties.get("colorNodeID"):
            node.GetDisplayNode().SetAndObserveColorNodeID(properties["colorNodeID"])
        if not properties.get("show", True):
            return
        logic = self._scene.applicationLogic
        selection = logic.GetSelectionNode()
        if node.IsA("vtkMRMLLabelMapVolumeNode"):
            selection.SetActiveLabelVolumeID(node.GetID())
        else:
            selection.SetActiveVolumeID(node.GetID())
        logic.PropagateVolumeSelection(slicer.vtkMRMLApplicationLogic.AllLayers, True)

    def fileWriterFileType(self, node: Any) -> str:
        """Slicer's name of the type that a node is written as."""
        return "NodeFile"

    def saveNodes(self, fileType: str, properties: dict[str, Any], messages: Any = None) -> bool:
        """Save a node, or the scene, to a file.

        Parameters
        ----------
        fileType : str
            ``"SceneFile"``: ``.mrb`` (with all data), ``.mrml`` (scene alone), or a folder. Else the node
            ``properties["nodeID"]``.
        """
        path = str(properties["fileName"])
        scene = self._scene.mrml
        if fileType == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(scene.WriteToMRB(path, None, messages))
            if path.lower().endswith(".mrml"):
                scene.SetURL(path)
                scene.SetRootDirectory(str(Path(path).parent))
                return bool(scene.Commit(path, messages))
            return bool(scene.SaveSceneToSlicerDataBundleDirectory(path, None, messages))
        node = scene.GetNodeByID(properties["nodeID"])
        node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(int(properties["useCompression"]))
        return bool(storage.WriteData(node))


def _stem(path: str) -> str:
    name = Path(path).name
    suffixes = sorted((s for group in _SUFFIXES.values() for s in group), key=len, reverse=True)
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def _report(messages: Any, text: str) -> None:
    if messages is not None:
        messages.AddMessage(vtk.vtkCommand.ErrorEvent, text)
