"""The encoder's overlays in the module, with the real worker: they lie where they should, and follow the crosshair."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from module_driver import Driver
from test_encode_job import write_encoder
from worker_client import write_small_scan

PATIENCE = 120.0


def encode(driver: Driver, folder: Path, overlays: str) -> None:
    """Compute overlays of a small simulated head by the real worker, with an encoder that learnt nothing."""
    driver.useRealWorker()
    driver.panel.open(str(write_small_scan(folder / "scan")))
    driver.until(lambda: driver.idle, PATIENCE)
    driver.spin()
    for name, value in {"encoder": str(write_encoder(folder / "encoder.safetensors")), "overlays": overlays}.items():
        driver.panel.parameters.set(name, value)
    driver.panel.showParameters()
    driver.ui.featuresSection.collapsed = False
    driver.ui.encodeButton.click()
    driver.until(lambda: driver.idle, PATIENCE)
    driver.settle()
    assert not driver.panel.lastError, driver.ui.messageLabel.text


@pytest.fixture
def really(driver: Driver, tmp_path: Path) -> Driver:
    """After all overlays were computed."""
    encode(driver, tmp_path, "all")
    return driver


def test_what_is_most_alike_to_the_crosshair_lies_under_it(really, capsys):
    import slicer

    from DiffusionFMSlicer.inspector import crosshairNode
    from DiffusionFMSlicer.scene.features import gridOf
    from DiffusionFMSlicer.scene.geometry import affineOf
    from DiffusionFMSlicer.scene.views import valueAt

    scan = really.panel.parameters.reference("Scan")
    really.chooseOverlay("similarity")
    really.ui.followCheck.checked = True
    really.settle()
    seconds = []
    for ijk in ((12, 12, 6), (8, 14, 4), (15, 9, 7)):
        ras = tuple(float(x) for x in (affineOf(gridOf(scan)) @ [*ijk, 1])[:3])
        begun = time.monotonic()
        crosshairNode().SetCrosshairRAS(*ras)
        really.until(lambda: really.panel.runner.queries._asked is None)
        seconds.append(time.monotonic() - begun)
        really.settle()
        assert not really.ui.featureNote.isVisibleTo(really.widget.parent), really.ui.featureNote.text
        node = really.results()["similarity"]
        assert valueAt(node, ras) == slicer.util.arrayFromVolume(node).max() == pytest.approx(1, abs=0.3)
    with capsys.disabled():
        print(f"\na crosshair query and its picture, with the panel: {min(seconds) * 1e3:.0f} ms")
    # outside the brain there is nothing to be like: the panel says so, and goes on at the next place
    crosshairNode().SetCrosshairRAS(*(float(x) for x in (affineOf(gridOf(scan)) @ [0, 0, 0, 1])[:3]))
    really.settle()
    assert "outside the brain" in really.ui.featureNote.text
    assert not really.panel.lastError
    crosshairNode().SetCrosshairRAS(*ras)
    really.settle()
    assert not really.ui.featureNote.isVisibleTo(really.widget.parent)


def test_maps_blocks_and_heads_of_the_real_worker_reach_the_panel(really):
    from DiffusionFMLib.encoder.checkpoint import load_encoder

    ui = really.ui
    assert {"pca", "surprise", "influence", "directions", "rollout"} <= set(really.results())
    shape = load_encoder(Path(really.panel.parameters.get("encoder")), "cpu").network.shape
    really.chooseOverlay("raw")
    assert (ui.blockBox.maximum, ui.headBox.maximum) == (shape.blocks, shape.heads)
    ui.blockBox.value = shape.blocks
    ui.headBox.value = shape.heads
    really.settle()
    assert not ui.featureNote.isVisibleTo(really.widget.parent), ui.featureNote.text
    shown = really.panel.attention._directions
    assert [len(series.angles) for series in shown.series] == [12]
    # attention and geometry both add up to 1
    assert sum(series.beyond.sum() for series in shown.series) == pytest.approx(0, abs=1e-2)
    assert ui.directionsBox.isVisibleTo(really.widget.parent)


def test_standard_overlays_make_no_plot_and_need_no_crosshair(driver, tmp_path):
    from DiffusionFMSlicer.inspector import crosshairNode

    encode(driver, tmp_path, "standard")
    crosshair, ui = crosshairNode(), driver.ui
    assert crosshair.GetCrosshairMode() == crosshair.NoCrosshair
    assert set(driver.results()) == {"pca", "rollout"}
    assert not ui.directionsBox.isVisibleTo(driver.widget.parent)
    driver.chooseOverlay("surprise")
    assert "set Maps to all" in ui.featureNote.text
    # the crosshair shows what the similarity is to
    driver.chooseOverlay("similarity")
    assert not ui.featureNote.isVisibleTo(driver.widget.parent), ui.featureNote.text
    assert crosshair.GetCrosshairMode() != crosshair.NoCrosshair
    assert any(crosshair.GetCrosshairRAS())
