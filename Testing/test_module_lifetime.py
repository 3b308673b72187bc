"""What outlives what: scene close, save and reopen, reload, quitting, import without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from module_driver import AFFINE, MODULE, addSmallScan, smallScan
from test_module_panel import jobFolders
from test_module_process import gone


def test_parameters_are_those_of_the_settings_and_are_validated(driver):
    import pytest

    from DiffusionFMLib.errors import SettingsError
    from DiffusionFMLib.settings import FitSettings, TrackSettings
    from DiffusionFMSlicer.parameters import PANEL, PanelSettings

    parameters = driver.panel.parameters
    assert {name: parameters.get(name) for name in PANEL} == vars(PanelSettings())
    with pytest.raises(SettingsError, match="expected 0 to 1"):
        parameters.set("stop_fa", 2.0)
    parameters.node.SetParameter("stop_fa", "from another version")
    assert parameters.get("stop_fa") == PANEL["stop_fa"].default
    assert type(parameters.settings(dwi="a.npy")) is FitSettings
    parameters.set("tracts", True)
    parameters.set("seed", 7)
    assert parameters.settings(dwi="a.npy") == TrackSettings(dwi="a.npy", seed=7)


def test_every_setting_of_a_job_can_be_reached_in_the_panel(driver):
    from dataclasses import fields

    from DiffusionFMLib.settings import TrackSettings
    from DiffusionFMSlicer.parameters import FROM_SCENE

    bound = set(driver.panel.form._widgets)
    assert {f.name for f in fields(TrackSettings)} - set(FROM_SCENE) <= bound


def test_scene_close_while_running_cancels_and_forgets(driver):
    import slicer

    driver.useFakeWorker("slow")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    driver.until(lambda: driver.ui.progressBar.value > 0)
    slicer.mrmlScene.Clear(0)
    driver.until(lambda: driver.idle, 4)
    assert not driver.results()
    assert not jobFolders()
    assert driver.ui.factsLabel.text == ""
    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.apply()
    assert "fa" in driver.results()


def test_scene_close_while_results_come_in_drops_them(driver):
    import slicer

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    driver.until(lambda: "fa" in driver.results())
    slicer.mrmlScene.Clear(0)
    driver.until(lambda: driver.idle, 4)
    driver.spin(0.3)
    assert not driver.results()


def test_saved_scene_brings_back_results_and_parameters(driver, tmp_path):
    import slicer

    from DiffusionFMSlicer.scene.views import valueAt

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.panel.form.widget("method").currentIndex = driver.panel.form.widget("method").findData("ols")
    driver.ui.tractsCheck.checked = True
    driver.panel.form.widget("seed").value = 11
    driver.apply()
    titles = [name.text for _, _, name in driver.panel.results._rows]
    points = slicer.util.arrayFromModelPoints(driver.results()["tracts"]).copy()
    file = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(file))
    slicer.mrmlScene.Clear(0)
    driver.spin()
    assert driver.panel.parameters.get("method") == "wls"
    slicer.util.loadScene(str(file))
    driver.spin(0.4)
    parameters = driver.panel.parameters
    assert (parameters.get("method"), parameters.get("seed"), parameters.get("tracts")) == ("ols", 11, True)
    assert driver.ui.tractsCheck.checked
    scan = parameters.reference("Scan")
    assert scan.GetName() == "scan"
    assert driver.ui.scanSelector.currentNode() is scan
    assert [name.text for _, _, name in driver.panel.results._rows] == titles
    found = driver.results()
    # Slicer's reader may reverse an axis, and says so in the volume's matrix: what counts is what lies where
    for ijk in np.ndindex(9, 8, 7):
        place = tuple((AFFINE @ [*ijk, 1])[:3])
        assert valueAt(found["fa"], place) == np.float32(smallScan()[0][ijk[2], ijk[1], ijk[0], 1])
    np.testing.assert_allclose(slicer.util.arrayFromModelPoints(found["tracts"]), points, atol=1e-4)
    assert found["md"].GetDisplayNode().GetWindowLevelMax() == 3e-3
    # a further run finds its own results in the reopened scene
    driver.apply()
    assert all(driver.results()[name] is node for name, node in found.items())


def test_tubes_come_back_with_a_saved_scene(driver, tmp_path):
    import slicer

    driver.useFakeWorker("ok")
    driver.choose(addSmallScan())
    driver.ui.tractsCheck.checked = True
    driver.ui.tubesCheck.checked = True
    driver.apply()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(0)
    driver.spin()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    driver.spin(0.4)
    tracts = driver.results()["tracts"]
    assert not tracts.GetDisplayNode().GetVisibility3D()
    tubes = tracts.GetNodeReference("DiffusionFM.Tubes")
    assert tubes.GetDisplayNode().GetVisibility()
    assert tubes.GetPolyData().GetNumberOfPoints() > 0


def test_reload_ends_the_worker_and_keeps_the_results(driver):
    import slicer

    driver.useFakeWorker("slow")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    driver.until(lambda: driver.ui.progressBar.value > 0)
    pid = driver.worker.pid
    driver.widget.onReload()
    assert gone(pid)
    driver.widget = slicer.modules.DiffusionFMWidget
    driver.spin()
    assert driver.idle
    assert driver.ui.scanSelector.currentNode().GetName() == "scan"
    driver.useFakeWorker("ok")
    driver.apply()
    assert "fa" in driver.results()


def test_reload_leaves_no_widget_behind(driver):
    import slicer

    def widgets() -> int:
        slicer.modules.DiffusionFMWidget.onReload()
        driver.spin(0.05)
        return len(slicer.app.allWidgets())

    assert widgets() == widgets()


def test_cleanup_ends_the_worker_and_its_folder(driver):
    driver.useFakeWorker("slow")
    driver.choose(addSmallScan())
    driver.ui.applyButton.click()
    driver.until(lambda: driver.worker.pid)
    pid = driver.worker.pid
    driver.widget.cleanup()
    assert gone(pid)
    assert not jobFolders()
    driver.spin(0.3)


def test_job_folders_are_private_and_those_of_dead_processes_go(tmp_path, monkeypatch):
    from DiffusionFMSlicer.jobfolder import createJobFolder, removeStale

    monkeypatch.setenv("DIFFUSIONFM_CACHE", str(tmp_path))
    mine = createJobFolder()
    if os.name != "nt":
        assert mine.stat().st_mode & 0o777 == 0o700
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = mine.with_name(mine.name.replace(str(os.getpid()), str(dead.pid), 1))
    # a process of another computer that shares the home folder may well be alive
    elsewhere = mine.with_name(f"{dead.pid}-other_computer-x")
    for folder in (stale, elsewhere):
        folder.mkdir()
    removeStale()
    assert mine.exists()
    assert elsewhere.exists()
    assert not stale.exists()


def test_module_imports_neither_torch_nor_the_readers():
    code = (
        "import sys; from EmbeddedSlicer import host; host.start(); import slicer;"
        f"slicer.app.moduleManager().loadScriptedModule({str(MODULE)!r});"
        "slicer.modules.diffusionfm.widgetRepresentation();"
        "print([m for m in ('torch', 'nibabel', 'dipy', 'trx') if m in sys.modules])"
    )
    root = MODULE.parent.parent
    path = os.pathsep.join(map(str, (root / "Testing", root)))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert ran.stdout.strip().splitlines()[-1:] == ["[]"], ran.stderr[-2000:]
