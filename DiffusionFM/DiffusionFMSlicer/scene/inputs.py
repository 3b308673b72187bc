"""Scene nodes to files that the worker reads.

A scan's array is written as it lies in memory, with its affine and gradients beside it; nothing is flipped or
reordered. Gradients are passed in scanner RAS.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util.numpy_support import vtk_to_numpy

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMSlicer.scene.geometry import affineOf, imageArray, matrixArray

FORMAT, VERSION = "diffusionfm-exported-node", 1

SOURCE_ATTRIBUTE = "DiffusionFM.Source"
"""Node attribute: the files that a scan was opened from, as JSON of the settings that name them."""


@dataclass(frozen=True)
class Gradients:
    """Gradient table of a node, not yet validated.

    Parameters
    ----------
    bvals : array, shape (N,), s/mm2
    bvecs : array, shape (N, 3), scanner RAS
    """

    bvals: NDArray[np.float64]
    bvecs: NDArray[np.float64]

    def table(self) -> GradientTable:
        """The validated table; raises `GradientError`."""
        return GradientTable(self.bvals, self.bvecs)


def isScan(node: Any) -> bool:
    """Whether a node holds more than one volume of a scan, so that it may be a diffusion scan."""
    if node is None:
        return False
    if node.IsA("vtkMRMLSequenceNode"):
        first = node.GetNthDataNode(0) if node.GetNumberOfDataNodes() > 1 else None
        return first is not None and bool(first.IsA("vtkMRMLScalarVolumeNode"))
    image = node.GetImageData() if node.IsA("vtkMRMLVolumeNode") else None
    return image is not None and image.GetNumberOfScalarComponents() > 3


def volumeCount(scan: Any) -> int:
    """Number of volumes of a scan."""
    if scan.IsA("vtkMRMLSequenceNode"):
        return scan.GetNumberOfDataNodes()
    return scan.GetImageData().GetNumberOfScalarComponents()


def referenceVolume(scan: Any) -> Any:
    """The volume node that has the scan's grid: itself, or a sequence's first volume."""
    return scan.GetNthDataNode(0) if scan.IsA("vtkMRMLSequenceNode") else scan


def facts(scan: Any) -> str:
    """One line about a scan's grid: ``96x96x60, 2 mm``, before anything was computed."""
    reference = referenceVolume(scan)
    if reference is None or reference.GetImageData() is None:
        return "no image"
    size = "x".join(str(n) for n in reference.GetImageData().GetDimensions())
    spacing = [f"{s:.3g}" for s in reference.GetSpacing()]
    voxel = spacing[0] if len(set(spacing)) == 1 else "x".join(spacing)
    return f"{size}, {voxel} mm"


def gradientsOf(scan: Any) -> Gradients | None:
    """Gradients that a node carries; None if it carries none, so that files must be given.

    A diffusion-weighted volume has its own table. Header keys that other nodes keep as attributes
    (``DWMRI_gradient_0000`` ...) are not used: the frame that they are given in is lost by then.
    """
    if scan.IsA("vtkMRMLDiffusionWeightedVolumeNode"):
        count = scan.GetNumberOfGradients()
        if count == 0:
            return None
        frame = vtk.vtkMatrix4x4()
        scan.GetMeasurementFrameMatrix(frame)
        vectors = vtk_to_numpy(scan.GetDiffusionGradients()).reshape(-1, 3) @ matrixArray(frame)[:3, :3].T
        return Gradients(np.array(vtk_to_numpy(scan.GetBValues()), float).ravel(), _unit(vectors))
    return None


def _unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    # in NRRD a gradient's length scales the b-value, which the node already holds per volume
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1), 0.0)


def exportScan(scan: Any, folder: Path) -> Path:
    """Write a scan's volumes, affine and gradients into a job folder.

    Parameters
    ----------
    scan : vtkMRMLVolumeNode or vtkMRMLSequenceNode
    folder : Path

    Returns
    -------
    Path
        The ``.npy`` file, shape (K, J, I, N).

    Raises
    ------
    InputError
        If the node holds no series of volumes of one grid.
    """
    if not isScan(scan):
        msg = f"{scan.GetName()} is not a diffusion scan: it holds a single volume, or none."
        raise InputError(msg, "Choose the whole diffusion series, or open it with Open.")
    path = folder / "dwi.npy"
    if scan.IsA("vtkMRMLSequenceNode"):
        _gather(scan, path)
    else:
        np.save(path, imageArray(scan.GetImageData()))
    gradients = gradientsOf(scan)
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "affine": affineOf(referenceVolume(scan)).tolist(),
        "name": "dwi",
    }
    if gradients is not None:
        header |= {"bvals": gradients.bvals.tolist(), "bvecs": gradients.bvecs.tolist()}
    path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
    return path


def _gather(sequence: Any, path: Path) -> None:
    nodes = [sequence.GetNthDataNode(i) for i in range(sequence.GetNumberOfDataNodes())]
    arrays = [imageArray(node.GetImageData()) for node in nodes]
    for i, array in enumerate(arrays):
        if array.shape != arrays[0].shape or not np.allclose(affineOf(nodes[i]), affineOf(nodes[0]), atol=1e-3):
            msg = f"Volume {i} of {sequence.GetName()} has another grid than its first volume."
            raise InputError(msg, "Choose a sequence whose volumes were acquired together.")
    dtype = np.result_type(*{a.dtype for a in arrays})
    shape = (*arrays[0].shape, len(arrays))
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # not through a memory map: where the disk is full, that would end Slicer with a bus error
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for planes in zip(*arrays, strict=True):
            file.write(np.stack(planes, axis=-1).astype(dtype, copy=False).data)


