"""The module with the real worker, on a small simulated head: the same results as the command line, and no blocking."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from module_driver import Driver

from DiffusionFMLib.cli import main

PATIENCE = 120.0


@pytest.fixture
def opened(driver: Driver, scan: Path) -> Driver:
    """The module with a scan that was opened from files by the real worker."""
    driver.useRealWorker()
    driver.panel.open(str(scan))
    driver.until(lambda: driver.idle, PATIENCE)
    assert not driver.panel.lastError, driver.ui.messageLabel.text
    driver.spin()
    return driver


@pytest.fixture(scope="module")
def by_command(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the command line for the same scan."""
    out = tmp_path_factory.mktemp("cli")
    assert main(["track", str(scan), "--out", str(out), "--min-length", "10"]) == 0
    return out


def check(driver: Driver, out: Path | None = None, **settings: object) -> None:
    """Press Apply with tracts on, and wait for the results."""
    for name, value in {"tracts": True, "min_length": 10.0, "out": str(out) if out else "", **settings}.items():
        driver.panel.parameters.set(name, value)
    driver.panel.showParameters()
    driver.apply(PATIENCE)
    assert not driver.panel.lastError, driver.ui.messageLabel.text


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def image(folder: Path, name: str) -> np.ndarray:
    """A map of the command line as Slicer holds it: K, J, I."""
    import nibabel

    path = next(folder.glob(f"*_param-{name}_*.nii.gz"))
    return np.swapaxes(np.asarray(nibabel.load(path).dataobj, np.float32), 0, 2)


def test_opened_scan_is_the_files(opened, scan):
    import nibabel
    import slicer

    from DiffusionFMSlicer.scene.geometry import affineOf
    from DiffusionFMSlicer.scene.inputs import gradientsOf

    node = opened.panel.parameters.reference("Scan")
    file = nibabel.load(scan)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), np.swapaxes(file.get_fdata(), 0, 2))
    np.testing.assert_allclose(affineOf(node), file.affine, atol=1e-6)
    # the fixture's file has its x the FSL way
    bvecs = np.loadtxt(scan.parent / "scan.bvec").T * [-1, 1, 1]
    np.testing.assert_allclose(gradientsOf(node).bvecs, bvecs, atol=1e-6)
    assert opened.ui.factsLabel.text.startswith("24x24x12")
    assert opened.ui.applyButton.enabled


