"""The window: module panel and data probe on the left, views on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from EmbeddedSlicer import qt
from EmbeddedSlicer.dataprobe import DataProbe
from EmbeddedSlicer.layoutmanager import LayoutManager
from EmbeddedSlicer.scene import Scene

PANEL_WIDTH = 390
"""Width of the module panel, pixels."""


class MainWindow(QtWidgets.QMainWindow):
    """Stands in for ``qSlicerMainWindow``: one module, one layout, no menus.

    Parameters
    ----------
    scene : Scene
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("Slicer module host")
        self._layoutManager = LayoutManager(scene)
        # findable, as in Slicer, by `slicer.util.setDataProbeVisible`
        self._dataProbe = qt.pythonqt(DataProbe)(scene.applicationLogic)
        self._modulePanel: Any = None
        self._title = QtWidgets.QLabel()
        self._title.setObjectName("moduleTitle")
        self._scroll = QtWidgets.QScrollArea()
        self._scroll.setWidgetResizable(True)
        self._scroll.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        side = QtWidgets.QWidget()
        side.setFixedWidth(PANEL_WIDTH)
        column = QtWidgets.QVBoxLayout(side)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(0)
        column.addWidget(self._title)
        column.addWidget(self._scroll, 1)
        column.addWidget(self.dataProbe)
        middle = QtWidgets.QWidget()
        row = QtWidgets.QHBoxLayout(middle)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(3)
        row.addWidget(side)
        row.addWidget(self.layoutManager.viewport(), 1)
        QtWidgets.QMainWindow.setCentralWidget(self, middle)
        self.resize(1400, 860)
        scene.mrml.AddObserver(scene.mrml.EndCloseEvent, lambda *_: self.dataProbe.observe())

    layoutManager = property(lambda self: self._layoutManager)
    dataProbe = property(lambda self: self._dataProbe)

    def showModule(self, module: Any) -> None:
        """Show a module's panel; the earlier one's ``exit`` is called, then this one's ``enter``."""
        panel = module.widgetRepresentation()
        if panel is self._modulePanel:
            return
        self.hideModule()
        self._modulePanel = panel
        self._title.setText(module.title or module.name)
        self._scroll.setWidget(panel)
        panel.show()
        panel.enter()
        QtWidgets.QMainWindow.setWindowTitle(self, module.title or module.name)

    def hideModule(self) -> None:
        """Leave the module whose panel is shown."""
        if self._modulePanel is not None:
            self._modulePanel.exit()
            self._scroll.takeWidget().hide()
            self._modulePanel = None
            self._title.setText("")

    def moduleSelector(self) -> Any:
        """What `slicer.util.selectModule` asks to change the module."""
        return self

    def selectModule(self, name: str) -> None:
        """Show a module's panel by its name."""
        self.showModule(slicer.util.getModule(name))

    def screenshot(self, path: str | Path) -> Path:
        """Write a picture of the window, with every view freshly rendered.

        Returns
        -------
        Path
            The PNG file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        path = Path(path)
        application = QtCore.QCoreApplication.instance()
        if not QtWidgets.QMainWindow.isVisible(self):
            QtWidgets.QMainWindow.show(self)
        # layouts settle in one pass of the event loop and may ask for another
        for _ in range(3):
            application.processEvents()
        self.layoutManager.renderAll()
        application.processEvents()
        self.layoutManager.renderAll()
        if not self.grab().save(str(path), "PNG"):
            msg = f"The screenshot cannot be written to {path}."
            raise OSError(msg)
        return path

    def closeEvent(self, event: QtGui.QCloseEvent) -> None:
        """Called by Qt."""
        if self._modulePanel is not None:
            self._modulePanel.exit()
        event.accept()


def make(scene: Scene) -> Any:
    """Make the window in PythonQt's manner: `slicer.util.mainWindow` looks for its attribute ``objectName``."""
    return qt.pythonqt(MainWindow, "qSlicerMainWindow")(scene)
