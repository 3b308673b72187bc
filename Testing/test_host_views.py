"""The host's views: what is shown where, the mouse, the voxel readout, layouts."""

from __future__ import annotations

import host_scenes
import numpy as np
import pytest


@pytest.fixture
def manager(slicerWindow):
    slicerWindow.layoutManager.renderAll()
    return slicerWindow.layoutManager


def pixels(widget) -> np.ndarray:
    """The picture of a view as (height, width, 3), first row on top."""
    return widget.view.grab().astype(float)


def showBall(centre, matrix=None, radius=12.0, name="ball"):
    import slicer

    matrix = host_scenes.affine() if matrix is None else matrix
    volume = host_scenes.addVolume(host_scenes.ball(matrix, centre, radius), matrix, name)
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 1)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(*centre)
    return volume


def brightCentre(picture: np.ndarray) -> tuple[float, float]:
    """Centre of the bright pixels from the left and the top, 0..1."""
    rows, columns = np.nonzero(picture.mean(-1) > 128)
    height, width, _ = picture.shape
    return columns.mean() / width, rows.mean() / height


def drag(widget, button, steps, modifiers=None):
    """Press in the middle, move by steps of (x, y) pixels, release."""
    from PySide6 import QtCore, QtTest, QtWidgets

    picture, none = widget.picture, QtCore.Qt.KeyboardModifier.NoModifier
    modifiers = modifiers or none
    place = picture.rect().center()
    send(picture, QtCore.QEvent.Type.MouseMove, place, QtCore.Qt.MouseButton.NoButton, modifiers)
    QtTest.QTest.mousePress(picture, button, modifiers, place)
    for x, y in steps:
        place = place + QtCore.QPoint(x, y)
        send(picture, QtCore.QEvent.Type.MouseMove, place, button, modifiers)
    QtTest.QTest.mouseRelease(picture, button, modifiers, place)
    QtWidgets.QApplication.processEvents()


def send(picture, kind, place, buttons, modifiers):
    """Send a mouse event with what is held down, which QTest leaves out of moves."""
    from PySide6 import QtCore, QtGui, QtWidgets

    point = QtCore.QPointF(place)
    screen = QtCore.QPointF(picture.mapToGlobal(place))
    event = QtGui.QMouseEvent(kind, point, screen, QtCore.Qt.MouseButton.NoButton, buttons, modifiers)
    QtWidgets.QApplication.sendEvent(picture, event)


