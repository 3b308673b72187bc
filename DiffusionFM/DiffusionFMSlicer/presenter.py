"""Which results the views show, and from where: what the panel's buttons and a run's new results do to the scene."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from DiffusionFMLib.physics import MODELS
from DiffusionFMSlicer import resultlist
from DiffusionFMSlicer.scene import display, tracts, views
from DiffusionFMSlicer.scene.results import NAME, RUN, SCAN, resultNodes

FIRST_MAPS = ("fa", "adc", "ndi")
"""What is shown first of a model's maps."""

COMPARED = {"dti": ("fa", "md"), "dki": ("mk", "fa"), "noddi": ("ndi", "odi")}
"""Two maps of each model with a prior, for the comparison."""


class Presenter:
    """Shows the results of one scan; knows no widgets, and changes nothing but views and display nodes.

    The rules: one scan's results are never shown over another's anatomy; a new run's first map, its colours and its
    tracts are shown as they come; a run that is repeated leaves the views as the user arranged them; the views are
    centred only on what is new.

    Parameters
    ----------
    scan : callable
        The chosen scan's node, or None.
    opacity : callable
        Opacity of overlays, 0..1.
    """

    def __init__(self, scan: Callable[[], Any], opacity: Callable[[], float]) -> None:
        self._scan = scan
        self._opacity = opacity
        self._isNewScan = False
        self._isNewRun = False
        self._run = ""

    def forget(self) -> None:
        """Another scene is there."""
        self._isNewScan = self._isNewRun = False

    # --- what happens -----------------------------------------------------------------------------------------

    def scanOpened(self, node: Any) -> None:
        """Show a scan that was just opened."""
        self._isNewScan = True
        self.scanChosen(node)
        views.showVolume(node)
        views.centreViews(node)

    def scanChosen(self, scan: Any) -> None:
        """Take other scans' results out of the views: one patient's map must not lie over another's anatomy."""
        hidden = False
        for node in resultNodes():
            if node.GetNodeReference(SCAN) is not scan and resultlist.isVisible(node):
                resultlist.setVisible(node, False)
                hidden = True
        if hidden and scan is not None and scan.IsA("vtkMRMLVolumeNode"):
            views.showVolume(scan)
            views.centreViews(scan)

    def runBegins(self, run: str) -> None:
        """Take note whether a run, by its attribute `RUN`, is one whose results are shown already."""
        self._run = run
        shown = (n for n in resultNodes() if n.IsA("vtkMRMLVolumeNode") and resultlist.isVisible(n))
        self._isNewRun = not any(n.GetAttribute(RUN) == run and n.GetNodeReference(SCAN) is self._scan() for n in shown)

    def resultCame(self, node: Any, tubes: bool) -> None:
        """Show a run's first map, colours and tracts; running it again leaves the views alone.

        Maps of another method, which come along to compare, wait in the list.
        """
        if resultlist.isTracts(node) and tubes:
            tracts.setTubes(node, True)
        if not self._isNewRun or node.GetAttribute(RUN) != self._run:
            return
        if node.GetAttribute(NAME) in FIRST_MAPS:
            views.setOverlay(None, self._opacity())
            views.showVolume(node)
            if self._isNewScan:
                views.centreViews(node)
                self._isNewScan = False
        elif node.GetAttribute(NAME) == "colorfa":
            views.setOverlay(node, self._opacity())
        elif resultlist.isTracts(node):
            views.showAxes()
            self.centre()

    # --- what the user asks for -------------------------------------------------------------------------------

    def showFourUp(self) -> None:
        """Three slices and the 3D view."""
        self._arrange(views.showFourUp)

    def showMapsGrid(self) -> None:
        """Six maps of one run, side by side."""
        self._arrange(lambda results: views.showMapsGrid(views.chosenMaps(results), results))

    def comparison(self) -> list[Any]:
        """The conventional maps, those of the prior, and how far these can be trusted, in two rows; or nothing."""
        by = {
            (n.GetAttribute(RUN), n.GetAttribute(NAME)): n
            for n in resultNodes()
            if n.GetNodeReference(SCAN) is self._scan()
        }
        shown = {n.GetAttribute(RUN).split()[0] for n in self.resultsByName().values()}
        for model in sorted(COMPARED, key=lambda name: name not in shown):
            prior, conventional = f"{model} prior", f"{model} {MODELS[model].methods[0]}"
            first, second = COMPARED[model]
            rows = ((first, f"{first}_sd"), (second, "disagreement"))
            keys = [key for name, doubt in rows for key in ((conventional, name), (prior, name), (prior, doubt))]
            if all(key in by for key in keys):
                return [by[key] for key in keys]
        return []

    def showComparison(self) -> None:
        """Conventional maps, those of the prior, and uncertainty, side by side."""
        self._arrange(lambda results: views.showMapsGrid(self.comparison(), results))

    def showTubes(self, on: bool) -> None:
        """Show all tracts as tubes, or as lines."""
        for node in resultNodes():
            if resultlist.isTracts(node):
                tracts.setTubes(node, on)

    def centre(self) -> None:
        """Fit the views to the first map and the tracts, or to the scan."""
        results = self.resultsByName().values()
        maps = [n for n in results if n.IsA("vtkMRMLVolumeNode")]
        scan = self._scan()
        if maps or (scan is not None and scan.IsA("vtkMRMLVolumeNode")):
            lines = next((n for n in results if resultlist.isTracts(n) and resultlist.isVisible(n)), None)
            views.centreViews(maps[0] if maps else scan, lines)

    def resultsByName(self) -> dict[str, Any]:
        """Results of one run of the scan: of the one that is shown, else of the newest."""
        nodes = [n for n in resultNodes() if n.GetNodeReference(SCAN) is self._scan()]
        if not nodes:
            return {}
        shown = (n for n in nodes if n.IsA("vtkMRMLVolumeNode") and views.shownLayer(n) == "background")
        run = next(shown, nodes[-1]).GetAttribute(RUN)
        return {n.GetAttribute(NAME): n for n in nodes if n.GetAttribute(RUN) == run}

    def _arrange(self, arrange: Callable[[dict[str, Any]], None]) -> None:
        arrange(self.resultsByName())
        self.centre()
        # legends look for their volumes in views that exist; new ones do from the next turn of the event loop on
        qt.QTimer.singleShot(0, display.refreshLegends)
