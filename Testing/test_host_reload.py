"""What the host's views show after a scene was saved, closed and loaded again."""

from __future__ import annotations

import host_scenes
import numpy as np


def cutPoints(widget) -> np.ndarray:
    """Where models cut a slice view, shape (N, 2), pixels."""
    from vtkmodules.util.numpy_support import vtk_to_numpy

    widget.view.grab()
    found = []
    props = widget.view.renderer.GetViewProps()
    for prop in (props.GetItemAsObject(i) for i in range(props.GetNumberOfItems())):
        mapper = prop.GetMapper() if prop.IsA("vtkActor2D") and prop.GetVisibility() else None
        if mapper is not None and mapper.IsA("vtkPolyDataMapper2D") and mapper.GetInput().GetNumberOfPoints():
            found.append(vtk_to_numpy(mapper.GetInput().GetPoints().GetData())[:, :2])
    return np.concatenate(found) if found else np.zeros((0, 2))


def test_models_are_cut_by_the_slices_of_a_loaded_scene(slicerWindow, slicerHost, tmp_path):
    import slicer

    matrix = host_scenes.affine(oblique=True)
    volume = host_scenes.addVolume(host_scenes.fibreRing(matrix)[0], matrix, "fa")
    host_scenes.addRings()
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.RotateToVolumePlane(volume)
        node.JumpSliceByOffsetting(3, 3, 3)
    slicerHost.application().processEvents()
    manager = slicerWindow.layoutManager
    before = {name: cutPoints(manager.sliceWidget(name)) for name in manager.sliceViewNames()}
    assert all(len(points) > 50 for points in before.values())

    bundle = str(tmp_path / "scene.mrb")
    slicer.util.saveScene(bundle)
    slicerHost.closeScene()
    slicer.util.loadScene(bundle)
    slicerHost.application().processEvents()
    for name, points in before.items():
        after = cutPoints(manager.sliceWidget(name))
        assert after.shape == points.shape, name
        assert np.abs(np.sort(after, axis=0) - np.sort(points, axis=0)).max() < 0.5, name


def test_3d_view_keeps_its_look_when_the_scene_is_closed(slicerWindow, slicerHost):
    node = slicerWindow.layoutManager.threeDWidget(0).mrmlViewNode()
    before = node.GetBackgroundColor(), node.GetBackgroundColor2()
    node.SetBackgroundColor(1, 1, 1)
    node.SetBoxVisible(True)
    slicerHost.closeScene()
    assert (node.GetBackgroundColor(), node.GetBackgroundColor2()) == before
    assert not node.GetBoxVisible()
    assert not node.GetAxisLabelsVisible()


def test_messages_of_vtk_go_to_the_log(slicerHost, tmp_path, capfd):
    import slicer
    import vtk

    host_log = slicer.app.temporaryPath
    slicerHost.logTo(tmp_path / "vtk.log")
    try:
        vtk.vtkLogger.Log(vtk.vtkLogger.VERBOSITY_WARNING, __file__, 1, "glyphs complain")
    finally:
        slicerHost.logTo(f"{host_log}/vtk.log")
    assert "glyphs complain" in (tmp_path / "vtk.log").read_text()
    assert "glyphs complain" not in capfd.readouterr().err


def test_3d_picture_is_not_cut_by_a_stale_clipping_range(slicerWindow, slicerHost):
    host_scenes.addRings()
    view = slicerWindow.layoutManager.threeDWidget(0).view
    view.fit()
    whole = view.grab().astype(int)
    camera = view.renderer.GetActiveCamera()
    camera.SetClippingRange(camera.GetDistance(), 2 * camera.GetDistance())
    assert (np.abs(view.grab() - whole).max(-1) > 30).mean() < 1e-3