def test_apply_writes_the_bytes_of_the_command_line(opened, by_command, tmp_path):
    check(opened, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(by_command)


@pytest.mark.parametrize("source", ["files", "scene"])
def test_scene_holds_the_arrays_of_the_command_line(opened, by_command, source):
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    from DiffusionFMSlicer.scene.inputs import unchangedSource

    node = opened.panel.parameters.reference("Scan")
    if source == "scene":
        slicer.util.arrayFromVolumeModified(node)
    assert (unchangedSource(node) is None) == (source == "scene")
    check(opened)
    found = opened.results()
    for name in ("fa", "md", "ad", "rd", "s0", "residual", "v1"):
        expected = image(by_command, name)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(slicer.util.arrayFromVolume(found[name]), expected, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(found["status"]), image(by_command, "status"))
    tensor = vtk_to_numpy(found["tensor"].GetImageData().GetPointData().GetTensors()).reshape(12, 24, 24, 9)
    np.testing.assert_allclose(tensor[..., [0, 1, 2, 4, 5, 8]], image(by_command, "tensor"), rtol=1e-6, atol=2e-9)
    color = slicer.util.arrayFromVolume(found["colorfa"]) / 255
    np.testing.assert_allclose(color, np.clip(image(by_command, "colorfa"), 0, 1), atol=0.5 / 255 + 1e-6)


def test_tracts_are_those_of_the_command_line_in_ras(opened, by_command):
    import slicer
    from trx.trx_file_memmap import load

    check(opened)
    file = load(str(next(by_command.glob("*.trx"))))
    points = np.array(file.streamlines._data)
    file.close()
    np.testing.assert_allclose(slicer.util.arrayFromModelPoints(opened.results()["tracts"]), points, atol=1e-3)
    assert opened.results()["tracts"].GetPolyData().GetNumberOfLines() > 20
    # axes are the key to the colours
    for view in slicer.util.getNodesByClass("vtkMRMLViewNode"):
        assert view.GetOrientationMarkerType() == view.OrientationMarkerTypeAxes


def test_nothing_blocks_the_event_loop_while_the_worker_computes(opened):
    check(opened)
    seconds = opened.timeCallbacks()
    check(opened, seed=1)
    assert len(seconds) > 20
    assert max(seconds) < 0.2


def test_killed_worker_is_an_error_and_the_next_apply_works(opened):
    opened.panel.parameters.set("tracts", True)
    opened.panel.parameters.set("seed_density", 64.0)
    opened.panel.parameters.set("seed_fa", 0.0)
    opened.panel.parameters.set("max_count", 0)
    opened.panel.showParameters()
    opened.ui.applyButton.click()
    opened.until(lambda: "racking" in opened.ui.progressBar.format, PATIENCE)
    os.kill(opened.worker.pid, signal.SIGKILL)
    opened.until(lambda: opened.idle)
    assert "ended unexpectedly (signal 9)" in opened.ui.messageLabel.text
    check(opened, seed_density=1.0, seed_fa=0.25)
    assert {"fa", "tracts"} <= set(opened.results())


def test_cancel_while_tracking_ends_within_four_seconds_and_leaves_no_half_file(opened, tmp_path):
    out = tmp_path / "out"
    for name, value in {"tracts": True, "seed_density": 64.0, "seed_fa": 0.0, "max_count": 0, "out": str(out)}.items():
        opened.panel.parameters.set(name, value)
    opened.panel.showParameters()
    opened.ui.applyButton.click()
    opened.until(lambda: "racking" in opened.ui.progressBar.format, PATIENCE)
    begun = time.monotonic()
    opened.ui.cancelButton.click()
    opened.until(lambda: opened.idle)
    assert time.monotonic() - begun < 4
    assert opened.ui.progressBar.format == "Cancelled"
    assert "fa" in opened.results()
    assert "tracts" not in opened.results()
    assert {p.suffix for p in out.iterdir()} <= {".gz", ".json"}


def test_missing_gradients_are_an_error_in_the_panel(driver, scan, tmp_path):
    driver.useRealWorker()
    lonely = tmp_path / "lonely.nii.gz"
    lonely.write_bytes(scan.read_bytes())
    driver.panel.open(str(lonely))
    driver.until(lambda: driver.idle, PATIENCE)
    assert "lonely" in driver.ui.messageLabel.text
    assert driver.ui.progressBar.format == "Failed"


def test_opened_scan_does_not_take_another_scans_gradient_files(opened, tmp_path):
    # as they are left behind by a multi-volume that needed them
    for name in ("bval", "bvec"):
        (tmp_path / f"other.{name}").write_text("0 1 2")
        opened.panel.parameters.set(name, str(tmp_path / f"other.{name}"))
    check(opened, tracts=False)
    assert "fa" in opened.results()


def test_full_disk_at_export_is_an_error_in_the_panel(opened, monkeypatch):
    import errno

    import slicer

    from DiffusionFMSlicer.scene import inputs

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    slicer.util.arrayFromVolumeModified(opened.panel.parameters.reference("Scan"))
    monkeypatch.setattr(inputs, "exportScan", full)
    opened.ui.applyButton.click()
    assert "No space left" in opened.ui.messageLabel.text
    assert opened.idle


def test_series_of_a_dicom_folder_are_offered(driver):
    from DiffusionFMSlicer.listener import Outcome

    driver.panel.scanBox.opening("/scans/study")
    driver.panel.onEnded("info", Outcome.FAILED, "study holds 2 series.", "Choose one.", {"4": "DTI AP", "7": "DTI PA"})
    selector = driver.ui.seriesSelector
    assert [selector.itemText(i) for i in range(selector.count)][1:] == ["4: DTI AP", "7: DTI PA"]
    asked: list[tuple[str, str]] = []
    driver.panel.open = lambda path, series="": asked.append((path, series))
    selector.currentIndex = 2
    assert asked == [("/scans/study", "7")]
