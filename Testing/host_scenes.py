"""Small made-up scenes for tests of the embedded host."""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPE = 40, 56, 48
"""Voxels along k, j, i."""
SPACING = 3.0


def affine(oblique: bool = False) -> np.ndarray:
    """Voxel to RAS, centred; the oblique one also has the handedness of radiological files."""
    k, j, i = SHAPE
    matrix = np.diag([SPACING, SPACING, SPACING, 1.0])
    if oblique:
        a, b = np.deg2rad([20, 12])
        turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
        tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        matrix[:3, :3] = turn @ tilt @ np.diag([-SPACING, SPACING, SPACING + 0.5])
    matrix[:3, 3] = -matrix[:3, :3] @ ((np.array([i, j, k]) - 1) / 2)
    return matrix


def positions(matrix: np.ndarray) -> np.ndarray:
    """RAS of every voxel, shape (K, J, I, 3), mm."""
    k, j, i = np.indices(SHAPE)
    return np.stack([i, j, k], axis=-1) @ matrix[:3, :3].T + matrix[:3, 3]


def ball(matrix: np.ndarray, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """1 inside a ball, 0 outside, shape (K, J, I)."""
    distance = np.linalg.norm(positions(matrix) - centre, axis=-1)
    return (distance < radius).astype(np.float32)


def fibreRing(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A ring of white matter in an elliptic brain.

    Returns
    -------
    fa : ndarray, shape (K, J, I)
    tensor : ndarray, shape (K, J, I, 3, 3), mm2/s
    """
    ras = positions(matrix)
    brain = ((ras / [62, 75, 52]) ** 2).sum(-1) < 1
    around = np.stack([-ras[..., 1], ras[..., 0], np.zeros_like(ras[..., 0])], axis=-1)
    norm = np.linalg.norm(around, axis=-1, keepdims=True)
    around = around / np.maximum(norm, 1e-6)
    ring = np.exp(-(((norm[..., 0] - 38) / 10) ** 2) - (ras[..., 2] / 14) ** 2)
    parallel, across = 0.7e-3 + 1.0e-3 * ring, 0.7e-3 - 0.4e-3 * ring
    outer = around[..., :, None] * around[..., None, :]
    tensor = across[..., None, None] * np.eye(3) + (parallel - across)[..., None, None] * outer
    tensor[~brain] = 0
    mean = (parallel + 2 * across) / 3
    fa = np.sqrt(1.5 * ((parallel - mean) ** 2 + 2 * (across - mean) ** 2) / (parallel**2 + 2 * across**2))
    return np.where(brain, fa + 0.05, 0).astype(np.float32), tensor.astype(np.float32)


def addVolume(array: np.ndarray, matrix: np.ndarray, name: str, kind: str = "vtkMRMLScalarVolumeNode") -> Any:
    """A volume node with its display."""
    import slicer

    node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name, nodeClassName=kind)
    node.CreateDefaultDisplayNodes()
    return node


def addTensors(tensor: np.ndarray, matrix: np.ndarray, name: str = "tensor") -> Any:
    """A tensor volume node with the glyphs' display nodes, hidden."""
    import slicer
    import vtk
    from vtkmodules.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(*tensor.shape[2::-1])
    array = numpy_to_vtk(np.ascontiguousarray(tensor.reshape(-1, 9)), deep=True)
    image.GetPointData().SetTensors(array)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLDiffusionTensorVolumeNode", name)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveImageData(image)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().AddSliceGlyphDisplayNodes(node)
    for glyph in glyphNodes(node):
        glyph.SetVisibility(False)
        glyph.SetColorMode(glyph.colorModeScalar)
        properties = glyph.GetDiffusionTensorDisplayPropertiesNode()
        properties.SetGlyphGeometryToEllipsoids()
        properties.SetColorGlyphBy(properties.ColorOrientation)
        properties.SetGlyphScaleFactor(60)
        properties.SetLineGlyphResolution(12)
    return node


def glyphNodes(node: Any) -> list[Any]:
    """The glyphs' display nodes of a tensor volume."""
    nodes = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    return [n for n in nodes if n.IsA("vtkMRMLDiffusionTensorVolumeSliceDisplayNode")]


def addRings(name: str = "rings") -> Any:
    """Streamlines around the ring, coloured by orientation."""
    import slicer
    import vtk
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    rng = np.random.default_rng(0)
    angle = np.linspace(0.4, 2 * np.pi - 0.4, 80)
    radius, height = rng.normal(38, 5, (150, 1)), rng.normal(0, 6, (150, 1))
    points = np.stack([radius * np.sin(angle), -radius * np.cos(angle), height + 0 * angle], axis=-1)
    step = np.gradient(points, axis=1)
    colors = np.abs(step / np.linalg.norm(step, axis=-1, keepdims=True)) * 255
    data = vtk.vtkPolyData()
    data.SetPoints(vtk.vtkPoints())
    data.GetPoints().SetData(numpy_to_vtk(points.reshape(-1, 3).astype(np.float32), deep=True))
    count, length, _ = points.shape
    lines = vtk.vtkCellArray()
    offsets = np.arange(0, count * length + 1, length, dtype=np.int64)
    ids = np.arange(count * length, dtype=np.int64)
    lines.SetData(numpy_to_vtkIdTypeArray(offsets, deep=True), numpy_to_vtkIdTypeArray(ids, deep=True))
    data.SetLines(lines)
    scalars = numpy_to_vtk(colors.reshape(-1, 3).astype(np.uint8), deep=True)
    scalars.SetName("orientation")
    data.GetPointData().SetScalars(scalars)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", name)
    node.SetAndObservePolyData(data)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetActiveScalar("orientation", vtk.vtkAssignAttribute.POINT_DATA)
    display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseDirectMapping)
    display.SetScalarVisibility(True)
    display.SetLineWidth(2)
    display.SetSliceIntersectionThickness(3)
    display.SetVisibility2D(True)
    display.SetSliceDisplayModeToIntersection()
    return node
