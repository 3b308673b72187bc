"""The panel with a worker that computes nothing: Apply, Cancel, errors, lists, what can be chosen."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from module_driver import AFFINE, addSmallScan, smallScan

from DiffusionFMLib.physics import MODELS


def jobFolders() -> list[Path]:
    from DiffusionFMSlicer.jobfolder import cacheFolder

    return list((cacheFolder() / "jobs").iterdir()) if (cacheFolder() / "jobs").exists() else []


def test_scan_alone_makes_apply_possible(driver):
    assert not driver.ui.applyButton.enabled
    driver.choose(addSmallScan())
    assert driver.ui.factsLabel.text == "9x8x7, 2x2.02x2.5 mm, b 0 1000: 1+11"
    assert driver.ui.applyButton.enabled
    assert not driver.ui.gradientFiles.visible


def test_choosing_a_model_chooses_its_own_method(driver):
    driver.choose(addSmallScan())
    models, methods = driver.ui.modelSelector, driver.ui.methodSelector

    def choose(name: str) -> str:
        models.setCurrentIndex(next(i for i in range(models.count) if models.itemData(i) == name))
        driver.spin(0.05)
        shown = methods.itemData(methods.currentIndex)
        assert driver.panel.parameters.get("method") == shown
        return shown

    assert choose("noddi") == "map"
    assert choose("dti") == "wls"
    methods.setCurrentIndex(next(i for i in range(methods.count) if methods.itemData(i) == "robust"))
    assert choose("dki") == "wls"


def itemOf(selector, value):
    """An entry of a combo box: whether it can be chosen, and its tooltip."""
    import qt

    index = next(i for i in range(selector.count) if selector.itemData(i) == value)
    flags = selector.itemData(index, int(qt.Qt.UserRole) - 1)
    return flags != 0, selector.itemData(index, int(qt.Qt.ToolTipRole))


def test_what_the_protocol_cannot_feed_is_grey_and_says_why(driver):
    from DiffusionFMSlicer.scene.geometry import makeImage
    from DiffusionFMSlicer.scene.results import makeScan

    signal, bvals, bvecs = smallScan()
    driver.choose(makeScan(makeImage(signal[..., :5]), AFFINE, bvals[:5], bvecs[:5], "four directions"))
    ui = driver.ui
    can, tip = itemOf(ui.modelSelector, "dki")
    assert not can
    assert "two shells" in tip
    # the prior can do with four directions, the estimators of the tensor cannot
    assert itemOf(ui.modelSelector, "dti")[0]
    can, tip = itemOf(ui.methodSelector, "wls")
    assert not can
    assert "needs 6 non-collinear directions; this scan has 4" in tip
    assert itemOf(ui.methodSelector, "prior") == (True, "")
    assert not ui.applyButton.enabled
    assert ui.applyButton.toolTip == f"{tip} Choose the method generative prior."
    ui.methodSelector.currentIndex = ui.methodSelector.findData("prior")
    assert ui.applyButton.enabled
    ui.modelSelector.currentIndex = list(MODELS).index("adc")
    assert ui.applyButton.enabled
    assert not itemOf(ui.methodSelector, "prior")[0]
    assert not ui.tractsCheck.enabled


def test_scan_without_gradients_asks_for_files(driver, tmp_path):
    import slicer

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "sequence")
    for i in range(6):
        volume = slicer.util.addVolumeFromArray(smallScan()[0][..., i].copy())
        sequence.SetDataNodeAtValue(volume, str(i))
        slicer.mrmlScene.RemoveNode(volume)
    driver.choose(sequence)
    assert driver.ui.gradientFiles.isVisibleTo(driver.widget.parent)
    assert not driver.ui.applyButton.enabled
    driver.ui.bvalEdit.currentPath = str(tmp_path / "a.bval")
    driver.ui.bvecEdit.currentPath = str(tmp_path / "a.bvec")
    assert driver.ui.applyButton.enabled
    # what was found with wrong files must not stand in the way of the right ones
    driver.panel.scanBox.setQuality(sequence, None, {"dti": {"wls": "Too few directions."}, "adc": {"wls": None}})
    driver.panel.refresh()
    assert not driver.ui.applyButton.enabled
    driver.ui.bvecEdit.currentPath = str(tmp_path / "b.bvec")
    assert driver.ui.applyButton.enabled
    # another scan must not inherit them
    driver.choose(addSmallScan())
    assert driver.ui.bvalEdit.currentPath == ""
    assert driver.panel.parameters.get("bvec") == ""


def test_apply_brings_maps_in_their_windows(driver):
    import slicer

    from DiffusionFMSlicer.scene.views import compositeNodes

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    found = driver.results()
    assert list(found) == ["fa", "md", "colorfa", "tensor", "status", "residual"]
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(found["fa"]), smallScan()[0][..., 1])
    assert found["fa"].GetDisplayNode().GetWindowLevelMax() == pytest.approx(0.8)
    assert driver.ui.progressBar.format == "Done on the CPU"
    assert driver.ui.progressBar.value == driver.ui.progressBar.maximum
    for composite in compositeNodes():
        assert composite.GetBackgroundVolumeID() == found["fa"].GetID()
        assert composite.GetForegroundVolumeID() == found["colorfa"].GetID()
    assert not jobFolders()


def test_quality_lights_up_and_unfolds(driver):
    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    assert driver.ui.factsLabel.text == "measured"
    assert "e0a100" in driver.ui.qualityButton.styleSheet
    driver.ui.qualityButton.click()
    assert driver.ui.qualityLabel.isVisibleTo(driver.widget.parent)
    # findings may quote a scan's names: nothing of them is markup
    assert "&lt;lost&gt;" in driver.ui.qualityLabel.text


def test_light_checks_a_scan_that_was_not_checked(driver):
    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.qualityButton.click()
    driver.until(lambda: driver.idle and driver.ui.factsLabel.text == "measured")


def test_tracts_appear_where_they_are(driver):
    import slicer

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.tractsCheck.checked = True
    driver.apply()
    points = slicer.util.arrayFromModelPoints(driver.results()["tracts"])
    expected = (np.c_[np.arange(5.0), np.ones((5, 3))] @ AFFINE.T)[:, :3]
    np.testing.assert_allclose(points, expected, atol=1e-4)
    driver.ui.tubesCheck.checked = True
    assert driver.results()["tracts"].GetNodeReference("DiffusionFM.Tubes").GetDisplayNode().GetVisibility()


def test_second_run_updates_in_place_and_leaves_the_views_alone(driver):
    import slicer

    from DiffusionFMSlicer.scene.views import compositeNodes, showVolume

    driver.useFakeWorker("ok")
    scan = addSmallScan()
    driver.choose(scan)
    driver.apply()
    first = driver.results()
    showVolume(first["md"])
    slicer.util.arrayFromVolume(scan)[..., 1] *= 2
    slicer.util.arrayFromVolumeModified(scan)
    driver.apply()
    again = driver.results()
    assert all(again[name] is node for name, node in first.items())
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again["fa"]), 2 * smallScan()[0][..., 1])
    assert {c.GetBackgroundVolumeID() for c in compositeNodes()} == {first["md"].GetID()}


def test_apply_twice_starts_one_run(driver):
    driver.useFakeWorker("slow")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    assert not driver.ui.applyButton.enabled
    driver.panel.apply()
    assert "Another run is under way" in driver.ui.messageLabel.text
    assert len(jobFolders()) == 1
    driver.until(lambda: "left" in driver.ui.progressBar.format)
    driver.ui.cancelButton.click()
    driver.until(lambda: driver.idle)


def test_cancel_takes_under_four_seconds_even_from_a_hung_worker(driver):
    driver.useFakeWorker("hang")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    driver.until(lambda: driver.ui.messageLabel.text.isdigit())
    begun = time.monotonic()
    driver.ui.cancelButton.click()
    driver.until(lambda: driver.idle)
    assert time.monotonic() - begun < 4
    assert driver.ui.progressBar.format == "Cancelled"
    assert not driver.worker.running
    assert not jobFolders()
    driver.useFakeWorker("ok")
    driver.apply()
    assert "fa" in driver.results()


def test_dead_worker_is_an_error_with_a_log_and_the_next_apply_works(driver, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_ONCE", str(tmp_path / "died"))
    driver.useFakeWorker("crash")
    driver.choose(addSmallScan())
    driver.apply()
    assert "ended unexpectedly (exit status 9)" in driver.ui.messageLabel.text
    assert driver.ui.progressBar.format == "Failed"
    driver.ui.logButton.click()
    assert "Fatal: out of memory" in driver.ui.logText.plainText
    driver.apply()
    assert "fa" in driver.results()
    assert not driver.panel.lastError


def test_failure_shows_message_and_hint(driver):
    driver.useFakeWorker("fail")
    driver.choose(addSmallScan())
    driver.apply()
    assert driver.ui.messageLabel.text == "Only 3 directions; expected 6. Choose ADC."
    assert driver.ui.applyButton.enabled


def test_flood_of_events_does_not_block_the_panel(driver):
    driver.useFakeWorker("flood")
    driver.choose(addSmallScan())
    seconds = driver.timeCallbacks()
    driver.apply(60)
    assert "fa" in driver.results()
    assert len(seconds) > 20
    assert max(seconds) < 0.2


def test_scan_deleted_in_the_middle_does_not_lose_the_results(driver):
    import slicer

    driver.useFakeWorker("flood")
    scan = addSmallScan()
    driver.choose(scan)
    driver.ui.applyButton.click()
    driver.spin(0.1)
    slicer.mrmlScene.RemoveNode(scan)
    driver.until(lambda: driver.idle, 60)
    assert "fa" in driver.results()
    assert not driver.ui.applyButton.enabled


def test_result_deleted_is_made_again(driver):
    import slicer

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    slicer.mrmlScene.RemoveNode(driver.results()["md"])
    driver.spin(0.3)
    driver.apply()
    assert "md" in driver.results()


def rows(driver) -> dict:
    return {name.text: eye for _, eye, name in driver.panel.results._rows}


def test_eyes_follow_and_change_what_is_shown(driver):
    from DiffusionFMSlicer.scene.display import glyphNodes
    from DiffusionFMSlicer.scene.views import compositeNodes

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.tractsCheck.checked = True
    driver.apply()
    found = driver.results()
    shown = {name for name, eye in rows(driver).items() if eye.checked}
    assert shown == {"FA", "Colour FA", "Tracts"}
    rows(driver)["MD"].click()
    assert {c.GetBackgroundVolumeID() for c in compositeNodes()} == {found["md"].GetID()}
    assert not rows(driver)["FA"].checked
    rows(driver)["Tensor glyphs"].click()
    assert all(g.GetVisibility() for g in glyphNodes(found["tensor"]))
    rows(driver)["Tracts"].click()
    assert not found["tracts"].GetDisplayNode().GetVisibility()
    rows(driver)["Colour FA"].click()
    assert {c.GetForegroundVolumeID() for c in compositeNodes()} == {None}


def test_overlay_has_opacity_and_threshold(driver):
    from DiffusionFMSlicer.scene.views import compositeNodes

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    residual = driver.results()["residual"]
    driver.ui.overlaySelector.currentIndex = driver.ui.overlaySelector.findData(residual.GetID())
    driver.ui.opacitySlider.value = 0.7
    driver.ui.thresholdSlider.value = 30
    composite = compositeNodes()[0]
    assert composite.GetForegroundVolumeID() == residual.GetID()
    assert composite.GetForegroundOpacity() == pytest.approx(0.7)
    display = residual.GetDisplayNode()
    assert display.GetApplyThreshold()
    assert display.GetLowerThreshold() == pytest.approx(0.3 * display.GetWindowLevelMax())


def test_sliders_follow_the_overlay_that_is_shown(driver):
    from DiffusionFMSlicer.scene import views

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    first = driver.results()
    views.setOverlay(first["residual"], 0.7)
    driver.panel.refresh()
    driver.ui.thresholdSlider.value = 30
    views.setOverlay(first["md"], 0.2)
    driver.panel.refresh()
    assert driver.ui.opacitySlider.value == pytest.approx(0.2)
    assert driver.ui.thresholdSlider.value == 0
    views.setOverlay(first["residual"], 0.4)
    driver.panel.refresh()
    assert (driver.ui.opacitySlider.value, driver.ui.thresholdSlider.value) == pytest.approx((0.4, 30))
    # moving one goes to the map that is shown, and to no other
    driver.ui.thresholdSlider.value = 60
    assert first["residual"].GetDisplayNode().GetLowerThreshold() == pytest.approx(
        0.6 * first["residual"].GetDisplayNode().GetWindowLevelMax()
    )
    assert not first["md"].GetDisplayNode().GetApplyThreshold()


def test_values_under_the_mouse(driver):
    import slicer

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    nothing = driver.ui.valueLabel.text
    assert "values are told here" in nothing
    cursor = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    cursor.SetCursorPositionRAS((AFFINE @ [3, 4, 5, 1])[:3])
    signal = smallScan()[0][5, 4, 3]
    assert driver.ui.valueLabel.text.startswith(f"FA {signal[1]:.3g}   MD {signal[2]:.3g} 10⁻³ mm²/s")
    cursor.SetCursorPositionRAS([900.0, 900.0, 900.0])
    assert driver.ui.valueLabel.text == nothing


def test_installing_is_asked_for_before_a_worker_starts(driver, monkeypatch):
    from DiffusionFMSlicer import dependencies

    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "torch" else object())
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    assert "PyTorch is not installed" in driver.ui.messageLabel.text
    assert "extension PyTorch" in driver.ui.messageLabel.text
    assert driver.idle
    assert not driver.worker.running


def test_another_scan_is_never_under_a_former_ones_map(driver):
    from DiffusionFMSlicer import resultlist
    from DiffusionFMSlicer.scene import views

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    assert resultlist.isVisible(driver.results()["fa"])
    other = addSmallScan("other", 1)
    driver.choose(other)
    assert not any(resultlist.isVisible(node) for node in resultlist.resultNodes())
    assert views.shownLayer(other) == "background"
    assert views.overlayNode() is None


def test_newest_run_is_shown_and_the_grid_holds_one_run(driver):
    from DiffusionFMSlicer import resultlist

    driver.useFakeWorker("ok")
    scan = addSmallScan()
    driver.choose(scan)
    driver.apply()
    driver.panel.parameters.set("method", "ols")
    driver.panel.showParameters()
    driver.apply()
    runs = {node.GetAttribute("DiffusionFM.Run") for node in resultlist.resultNodes()}
    assert runs == {"dti wls", "dti ols"}
    shown = [n for n in resultlist.resultNodes() if n.IsA("vtkMRMLVolumeNode") and resultlist.isVisible(n)]
    assert {n.GetAttribute("DiffusionFM.Run") for n in shown} == {"dti ols"}
    assert {n.GetAttribute("DiffusionFM.Run") for n in driver.panel.presenter.resultsByName().values()} == {"dti ols"}
    assert all("(dti ols)" in n.GetName() for n in shown)


def test_a_map_of_colours_is_shown_without_an_overlay_of_colours(driver):
    import slicer

    from DiffusionFMSlicer.scene import views

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    found = driver.results()
    vectors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "V1")
    views.setOverlay(found["residual"], 0.5)
    views.showVolume(found["fa"])
    assert views.overlayNode() is found["residual"]
    views.showVolume(vectors)
    assert views.shownLayer(vectors) == "background"
    assert views.overlayNode() is None


def test_axes_are_the_key_of_colours_and_the_users_marker_stays(driver):
    import slicer

    from DiffusionFMSlicer.scene import views

    node = slicer.util.getNodesByClass("vtkMRMLViewNode")[0]
    node.SetOrientationMarkerType(node.OrientationMarkerTypeNone)
    views.showAxes()
    assert node.GetOrientationMarkerType() == node.OrientationMarkerTypeAxes
    node.SetOrientationMarkerType(node.OrientationMarkerTypeHuman)
    views.showAxes()
    assert node.GetOrientationMarkerType() == node.OrientationMarkerTypeHuman
