"""The panel's section for the scan: opening, facts, traffic light, gradient files."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import qt
import slicer

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.physics import MODELS, support
from DiffusionFMSlicer.scene import inputs

LIGHTS = {"green": "#2e9e44", "amber": "#e0a100", "red": "#d0342c", "": "#9a9a9a"}
FILES = "Diffusion scans (*.nii *.nii.gz *.nrrd *.nhdr);;All files (*)"


class ScanBox:
    """The scan section's widgets.

    Parameters
    ----------
    ui : namespace
        The panel's widgets.
    panel : Panel
        Is asked to open and check scans.
    """

    def __init__(self, ui: Any, panel: Any) -> None:
        self._ui = ui
        self._panel = panel
        self._quality: dict[str, dict[str, Any]] = {}
        self._methods: dict[str, dict[str, dict[str, str | None]]] = {}
        self._folder = ""
        self._shown = ""
        self._gradients: tuple[Any, inputs.Gradients | None] = (None, None)
        menu = qt.QMenu(ui.openButton)
        menu.addAction("Scan file...").triggered.connect(lambda *_: self._openFile())
        menu.addAction("DICOM folder...").triggered.connect(lambda *_: self._openFolder())
        ui.openButton.setMenu(menu)
        # PythonQt does not keep the menu alive by itself
        self._menu = menu
        ui.qualityButton.clicked.connect(lambda *_: self._unfold())
        ui.seriesSelector.currentIndexChanged.connect(lambda *_: self._seriesChosen())

    def refresh(self, scan: Any, bval: str, bvec: str) -> inputs.Gradients | None:
        """Show a scan's facts; returns its gradients if the node carries them."""
        valid = scan is not None and inputs.isScan(scan)
        gradients = self._gradientsOf(scan) if valid else None
        self._ui.gradientFiles.visible = valid and gradients is None
        self._shown = scan.GetID() if scan is not None else ""
        quality = self._quality.get(self._shown)
        text = ""
        if valid:
            text = quality["facts"] if quality else self._facts(scan, gradients, bool(bval and bvec))
        if self._ui.factsLabel.text != text:
            self._ui.factsLabel.text = text
        light = quality["light"] if quality else ""
        self._ui.qualityButton.visible = valid
        self._ui.qualityButton.text = "●"
        self._ui.qualityButton.setStyleSheet(f"color: {LIGHTS.get(light, LIGHTS[''])};")
        unfolded = bool(valid and quality and self._ui.qualityButton.checked)
        self._ui.qualityLabel.visible = unfolded
        if unfolded:
            self._ui.qualityLabel.text = _sentences(quality or {})
        return gradients

    def unsupported(self, gradients: inputs.Gradients | None) -> dict[str, dict[str, str | None]]:
        """Why models cannot be fitted to the scan that is shown, or None, by model and method; empty while unknown."""
        if self._shown in self._methods:
            return self._methods[self._shown]
        if gradients is None:
            return {}
        try:
            return support(gradients.table())
        except DiffusionFMError as error:
            return {model.name: dict.fromkeys(model.methods, error.message) for model in MODELS.values()}

    def setQuality(
        self, scan: Any, quality: dict[str, Any] | None, methods: dict[str, dict[str, str | None]] | None
    ) -> None:
        """Remember what the worker found out about a scan."""
        if scan is None or scan.GetScene() is None:
            return
        if quality:
            self._quality[scan.GetID()] = quality
        if methods:
            self._methods[scan.GetID()] = methods

    def forgetScan(self, scan: Any) -> None:
        """Forget what was found out about a scan: its gradients are others now."""
        if scan is not None:
            self._quality.pop(scan.GetID(), None)
            self._methods.pop(scan.GetID(), None)

    def forget(self) -> None:
        """Forget all scans: the scene was closed."""
        self._quality.clear()
        self._methods.clear()
        self._gradients = (None, None)
        self._ui.seriesSelector.visible = False

    def opening(self, path: str) -> None:
        """Take note of what is being opened."""
        if path != self._folder:
            self._ui.seriesSelector.visible = False
        self._folder = path

    def offerSeries(self, series: dict[str, str]) -> None:
        """Let the user choose among the series of a DICOM folder.

        Parameters
        ----------
        series : dict
            Number to description, when the worker found several.
        """
        if not series:
            return
        selector = self._ui.seriesSelector
        selector.blockSignals(True)
        selector.clear()
        selector.addItem(f"Choose one of {len(series)} series of {Path(self._folder).name}", "")
        for number, description in series.items():
            selector.addItem(f"{number}: {description}", str(number))
        selector.blockSignals(False)
        selector.visible = True

    def _seriesChosen(self) -> None:
        number = self._ui.seriesSelector.itemData(self._ui.seriesSelector.currentIndex)
        if number:
            self._panel.open(self._folder, str(number))

    def _unfold(self) -> None:
        if self._ui.qualityButton.checked and self._shown and self._shown not in self._quality:
            self._panel.check()
        else:
            self._panel.refresh()

    def _gradientsOf(self, scan: Any) -> inputs.Gradients | None:
        # refresh runs often: a table is converted again only when its node changed
        key = (scan.GetID(), scan.GetMTime())
        if self._gradients[0] != key:
            self._gradients = (key, inputs.gradientsOf(scan))
        return self._gradients[1]

    def _facts(self, scan: Any, gradients: inputs.Gradients | None, files: bool) -> str:
        facts = inputs.facts(scan)
        if gradients is None:
            return f"{facts}, {inputs.volumeCount(scan)} volumes" + ("" if files else "; which gradients?")
        try:
            return f"{facts}, {gradients.table().summary()}"
        except DiffusionFMError as error:
            return f"{facts}. {error}"

    def _openFile(self) -> None:
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), "Open a diffusion scan", "", FILES)
        if path:
            self._panel.open(path)

    def _openFolder(self) -> None:
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), "Open a DICOM folder", "")
        if path:
            self._panel.open(path)


def _sentences(quality: dict[str, Any]) -> str:
    findings = quality.get("findings") or ["Nothing unusual was found."]
    return "<ul style='margin-left: -24px;'>" + "".join(f"<li>{escape(str(f))}</li>" for f in findings) + "</ul>"
