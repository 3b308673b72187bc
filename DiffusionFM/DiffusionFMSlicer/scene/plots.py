"""Attention over directions as Slicer's own plot: a table and a chart, which are saved with the scene."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer

from DiffusionFMSlicer.directions import BEYOND, Directions

ROLE = "DiffusionFM.Directions"
"""Attribute of the nodes that are ours: ``chart``, ``table``, or a series' place."""


def chartNode() -> Any:
    """The chart, or None."""
    return _ours("vtkMRMLPlotChartNode", "chart")


def showChart(directions: Directions) -> None:
    """Make or update the chart, and show it in a layout that has a plot view."""
    if chartNode() is None:
        _make("vtkMRMLPlotChartNode", "chart", "Attention to directions")
    updateChart(directions)
    slicer.modules.plots.logic().ShowChartInLayout(chartNode())


def updateChart(directions: Directions) -> None:
    """Bring other values into the chart, if there is one."""
    chart = chartNode()
    if chart is None:
        return
    table = _ours("vtkMRMLTableNode", "table") or _make("vtkMRMLTableNode", "table", "Attention to directions")
    _fill(table, directions)
    chart.SetTitle("Attention to directions")
    chart.SetXAxisTitle(directions.axis)
    chart.SetYAxisTitle(BEYOND)
    kept = []
    for index, series in enumerate(directions.series):
        node = _ours("vtkMRMLPlotSeriesNode", str(index)) or _make("vtkMRMLPlotSeriesNode", str(index), series.title)
        node.SetName(series.title)
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetPlotType(node.PlotTypeScatter)
        node.SetXColumnName(f"{series.title} angle")
        node.SetYColumnName(f"{series.title} attention")
        node.SetLineStyle(node.LineStyleNone)
        if not chart.HasPlotSeriesNodeID(node.GetID()):
            node.SetUniqueColor()
            chart.AddAndObservePlotSeriesNodeID(node.GetID())
        kept.append(node.GetID())
    for nodeId in [chart.GetNthPlotSeriesNodeID(i) for i in range(chart.GetNumberOfPlotSeriesNodes())]:
        if nodeId not in kept:
            # another scan has fewer shells
            slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetNodeByID(nodeId))


def _fill(table: Any, directions: Directions) -> None:
    import vtk

    table.RemoveAllColumns()
    longest = max((len(s.angles) for s in directions.series), default=0)
    for series in directions.series:
        for what, values in (("angle", series.angles), ("attention", series.beyond)):
            column = vtk.vtkDoubleArray()
            column.SetName(f"{series.title} {what}")
            # a table's columns are equally long; a chart leaves out what is no number
            for value in np.pad(values, (0, longest - len(values)), constant_values=np.nan):
                column.InsertNextValue(float(value))
            table.AddColumn(column)


def _make(kind: str, role: str, name: str) -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass(kind, slicer.mrmlScene.GenerateUniqueName(name))
    node.SetAttribute(ROLE, role)
    return node


def _ours(kind: str, role: str) -> Any:
    return next((n for n in slicer.util.getNodesByClass(kind) if n.GetAttribute(ROLE) == role), None)
