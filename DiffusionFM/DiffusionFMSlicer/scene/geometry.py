"""Arrays and matrices of volume nodes, without copies or transposes: image memory lies K, J, I, component."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import get_vtk_array_type, numpy_to_vtk, vtk_to_numpy


def affineOf(volume: Any) -> NDArray[np.float64]:
    """Voxel to RAS mm of a volume node, shape (4, 4); its parent transform is not part of it."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrixArray(matrix)


def matrixArray(matrix: vtk.vtkMatrix4x4) -> NDArray[np.float64]:
    """A VTK matrix as an array, shape (4, 4)."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def vtkMatrix(array: NDArray[np.float64]) -> vtk.vtkMatrix4x4:
    """An array, shape (4, 4), as a VTK matrix."""
    matrix = vtk.vtkMatrix4x4()
    for i in range(4):
        for j in range(4):
            matrix.SetElement(i, j, float(array[i, j]))
    return matrix


def imageArray(image: vtk.vtkImageData) -> NDArray[Any]:
    """View of an image's scalars, shape (K, J, I) or (K, J, I, C)."""
    scalars = image.GetPointData().GetScalars()
    shape = tuple(reversed(image.GetDimensions()))
    components = scalars.GetNumberOfComponents()
    return vtk_to_numpy(scalars).reshape(shape if components == 1 else (*shape, components))


def makeImage(array: NDArray[Any]) -> vtk.vtkImageData:
    """An image that owns a copy of the array, shape (K, J, I) or (K, J, I, C)."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    flat = np.ascontiguousarray(array).reshape(-1, array.shape[3]) if array.ndim == 4 else array.ravel()
    scalars = numpy_to_vtk(flat, deep=True, array_type=get_vtk_array_type(array.dtype))
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def makeTensorImage(array: NDArray[np.float32]) -> vtk.vtkImageData:
    """A tensor image from Dxx, Dxy, Dxz, Dyy, Dyz, Dzz, shape (K, J, I, 6)."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    full = np.ascontiguousarray(array.reshape(-1, 6)[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]])
    tensors = numpy_to_vtk(full, deep=True)
    tensors.SetName("tensors")
    image.GetPointData().SetTensors(tensors)
    return image


def centreOf(volume: Any) -> NDArray[np.float64]:
    """Centre of a volume in the world, shape (3,), RAS mm."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    return np.array([(bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, (bounds[4] + bounds[5]) / 2])
