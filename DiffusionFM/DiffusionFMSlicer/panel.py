"""The panel: what the user sees and presses. What it makes happen is in `runner`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Progress
from DiffusionFMLib.physics import MODELS, TRACKED
from DiffusionFMLib.settings import FitSettings
from DiffusionFMSlicer import attentionbox, inspector, resultlist
from DiffusionFMSlicer.dependencies import ensurePackages
from DiffusionFMSlicer.form import Form, label
from DiffusionFMSlicer.listener import Outcome, State
from DiffusionFMSlicer.parameters import (
    MASK,
    PANEL,
    SCAN,
    SEED_MASK,
    Parameters,
    advancedFields,
    encodeFields,
    tractFields,
)
from DiffusionFMSlicer.presenter import Presenter
from DiffusionFMSlicer.runner import Runner
from DiffusionFMSlicer.scanbox import ScanBox
from DiffusionFMSlicer.scene import inputs
from DiffusionFMSlicer.scene.results import NAME

_UI_SETTINGS = {
    "bval": "bvalEdit", "bvec": "bvecEdit", "model": "modelSelector", "method": "methodSelector", "out": "outEdit",
    "device": "deviceSelector", "tracts": "tractsCheck", "tubes": "tubesCheck", "feature": "featureSelector",
    "block": "blockBox", "head": "headBox", "follow": "followCheck",
}  # fmt: skip


class Panel:
    """Binds the widgets of the .ui file to parameters and runner; a `Listener`.

    Parameters
    ----------
    ui : namespace
        Widgets by name.
    parameters : Parameters
    resources : Path
        The module's resource folder.
    worker : callable, optional
        See `Runner`.
    """

    def __init__(self, ui: Any, parameters: Parameters, resources: Path, **worker: Any) -> None:
        self.ui = ui
        self.parameters = parameters
        self.runner = Runner(self, qt.QTimer.singleShot, **worker)
        self.lastError = ""
        self._resources = resources
        self._nothingPointedAt = ui.valueLabel.text
        self._device = ""
        self._warning = ""
        self._updating = False
        self.presenter = Presenter(lambda: self.parameters.reference(SCAN), lambda: ui.opacitySlider.value)
        # its lists are filled before they are bound
        self.attention = attentionbox.AttentionBox(ui, self, self.runner.queries)
        self.form = Form(self._onEdited)
        for name, widget in _UI_SETTINGS.items():
            self.form.bind(name, getattr(ui, widget))
        self.form.addRows(ui.advancedForm, advancedFields(FitSettings))
        self.form.addRows(ui.tractsForm, tractFields())
        self.form.addRows(ui.featuresForm, encodeFields())
        self.scanBox = ScanBox(ui, self)
        self.results = resultlist.ResultList(ui, resources / "Icons", self.showValues)
        for role, selector in self._selectors().items():
            selector.currentNodeChanged.connect(lambda *_, role=role: self._onNodeChosen(role))
        ui.applyButton.clicked.connect(lambda *_: self.apply())
        ui.cancelButton.clicked.connect(lambda *_: self.cancel())
        ui.logButton.clicked.connect(lambda *_: self.showLog())
        ui.fourUpButton.clicked.connect(lambda *_: self.presenter.showFourUp())
        ui.mapsButton.clicked.connect(lambda *_: self.presenter.showMapsGrid())
        ui.compareButton.clicked.connect(lambda *_: self.presenter.showComparison())
        ui.centreButton.clicked.connect(lambda *_: self.presenter.centre())
        self.showParameters()

    # --- parameters and widgets -------------------------------------------------------------------------------

    def setParameters(self, parameters: Parameters) -> None:
        """Show another parameter node: after a scene was closed or loaded."""
        self.parameters = parameters
        self.showParameters()

    def forgetScene(self, parameters: Parameters) -> None:
        """Another scene is there: show its parameters and results."""
        self.scanBox.forget()
        self.presenter.forget()
        self.attention.forget()
        self.ui.progressBar.value = 0
        self.ui.progressBar.format = ""
        self._clearMessages()
        self.setParameters(parameters)
        if parameters.get("tubes"):
            # a scene is saved without them, but with the lines hidden that they stand for
            self.presenter.showTubes(True)

    def showParameters(self) -> None:
        """Make all widgets agree with the parameters and the scene."""
        self._updating = True
        try:
            self.form.show(self.parameters)
            for role, selector in self._selectors().items():
                selector.setCurrentNode(self.parameters.reference(role))
        finally:
            self._updating = False
        self.refresh()

    def refresh(self) -> None:
        """Make what depends on the scan and on the runner's state agree with them."""
        scan = self.parameters.reference(SCAN)
        gradients = self.scanBox.refresh(scan, self.parameters.get("bval"), self.parameters.get("bvec"))
        self._enableModels(gradients)
        reason = self._whyNot(scan, gradients)
        idle = self.runner.state is State.IDLE
        self.ui.applyButton.enabled = idle and not reason
        self.ui.applyButton.setToolTip(reason or "Compute the maps in the background; they appear here when ready.")
        self.ui.cancelButton.enabled = self.runner.state is State.RUNNING
        self.ui.openButton.enabled = idle
        self.ui.compareButton.visible = bool(self.presenter.comparison())
        self.results.refresh()
        self.attention.refresh(self._whyNotAtAll(scan, gradients), idle)

    def _selectors(self) -> dict[str, Any]:
        return {SCAN: self.ui.scanSelector, MASK: self.ui.maskSelector, SEED_MASK: self.ui.seedSelector}

    def _onEdited(self, name: str, value: Any) -> None:
        try:
            self.parameters.set(name, value)
        except DiffusionFMError as error:
            self.showError(error.message, error.hint)
        model = MODELS[self.parameters.get("model")]
        if self.parameters.get("method") not in model.methods:
            self.parameters.set("method", model.methods[0])
        if name == "model":
            # a method that was not chosen is the model's own
            self.form.show(self.parameters)
        if name == "tubes":
            self.presenter.showTubes(value)
        if name in ("bval", "bvec"):
            self.scanBox.forgetScan(self.parameters.reference(SCAN))
        if name in attentionbox.CHOICES:
            self.attention.edited(name)
        self.refresh()

    def _onNodeChosen(self, role: str) -> None:
        if self._updating:
            return
        node = self._selectors()[role].currentNode()
        if node is self.parameters.reference(role):
            return
        self.parameters.setReference(role, node)
        if role == SCAN:
            # files that were given for another scan must not be taken for this one's
            file = inputs.niftiFile(node) if node is not None and inputs.isScan(node) else None
            found = inputs.gradientFiles(file) if file else {}
            for name in ("bval", "bvec"):
                self.parameters.set(name, found.get(name, ""))
            self._clearMessages()
            self.presenter.scanChosen(node)
        self.showParameters()

    def _enableModels(self, gradients: inputs.Gradients | None) -> None:
        """Grey out the models that the protocol cannot feed, and say why; none while the gradients are unknown."""
        unsupported = self.scanBox.unsupported(gradients)
        for index, model in enumerate(MODELS.values()):
            reasons = list(unsupported.get(model.name, {}).values())
            reason = reasons[0] if reasons and None not in reasons else None
            setItemEnabled(self.ui.modelSelector, index, not reason, reason or model.title)
            if self.ui.modelSelector.itemText(index) != model.title:
                self.ui.modelSelector.setItemText(index, model.title)
        model = MODELS[self.parameters.get("model")]
        for index in range(self.ui.methodSelector.count):
            method = self.ui.methodSelector.itemData(index)
            other = "" if method in model.methods else f"Not for {model.title}."
            reason = other or unsupported.get(model.name, {}).get(method)
            setItemEnabled(self.ui.methodSelector, index, not reason, reason or "")
        tracked = model.name in TRACKED
        self.ui.tractsCheck.enabled = tracked
        self.ui.tractsCheck.setToolTip(
            PANEL["tracts"].metadata["help"] if tracked else "Tracts follow the tensor model."
        )

    def _whyNotAtAll(self, scan: Any, gradients: inputs.Gradients | None) -> str:
        """Why nothing can be computed of a scan; empty if something can."""
        if scan is None:
            return "Choose or open a scan first."
        if not inputs.isScan(scan):
            return f"{scan.GetName()} is not a diffusion scan: it holds a single volume, or none."
        if gradients is None and not (self.parameters.get("bval") and self.parameters.get("bvec")):
            return "Give the bval and bvec files of this scan."
        return ""

    def _whyNot(self, scan: Any, gradients: inputs.Gradients | None) -> str:
        """Why the chosen model cannot be fitted to a scan; empty if it can."""
        if problem := self._whyNotAtAll(scan, gradients):
            return problem
        reasons = self.scanBox.unsupported(gradients).get(self.parameters.get("model"), {})
        reason = reasons.get(self.parameters.get("method"))
        able = [label(method) for method, problem in reasons.items() if not problem]
        return f"{reason} Choose the method {' or '.join(able)}." if reason and able else reason or ""

    # --- actions ----------------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Compute what the panel says."""
        self._clearMessages()
        p = self.parameters
        self.presenter.runBegins(f"{p.get('model')} {p.get('method')}")
        self._begin(
            lambda: self.runner.apply(
                p.reference(SCAN), p.settings, p.reference(MASK), p.reference(SEED_MASK) if p.get("tracts") else None
            )
        )

    def encode(self) -> None:
        """Compute the encoder's features."""
        self._clearMessages()
        p = self.parameters
        self._begin(lambda: self.runner.apply(p.reference(SCAN), p.encodeSettings, p.reference(MASK)))

    def open(self, path: str, series: str = "") -> None:
        """Open a scan from a file or a DICOM folder."""
        self._clearMessages()
        self.scanBox.opening(path)
        self._begin(lambda: self.runner.open({"dwi": str(path), **({"series": series} if series else {})}))

    def check(self) -> None:
        """Compute the quality summary of the chosen scan."""
        p = self.parameters
        files = {name: p.get(name) for name in ("bval", "bvec") if p.get(name)}
        self._begin(lambda: self.runner.check(p.reference(SCAN), files))

    def cancel(self) -> None:
        """Stop what runs."""
        self.runner.cancel()
        self.ui.progressBar.format = "Cancelling..."
        self.refresh()

    def _begin(self, request: Any) -> None:
        try:
            ensurePackages(self._resources / "requirements.txt")
            request()
        except DiffusionFMError as error:
            self.showError(error.message, error.hint)
        else:
            self._device = ""
            self.ui.progressBar.value = 0
            self.ui.progressBar.format = "Starting..."
        self.refresh()

    # --- what the runner tells --------------------------------------------------------------------------------

    def onStarted(self, device: str) -> None:
        """See `Listener`."""
        self._device = device
        self.ui.progressBar.format = "Started"

    def onProgress(self, progress: Progress) -> None:
        """See `Listener`."""
        self.ui.progressBar.value = round(progress.fraction * self.ui.progressBar.maximum)
        left = f", {duration(progress.eta)} left" if progress.eta is not None else ""
        self.ui.progressBar.format = f"{progress.stage}{left}"

    def onWarning(self, message: str) -> None:
        """See `Listener`."""
        self._warning = message
        self._showMessage(message, "warning")

    def onNode(self, node: Any) -> None:
        """See `Listener`."""
        if inputs.isScan(node) and not node.GetAttribute(NAME):
            self.parameters.setReference(SCAN, node)
            self.presenter.scanOpened(node)
            self.showParameters()
            return
        self.presenter.resultCame(node, tubes=self.parameters.get("tubes"))
        self.attention.resultCame(node)
        self.results.refresh()

    def onAnswer(self, job: str, scan: Any, answer: dict[str, Any]) -> None:
        """See `Listener`."""
        if job == "encode":
            self.attention.encoded(scan)
        quality = answer.get("quality")
        self.scanBox.setQuality(scan, quality, answer.get("methods"))
        if quality and quality["light"] != "green" and quality["findings"]:
            self.onWarning(quality["findings"][0])
        self.refresh()

    def onEnded(self, job: str, outcome: Outcome, message: str, hint: str, choices: dict[str, str]) -> None:
        """See `Listener`."""
        bar = self.ui.progressBar
        bar.value = bar.maximum if outcome is Outcome.FINISHED else 0
        where = f" on the {self._device.upper()}" if self._device else ""
        bar.format = {Outcome.FINISHED: f"Done{where}", Outcome.CANCELLED: "Cancelled", Outcome.FAILED: "Failed"}[
            outcome
        ]
        if outcome is Outcome.FAILED:
            self.showError(message, hint)
            self.scanBox.offerSeries(choices)
        if self.ui.logButton.checked:
            self.showLog()
        self.refresh()

    # --- messages ---------------------------------------------------------------------------------------------

    def showError(self, message: str, hint: str) -> None:
        """Show an error and what to do about it, below the progress bar."""
        self.lastError = message
        self._showMessage(f"{message} {hint}".strip(), "error")

    def showLog(self) -> None:
        """Show or hide what the worker wrote."""
        self.ui.logText.visible = self.ui.logButton.checked
        self.ui.logText.setPlainText("\n".join(self.runner.worker.log) or "The background process wrote nothing.")

    def showValues(self) -> None:
        """Show the results' values under the mouse."""
        position = inspector.cursorPosition()
        self.ui.valueLabel.text = (inspector.describe(position) if position else "") or self._nothingPointedAt

    def _clearMessages(self) -> None:
        self.lastError = self._warning = ""
        self.ui.messageLabel.visible = False

    def _showMessage(self, text: str, kind: str) -> None:
        if kind == "warning" and self.lastError:
            return
        isDark = self.ui.messageLabel.palette.color(qt.QPalette.Window).lightness() < 128
        color = {"error": "#ff8a80" if isDark else "#b3261e", "warning": "#ffc14d" if isDark else "#8a5a00"}[kind]
        self.ui.messageLabel.setStyleSheet(f"color: {color};")
        self.ui.messageLabel.text = text
        self.ui.messageLabel.visible = True


def setItemEnabled(selector: Any, index: int, enabled: bool, tip: str) -> None:
    """Let an entry of a combo box be chosen, or grey it out; `tip` says why."""
    # Qt's standard model keeps an entry's flags below the first role for users; 33 is enabled and selectable
    selector.setItemData(index, 33 if enabled else 0, int(qt.Qt.UserRole) - 1)
    selector.setItemData(index, tip, int(qt.Qt.ToolTipRole))


def duration(seconds: float) -> str:
    """Remaining time as people say it: ``40 s``, ``3 min``."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
