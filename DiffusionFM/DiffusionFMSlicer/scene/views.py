"""What the viewers show: slice layers, position, camera and layout, through their nodes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from DiffusionFMSlicer.scene.display import refreshLegends, renewLegends
from DiffusionFMSlicer.scene.geometry import affineOf, centreOf, imageArray

MAPS_LAYOUT = 4801
"""Number of our own layout in the scene; Slicer's are below 1000."""

MAPS_GROUP = 48
_MAPS_VIEWS = tuple(f"Map{i}" for i in range(1, 7))
_MAPS_NAMES = ("fa", "md", "mk", "ak", "rk", "colorfa", "ad", "rd", "adc", "ndi", "odi", "fwf", "v1", "residual")
"""What fills our layout, the first six of those there are."""


def compositeNodes(names: tuple[str, ...] | None = None) -> list[Any]:
    """Slice composite nodes of the named slice views, or of all but those of our own layout."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return [n for n in nodes if (n.GetLayoutName() in names if names else n.GetLayoutName() not in _MAPS_VIEWS)]


def shownLayer(node: Any) -> str:
    """``background``, ``foreground``, ``label`` or nothing: where the first slice views show a volume."""
    for composite in compositeNodes():
        layers = {
            "background": composite.GetBackgroundVolumeID(),
            "foreground": composite.GetForegroundVolumeID(),
            "label": composite.GetLabelVolumeID(),
        }
        for layer, nodeId in layers.items():
            if nodeId == node.GetID():
                return layer
    return ""


def showVolume(node: Any) -> None:
    """Show a volume in all slice views: labels as label layer, colours over the present map, others in place of it."""
    for composite in compositeNodes():
        if node.IsA("vtkMRMLLabelMapVolumeNode"):
            composite.SetLabelVolumeID(node.GetID())
            composite.SetLabelOpacity(0.5)
        else:
            composite.SetBackgroundVolumeID(node.GetID())
            # an overlay of the same volume would only dim it, and one of colours would mix with the map's own
            over = composite.GetForegroundVolumeID()
            if over and (over == node.GetID() or node.IsA("vtkMRMLVectorVolumeNode")):
                composite.SetForegroundVolumeID(None)
    refreshLegends()


def replaceVolume(node: Any, other: Any) -> None:
    """Show another volume, or none, where the slice views have this one in the background."""
    for composite in compositeNodes():
        if composite.GetBackgroundVolumeID() == node.GetID():
            composite.SetBackgroundVolumeID(other.GetID() if other is not None else None)
    refreshLegends()


def hideVolume(node: Any) -> None:
    """Take a volume out of all slice views."""
    for composite in compositeNodes():
        if composite.GetBackgroundVolumeID() == node.GetID():
            composite.SetBackgroundVolumeID(None)
        if composite.GetForegroundVolumeID() == node.GetID():
            composite.SetForegroundVolumeID(None)
        if composite.GetLabelVolumeID() == node.GetID():
            composite.SetLabelVolumeID(None)
    refreshLegends()


def setOverlay(node: Any, opacity: float) -> None:
    """Lay a map over what the slice views show; None takes the overlay away."""
    for composite in compositeNodes():
        composite.SetForegroundVolumeID(node.GetID() if node is not None else None)
        composite.SetForegroundOpacity(opacity)
    refreshLegends()


def overlayNode() -> Any:
    """The volume in the foreground of the first slice view that has one, or None."""
    for composite in compositeNodes():
        if composite.GetForegroundVolumeID():
            return slicer.mrmlScene.GetNodeByID(composite.GetForegroundVolumeID())
    return None


def overlayOpacity() -> float | None:
    """Opacity of the overlay in the first slice view that has one, or None."""
    for composite in compositeNodes():
        if composite.GetForegroundVolumeID():
            return composite.GetForegroundOpacity()
    return None


def showAxes() -> None:
    """Show Slicer's axes in the 3D views: red right-left, green front-back, blue up-down.

    They are the key of the tracts' colours. A marker that the user chose stays.
    """
    for node in slicer.util.getNodesByClass("vtkMRMLViewNode"):
        if node.GetOrientationMarkerType() == node.OrientationMarkerTypeNone:
            node.SetOrientationMarkerType(node.OrientationMarkerTypeAxes)
            node.SetOrientationMarkerSize(node.OrientationMarkerSizeMedium)


def centreOfMass(volume: Any) -> NDArray[Any]:
    """Centre of a map's nonzero voxels in its own RAS frame, shape (3,), mm: where the anatomy is."""
    image = volume.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return centreOf(volume)
    array = imageArray(image)
    # every fourth voxel is plenty for a centre
    inside = np.argwhere(array[::4, ::4, ::4] > 0)[:, :3] * 4
    if not len(inside):
        return centreOf(volume)
    kji = (inside.min(axis=0) + inside.max(axis=0)) / 2
    return (affineOf(volume) @ [*kji[::-1], 1.0])[:3]


