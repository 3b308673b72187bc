"""Features and attention in the panel: what is asked of the worker, when, and what the scene shows of the answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from module_driver import AFFINE, Driver, addSmallScan, smallScan

from DiffusionFMLib.overlays.kinds import OVERLAYS


def queries(driver: Driver, what: str | None = None) -> list[dict]:
    """What the fake worker was asked."""
    asked = [json.loads(line)["query"] for line in driver.worker.log if line.startswith('{"query"')]
    return [q for q in asked if what in (None, q["what"])]


def place(*ijk: float) -> tuple[float, ...]:
    """RAS of a voxel of the small scan."""
    return tuple(float(x) for x in (AFFINE @ [*ijk, 1])[:3])


def point(*ijk: float) -> None:
    from DiffusionFMSlicer.inspector import crosshairNode

    crosshairNode().SetCrosshairRAS(*place(*ijk))


@pytest.fixture
def opened(driver: Driver) -> Driver:
    """The module with a scan, the section open, and the crosshair on a voxel."""
    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.featuresSection.collapsed = False
    point(4, 3, 2)
    return driver


@pytest.fixture
def encoded(opened: Driver) -> Driver:
    """After Compute features."""
    opened.ui.encodeButton.click()
    opened.settle()
    assert not opened.panel.lastError
    return opened


def overlayShown():
    from DiffusionFMSlicer.scene.views import overlayNode

    return overlayNode()


def test_stable_overlays_come_first_and_each_has_its_sentence(opened):
    ui = opened.ui
    names = [ui.featureSelector.itemData(i) for i in range(ui.featureSelector.count)]
    assert sorted(names) == sorted(OVERLAYS)
    standard = [OVERLAYS[name].standard for name in names]
    assert standard == sorted(standard, reverse=True)
    for index, name in enumerate(names):
        opened.chooseOverlay(name)
        assert OVERLAYS[name].spec.description in ui.featureLabel.text
        assert ("unproven" in ui.featureSelector.itemText(index)) is not OVERLAYS[name].standard
        assert ("Unproven" in ui.featureLabel.text) is not OVERLAYS[name].standard
    assert "not causes" in ui.notCausalLabel.text
    assert "Not for diagnosis" in ui.notCausalLabel.text


def test_nothing_is_asked_before_features_were_computed_and_the_panel_says_so(opened):
    opened.chooseOverlay("similarity")
    opened.ui.followCheck.checked = True
    point(1, 1, 1)
    opened.spin(0.2)
    assert not opened.worker.running
    assert opened.ui.featureNote.isVisibleTo(opened.widget.parent)
    assert "press Compute features" in opened.ui.featureNote.text


def test_button_says_why_it_cannot_be_pressed(driver):
    assert not driver.ui.encodeButton.enabled
    assert "Choose or open a scan" in driver.ui.encodeButton.toolTip
    driver.useFakeWorker("slow")
    driver.choose(addSmallScan())
    assert driver.ui.encodeButton.enabled
    driver.ui.encodeButton.click()
    driver.until(lambda: driver.ui.progressBar.value > 0)
    assert not driver.ui.encodeButton.enabled
    assert not driver.ui.applyButton.enabled
    assert "Another run" in driver.ui.encodeButton.toolTip
    driver.ui.cancelButton.click()
    driver.until(lambda: driver.idle)
    assert driver.ui.encodeButton.enabled


def test_encoded_maps_come_into_a_folder_of_their_own_and_the_chosen_one_is_laid_over(encoded):
    import slicer

    from DiffusionFMSlicer.scene.results import SCAN

    found = encoded.results()
    assert list(found) == ["pca", "rollout"]
    first = next(iter(OVERLAYS))
    assert overlayShown() is found[first]
    # anatomy shows where nothing stands out, and the panel's own control says so
    assert encoded.ui.thresholdSlider.value == 25
    colors = found["pca"]
    assert colors.GetVoxelVectorType() == colors.VoxelVectorTypeColorRGB
    np.testing.assert_allclose(slicer.util.arrayFromVolume(colors) / 255, smallScan()[0][..., 1:4], atol=0.002)
    assert colors.GetNodeReference(SCAN).GetName() == "scan"
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folders = {hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n))) for n in found.values()}
    assert folders == {"scan: FEATURES (encoder)"}
    encoded.chooseOverlay("pca")
    assert overlayShown() is colors
    assert not queries(encoded, "overlay")


def test_directions_are_vectors_and_not_colours(encoded, tmp_path):
    from test_module_scene import artifact, imported, run_of

    node = imported(artifact(tmp_path, "other", smallScan()[0][..., :3], colors="direction"), run_of(addSmallScan()))
    assert node.IsA("vtkMRMLVectorVolumeNode")
    assert node.GetVoxelVectorType() == node.VoxelVectorTypeSpatial


def test_overlay_of_a_point_is_asked_for_and_follows_in_place(encoded):
    import slicer

    encoded.chooseOverlay("similarity")
    node = overlayShown()
    assert node.GetAttribute("DiffusionFM.Name") == "similarity"
    assert queries(encoded, "overlay")[-1]["ijk"] == [4, 3, 2]
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), np.full((4, 4, 5), 234.5, np.float32))
    matrix = slicer.util.arrayFromVTKMatrix
    import vtk

    grid = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(grid)
    np.testing.assert_allclose(matrix(grid), AFFINE @ np.diag([2.0, 2, 2, 1]))
    assert not node.GetDisplayNode().GetInterpolate()
    # without a wish to follow it stays
    count = len(queries(encoded))
    point(1, 2, 3)
    encoded.settle()
    assert len(queries(encoded)) == count
    encoded.ui.followCheck.checked = True
    encoded.settle()
    # what the user set stays
    node.GetDisplayNode().SetInterpolate(True)
    point(5, 4, 3)
    encoded.settle()
    assert encoded.results()["similarity"] is node
    assert slicer.util.arrayFromVolume(node)[0, 0, 0] == 345.5
    assert node.GetDisplayNode().GetInterpolate()
    # outside of the scan there is nothing to ask about
    count = len(queries(encoded))
    point(-50, 0, 0)
    encoded.settle()
    assert len(queries(encoded)) == count


def test_following_does_not_take_the_views_from_the_user(encoded):
    from DiffusionFMSlicer.scene import views

    encoded.chooseOverlay("similarity")
    encoded.ui.followCheck.checked = True
    views.setOverlay(None, 0.5)
    point(5, 4, 3)
    encoded.settle()
    assert queries(encoded, "overlay")[-1]["ijk"] == [5, 4, 3]
    assert overlayShown() is None


def test_only_the_newest_point_waits_while_one_is_asked(opened, monkeypatch):
    import slicer

    monkeypatch.setenv("FAKE_WORKER_DELAY", "0.15")
    opened.ui.encodeButton.click()
    opened.until(lambda: opened.idle)
    opened.chooseOverlay("similarity")
    opened.ui.followCheck.checked = True
    opened.settle()
    before = len(queries(opened, "overlay"))
    for i in range(8):
        point(i, 1, 1)
        opened.spin(0.02)
    opened.settle()
    asked = [q["ijk"] for q in queries(opened, "overlay")[before:]]
    assert asked[0] == [0, 1, 1]
    assert asked[-1] == [7, 1, 1]
    assert len(asked) < 5
    assert slicer.util.arrayFromVolume(opened.results()["similarity"])[0, 0, 0] == 117.5


def test_block_and_head_are_for_overlays_that_have_them(encoded):
    import slicer

    ui = encoded.ui
    encoded.chooseOverlay("similarity")
    assert (ui.blockBox.enabled, ui.headBox.enabled) == (False, False)
    encoded.chooseOverlay("raw")
    assert (ui.blockBox.enabled, ui.headBox.enabled) == (True, True)
    assert (ui.blockBox.maximum, ui.headBox.maximum) == (3, 4)
    assert queries(encoded, "overlay")[-1]["block"] is None
    ui.blockBox.value = 3
    ui.headBox.value = 1
    encoded.settle()
    last = queries(encoded, "overlay")[-1]
    assert (last["overlay"], last["block"], last["head"]) == ("raw", 2, 0)
    assert slicer.util.arrayFromVolume(encoded.results()["raw"])[0, 0, 0] == 2234.5
    # a choice for one overlay is not meant for another
    encoded.chooseOverlay("similarity")
    assert queries(encoded, "overlay")[-1]["block"] is None


def test_attention_is_plotted_by_angle_to_the_main_direction(encoded):
    from DiffusionFMSlicer.directions import directionsOf

    ui = encoded.ui
    assert ui.directionsBox.isVisibleTo(encoded.widget.parent)
    picture = ui.directionsPlot.pixmap
    # as many of the screen's own pixels as it has
    assert picture.width() == round(ui.featureLabel.width * ui.featureLabel.devicePixelRatioF()) > 100
    _, bvals, bvecs = smallScan()
    # b0 volumes are not encoded
    bvals, bvecs = bvals[1:], bvecs[1:]
    answer = {"bvals": bvals, "bvecs": bvecs, "geometry": [1 / 11] * 11}
    attention = np.full(11, 1 / 11)
    attention[:2] += (0.03, -0.03)
    shown = directionsOf({**answer, "attention": attention.tolist()}, np.array(bvecs[1]))
    assert "V1" in shown.axis
    (series,) = shown.series
    assert series.title == "b 1000"
    assert series.angles[1] == pytest.approx(0, abs=1e-4)
    assert series.angles[0] == pytest.approx(np.rad2deg(np.arccos(abs(np.dot(bvecs[0], bvecs[1])))))
    assert series.beyond[:2] == pytest.approx([33, -33])
    other = directionsOf({**answer, "attention": attention.tolist()}, None)
    assert "stands out most" in other.axis
    assert other.series[0].angles[0] == pytest.approx(0, abs=1e-4)


def test_main_direction_is_that_of_this_scans_tensor(encoded, tmp_path):
    from test_module_scene import artifact, imported, run_of

    from DiffusionFMSlicer.scene.features import mainDirection

    scan = encoded.panel.parameters.reference("Scan")
    assert mainDirection(scan, place(1, 2, 3)) is None
    vectors = np.zeros((7, 8, 9, 3), np.float32)
    vectors[3, 2, 1] = (0, 2, 0)
    imported(artifact(tmp_path, "v1", vectors, colors="direction"), run_of(scan))
    assert mainDirection(scan, place(1, 2, 3)).tolist() == [0, 1, 0]
    assert mainDirection(scan, place(4, 2, 3)) is None
    assert mainDirection(addSmallScan("other"), place(1, 2, 3)) is None


def test_plot_is_also_slicers_own(encoded):
    import slicer

    assert not slicer.util.getNodesByClass("vtkMRMLTableNode")
    encoded.ui.chartButton.click()
    (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    (table,) = slicer.util.getNodesByClass("vtkMRMLTableNode")
    (series,) = slicer.util.getNodesByClass("vtkMRMLPlotSeriesNode")
    assert chart.GetNthPlotSeriesNodeID(0) == series.GetID()
    assert series.GetTableNodeID() == table.GetID()
    values = slicer.util.arrayFromTableColumn(table, series.GetYColumnName())
    np.testing.assert_allclose(values[:3], [50, -50, 0], atol=1e-9)
    # pressed again, or asked again, it is the same one
    encoded.ui.chartButton.click()
    encoded.ui.followCheck.checked = True
    point(1, 1, 1)
    encoded.settle()
    assert [len(slicer.util.getNodesByClass(f"vtkMRML{k}Node")) for k in ("PlotChart", "Table", "PlotSeries")] == [
        1
    ] * 3


def test_questions_wait_for_a_run_and_do_not_touch_it(encoded, monkeypatch):
    encoded.chooseOverlay("similarity")
    encoded.ui.followCheck.checked = True
    encoded.settle()
    sent: list[str] = []
    send = encoded.worker.send
    monkeypatch.setattr(encoded.worker, "send", lambda request: sent.append(request["op"]) or send(request))
    encoded.ui.applyButton.click()
    for i in range(4):
        point(i, 2, 2)
    assert sent == ["run"]
    encoded.until(lambda: encoded.idle)
    encoded.settle()
    # of the four points the last alone: its overlay and its directions
    assert sent == ["run", "query", "query"]
    assert queries(encoded, "overlay")[-1]["ijk"] == [3, 2, 2]
    assert "fa" in encoded.results()
    assert encoded.ui.progressBar.format == "Done on the CPU"
    assert not encoded.panel.lastError


def test_a_worker_that_never_encoded_is_not_asked(encoded):
    encoded.chooseOverlay("similarity")
    encoded.ui.followCheck.checked = True
    encoded.settle()
    # a process that never encoded
    encoded.worker.stop()
    encoded.panel.check()
    encoded.until(lambda: encoded.idle)
    count = len(queries(encoded))
    point(2, 2, 2)
    encoded.settle()
    assert len(queries(encoded)) == count
    assert encoded.idle
    assert not encoded.panel.lastError


def test_a_worker_that_dies_while_it_is_asked_ends_the_questions_alone(opened, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_DELAY", "5")
    opened.ui.encodeButton.click()
    opened.until(lambda: queries(opened))
    opened.worker.kill()
    opened.until(lambda: opened.ui.featureNote.text)
    assert "Compute them again" in opened.ui.featureNote.text
    assert not opened.panel.lastError
    assert opened.ui.encodeButton.enabled


def test_refusal_is_shown_in_the_panel_and_goes_away(encoded):
    encoded.chooseOverlay("similarity")
    refuse = encoded.panel.attention._refused
    refuse("There are no features at (0, 0, 0). Point into the brain.", "input")
    assert encoded.ui.featureNote.text == "There are no features at (0, 0, 0). Point into the brain."
    assert encoded.ui.featureNote.isVisibleTo(encoded.widget.parent)
    encoded.chooseOverlay("raw")
    assert not encoded.ui.featureNote.isVisibleTo(encoded.widget.parent)


def test_a_worker_that_forgot_the_scan_is_not_asked_again(encoded):
    encoded.chooseOverlay("similarity")
    encoded.ui.followCheck.checked = True
    encoded.settle()
    encoded.panel.attention._refused("The scan was not encoded yet. Run encode on it first.", "not-encoded")
    count = len(queries(encoded))
    point(2, 2, 2)
    encoded.settle()
    assert len(queries(encoded)) == count
    encoded.chooseOverlay("raw")
    assert "press Compute features" in encoded.ui.featureNote.text


def test_nothing_is_asked_while_hidden_folded_or_of_another_scan(encoded):
    encoded.chooseOverlay("similarity")
    encoded.ui.followCheck.checked = True
    encoded.settle()
    count = len(queries(encoded))
    encoded.widget.exit()
    point(1, 1, 1)
    encoded.settle()
    assert len(queries(encoded)) == count
    encoded.widget.enter()
    encoded.settle()
    assert queries(encoded, "overlay")[-1]["ijk"] == [1, 1, 1]
    encoded.ui.featuresSection.collapsed = True
    count = len(queries(encoded))
    point(2, 1, 1)
    encoded.settle()
    assert len(queries(encoded)) == count
    encoded.ui.featuresSection.collapsed = False
    encoded.settle()
    assert queries(encoded, "overlay")[-1]["ijk"] == [2, 1, 1]
    count = len(queries(encoded))
    assert encoded.ui.directionsBox.isVisibleTo(encoded.widget.parent)
    encoded.choose(addSmallScan("other", seed=1))
    assert not encoded.ui.directionsBox.isVisibleTo(encoded.widget.parent)
    point(3, 1, 1)
    encoded.settle()
    assert len(queries(encoded)) == count
    assert "Compute features" in encoded.ui.featureNote.text


def test_choices_and_overlays_come_back_with_the_scene_and_a_closed_one_is_forgotten(encoded, tmp_path):
    import slicer

    encoded.chooseOverlay("raw")
    encoded.ui.blockBox.value = 2
    encoded.ui.followCheck.checked = True
    encoded.settle()
    values = slicer.util.arrayFromVolume(encoded.results()["raw"]).copy()
    file = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(file))
    slicer.mrmlScene.Clear(0)
    encoded.spin()
    ui = encoded.ui
    assert ui.featureSelector.itemData(ui.featureSelector.currentIndex) == next(iter(OVERLAYS))
    assert not ui.directionsBox.isVisibleTo(encoded.widget.parent)
    point(1, 1, 1)
    slicer.util.loadScene(str(file))
    encoded.settle()
    assert ui.featureSelector.itemData(ui.featureSelector.currentIndex) == "raw"
    assert (ui.blockBox.value, ui.followCheck.checked) == (2, True)
    np.testing.assert_array_equal(
        np.sort(slicer.util.arrayFromVolume(encoded.results()["raw"]), None), np.sort(values, None)
    )
    # the worker's memory is of a scene that is gone
    count = len(queries(encoded))
    point(2, 2, 2)
    encoded.settle()
    assert len(queries(encoded)) == count


def test_the_encoders_settings_are_in_the_panel_and_reach_the_job(opened, tmp_path):
    from dataclasses import fields

    from DiffusionFMLib.settings import EncodeSettings
    from DiffusionFMSlicer.parameters import FROM_SCENE

    form = opened.panel.form
    assert {f.name for f in fields(EncodeSettings)} - set(FROM_SCENE) <= set(form._widgets)
    overlays = form.widget("overlays")
    overlays.currentIndex = overlays.findData("all")
    sent = []
    send = opened.worker.send
    opened.worker.send = lambda request: (sent.append(request), send(request))
    opened.ui.encodeButton.click()
    opened.until(lambda: opened.idle)
    del opened.worker.send
    assert sent[0]["job"] == "encode"
    settings = EncodeSettings.from_dict(sent[0]["settings"])
    assert settings.overlays == "all"
    assert settings.dwi
    assert settings.out
