"""``slicer.app``: the application object, with what modules and `slicer.util` ask of it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

from EmbeddedSlicer.iomanager import IOManager
from EmbeddedSlicer.modulemanager import ModuleManager
from EmbeddedSlicer.scene import Scene

SLICER_VERSION = (5, 12)
"""Version of Slicer whose interfaces are stood in for."""


_OFFSCREEN_NOISE = "This plugin does not support propagateSizeHints()"


def _handleMessage(kind: Any, context: Any, text: str) -> None:
    if text != _OFFSCREEN_NOISE:
        sys.stderr.write(f"Qt: {text}\n")


class Application(QtWidgets.QApplication):
    """Stands in for ``qSlicerApplication``.

    What it leaves out: the Python console, the error log, command line options, extensions and their manager, the
    DICOM database, translations.
    """

    startupCompleted = QtCore.Signal()
    mrmlSceneChanged = QtCore.Signal(object)

    def __init__(self, arguments: list[str], testing: bool) -> None:
        QtCore.qInstallMessageHandler(_handleMessage)
        super().__init__(arguments)
        self.setApplicationName("Slicer")
        self.setOrganizationName("EmbeddedSlicer")
        self._folder = tempfile.TemporaryDirectory(prefix="embedded-slicer-", ignore_cleanup_errors=True)
        self._testing = testing
        # a session of this host must not read or change the settings of an installed Slicer
        settings = QtCore.QSettings
        settings.setDefaultFormat(settings.Format.IniFormat)
        settings.setPath(settings.Format.IniFormat, settings.Scope.UserScope, self.temporaryPath)
        self.scene = Scene(Path(self.temporaryPath))
        self._moduleManager = ModuleManager(self)
        self._ioManager = IOManager(self.scene)
        self._layoutManager: Any = None
        self._paused = 0
        self.windows: list[Any] = []

    # --- connect by signature, as PythonQt offers it ----------------------------------------------------------------

    def connect(self, signal: str, slot: Callable[..., Any]) -> bool:  # type: ignore[override]
        """Connect a signal by its signature."""
        getattr(self, signal.partition("(")[0]).connect(slot)
        return True

    def disconnect(self, signal: str, slot: Callable[..., Any]) -> bool:  # type: ignore[override]
        """Disconnect a signal by its signature."""
        getattr(self, signal.partition("(")[0]).disconnect(slot)
        return True

    # --- facts ------------------------------------------------------------------------------------------------------

    applicationName = property(lambda self: QtWidgets.QApplication.applicationName())
    applicationVersion = property(lambda self: "{}.{}".format(*SLICER_VERSION))
    majorVersion = property(lambda self: SLICER_VERSION[0])
    minorVersion = property(lambda self: SLICER_VERSION[1])
    revision = property(lambda self: "embedded")
    temporaryPath = property(lambda self: self._folder.name)
    slicerHome = property(lambda self: self._folder.name)
    cachePath = property(lambda self: self._folder.name)
    defaultScenePath = property(lambda self: str(Path.home()))
    documentationBaseUrl = property(lambda self: "https://slicer.readthedocs.io/en/latest")
    os = property(lambda self: QtCore.QSysInfo.kernelType())

    def moduleDocumentationUrl(self, name: str) -> str:
        """Address of a core module's manual page."""
        return f"{self.documentationBaseUrl}/user_guide/modules/{name.lower()}.html"

    def testingEnabled(self) -> bool:
        """Whether message boxes are logged instead of shown."""
        return self._testing

    def setTestingEnabled(self, enabled: bool) -> None:
        """Choose whether message boxes are logged instead of shown."""
        self._testing = enabled

    def commandOptions(self) -> SimpleNamespace:
        """Options of Slicer's command line, none of which is set."""
        return SimpleNamespace(testingEnabled=self._testing, noMainWindow=not self.windows, runPythonAndExit=False)

    def translate(self, context: str, text: str, *_: Any) -> str:
        """The text as it is: there are no translations."""
        return text

    def settings(self) -> QtCore.QSettings:
        """Settings, kept until the host ends."""
        return QtCore.QSettings()

    userSettings = revisionUserSettings = settings

    # --- parts ------------------------------------------------------------------------------------------------------

    def mrmlScene(self) -> Any:
        """The scene."""
        return self.scene.mrml

    def applicationLogic(self) -> Any:
        """The application's VTK logic."""
        return self.scene.applicationLogic

    def moduleManager(self) -> ModuleManager:
        """The modules."""
        return self._moduleManager

    def coreIOManager(self) -> IOManager:
        """Reading and writing of nodes and scenes."""
        return self._ioManager

    ioManager = coreIOManager

    def layoutManager(self) -> Any:
        """The views; None before there is a window, as in Slicer without one."""
        return self._layoutManager

    def setLayoutManager(self, manager: Any) -> None:
        """Set the views; for the main window."""
        self._layoutManager = manager

    # --- rendering ----------------------------------------------------------------------------------------------------

    renderPaused = property(lambda self: self._paused > 0)

    def pauseRender(self) -> None:
        """Hold back renderings; calls nest."""
        self._paused += 1

    def resumeRender(self) -> None:
        """End one `pauseRender`."""
        self._paused = max(self._paused - 1, 0)
        if not self._paused and self._layoutManager is not None:
            self._layoutManager.scheduleRenderAll()

    def setRenderPaused(self, paused: bool) -> None:
        """Pause or resume."""
        (self.pauseRender if paused else self.resumeRender)()

    # --- events -------------------------------------------------------------------------------------------------------

    def processEvents(self, *flags: Any) -> None:  # type: ignore[override]
        """Let what waits happen.

        Qt leaves what was told ``deleteLater`` to a running event loop; a script or test that has none would keep it
        for ever.
        """
        QtWidgets.QApplication.processEvents(*flags)
        if not QtCore.QThread.currentThread().loopLevel():
            QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)

    def openUrl(self, url: str) -> None:
        """Open a page in the browser."""
        QtGui.QDesktopServices.openUrl(QtCore.QUrl(url))
