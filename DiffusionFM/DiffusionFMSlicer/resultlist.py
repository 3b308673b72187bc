"""The list of results, with an eye each, and the controls of how they are shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from DiffusionFMSlicer.scene import display, tracts, views
from DiffusionFMSlicer.scene.results import NAME, RUN, SCAN, TITLE, TRACTS, UNIT, resultNodes

COLUMNS = 2
NOT_OVERLAYS = ("tensor", TRACTS, "v1", "status")


def isTracts(node: Any) -> bool:
    """Whether a result is streamlines."""
    return node.GetAttribute(NAME) == TRACTS


def isTensor(node: Any) -> bool:
    """Whether a result is a tensor volume."""
    return node.GetAttribute(NAME) == "tensor"


def isVisible(node: Any) -> bool:
    """Whether a result is shown: in a slice, as glyphs, or in 3D."""
    if isTensor(node):
        return any(glyph.GetVisibility() for glyph in display.glyphNodes(node))
    if isTracts(node):
        return bool(node.GetDisplayNode() and node.GetDisplayNode().GetVisibility())
    return bool(views.shownLayer(node))


def setVisible(node: Any, visible: bool) -> None:
    """Show or hide a result."""
    if isTensor(node):
        # Slicer draws the glyphs of volumes that the slices show
        display.setGlyphsVisible(node, visible)
        if visible:
            views.showVolume(node)
        else:
            views.replaceVolume(node, siblingOf(node, ("fa", "adc")))
    elif isTracts(node):
        tracts.setVisible(node, visible)
    elif visible:
        views.showVolume(node)
    else:
        views.hideVolume(node)


def siblingOf(node: Any, names: tuple[str, ...]) -> Any:
    """A map of the same run, the first of the names that there is, or None."""
    for other in resultNodes():
        same = other.GetAttribute(RUN) == node.GetAttribute(RUN)
        if (
            same
            and other.GetNodeReferenceID(SCAN) == node.GetNodeReferenceID(SCAN)
            and other.GetAttribute(NAME) in names
        ):
            return other
    return None


class ResultList:
    """Rows of results in a box layout.

    Parameters
    ----------
    ui : namespace
        The panel's widgets.
    icons : Path
        Folder of ``Eye.png`` and ``EyeClosed.png``.
    onChanged : callable
        Called after the user changed what is shown.
    """

    def __init__(self, ui: Any, icons: Path, onChanged: Callable[[], None]) -> None:
        self._ui = ui
        self._icons = {True: qt.QIcon(str(icons / "Eye.png")), False: qt.QIcon(str(icons / "EyeClosed.png"))}
        self._onChanged = onChanged
        self._rows: list[tuple[str, Any, Any]] = []
        self._filling = False
        self._ids: list[str] = []
        ui.overlaySelector.currentIndexChanged.connect(lambda *_: self._overlayChosen())
        ui.opacitySlider.valueChanged.connect(lambda *_: self._overlayTuned())
        ui.thresholdSlider.valueChanged.connect(lambda *_: self._overlayTuned())

    def refresh(self) -> None:
        """Make rows and eyes agree with the scene."""
        nodes = resultNodes()
        ids = [f"{node.GetID()} {node.GetName()}" for node in nodes]
        if ids != self._ids:
            self._ids = ids
            self._rebuild(nodes)
        for nodeId, eye, _ in self._rows:
            node = slicer.mrmlScene.GetNodeByID(nodeId)
            visible = node is not None and isVisible(node)
            if eye.checked != visible:
                eye.checked = visible
            eye.setIcon(self._icons[visible])
        self._showOverlay(nodes)

    def _rebuild(self, nodes: list[Any]) -> None:
        layout = self._ui.resultRowsLayout
        while layout.count():
            widget = layout.takeAt(0).widget()
            widget.hide()
            widget.deleteLater()
        self._rows = []
        groups: dict[tuple[str, str], list[Any]] = {}
        for node in nodes:
            groups.setdefault((node.GetNodeReferenceID(SCAN) or "", node.GetAttribute(RUN)), []).append(node)
        row = 0
        for (scanId, run), members in groups.items():
            scan = slicer.mrmlScene.GetNodeByID(scanId) if scanId else None
            layout.addWidget(qt.QLabel(f"{scan.GetName() if scan else 'deleted scan'}: {run}"), row, 0, 1, COLUMNS)
            row += 1
            for index, node in enumerate(members):
                layout.addWidget(self._entry(node), row + index // COLUMNS, index % COLUMNS)
            row += -(-len(members) // COLUMNS)
        self._ui.emptyLabel.visible = not nodes
        self._ui.viewControls.visible = bool(nodes)
        self._fillOverlays(nodes)

    def _entry(self, node: Any) -> Any:
        nodeId = node.GetID()
        entry = qt.QWidget()
        layout = qt.QHBoxLayout(entry)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        eye = qt.QToolButton()
        eye.autoRaise = True
        eye.checkable = True
        eye.setToolTip("Show or hide")
        eye.clicked.connect(lambda *_: self._toggle(nodeId))
        title = node.GetAttribute(TITLE)
        name = qt.QPushButton(f"{title} glyphs" if isTensor(node) else title)
        name.flat = True
        name.setStyleSheet("text-align: left; padding: 1px;")
        unit = node.GetAttribute(UNIT)
        name.setToolTip(f"Show {node.GetName()} in the views" + (f" ({unit})" if unit else ""))
        name.clicked.connect(lambda *_: self._show(nodeId))
        layout.addWidget(eye)
        layout.addWidget(name, 1)
        self._rows.append((nodeId, eye, name))
        return entry

    def _toggle(self, nodeId: str) -> None:
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            setVisible(node, not isVisible(node))
        self._changed()

    def _show(self, nodeId: str) -> None:
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            setVisible(node, True)
        self._changed()

    def _changed(self) -> None:
        self.refresh()
        self._onChanged()

    # --- overlay ----------------------------------------------------------------------------------------------

    def _fillOverlays(self, nodes: list[Any]) -> None:
        self._filling = True
        selector = self._ui.overlaySelector
        selector.clear()
        selector.addItem("none", "")
        isOneRun = len({(n.GetAttribute(RUN), n.GetNodeReferenceID(SCAN)) for n in nodes}) == 1
        for node in nodes:
            if node.GetAttribute(NAME) not in NOT_OVERLAYS:
                selector.addItem(node.GetAttribute(TITLE) if isOneRun else node.GetName(), node.GetID())
        self._filling = False

    def _showOverlay(self, nodes: list[Any]) -> None:
        shown = views.overlayNode()
        index = self._ui.overlaySelector.findData(shown.GetID()) if shown is not None else 0
        if index < 0:
            return
        self._filling = True
        if index != self._ui.overlaySelector.currentIndex:
            self._ui.overlaySelector.currentIndex = index
        if shown is not None:
            self._ui.opacitySlider.value = views.overlayOpacity()
            self._ui.thresholdSlider.value = round(100 * display.threshold(shown))
        self._filling = False

    def _overlayChosen(self) -> None:
        if not self._filling:
            before = views.overlayNode()
            if before is not None and before.GetAttribute(NAME):
                # as a map of its own it shows all of its values
                display.setThreshold(before, 0)
            views.setOverlay(self._overlay(), self._ui.opacitySlider.value)
            self._overlayTuned()
            self._changed()

    def _overlayTuned(self) -> None:
        node = self._overlay()
        if node is None or self._filling:
            return
        views.setOverlay(node, self._ui.opacitySlider.value)
        display.setThreshold(node, self._ui.thresholdSlider.value / 100)

    def _overlay(self) -> Any:
        selector = self._ui.overlaySelector
        nodeId = selector.itemData(selector.currentIndex) if selector.count else ""
        return slicer.mrmlScene.GetNodeByID(nodeId) if nodeId else None
