"""Files of the worker to scene nodes, in one subject-hierarchy folder per scan, model and method.

A run with the same scan, model and method updates the nodes of the run before, in place; another model or method
gets a folder of its own. What a node is, is written into its attributes, so that a reopened scene lists its results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import slicer

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Artifact
from DiffusionFMSlicer.scene import display, tracts
from DiffusionFMSlicer.scene.geometry import makeImage, makeTensorImage, vtkMatrix

RUN, NAME, TITLE, UNIT, SCAN = (f"DiffusionFM.{x}" for x in ("Run", "Name", "Title", "Unit", "Scan"))
"""Attributes of result nodes; `SCAN` is a node reference."""

TRACTS = "tracts"
FEATURES = "features", "encoder"
"""Model and method of the encoder's maps."""

_VOLUMES = {
    "tensor": "vtkMRMLDiffusionTensorVolumeNode",
    "rgb": "vtkMRMLVectorVolumeNode",
    "direction": "vtkMRMLVectorVolumeNode",
    "labels": "vtkMRMLLabelMapVolumeNode",
}


@dataclass(frozen=True)
class RunLabel:
    """What tells one run's results from another's.

    Parameters
    ----------
    scan : vtkMRMLNode or None
        None after the scan was deleted.
    name : str
        The scan's name when the run began.
    model, method : str
    """

    scan: Any
    name: str
    model: str
    method: str

    @property
    def key(self) -> str:
        """Value of the attribute `RUN`."""
        return f"{self.model} {self.method}"

    @property
    def title(self) -> str:
        """The folder's name."""
        return f"{self.name}: {self.model.upper()} ({self.method})"


def resultNodes() -> list[Any]:
    """Every result in the scene, in the order of their making."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    return [node for node in nodes if node.GetAttribute(RUN) and node.GetAttribute(NAME)]


def resultsOf(run: RunLabel) -> dict[str, Any]:
    """Nodes of a run by map name."""
    return {node.GetAttribute(NAME): node for node in resultNodes() if _belongs(node, run)}


def _belongs(node: Any, run: RunLabel) -> bool:
    return node.GetAttribute(RUN) == run.key and run.scan is not None and node.GetNodeReference(SCAN) is run.scan


def prepare(event: Artifact) -> Any:
    """Image or polydata of a map's or tracts' raw copy; touches no scene, so that a thread can do it.

    Parameters
    ----------
    event : Artifact
        What has no `array` (a sidecar) gives None.

    Raises
    ------
    DiffusionFMError
        If the copy cannot be read.
    """
    if not event.array or event.role not in ("map", TRACTS):
        return None
    try:
        if event.role == TRACTS:
            return tracts.readTracts(Path(event.array))
        return _makeImage(event, np.load(event.array))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        msg = f"A result of the background process cannot be read: {Path(event.array).name} ({error})."
        raise DiffusionFMError(msg, "Free some space on the disk of the temporary files, and apply again.") from error


def place(event: Artifact, data: Any, run: RunLabel) -> Any:
    """Bring what was prepared into the scene, shown as its kind is shown; returns the node."""
    if event.role == TRACTS:
        node = _nodeOf(run, TRACTS, event.title or "Tracts", "", tracts.makeTractNode)
        tracts.setTracts(node, data)
        return _placed(node, run)
    kind = _VOLUMES.get("tensor" if event.name == "tensor" else event.colors, "vtkMRMLScalarVolumeNode")
    node = _nodeOf(run, event.name, event.title or event.name, event.unit, lambda name: _makeVolume(kind, name))
    node.SetIJKToRASMatrix(vtkMatrix(np.array(event.affine, float)))
    if event.name == "tensor":
        # before it has an image: it would look for a window in all of it
        display.showTensors(node)
    node.SetAndObserveImageData(data)
    if event.name != "tensor":
        _style(node, event)
    return _placed(node, run)


def reveal(event: Artifact, node: Any) -> Iterator[None]:
    """Show what is costly to show, in steps: tracts. Maps are shown by choosing them in a view."""
    if event.role == TRACTS:
        yield from tracts.reveal(node)


def _makeImage(event: Artifact, array: Any) -> Any:
    if event.name == "tensor":
        return makeTensorImage(array)
    if event.colors == "rgb":
        return makeImage((np.clip(array, 0, 1) * 255 + 0.5).astype(np.uint8))
    if event.colors == "labels":
        return makeImage(array.astype(np.int16))
    return makeImage(array)


def _makeVolume(kind: str, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.CreateDefaultDisplayNodes()
    return node


def _nodeOf(run: RunLabel, name: str, title: str, unit: str, make: Any) -> Any:
    node = resultsOf(run).get(name)
    if node is not None:
        return node
    label = f"{run.name} {title}"
    if slicer.mrmlScene.GetFirstNodeByName(label):
        label += f" ({run.key})"
    node = make(slicer.mrmlScene.GenerateUniqueName(label))
    node.SetAttribute(RUN, run.key)
    node.SetAttribute(NAME, name)
    node.SetAttribute(TITLE, title)
    node.SetAttribute(UNIT, unit)
    if run.scan is not None:
        node.SetNodeReferenceID(SCAN, run.scan.GetID())
        transform = getattr(run.scan, "GetTransformNodeID", lambda: None)()
        if transform:
            node.SetAndObserveTransformNodeID(transform)
    return node


def _style(node: Any, event: Artifact) -> None:
    if event.colors == "rgb":
        node.SetVoxelVectorType(node.VoxelVectorTypeColorRGB)
        display.showColors(node)
    elif event.colors == "direction":
        node.SetVoxelVectorType(node.VoxelVectorTypeSpatial)
    elif event.colors == "labels":
        display.showLabels(node)
    else:
        display.showScalar(node, event.window, event.colors, event.title or event.name, event.unit)


# --- subject hierarchy ----------------------------------------------------------------------------------------


def _placed(node: Any, run: RunLabel) -> Any:
    """Put a node into its run's folder, unless the user has moved it elsewhere."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node)
    if not item:
        item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    if hierarchy.GetItemParent(item) == hierarchy.GetSceneItemID():
        hierarchy.SetItemParent(item, _folder(hierarchy, run))
    return node


