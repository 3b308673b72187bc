"""The generative prior in the module, with the real worker: beside the conventional fit, and compared with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from module_driver import Driver
from worker_client import write_small_scan

from DiffusionFMLib.maps import with_prior_maps
from DiffusionFMLib.physics import DTI, METHODS

PATIENCE = 120.0


@pytest.fixture
def fitted(driver: Driver, tmp_path: Path) -> Driver:
    """The module after Apply with the method prior."""
    scan = write_small_scan(tmp_path / "scan")
    driver.useRealWorker()
    driver.panel.open(str(scan))
    driver.until(lambda: driver.idle, PATIENCE)
    driver.spin()
    assert not driver.ui.compareButton.isVisibleTo(driver.widget.parent)
    selector = driver.ui.methodSelector
    selector.currentIndex = selector.findData("prior")
    driver.apply(PATIENCE)
    assert not driver.panel.lastError, driver.ui.messageLabel.text
    return driver


def byRun() -> dict[tuple[str, str], object]:
    from DiffusionFMSlicer.scene.results import NAME, RUN, resultNodes

    return {(node.GetAttribute(RUN), node.GetAttribute(NAME)): node for node in resultNodes()}


def test_both_runs_are_in_the_scene_and_the_priors_is_shown(fitted):
    from DiffusionFMSlicer.scene.views import compositeNodes

    found = byRun()
    conventional = [("dti wls", spec.name) for spec in METHODS["wls"].map_specs(DTI(), False)]
    assert list(found) == conventional + [("dti prior", spec.name) for spec in with_prior_maps(DTI.map_specs)]
    for composite in compositeNodes():
        assert composite.GetBackgroundVolumeID() == found["dti prior", "fa"].GetID()
        assert composite.GetForegroundVolumeID() == found["dti prior", "colorfa"].GetID()
    offered = {fitted.ui.overlaySelector.itemData(i) for i in range(fitted.ui.overlaySelector.count)}
    sure = ("fa_sd", "md_sd", "datafraction", "disagreement")
    assert {found["dti prior", name].GetID() for name in sure} <= offered
    display = found["dti prior", "fa_sd"].GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((0.0, 0.2))
    assert "inferno" in display.GetColorNode().GetName().lower()


def test_comparison_shows_both_and_the_uncertainty_in_linked_slices(fitted):
    import slicer

    from DiffusionFMSlicer.scene.views import compositeNodes

    assert fitted.ui.compareButton.isVisibleTo(fitted.widget.parent)
    fitted.ui.compareButton.click()
    fitted.spin()
    found = byRun()
    expected = {
        "Map1": ("dti wls", "fa"), "Map2": ("dti prior", "fa"), "Map3": ("dti prior", "fa_sd"),
        "Map4": ("dti wls", "md"), "Map5": ("dti prior", "md"), "Map6": ("dti prior", "disagreement"),
    }  # fmt: skip
    for view, key in expected.items():
        (composite,) = compositeNodes((view,))
        assert composite.GetBackgroundVolumeID() == found[key].GetID(), view
        assert not composite.GetForegroundVolumeID()
        assert composite.GetLinkedControl()
    slices = {n.GetLayoutName(): n for n in slicer.util.getNodesByClass("vtkMRMLSliceNode")}
    assert len({slices[view].GetViewGroup() for view in expected}) == 1
    assert all(slices[view].IsMappedInLayout() for view in expected)
    offsets = {round(slices[view].GetSliceOffset(), 3) for view in expected}
    assert len(offsets) == 1
    # there is nothing to compare without both
    slicer.mrmlScene.RemoveNode(found["dti wls", "md"])
    fitted.panel.refresh()
    assert not fitted.ui.compareButton.isVisibleTo(fitted.widget.parent)