def centreViews(volume: Any, tracts: Any = None) -> None:
    """Fit the slice views to a volume, through the centre of its anatomy, and the 3D views around it or the tracts."""
    slicer.app.applicationLogic().FitSliceToAll()
    centre = centreOfMass(volume)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*(float(x) for x in centre))
    bounds = [0.0] * 6
    (volume if tracts is None else tracts).GetRASBounds(bounds)
    low, high = np.array(bounds).reshape(3, 2).T
    aimCameras(centre if tracts is None else (low + high) / 2, float((high - low).max()) / 2)


def aimCameras(centre: NDArray[Any], radius: float) -> None:
    """Look at a point from the front, somewhat from the left and above, so that a ball of the radius fills the view.

    From there the callosum shows between the hemispheres; from the side, outer bundles hide it.
    """
    direction = np.array([-0.25, 0.85, 0.42])
    direction /= np.linalg.norm(direction)
    for node in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        camera = node.GetCamera()
        distance = radius / np.sin(np.deg2rad(camera.GetViewAngle() / 2))
        camera.SetFocalPoint(*(float(x) for x in centre))
        camera.SetPosition(*(float(x) for x in centre + direction * distance))
        camera.SetViewUp(0, 0, 1)
        node.ResetClippingRange()


def layoutNode() -> Any:
    """The scene's layout node, or None in a program without layouts."""
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def showFourUp(results: dict[str, Any]) -> None:
    """Three slices and 3D, with the tracts in both.

    Parameters
    ----------
    results : dict
        Nodes by map name.
    """
    node = layoutNode()
    if node is not None:
        node.SetViewArrangement(node.SlicerLayoutFourUpView)
        _showTractsInSlices(results, True)
        refreshLegends()


def chosenMaps(results: dict[str, Any]) -> list[Any]:
    """Which of a run's results, by map name, are worth a view of their own, best first."""
    maps = [results[name] for name in _MAPS_NAMES if name in results]
    return maps + [n for n in results.values() if n.IsA("vtkMRMLScalarVolumeNode") and n not in maps]


def showMapsGrid(maps: list[Any], results: dict[str, Any]) -> None:
    """Six axial slices, linked, with a map each and nothing over it.

    Parameters
    ----------
    maps : list
        Nodes; the first six are shown.
    results : dict
        Nodes by map name, tracts among them.
    """
    node = layoutNode()
    if node is None or not maps:
        return
    if not node.IsLayoutDescription(MAPS_LAYOUT):
        node.AddLayoutDescription(MAPS_LAYOUT, mapsLayout())
    isNew = not compositeNodes(_MAPS_VIEWS)
    node.SetViewArrangement(MAPS_LAYOUT)
    if isNew:
        renewLegends()
    for name, volume in zip(_MAPS_VIEWS, maps, strict=False):
        for composite in compositeNodes((name,)):
            composite.SetLinkedControl(True)
            composite.SetBackgroundVolumeID(volume.GetID())
            composite.SetForegroundVolumeID(None)
    _showTractsInSlices(results, False)
    centreViews(maps[0])
    refreshLegends()


def _showTractsInSlices(results: dict[str, Any], on: bool) -> None:
    if "tracts" in results:
        results["tracts"].GetDisplayNode().SetVisibility2D(on)


def mapsLayout() -> str:
    """Layout of two rows of three slice views, in Slicer's XML; a group of their own, so that linking stays in it."""
    cells = [
        f'<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
        f'<property name="orientation" action="default">Axial</property>'
        f'<property name="viewlabel" action="default">{tag[-1]}</property>'
        f'<property name="viewcolor" action="default">#8A8A8A</property>'
        f'<property name="viewgroup" action="default">{MAPS_GROUP}</property></view></item>'
        for tag in _MAPS_VIEWS
    ]
    rows = "".join(f'<item><layout type="horizontal">{"".join(cells[i : i + 3])}</layout></item>' for i in (0, 3))
    return f'<layout type="vertical">{rows}</layout>'


def voxelAt(volume: Any, ras: tuple[float, float, float]) -> tuple[int, int, int] | None:
    """The voxel (i, j, k) of a volume under a point of the world, or None outside of it."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetRASToIJKMatrix(matrix)
    point = list(ras)
    if volume.GetTransformNodeID():
        transform = vtk.vtkGeneralTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, volume.GetParentTransformNode(), transform)
        transform.TransformPoint(ras, point)
    ijk = np.rint(matrix.MultiplyPoint([*point, 1.0])[:3]).astype(int)
    image = volume.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return None
    if (ijk < 0).any() or (ijk >= image.GetDimensions()).any():
        return None
    return int(ijk[0]), int(ijk[1]), int(ijk[2])


def valueAt(volume: Any, ras: tuple[float, float, float]) -> Any:
    """A volume's voxel under a point of the world: a number, an array, or None outside of it."""
    ijk = voxelAt(volume, ras)
    return None if ijk is None else imageArray(volume.GetImageData())[ijk[::-1]]
