"""Scripted modules: loading, their place in ``slicer.modules``, their panels, reloading."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
from PySide6 import QtCore, QtWidgets

from EmbeddedSlicer import qt
from EmbeddedSlicer.mrmlwidgets import MRMLWidget


class ScriptedLoadableModule:
    """``slicer.modules.<name>``, where a module's Python class writes its title, help and so on.

    Parameters
    ----------
    path : Path
        The module's .py file.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = str(path)
        self.title = path.stem
        self.categories: list[str] = []
        self.dependencies: list[str] = []
        self.contributors: list[str] = []
        self.associatedNodeTypes: list[str] = []
        self.helpText = self.acknowledgementText = ""
        self.icon = qt.QIcon()
        self.hidden = False
        self.index = -1
        self.widgetRepresentationCreationEnabled = True
        self._representation: Any = None

    def logic(self) -> None:
        """None: a scripted module's logic is its widget's, see `slicer.util.getModuleLogic`."""

    def widgetRepresentation(self) -> Any:
        """The module's panel, made on the first call."""
        if self._representation is None:
            self._representation = self.createNewWidgetRepresentation()
        return self._representation

    def createNewWidgetRepresentation(self) -> Any:
        """A further panel."""
        panel = slicer.qSlicerScriptedLoadableModuleWidget()
        panel.load(self)
        return panel


class ScriptedLoadableModuleWidget(MRMLWidget):
    """The widget around a module's panel: the ``parent`` that a module's widget class receives."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._module: ScriptedLoadableModule | None = None
        self._python: Any = None
        self._entered = False
        layout = qt.QVBoxLayout(self)
        layout.setContentsMargins(4, 4, 4, 4)
        layout.setSpacing(6)

    isEntered = property(lambda self: self._entered)

    def self(self) -> Any:
        """The module's own widget object."""
        return self._python

    def load(self, module: ScriptedLoadableModule) -> None:
        """Make the module's widget object and set it up."""
        self._module = module
        QtCore.QObject.setObjectName(self, f"{module.name}ModuleWidget")
        self.setMRMLScene(slicer.mrmlScene)
        self.reload()

    def reload(self) -> None:
        """Make the widget object anew from the module's present source; the old one's widgets go."""
        assert self._module is not None
        layout = QtWidgets.QWidget.layout(self)
        while layout.count():
            layout.takeAt(0)
        for child in QtCore.QObject.children(self):
            if isinstance(child, QtWidgets.QWidget):
                child.deleteLater()
        source = sys.modules[self._module.name]
        self._python = getattr(source, f"{self._module.name}Widget")(self)
        setattr(slicer.modules, f"{self._module.name}Widget", self._python)
        self._python.setup()
        if self._entered:
            self._call("enter")

    def enter(self) -> None:
        """Tell the module that its panel is shown."""
        if not self._entered:
            self._entered = True
            self._call("enter")

    def exit(self) -> None:
        """Tell the module that its panel is no longer shown."""
        if self._entered:
            self._entered = False
            self._call("exit")

    def setEditedNode(self, node: Any, role: str = "", context: str = "") -> bool:
        """Ask the module to edit a node."""
        method = getattr(self._python, "setEditedNode", None)
        return bool(method(node, role, context)) if method is not None else False

    def _call(self, name: str) -> None:
        method = getattr(self._python, name, None)
        if method is not None:
            method()


class ModuleManager(QtCore.QObject):
    """``slicer.app.moduleManager()``."""

    moduleLoaded = QtCore.Signal(str)
    moduleAboutToBeUnloaded = QtCore.Signal(str)

    def connect(self, signal: str, slot: Any) -> bool:  # type: ignore[override]
        """Connect a signal by its signature."""
        getattr(self, signal.partition("(")[0]).connect(slot)
        return True

    def disconnect(self, signal: str, slot: Any) -> bool:  # type: ignore[override]
        """Disconnect a signal by its signature."""
        getattr(self, signal.partition("(")[0]).disconnect(slot)
        return True

    def factoryManager(self) -> SimpleNamespace:
        """What knows the names of the modules."""
        return SimpleNamespace(
            loadedModuleNames=self.moduleNames,
            registeredModuleNames=self.moduleNames,
            instantiatedModuleNames=self.moduleNames,
        )

    def moduleNames(self) -> list[str]:
        """Names of the modules that are loaded, core modules first."""
        return [vars(slicer.moduleNames)[name] for name in vars(slicer.moduleNames)]

    modulesNames = moduleNames

    def module(self, name: str) -> Any:
        """A module by its name, or None."""
        return getattr(slicer.modules, name.lower(), None)

    def loadScriptedModule(self, path: str | Path) -> ScriptedLoadableModule:
        """Load a scripted module from its .py file, as Slicer does at its start.

        Raises
        ------
        FileNotFoundError
            If the file is not there.
        """
        path = Path(path).resolve()
        if not path.is_file():
            msg = f"There is no scripted module {path}."
            raise FileNotFoundError(msg)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        source = importlib.import_module(path.stem)
        module = slicer.qSlicerScriptedLoadableModule(path)
        setattr(slicer.modules, path.stem.lower(), module)
        setattr(slicer.moduleNames, path.stem, path.stem)
        instance = getattr(source, path.stem)(module)
        setattr(slicer.modules, f"{path.stem}Instance", instance)
        missing = [d for d in module.dependencies if self.module(d) is None]
        if missing:
            logging.info("%s depends on modules that this host does not have: %s.", path.stem, ", ".join(missing))
        self.moduleLoaded.emit(path.stem)
        return module

    def unloadModules(self) -> None:
        """Clean up every module's panel; at the end of the host."""
        for name in self.moduleNames():
            self.moduleAboutToBeUnloaded.emit(name)
