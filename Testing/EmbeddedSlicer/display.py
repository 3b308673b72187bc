"""Whether windows can be shown, found out without risk."""

from __future__ import annotations

import os
import subprocess
import sys

_PROBE = """
from PySide6 import QtWidgets
application = QtWidgets.QApplication([])
import vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(8, 8)
window.Render()
raise SystemExit(0 if application.platformName() != "offscreen" else 3)
"""
PROBE_LIMIT = 60
"""Seconds after which a display that does not answer counts as broken."""


def hasUsableDisplay() -> bool:
    """Whether Qt can open windows here and VTK can render beside them.

    Tried in a process of its own, because Qt ends a process that has no usable display.
    """
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    if os.environ.get("QT_QPA_PLATFORM", "").startswith(("offscreen", "minimal")):
        return False
    try:
        probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=PROBE_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def useOffscreen() -> None:
    """Make Qt and VTK of this process work without a display; before either is started."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    # VTK would try a display that is named but does not work, and end the process
    os.environ.pop("DISPLAY", None)
    os.environ.pop("WAYLAND_DISPLAY", None)
    if sys.platform.startswith("linux"):
        # VTK would come to this by itself, after a warning that there is no X server
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
