"""Streamlines as polydata: orientation as colour, FA per point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

TUBE_COUNT = 1500
"""Streamlines shown as tubes at most: tubes of ten thousand turn slowly."""

SLICE_POINT, SLICE_OPACITY = 2, 0.6
"""Size, pixels, and opacity of the points where streamlines cross a slice: the map has to stay readable below."""

TUBE_RADIUS = 0.4
TUBE_SIDES = 6


def readTracts(path: Path) -> vtk.vtkPolyData:
    """Polydata of the worker's ``.npz``: ``points`` (P, 3) in RAS mm, ``offsets`` (M + 1,), ``fa`` (P,)."""
    with np.load(path) as arrays:
        fa = arrays["fa"] if "fa" in arrays.files else None
        return makePolyData(arrays["points"], arrays["offsets"], fa)


def makePolyData(points: NDArray[Any], offsets: NDArray[Any], fa: NDArray[Any] | None) -> vtk.vtkPolyData:
    """Lines with the point arrays ``orientation`` (red right-left, green front-back, blue up-down) and ``FA``."""
    data = vtk.vtkPolyData()
    vertices = vtk.vtkPoints()
    vertices.SetData(numpy_to_vtk(np.ascontiguousarray(points, np.float32), deep=True))
    data.SetPoints(vertices)
    cells = vtk.vtkCellArray()
    cells.SetData(
        numpy_to_vtkIdTypeArray(np.ascontiguousarray(offsets, np.int64), deep=True),
        numpy_to_vtkIdTypeArray(np.arange(len(points), dtype=np.int64), deep=True),
    )
    data.SetLines(cells)
    colors = numpy_to_vtk(orientationColors(points, offsets), deep=True)
    colors.SetName("orientation")
    data.GetPointData().AddArray(colors)
    if fa is not None:
        values = numpy_to_vtk(np.ascontiguousarray(fa, np.float32), deep=True)
        values.SetName("FA")
        data.GetPointData().AddArray(values)
    data.GetPointData().SetActiveScalars("orientation")
    return data


def orientationColors(points: NDArray[Any], offsets: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour of each point's direction along its streamline, shape (P, 3)."""
    points = np.asarray(points, np.float32)
    if len(points) < 2:
        return np.zeros((len(points), 3), np.uint8)
    forward = np.empty_like(points)
    forward[:-1] = points[1:] - points[:-1]
    forward[-1] = 0
    last = np.asarray(offsets[1:]) - 1
    last = last[last >= 0]
    # a streamline's last step belongs to its last point too
    forward[last] = forward[np.maximum(last - 1, 0)]
    length = np.linalg.norm(forward, axis=1, keepdims=True)
    return (np.abs(forward) / np.maximum(length, 1e-6) * 255).astype(np.uint8)


def makeTractNode(name: str) -> Any:
    """An empty node for streamlines: SlicerDMRI's fibre bundle where it is installed, else a model."""
    kind = "vtkMRMLFiberBundleNode" if hasattr(slicer, "vtkMRMLFiberBundleNode") else "vtkMRMLModelNode"
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


def setTracts(node: Any, data: vtk.vtkPolyData) -> None:
    """Give a node its streamlines, coloured by orientation; they stay hidden until `reveal`."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    display = _lineDisplay(node)
    display.SetVisibility(False)
    node.SetAndObservePolyData(data)
    display.SetActiveScalar("orientation", vtk.vtkAssignAttribute.POINT_DATA)
    display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseDirectMapping)
    display.SetScalarVisibility(True)
    display.SetLineWidth(1.5)
    display.SetLighting(False)
    display.SetVisibility2D(True)
    display.SetSliceIntersectionThickness(SLICE_POINT)
    display.SetSliceIntersectionOpacity(SLICE_OPACITY)
    display.SetSliceDisplayModeToIntersection()


def reveal(node: Any) -> Iterator[None]:
    """Show streamlines as lines in 3D and where they cross the slices, one view after the other.

    A slice view cuts all streamlines as soon as it shows them: tens of milliseconds each.
    """
    display = _lineDisplay(node)
    if display.GetNumberOfViewNodeIDs() == 0:
        for view in slicer.util.getNodesByClass("vtkMRMLAbstractViewNode"):
            display.AddViewNodeID(view.GetID())
            display.SetVisibility(True)
            yield
        display.RemoveAllViewNodeIDs()
    display.SetVisibility(True)


def _lineDisplay(node: Any) -> Any:
    return node.GetLineDisplayNode() if hasattr(node, "GetLineDisplayNode") else node.GetDisplayNode()


def setVisible(node: Any, visible: bool) -> None:
    """Show or hide streamlines in all views, tubes included."""
    node.GetDisplayNode().SetVisibility(visible)
    tubes = node.GetNodeReference("DiffusionFM.Tubes")
    if tubes is not None:
        tubes.GetDisplayNode().SetVisibility(visible and not node.GetDisplayNode().GetVisibility3D())


def setTubes(node: Any, on: bool) -> None:
    """Show a subset of a node's streamlines as tubes in place of all of them as lines, or go back."""
    tubes = node.GetNodeReference("DiffusionFM.Tubes")
    if on and tubes is None:
        tubes = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", f"{node.GetName()} (tubes)")
        tubes.SetSaveWithScene(False)
        tubes.SetHideFromEditors(True)
        node.SetNodeReferenceID("DiffusionFM.Tubes", tubes.GetID())
        tubes.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    if tubes is not None:
        if on:
            setTracts(tubes, makeTubes(node.GetPolyData()))
            tubes.GetDisplayNode().SetLighting(True)
            # a little of its own light keeps the colour of what faces away readable
            tubes.GetDisplayNode().SetAmbient(0.3)
        tubes.GetDisplayNode().SetVisibility2D(False)
        tubes.GetDisplayNode().SetVisibility(on)
    node.GetDisplayNode().SetVisibility3D(not on)


def makeTubes(lines: vtk.vtkPolyData) -> vtk.vtkPolyData:
    """Tubes of at most `TUBE_COUNT` streamlines, evenly drawn."""
    count = lines.GetNumberOfLines()
    subset = lines
    if count > TUBE_COUNT:
        ids = vtk.vtkIdList()
        for i in np.linspace(0, count - 1, TUBE_COUNT).astype(int):
            ids.InsertNextId(int(i))
        extract = vtk.vtkExtractCells()
        extract.SetInputData(lines)
        extract.SetCellList(ids)
        surface = vtk.vtkGeometryFilter()
        surface.SetInputConnection(extract.GetOutputPort())
        surface.Update()
        subset = surface.GetOutput()
    tubes = vtk.vtkTubeFilter()
    tubes.SetInputData(subset)
    tubes.SetRadius(TUBE_RADIUS)
    tubes.SetNumberOfSides(TUBE_SIDES)
    tubes.Update()
    return tubes.GetOutput()