def wheel(widget, notches, modifiers=None):
    from PySide6 import QtCore, QtGui, QtWidgets

    place = QtCore.QPointF(widget.picture.rect().center())
    event = QtGui.QWheelEvent(
        place,
        QtCore.QPointF(widget.picture.mapToGlobal(place.toPoint())),
        QtCore.QPoint(),
        QtCore.QPoint(0, 120 * notches),
        QtCore.Qt.MouseButton.NoButton,
        modifiers or QtCore.Qt.KeyboardModifier.NoModifier,
        QtCore.Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QtWidgets.QApplication.sendEvent(widget.picture, event)
    QtWidgets.QApplication.processEvents()


# --- sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oblique", [False, True])
def test_patient_right_is_on_the_viewers_left(manager, oblique):
    showBall((36, 20, 8), host_scenes.affine(oblique))
    across, down = brightCentre(pixels(manager.sliceWidget("Red")))
    assert across < 0.45
    assert down < 0.48
    across, down = brightCentre(pixels(manager.sliceWidget("Green")))
    assert across < 0.45
    assert down < 0.49
    # sagittal: anterior is on the viewer's left
    across, _ = brightCentre(pixels(manager.sliceWidget("Yellow")))
    assert across < 0.48


def test_ball_on_the_left_is_on_the_viewers_right(manager):
    showBall((-36, -20, 8))
    across, down = brightCentre(pixels(manager.sliceWidget("Red")))
    assert across > 0.55
    assert down > 0.52


def test_letters_name_the_sides(manager):
    from EmbeddedSlicer.overlays import placeText, sideOf

    showBall((36, 20, 8))
    matrix = manager.sliceWidget("Red").mrmlSliceNode().GetSliceToRAS()
    assert sideOf(-np.array([matrix.GetElement(i, 0) for i in range(3)])) == "R"
    assert sideOf(np.array([matrix.GetElement(i, 1) for i in range(3)])) == "A"
    assert placeText(manager.sliceWidget("Yellow").mrmlSliceNode()).startswith("R 3")
    assert placeText(manager.sliceWidget("Green").mrmlSliceNode()).startswith("A ")


# --- mouse --------------------------------------------------------------------------------------------------------


def test_left_drag_changes_window_and_level(manager):
    from PySide6.QtCore import Qt

    volume = showBall((0, 0, 0))
    display = volume.GetDisplayNode()
    before = display.GetWindow(), display.GetLevel()
    bright = pixels(manager.sliceWidget("Red")).sum()
    drag(manager.sliceWidget("Red"), Qt.MouseButton.LeftButton, [(0, 10)] * 6)
    drag(manager.sliceWidget("Red"), Qt.MouseButton.LeftButton, [(10, 0)] * 6)
    assert display.GetWindow() != pytest.approx(before[0])
    assert display.GetLevel() != pytest.approx(before[1])
    assert pixels(manager.sliceWidget("Red")).sum() != bright


def test_middle_drag_pans(manager):
    from PySide6.QtCore import Qt

    showBall((0, 0, 0))
    across, down = brightCentre(pixels(manager.sliceWidget("Red")))
    drag(manager.sliceWidget("Red"), Qt.MouseButton.MiddleButton, [(8, 4)] * 5)
    moved = brightCentre(pixels(manager.sliceWidget("Red")))
    height, width, _ = pixels(manager.sliceWidget("Red")).shape
    assert (moved[0] - across) * width == pytest.approx(40, abs=3)
    assert (moved[1] - down) * height == pytest.approx(20, abs=3)


def test_right_drag_zooms(manager):
    from PySide6.QtCore import Qt

    showBall((0, 0, 0))
    node = manager.sliceWidget("Yellow").mrmlSliceNode()
    before = node.GetFieldOfView()[0]
    drag(manager.sliceWidget("Yellow"), Qt.MouseButton.RightButton, [(0, 8)] * 5)
    assert abs(node.GetFieldOfView()[0] / before - 1) > 0.05


def test_wheel_scrolls_slices(manager):
    showBall((0, 0, 0))
    widget = manager.sliceWidget("Red")
    before, shown = widget.sliceLogic().GetSliceOffset(), widget._offset.text()
    wheel(widget, 1)
    wheel(widget, 1)
    assert abs(widget.sliceLogic().GetSliceOffset() - before) == pytest.approx(2 * host_scenes.SPACING, rel=0.01)
    assert widget._offset.text() != shown
    wheel(widget, -1)
    wheel(widget, -1)
    assert widget.sliceLogic().GetSliceOffset() == pytest.approx(before)


def test_slider_of_the_bar_moves_the_slice(manager):
    showBall((0, 0, 0))
    widget = manager.sliceWidget("Green")
    widget._slider.setValue(widget._slider.maximum())
    bounds = [0.0] * 6
    widget.sliceLogic().GetBackgroundSliceBounds(bounds)
    assert widget.sliceLogic().GetSliceOffset() == pytest.approx(bounds[5], abs=2 * host_scenes.SPACING)


def test_drag_rotates_and_wheel_zooms_3d(manager):
    from PySide6.QtCore import Qt

    host_scenes.addRings()
    manager.resetThreeDViews()
    widget = manager.threeDWidget(0)
    camera = widget.view.cameraNode.GetCamera()
    before, distance = np.array(camera.GetPosition()), camera.GetDistance()
    picture = pixels(widget)
    drag(widget, Qt.MouseButton.LeftButton, [(12, 6)] * 6)
    assert np.linalg.norm(np.array(camera.GetPosition()) - before) > 0.2 * distance
    assert camera.GetDistance() == pytest.approx(distance, rel=1e-3)
    assert np.abs(pixels(widget) - picture).max() > 50
    wheel(widget, 1)
    assert camera.GetDistance() != pytest.approx(distance, rel=1e-3)


# --- readout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oblique", [False, True])
def test_readout_is_the_voxel_under_the_mouse(manager, slicerWindow, oblique):
    """The value encodes its own index, so a flip, a swap or half a voxel would show."""
    import slicer
    from PySide6 import QtCore

    matrix = host_scenes.affine(oblique)
    k, j, i = np.indices(host_scenes.SHAPE)
    volume = host_scenes.addVolume((i + 100 * j + 10000 * k).astype(np.int32), matrix, "coded")
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    widget = manager.sliceWidget("Red")
    ras = np.array([21.0, -17.0, 9.0])
    widget.mrmlSliceNode().JumpSliceByOffsetting(*ras)
    toXY = np.linalg.inv(slicer.util.arrayFromVTKMatrix(widget.mrmlSliceNode().GetXYToRAS()))
    x, y = np.rint((toXY @ [*ras, 1])[:2])
    place = QtCore.QPoint(int(x), widget.picture.height() - 1 - int(y))
    none = QtCore.Qt.MouseButton.NoButton, QtCore.Qt.KeyboardModifier.NoModifier
    send(widget.picture, QtCore.QEvent.Type.MouseMove, place, *none)
    shown = (slicer.util.arrayFromVTKMatrix(widget.mrmlSliceNode().GetXYToRAS()) @ [x, y, 0, 1])[:3]
    index = np.floor((np.linalg.inv(matrix) @ [*shown, 1])[:3] + 0.5).astype(int)
    value = index @ [1, 100, 10000]
    text = slicerWindow.dataProbe.text()
    assert f"coded ({index[0]}, {index[1]}, {index[2]})  " in text
    assert text.splitlines()[3].split()[-1].replace("e+0", "e") in (f"{value:.4g}".replace("e+0", "e"), str(value))
    assert f"R {shown[0]:.1f}" in text
    assert f"P {abs(shown[1]):.1f}" in text


def test_readout_tells_layers_and_leaves_with_the_mouse(manager, slicerWindow):
    import slicer
    from PySide6 import QtCore

    back = showBall((0, 0, 0), radius=30)
    matrix = host_scenes.affine()
    label = host_scenes.addVolume(
        host_scenes.ball(matrix, (0, 0, 0), 30).astype(np.int16) * 2, matrix, "seg", "vtkMRMLLabelMapVolumeNode"
    )
    _, tensor = host_scenes.fibreRing(matrix)
    tensors = host_scenes.addTensors(tensor, matrix)
    slicer.util.setSliceViewerLayers(background=back, foreground=tensors, label=label)
    picture = manager.sliceWidget("Red").picture
    none = QtCore.Qt.MouseButton.NoButton, QtCore.Qt.KeyboardModifier.NoModifier
    send(picture, QtCore.QEvent.Type.MouseMove, picture.rect().center(), *none)
    lines = slicerWindow.dataProbe.text().splitlines()
    assert lines[1].startswith("L:  seg (")
    assert "  2 " in lines[1]
    assert "FA 0." in lines[2]
    assert lines[3].endswith("  1")
    QtCore.QCoreApplication.sendEvent(picture, QtCore.QEvent(QtCore.QEvent.Type.Leave))
    assert "ball" not in slicerWindow.dataProbe.text()


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_tensor_glyphs_change_the_slice_and_carry_its_colours(manager):
    import slicer

    matrix = host_scenes.affine()
    fa, tensor = host_scenes.fibreRing(matrix)
    volume, tensors = host_scenes.addVolume(fa, matrix, "FA"), host_scenes.addTensors(tensor, matrix)
    slicer.util.setSliceViewerLayers(background=volume, foreground=tensors, foregroundOpacity=0, fit=True)
    widget = manager.sliceWidget("Red")
    plain = pixels(widget)
    for glyph in host_scenes.glyphNodes(tensors):
        glyph.SetVisibility(True)
        glyph.SetVisibility2D(True)
    shown = pixels(widget)
    changed = np.abs(shown - plain).max(-1) > 40
    assert 0.01 < changed.mean() < 0.6
    height, width = changed.shape
    # the ring runs along x in front of its centre (red), along y beside it (green)
    top = shown[: height // 3, width // 3 : 2 * width // 3][changed[: height // 3, width // 3 : 2 * width // 3]]
    side = shown[height // 3 : 2 * height // 3, : width // 3][changed[height // 3 : 2 * height // 3, : width // 3]]
    assert top[:, 0].mean() > top[:, 1].mean()
    assert side[:, 1].mean() > side[:, 0].mean()


def test_colour_legend_is_drawn(manager):
    import slicer

    volume = showBall((0, 0, 0))
    plain = pixels(manager.sliceWidget("Red"))
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(volume)
    legend.SetTitleText("FA")
    legend.SetVisibility(True)
    changed = np.abs(pixels(manager.sliceWidget("Red")) - plain).max(-1) > 60
    assert changed[:, -changed.shape[1] // 3 :].sum() > 200
    assert changed[:, : changed.shape[1] // 2].sum() == 0


def test_model_is_drawn_in_3d_and_where_it_cuts_the_slices(manager):
    showBall((0, 0, 0), radius=3)
    empty, plain = pixels(manager.threeDWidget(0)), pixels(manager.sliceWidget("Green"))
    host_scenes.addRings()
    manager.resetThreeDViews()
    shown = pixels(manager.threeDWidget(0))
    assert (np.abs(shown - empty).max(-1) > 60).mean() > 0.01
    # seen from the front the rings run left to right: red
    strong = shown[np.abs(shown - empty).max(-1) > 100]
    assert strong[:, 0].mean() > 1.3 * strong[:, 2].mean()
    cut = np.abs(pixels(manager.sliceWidget("Green")) - plain).max(-1) > 60
    assert cut.sum() > 20
    columns = np.nonzero(cut)[1] / cut.shape[1]
    assert (columns < 0.45).any()
    assert (columns > 0.55).any()


def test_slice_is_shown_in_3d(manager):
    showBall((0, 0, 0), radius=30)
    empty = pixels(manager.threeDWidget(0))
    manager.sliceWidget("Green").mrmlSliceNode().SetSliceVisible(True)
    manager.resetThreeDViews()
    assert (np.abs(pixels(manager.threeDWidget(0)) - empty).max(-1) > 60).mean() > 0.02


def test_overlay_letters_and_names_are_painted(manager):
    showBall((0, 0, 0))
    widget = manager.sliceWidget("Red")
    widget.picture.forceRender()
    grabbed = widget.picture.grab().toImage()
    corner = [grabbed.pixelColor(x, grabbed.height() - 1 - y).lightness() for x in range(60) for y in range(24)]
    assert max(corner) > 180


# --- rendering ----------------------------------------------------------------------------------------------------


def test_a_burst_of_changes_costs_one_rendering(manager, slicerHost):
    showBall((0, 0, 0))
    widget = manager.sliceWidget("Red")
    slicerHost.wait(lambda: not widget.picture._timer.isActive(), 5)
    before = widget.picture.renderCount
    for offset in range(50):
        widget.sliceLogic().SetSliceOffset(offset - 25)
    assert widget.picture.renderCount == before
    assert slicerHost.wait(lambda: widget.picture.renderCount > before, 5)
    slicerHost.wait(lambda: False, 0.1)
    assert widget.picture.renderCount - before <= 2


def test_idle_views_do_not_render(manager, slicerHost):
    showBall((0, 0, 0))
    slicerHost.wait(lambda: False, 0.3)
    before = [w.picture.renderCount for w in manager.visibleWidgets()]
    slicerHost.wait(lambda: False, 0.3)
    assert [w.picture.renderCount for w in manager.visibleWidgets()] == before


def test_paused_rendering_catches_up(manager, slicerHost):
    import slicer

    showBall((0, 0, 0))
    widget = manager.sliceWidget("Red")
    slicerHost.wait(lambda: not widget.picture._timer.isActive(), 5)
    before = widget.picture.renderCount
    with slicer.util.RenderBlocker():
        widget.sliceLogic().SetSliceOffset(9)
        slicerHost.wait(lambda: False, 0.1)
        assert widget.picture.renderCount == before
    assert slicerHost.wait(lambda: widget.picture.renderCount > before, 5)


# --- layouts ------------------------------------------------------------------------------------------------------


def test_layouts_show_their_views(manager):
    import slicer

    node = slicer.vtkMRMLLayoutNode
    assert manager.sliceViewNames() == ["Red", "Green", "Yellow"]
    assert manager.threeDViewCount == 1
    manager.setLayout(node.SlicerLayoutOneUp3DView)
    assert (manager.sliceViewNames(), manager.threeDViewCount) == ([], 1)
    manager.setLayout(node.SlicerLayoutOneUpRedSliceView)
    assert (manager.sliceViewNames(), manager.threeDViewCount) == (["Red"], 0)
    manager.setLayout(node.SlicerLayoutThreeOverThreeView)
    assert len(manager.sliceViewNames()) == 6
    assert manager.layout == node.SlicerLayoutThreeOverThreeView


def test_layout_follows_the_layout_node_and_its_own_descriptions(manager, slicerWindow):
    import slicer

    cell = (
        '<item><view class="vtkMRMLSliceNode" singletontag="{0}"><property name="orientation" action="default">Coronal'
        '</property><property name="viewlabel" action="default">{0}</property></view></item>'
    )
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    layout.AddLayoutDescription(987, f'<layout type="horizontal">{cell.format("A1")}{cell.format("A2")}</layout>')
    layout.SetViewArrangement(987)
    assert manager.sliceViewNames() == ["A1", "A2"]
    assert manager.sliceWidget("A2").mrmlSliceNode().GetOrientation() == "Coronal"
    slicerWindow.layoutManager.renderAll()
    widths = [manager.sliceWidget(n).width() for n in ("A1", "A2")]
    assert min(widths) > 300


def test_views_keep_what_they_show_through_layouts(manager):
    import slicer

    volume = showBall((36, 20, 8))
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUp3DView)
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    widget = manager.sliceWidget("Red")
    assert widget.mrmlSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
    assert brightCentre(pixels(widget))[0] < 0.45


def test_screenshot_shows_panel_and_views(manager, slicerHost, tmp_path):
    from PySide6 import QtGui

    showBall((0, 0, 0))
    path = slicerHost.screenshot(tmp_path / "window.png")
    image = QtGui.QImage(str(path))
    assert (image.width(), image.height()) == (1400, 860)
    with pytest.raises(OSError, match="cannot be written"):
        slicerHost.screenshot(tmp_path / "missing" / "window.png")
