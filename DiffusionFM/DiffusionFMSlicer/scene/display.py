"""How results look: window, colour map, legend, glyphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from DiffusionFMSlicer.scene.colors import colorNode
from DiffusionFMSlicer.scene.geometry import imageArray

AUTO_PERCENTILES = (1.0, 99.5)
GLYPH_SCALE = 100.0
"""Makes white matter's longest axis about 6 mm: at the zoom that shows the whole head, glyphs nearly touch."""

GLYPH_SPACING = 14
"""A glyph at every so many slice pixels."""


def showScalar(node: Any, window: tuple[float, float] | None, colors: str, title: str, unit: str) -> None:
    """Set window, colour map and legend of a scalar map; a window of no width is taken from the data."""
    display = _displayOf(node)
    low, high = window if window and window[1] > window[0] else _autoWindow(node)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(low, high)
    display.SetAndObserveColorNodeID(colorNode(colors or "grey").GetID())
    display.SetInterpolate(colors != "labels")
    addLegend(node, f"{title} ({unit.replace('mm2', 'mm²')})" if unit else title, high)


def showLabels(node: Any) -> None:
    """Give a label map its own colours, with label 0 transparent."""
    _displayOf(node).SetAndObserveColorNodeID(colorNode("labels").GetID())


def showColors(node: Any) -> None:
    """Show a volume of red, green and blue as it is."""
    display = _displayOf(node)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0, 255)


def showTensors(node: Any) -> None:
    """Show tensors as FA, and make their glyphs: one set per slice view, hidden at first."""
    display = _displayOf(node)
    display.SetScalarInvariantToFractionalAnisotropy()
    display.SetAndObserveColorNodeID(colorNode("grey").GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0, 0.8)
    if not glyphNodes(node):
        display.AddSliceGlyphDisplayNodes(node)
    for glyph in glyphNodes(node):
        glyph.SetVisibility(False)
        glyph.SetColorMode(glyph.colorModeScalar)
        properties = glyph.GetDiffusionTensorDisplayPropertiesNode()
        properties.SetGlyphGeometryToEllipsoids()
        properties.SetColorGlyphBy(properties.ColorOrientation)
        properties.SetGlyphScaleFactor(GLYPH_SCALE)
        properties.SetLineGlyphResolution(GLYPH_SPACING)
        properties.SetEllipsoidGlyphThetaResolution(10)
        properties.SetEllipsoidGlyphPhiResolution(10)


def setGlyphsVisible(node: Any, visible: bool) -> None:
    """Show or hide a tensor volume's glyphs in the slices."""
    for glyph in glyphNodes(node):
        glyph.SetVisibility(visible)
        glyph.SetVisibility2D(visible)
        glyph.SetVisibility3D(False)


def glyphNodes(node: Any) -> list[Any]:
    """The glyph display nodes of a tensor volume."""
    displays = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    return [d for d in displays if d is not None and d.IsA("vtkMRMLDiffusionTensorVolumeSliceDisplayNode")]


def setThreshold(node: Any, part: float) -> None:
    """Hide a scalar map below a part, 0..1, of its window; 0 hides nothing."""
    display = node.GetDisplayNode()
    if not display.IsA("vtkMRMLScalarVolumeDisplayNode") or node.IsA("vtkMRMLVectorVolumeNode"):
        return
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    display.SetThreshold(low + part * (high - low), max(display.GetUpperThreshold(), 1e6))
    display.SetApplyThreshold(part > 0)


def threshold(node: Any) -> float:
    """The part, 0..1, of its window below which a map is hidden."""
    display = node.GetDisplayNode()
    if not display.IsA("vtkMRMLScalarVolumeDisplayNode") or not display.GetApplyThreshold():
        return 0.0
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    return min(max((display.GetLowerThreshold() - low) / (high - low), 0.0), 1.0) if high > low else 0.0


def addLegend(node: Any, title: str, high: float) -> None:
    """Give a displayed node a colour legend that names the unit."""
    logic = slicer.modules.colors.logic()
    legend = logic.GetColorLegendDisplayNode(node) or logic.AddDefaultColorLegendDisplayNode(node)
    if legend is None:
        return
    legend.SetTitleText(title)
    legend.SetNumberOfLabels(3)
    legend.SetLabelFormat("%.2g" if high < 0.01 else "%.2f" if high < 10 else "%.0f")
    legend.SetSize(0.1, 0.3)
    legend.SetPosition(0.97, 0.5)
    legend.GetTitleTextProperty().SetFontSize(12)
    legend.GetLabelTextProperty().SetFontSize(11)
    legend.SetVisibility(True)


def renewLegends() -> None:
    """Make every legend of ours anew: views that came after a legend never show it otherwise."""
    logic = slicer.modules.colors.logic()
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        legend = logic.GetColorLegendDisplayNode(node) if node.GetAttribute("DiffusionFM.Name") else None
        if legend is not None:
            title = legend.GetTitleText()
            slicer.mrmlScene.RemoveNode(legend)
            addLegend(node, title, node.GetDisplayNode().GetWindowLevelMax())


def refreshLegends() -> None:
    """Show each legend in the first slice view that has its volume: in all of them it would only cover anatomy."""
    views: dict[str, str] = {}
    overlays = {c.GetForegroundVolumeID() for c in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    visible = {
        s.GetLayoutName(): s.GetID() for s in slicer.util.getNodesByClass("vtkMRMLSliceNode") if s.IsMappedInLayout()
    }
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetLayoutName() in visible:
            for volume in (composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID()):
                views.setdefault(volume or "", visible[composite.GetLayoutName()])
    for legend in slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode"):
        shown = legend.GetPrimaryDisplayNode()
        volume = shown.GetDisplayableNode() if shown is not None else None
        if volume is None or not volume.GetAttribute("DiffusionFM.Name"):
            continue
        view = views.get(volume.GetID())
        if view is not None and not (legend.GetNumberOfViewNodeIDs() == 1 and legend.IsViewNodeIDPresent(view)):
            legend.SetViewNodeIDs([view])
        # at the other side, where a map and its overlay both have one
        legend.SetPosition(0.06 if volume.GetID() in overlays else 0.97, 0.5)
        legend.Modified()


def scaledUnit(unit: str, value: float) -> tuple[float, str]:
    """Factor and unit that read well: diffusivities as 10-3 mm2/s."""
    return (1e3, "10⁻³ mm²/s") if unit == "mm2/s" and value < 0.1 else (1.0, unit)


def _displayOf(node: Any) -> Any:
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


def _autoWindow(node: Any) -> tuple[float, float]:
    values = imageArray(node.GetImageData())
    # a few ten thousand voxels fix the percentiles well enough
    values = values.ravel()[:: max(values.size // 50_000, 1)]
    values = values[np.isfinite(values) & (values != 0)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, AUTO_PERCENTILES))
    return low, high if high > low else low + 1.0
