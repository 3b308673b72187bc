"""Arrays and matrices of volume nodes, without copies or transposes: image memory lies K, J, I, component."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy


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
    image, values = _emptyImage(array.shape[:3], array.shape[3] if array.ndim == 4 else 1, array.dtype)
    # copied by numpy, which lets other threads run meanwhile; VTK's own copy does not
    np.copyto(vtk_to_numpy(values).reshape(array.shape), array)
    values.SetName("ImageScalars")
    image.GetPointData().SetScalars(values)
    return image


def makeTensorImage(array: NDArray[np.float32]) -> vtk.vtkImageData:
    """A tensor image from Dxx, Dxy, Dxz, Dyy, Dyz, Dzz, shape (K, J, I, 6)."""
    image, values = _emptyImage(array.shape[:3], 9, array.dtype)
    full = vtk_to_numpy(values).reshape(*array.shape[:3], 9)
    for target, source in enumerate((0, 1, 2, 1, 3, 4, 2, 4, 5)):
        full[..., target] = array[..., source]
    values.SetName("tensors")
    image.GetPointData().SetTensors(values)
    return image


def _emptyImage(shape: tuple[int, ...], components: int, dtype: Any) -> tuple[vtk.vtkImageData, vtk.vtkDataArray]:
    image = vtk.vtkImageData()
    image.SetDimensions(shape[2], shape[1], shape[0])
    values = vtk.vtkDataArray.CreateDataArray(get_vtk_array_type(dtype))
    values.SetNumberOfComponents(components)
    values.SetNumberOfTuples(shape[0] * shape[1] * shape[2])
    return image, values


def centreOf(volume: Any) -> NDArray[np.float64]:
    """Centre of a volume in the world, shape (3,), RAS mm."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    return np.array([(bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, (bounds[4] + bounds[5]) / 2])
