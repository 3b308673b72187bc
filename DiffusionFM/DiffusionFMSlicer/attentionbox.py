"""The panel's section for the encoder: its overlays, and attention over directions, at the crosshair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from DiffusionFMLib.errors import DiffusionFMError, NotEncodedError
from DiffusionFMLib.overlays.kinds import OVERLAYS, Overlay
from DiffusionFMSlicer import directionsplot
from DiffusionFMSlicer.directions import SENTENCE, Directions, directionsOf
from DiffusionFMSlicer.inspector import crosshairNode
from DiffusionFMSlicer.parameters import PANEL, SCAN
from DiffusionFMSlicer.queries import Queries
from DiffusionFMSlicer.scene import features, plots, results, views

CHOICES = ("feature", "block", "head", "follow")
"""Settings of this section."""

DIRECTIONS = "directions"
"""What has to be there for the plot: the attention over directions was kept."""

COMPUTE_FIRST = "Not computed yet: press Compute features."
COMPUTE_ALL = "Not computed: set Maps to all in the settings below, and press Compute features."
NOT_MADE = "This encoder does not make it of this scan."


@dataclass
class _Encoding:
    """What the worker remembers of its last encoding.

    Parameters
    ----------
    scan : str
        The node's id.
    worker : int
        Process that remembers it.
    overlays : tuple of str
        What it can be asked for.
    blocks, heads : int
    learnt : bool
        Whether it was asked for the rest of this already.
    """

    scan: str
    worker: int | None
    overlays: tuple[str, ...] = ()
    blocks: int = 0
    heads: int = 0
    learnt: bool = False


class AttentionBox:
    """The section's widgets.

    Parameters
    ----------
    ui : namespace
        The panel's widgets.
    panel : Panel
        Is asked to compute.
    queries : Queries
    """

    def __init__(self, ui: Any, panel: Any, queries: Queries) -> None:
        self._ui = ui
        self._panel = panel
        self._queries = queries
        self._encoding: _Encoding | None = None
        self._directions: Directions | None = None
        self._active = False
        self._point: tuple[float, ...] | None = None
        self._refusal = ""
        for overlay in sorted(OVERLAYS.values(), key=lambda overlay: not overlay.standard):
            title = overlay.spec.title if overlay.standard else f"{overlay.spec.title} (unproven)"
            ui.featureSelector.addItem(title, overlay.spec.name)
        for box in (ui.blockBox, ui.headBox):
            box.specialValueText = "mean of all"
        ui.encodeButton.clicked.connect(lambda *_: panel.encode())
        ui.chartButton.clicked.connect(lambda *_: self._showChart())
        ui.featuresSection.contentsCollapsed.connect(lambda *_: self._update(show=False))

    def setActive(self, active: bool) -> None:
        """Ask only while the module is shown."""
        self._active = active
        self._update(show=False)

    def refresh(self, reason: str, idle: bool) -> None:
        """Show what can be done; `reason` says why nothing can be computed."""
        ui = self._ui
        ui.encodeButton.enabled = idle and not reason
        ui.encodeButton.setToolTip(
            reason or ("Compute the encoder's features of the scan." if idle else "Another run is under way.")
        )
        overlay = self._overlay()
        known = self._remembered()
        for box, name, count in ((ui.blockBox, "block", "blocks"), (ui.headBox, "head", "heads")):
            highest = getattr(known, count) if known is not None else 0
            box.maximum = highest or PANEL[name].metadata["maximum"]
            box.enabled = overlay.of_head and highest > 0
        unproven = "" if overlay.standard else "Unproven (see the README). "
        ui.featureLabel.text = unproven + overlay.spec.description
        note = self._refusal or self._lack(overlay)
        ui.featureNote.text = note
        ui.featureNote.visible = bool(note)
        # another scan's are not shown for this one
        ui.directionsBox.visible = self._directions is not None and known is not None

    def edited(self, name: str) -> None:
        """A choice of this section was changed by the user."""
        if name in ("block", "head") and not self._overlay().of_head:
            return
        self._refusal = ""
        if name == "feature":
            scan = self._scan()
            node = features.overlayNode(scan, self._overlay().spec.name) if scan is not None else None
            if node is not None:
                self._show(node)
        self._update(show=name != "follow")

    def resultCame(self, node: Any) -> None:
        """A map came from a run: if it is the encoder's, tune it; if it is the chosen overlay, show it."""
        name = node.GetAttribute(results.NAME)
        if node.GetAttribute(results.RUN) != " ".join(results.FEATURES) or name not in OVERLAYS:
            return
        features.tune(node)
        if name == self._overlay().spec.name:
            self._show(node)

    def encoded(self, scan: Any) -> None:
        """The worker has encoded a scan, and remembers it."""
        self._refusal = ""
        self._encoding = None if scan is None else _Encoding(scan.GetID(), self._panel.runner.worker.pid)
        self._update(show=True)

    def pointMoved(self) -> None:
        """The crosshair may be elsewhere."""
        crosshair = crosshairNode()
        if crosshair is not None and self._panel.parameters.get("follow"):
            ras = tuple(crosshair.GetCrosshairRAS())
            if ras != self._point:
                self._update(show=False, moved=True)

    def forget(self) -> None:
        """Another scene is there."""
        self._queries.forget()
        self._encoding = self._directions = self._point = None
        self._refusal = ""

    # --- what there is ------------------------------------------------------------------------------------------

    def _scan(self) -> Any:
        return self._panel.parameters.reference(SCAN)

    def _overlay(self) -> Overlay:
        return OVERLAYS[self._panel.parameters.get("feature")]

    def _remembered(self) -> _Encoding | None:
        """What the worker remembers of the chosen scan."""
        known, scan = self._encoding, self._scan()
        if known is None or scan is None or known.scan != scan.GetID():
            return None
        return known if known.worker == self._panel.runner.worker.pid else None

    def _lack(self, overlay: Overlay) -> str:
        """Why an overlay cannot be shown; empty if it can."""
        scan, known = self._scan(), self._remembered()
        if scan is None or features.overlayNode(scan, overlay.spec.name) is not None:
            return ""
        if features.gridOf(scan) is None or (features.isAsked(overlay) and known is None):
            return COMPUTE_FIRST
        if features.isAsked(overlay) and known is not None and overlay.spec.name in known.overlays:
            return ""
        hadAll = known is not None and DIRECTIONS in known.overlays
        return NOT_MADE if overlay.standard or hadAll else COMPUTE_ALL

    # --- asking -------------------------------------------------------------------------------------------------

    def _update(self, show: bool, moved: bool = False) -> None:
        """Ask for what depends on the choices and the point, or on the point alone if that is what changed.

        `show` brings the answer into the views.
        """
        known, scan = self._remembered(), self._scan()
        if known is None or not self._active or self._ui.featuresSection.collapsed:
            return
        if not known.learnt:
            self._ask({"what": "encoding"}, lambda answer: self._learn(known, answer))
            return
        overlay, grid = self._overlay(), features.gridOf(scan)
        isOfPoint = overlay.of_point or DIRECTIONS in known.overlays
        ras = features.point(grid) if isOfPoint and grid is not None else None
        ijk = views.voxelAt(grid, ras) if ras is not None else None
        self._point = ras
        body = {"ijk": list(ijk) if ijk is not None else None, **self._of()}
        isWanted = ijk is not None if overlay.of_point else overlay.of_head and not moved
        if isWanted and overlay.spec.name in known.overlays:
            asked = {"what": "overlay", "overlay": overlay.spec.name, **body}
            self._ask(asked, lambda answer: self._showAnswer(scan, overlay, answer, show))
        if ijk is not None and ras is not None and DIRECTIONS in known.overlays:
            self._ask({"what": "directions", **body}, lambda answer: self._showDirections(scan, ras, answer))

    def _of(self) -> dict[str, int | None]:
        """Block and head; None, the mean of all, where the overlay has none."""
        values = {name: self._panel.parameters.get(name) for name in ("block", "head")}
        return {name: value - 1 if value and self._overlay().of_head else None for name, value in values.items()}

    def _ask(self, body: dict[str, Any], onAnswer: Callable[[dict[str, Any]], None]) -> None:
        self._queries.ask(body, onAnswer, self._refused)

    def _refused(self, message: str, code: str) -> None:
        if code == NotEncodedError.code:
            # the worker has read another scan meanwhile, or this one with another mask
            self._encoding, message = None, ""
        self._refusal = message
        self._panel.refresh()

    def _learn(self, known: _Encoding, answer: dict[str, Any]) -> None:
        if not answer["encoded"]:
            self._encoding = None
        known.learnt = True
        known.overlays = tuple(answer["overlays"])
        known.blocks, known.heads = answer["blocks"], answer["heads"]
        self._panel.refresh()
        self._update(show=True)

    def _showAnswer(self, scan: Any, overlay: Overlay, answer: dict[str, Any], show: bool) -> None:
        if scan.GetScene() is None or scan is not self._scan():
            return
        isNew = features.overlayNode(scan, overlay.spec.name) is None
        node = features.updateOverlay(scan, overlay, answer)
        if (show or isNew) and overlay is self._overlay():
            self._show(node)
        self._agreed()

    def _showDirections(self, scan: Any, ras: tuple[float, float, float], answer: dict[str, Any]) -> None:
        if scan.GetScene() is None or scan is not self._scan():
            return
        try:
            self._directions = directionsOf(answer, features.mainDirection(scan, ras))
        except DiffusionFMError as error:
            self._refused(error.message, error.code)
            return
        ui = self._ui
        ui.directionsBox.visible = True
        label = ui.featureLabel
        picture = directionsplot.draw(self._directions, label.width, label.palette, label.devicePixelRatioF())
        ui.directionsPlot.setPixmap(picture)
        ui.directionsLabel.text = SENTENCE
        plots.updateChart(self._directions)
        self._agreed()

    def _agreed(self) -> None:
        if self._refusal:
            self._refusal = ""
            self._panel.refresh()

    # --- showing ------------------------------------------------------------------------------------------------

    def _show(self, node: Any) -> None:
        views.setOverlay(node, self._ui.opacitySlider.value)
        self._panel.results.refresh()

    def _showChart(self) -> None:
        if self._directions is not None:
            plots.showChart(self._directions)
