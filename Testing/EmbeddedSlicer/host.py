"""Start the host, load a module, show it.

::

    from EmbeddedSlicer import host

    app = host.start()                       # scene, slicer.*, qt, ctk; offscreen where there is no display
    window = host.mainWindow()               # panel and views; tests of logic do without
    widget = host.loadModule("DiffusionFM/DiffusionFM.py")  # the module's widget object, its panel shown
    host.wait(lambda: widget.done, timeout=60)  # let Qt work until something holds
    host.screenshot("demo/screenshot.png")
    host.run()                               # a person takes over, until the window is closed

Import no ``slicer``, ``qt``, ``ctk`` or module before `start`: it decides first whether there is a display. Mouse:
drag left for window and level, middle (or shift and left) to pan, right to zoom, wheel to scroll slices; shift and
move sets the crosshair.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from EmbeddedSlicer.display import hasUsableDisplay, useOffscreen

__all__ = [
    "application",
    "closeScene",
    "hasUsableDisplay",
    "loadModule",
    "logTo",
    "mainWindow",
    "run",
    "screenshot",
    "start",
    "stop",
    "wait",
]

_STANDINS = {
    "ScriptedLoadableModule": "scriptedmodule",
    "parameterNodeWrapper": "parameternode",
    "i18n": "i18n",
    "packaging": "packaging",
}
"""Modules of the ``slicer`` package that slicer-core lacks, by ours that stand in for them."""


class _Host:
    app: Any = None
    window: Any = None
    log: str = ""


def start(*, testing: bool = False, display: bool | None = None) -> Any:
    """Set up the scene and everything that a scripted module imports.

    Parameters
    ----------
    testing : bool
        Log message boxes instead of showing them, as Slicer does with ``--testing``.
    display : bool or None
        Whether to show windows; None finds out.

    Returns
    -------
    Application
        Also ``slicer.app``. There is one in a process: a second call returns it.
    """
    if _Host.app is not None:
        return _Host.app
    if not (hasUsableDisplay() if display is None else display):
        useOffscreen()
    import slicer
    import slicer.util

    from EmbeddedSlicer import qt

    sys.modules["qt"] = qt
    from EmbeddedSlicer import ctk, mrmlwidgets, sampledata
    from EmbeddedSlicer import style as look
    from EmbeddedSlicer.application import Application
    from EmbeddedSlicer.modulemanager import ScriptedLoadableModule, ScriptedLoadableModuleWidget

    sys.modules["ctk"] = ctk
    sys.modules["SampleData"] = sampledata  # type: ignore[assignment]
    slicer.modules = types.ModuleType("slicer.modules")
    slicer.moduleNames = types.SimpleNamespace()
    sys.modules["slicer.modules"] = slicer.modules
    _Host.app = slicer.app = Application(sys.argv[:1], testing)
    logTo(Path(_Host.app.temporaryPath) / "vtk.log")
    look.apply(_Host.app)
    for name, module in _Host.app.scene.modules.items():
        setattr(slicer.modules, name.lower(), module)
        setattr(slicer.moduleNames, name, name)
    mrmlwidgets.install()
    slicer.qSlicerScriptedLoadableModule = ScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = qt.pythonqt(
        ScriptedLoadableModuleWidget, "qSlicerScriptedLoadableModuleWidget"
    )
    for name, standin in _STANDINS.items():
        found = importlib.import_module(f"EmbeddedSlicer.{standin}")
        sys.modules[f"slicer.{name}"] = found
        setattr(slicer, name, found)
    return _Host.app


def logTo(path: str | Path) -> None:
    """Write VTK's and MRML's messages to a file, as Slicer does.

    They would drown the console: the 2D model pipeline complains at each rendering of directly coloured lines, the
    glyphs' at each change of the slice. Until this is called they go to a file that ends with the host.
    """
    import vtk

    if _Host.log:
        vtk.vtkLogger.EndLogToFile(_Host.log)
    _Host.log = str(path)
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    vtk.vtkLogger.LogToFile(_Host.log, vtk.vtkLogger.TRUNCATE, vtk.vtkLogger.VERBOSITY_WARNING)


def application() -> Any:
    """The application, or None before `start`."""
    return _Host.app


def mainWindow() -> Any:
    """The window with views and module panel, made and shown on the first call."""
    if _Host.window is None:
        from EmbeddedSlicer import mainwindow

        _Host.window = mainwindow.make(_Host.app.scene)
        _Host.app.windows.append(_Host.window)
        _Host.app.setLayoutManager(_Host.window.layoutManager)
        _Host.window.show()
        _Host.app.processEvents()
    return _Host.window


def loadModule(path: str | Path) -> Any:
    """Load a scripted module and make its panel.

    Parameters
    ----------
    path : str or Path
        The module's .py file. Its folder goes onto Python's path, as in Slicer.

    Returns
    -------
    object
        The module's own widget object (``<Name>Widget``), set up. ``startupCompleted`` has been sent.
    """
    module = _Host.app.moduleManager().loadScriptedModule(path)
    _Host.app.startupCompleted.emit()
    panel = module.widgetRepresentation()
    if _Host.window is not None:
        _Host.window.showModule(module)
    else:
        panel.enter()
    return panel.self()


def wait(condition: Callable[[], Any], timeout: float = 30.0) -> bool:
    """Let Qt work until a condition holds.

    Parameters
    ----------
    condition : callable
    timeout : float, s

    Returns
    -------
    bool
        Whether it held in time.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            return False
        _Host.app.processEvents()
        time.sleep(0.005)
    _Host.app.processEvents()
    return True


def closeScene() -> None:
    """Close the scene, as File > Close scene does: the views, units and colours stay."""
    _Host.app.scene.mrml.Clear(0)
    _Host.app.processEvents()


def screenshot(path: str | Path) -> Path:
    """Write a picture of the window; see `MainWindow.screenshot`."""
    return mainWindow().screenshot(path)


def run() -> int:
    """Hand over to the user until the window is closed."""
    mainWindow()
    return _Host.app.exec()


def stop() -> None:
    """Clean up modules and views; at the end of the process."""
    if _Host.app is None:
        return
    _Host.app.moduleManager().unloadModules()
    if _Host.window is not None:
        _Host.window.layoutManager.closeViews()
        _Host.window.close()
    _Host.app.processEvents()
    logging.debug("The embedded host has ended.")