def exportMask(node: Any, scan: Any, folder: Path, stem: str) -> Path:
    """Write a label map, or a segmentation on the scan's grid, into a job folder.

    Raises
    ------
    InputError
        If the node holds nothing.
    """
    path = folder / f"{stem}.npy"
    if node.IsA("vtkMRMLSegmentationNode"):
        array, affine = _segmentationArray(node, scan)
    else:
        if node.GetImageData() is None:
            msg = f"{node.GetName()} is empty."
            raise InputError(msg, "Choose another mask, or the automatic one.")
        if node.GetTransformNodeID() != getattr(scan, "GetTransformNodeID", lambda: None)():
            msg = f"{node.GetName()} and {scan.GetName()} are moved by different transforms."
            raise InputError(msg, "Put both under the same transform, or harden the mask's.")
        array, affine = imageArray(node.GetImageData()), affineOf(node)
    np.save(path, array)
    header = {"format": FORMAT, "version": VERSION, "affine": affine.tolist(), "name": stem}
    path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")
    return path


def _segmentationArray(segmentation: Any, scan: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    reference = referenceVolume(scan)
    ids = vtk.vtkStringArray()
    segmentation.GetSegmentation().GetSegmentIDs(ids)
    if ids.GetNumberOfValues() == 0:
        msg = f"{segmentation.GetName()} has no segments."
        raise InputError(msg, "Choose another mask, or the automatic one.")
    with _temporaryNodes():
        labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
        # a scalar volume of the scan's grid stands for it: a sequence's volumes are in no scene
        grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        image = vtk.vtkImageData()
        image.SetDimensions(reference.GetImageData().GetDimensions())
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        grid.SetAndObserveImageData(image)
        matrix = vtk.vtkMatrix4x4()
        reference.GetIJKToRASMatrix(matrix)
        grid.SetIJKToRASMatrix(matrix)
        # segments are resampled in the world, where the scan may be moved by a transform
        transform = getattr(scan, "GetTransformNodeID", lambda: None)()
        for node in (grid, labels):
            node.SetAndObserveTransformNodeID(transform)
        if not slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
            segmentation, ids, labels, grid, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
        ):
            msg = f"{segmentation.GetName()} could not be turned into a label map."
            raise InputError(msg, "Export it to a label map in the Segmentations module, and choose that.")
        return np.array(imageArray(labels.GetImageData())), affineOf(labels)


@contextlib.contextmanager
def _temporaryNodes() -> Iterator[None]:
    """Remove what is added to the scene meanwhile: an export brings display and colour nodes along."""
    scene = slicer.mrmlScene
    before = {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}
    try:
        yield
    finally:
        after = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
        for node in after:
            if node.GetID() not in before:
                scene.RemoveNode(node)


# --- scans that were opened from files ------------------------------------------------------------------------


def rememberSource(scan: Any, settings: dict[str, str]) -> None:
    """Note in a node which files it was opened from, and how they and its content looked then."""
    paths = [settings[name] for name in ("dwi", "bval", "bvec") if settings.get(name)]
    scan.SetAttribute(
        SOURCE_ATTRIBUTE, json.dumps({"settings": settings, "files": _stamps(paths), "content": _stamp(scan)})
    )


def niftiFile(scan: Any) -> Path | None:
    """The NIfTI file that Slicer read a scan without gradients from, if the node is as it was read.

    FSL's bvecs are relative to the axes of the file. Slicer reverses an axis of left-handed images, so that they
    cannot be taken relative to the node's.
    """
    storage = scan.GetStorageNode()
    name = storage.GetFileName() if storage is not None else None
    if not name or not name.endswith((".nii", ".nii.gz")) or scan.GetModifiedSinceRead():
        return None
    return Path(name) if Path(name).is_file() else None


def gradientFiles(image: Path) -> dict[str, str]:
    """``bval`` and ``bvec`` beside an image, where both exist."""
    stem = image.name.removesuffix(".gz").removesuffix(".nii")
    files = {kind: image.with_name(f"{stem}.{kind}") for kind in ("bval", "bvec")}
    return {kind: str(path) for kind, path in files.items()} if all(p.is_file() for p in files.values()) else {}


def unchangedSource(scan: Any) -> dict[str, str] | None:
    """Settings that name the files a scan was opened from, if neither they nor the node have changed since.

    The worker then reads the files themselves, so that Apply and the command line write the same bytes.
    """
    text = scan.GetAttribute(SOURCE_ATTRIBUTE)
    if not text:
        return None
    source = json.loads(text)
    if source["content"] != _stamp(scan) or source["files"] != _stamps([path for path, *_ in source["files"]]):
        return None
    return source["settings"]


def _stamps(paths: list[str]) -> list[list[Any]]:
    found = [Path(p) for p in paths]
    return [[str(p), p.stat().st_mtime_ns, p.stat().st_size] if p.exists() else [str(p), 0, 0] for p in found]


def _stamp(scan: Any) -> list[Any]:
    """What changes when a scan is edited; VTK's modification counters start anew in every session of Slicer."""
    image, gradients = scan.GetImageData(), gradientsOf(scan)
    arrays = [affineOf(scan), *((gradients.bvals, gradients.bvecs) if gradients else ())]
    return [
        os.getpid(),
        image.GetMTime(),
        image.GetPointData().GetScalars().GetMTime(),
        hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest(),
    ]
