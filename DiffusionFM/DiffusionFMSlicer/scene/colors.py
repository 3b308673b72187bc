"""Colour tables that Slicer has not, kept once per scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

COLORS_FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Colors"


def colorNode(name: str) -> Any:
    """The colour node of a colour map: ``grey``, ``viridis``, ``inferno`` or ``labels``.

    Parameters
    ----------
    name : str

    Returns
    -------
    vtkMRMLColorNode
        Grey is Slicer's own; the others are read from this module's resources, once per scene.
    """
    if name == "grey":
        return slicer.mrmlScene.GetNodeByID("vtkMRMLColorTableNodeGrey")
    title = f"DiffusionFM {name}"
    for node in slicer.util.getNodesByClass("vtkMRMLColorTableNode"):
        if node.GetAttribute("DiffusionFM.Colors") == name:
            return node
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", title)
    node.SetTypeToUser()
    node.SetAttribute("DiffusionFM.Colors", name)
    node.SetAttribute("Category", "DiffusionFM")
    rows = [
        line.split() for line in (COLORS_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]  # fmt: skip
    node.SetNumberOfColors(len(rows))
    node.SetHideFromEditors(False)
    for index, title, red, green, blue, alpha in rows:
        node.SetColor(int(index), title, *(float(v) / 255 for v in (red, green, blue, alpha)))
    node.GetLookupTable().SetTableRange(0, len(rows) - 1)
    return node