def _folder(hierarchy: Any, run: RunLabel) -> int:
    for node in resultNodes():
        if _belongs(node, run):
            parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
            if parent != hierarchy.GetSceneItemID() and hierarchy.GetItemAttribute(parent, RUN) == run.key:
                return parent
    parent = hierarchy.GetSceneItemID()
    if run.scan is not None and hierarchy.GetItemByDataNode(run.scan):
        # beside the scan, in its study
        parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(run.scan))
    folder = hierarchy.CreateFolderItem(parent, run.title)
    hierarchy.SetItemAttribute(folder, RUN, run.key)
    hierarchy.SetItemExpanded(folder, True)
    return folder


def makeScan(image: Any, affine: Any, bvals: list[float], bvecs: list[list[float]], name: str) -> Any:
    """A diffusion-weighted volume node.

    Parameters
    ----------
    image : vtkImageData
        With a component per volume.
    affine : array, shape (4, 4)
        Voxel to RAS mm.
    bvals : list, shape (N,), s/mm2
    bvecs : list, shape (N, 3), scanner RAS
    name : str
    """
    node = slicer.mrmlScene.AddNewNodeByClass(
        "vtkMRMLDiffusionWeightedVolumeNode", slicer.mrmlScene.GenerateUniqueName(name)
    )
    node.SetIJKToRASMatrix(vtkMatrix(np.array(affine, float)))
    node.SetAndObserveImageData(image)
    node.SetNumberOfGradients(len(bvals))
    for i, (bval, bvec) in enumerate(zip(bvals, bvecs, strict=True)):
        node.SetBValue(i, float(bval))
        node.SetDiffusionGradient(i, [float(x) for x in bvec])
    # the gradients are given in RAS, so their frame is the world's
    node.SetMeasurementFrameMatrix(vtkMatrix(np.eye(4)))
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetDiffusionComponent(int(np.argmin(bvals)))
    return node
