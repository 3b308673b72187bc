"""``slicer.ScriptedLoadableModule``: the base classes of scripted modules.

What it leaves out: command line interfaces of modules, taking screenshots into the scene, and the parts of the reload
section that edit or restart.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import unittest
from pathlib import Path
from typing import Any

import ctk
import qt
import slicer

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


class ScriptedLoadableModule:
    """Describes a module: title, help, dependencies.

    Parameters
    ----------
    parent : qSlicerScriptedLoadableModule
        Takes what the subclass writes to ``self.parent``.
    """

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories = []
        parent.dependencies = []
        parent.contributors = []
        parent.helpText = ""
        parent.acknowledgementText = ""
        icon = Path(parent.path).parent / "Resources" / "Icons" / f"{self.moduleName}.png"
        if icon.exists():
            parent.icon = qt.QIcon(str(icon))

    def resourcePath(self, filename: str) -> str:
        """Path of a file in the module's ``Resources`` folder."""
        return str(Path(self.parent.path).parent / "Resources" / filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """Sentence with a link to the manual."""
        url = slicer.app.moduleDocumentationUrl(docPage or self.moduleName)
        return f'<p>For more information see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **kwargs: Any) -> None:
        """Run the module's test class."""
        source = inspect.getmodule(type(self))
        test = getattr(source, f"{self.moduleName}Test")()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """The panel of a module.

    Parameters
    ----------
    parent : qSlicerScriptedLoadableModuleWidget or None
        The widget to fill; without one, the panel is a window of its own and set up at once.
    """

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = bool(
            slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        )
        self.logic = None
        self.parent = parent
        if parent is None:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        """Path of a file in the module's ``Resources`` folder."""
        return str(Path(slicer.util.modulePath(self.moduleName)).parent / "Resources" / filename)

    def setup(self) -> None:
        """Fill the panel; subclasses extend this."""
        self.setupDeveloperSection()

    def setupDeveloperSection(self) -> None:
        """Add the section with the Reload buttons, in developer mode."""
        if not self.developerMode:
            return
        self.reloadCollapsibleButton = ctk.ctkCollapsibleButton()
        self.reloadCollapsibleButton.text = "Reload && Test"
        row = qt.QHBoxLayout(self.reloadCollapsibleButton)
        self.layout.addWidget(self.reloadCollapsibleButton)
        self.reloadButton = qt.QPushButton("Reload")
        self.reloadButton.clicked.connect(lambda *_: self.onReload())
        self.reloadTestButton = qt.QPushButton("Reload and Test")
        self.reloadTestButton.clicked.connect(lambda *_: self.onReloadAndTest())
        row.addWidget(self.reloadButton)
        row.addWidget(self.reloadTestButton)

    def enter(self) -> None:
        """Called when the panel is shown."""

    def exit(self) -> None:
        """Called when the panel is left."""

    def cleanup(self) -> None:
        """Called before the panel goes."""

    def onReload(self) -> Any:
        """Load the module's source anew."""
        return slicer.util.reloadScriptedModule(self.moduleName)

    def onReloadAndTest(self, **kwargs: Any) -> None:
        """Load the module's source anew and run its tests."""
        with slicer.util.tryWithErrorDisplay("Reload and Test failed."):
            source = self.onReload()
            test = getattr(source, f"{self.moduleName}Test")()
            test.runTest(**kwargs)

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            with contextlib.suppress(RuntimeError):
                slicer.app.moduleManager().disconnect(
                    "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
                )


class ScriptedLoadableModuleLogic:
    """A module's computation, with its parameter node.

    Parameters
    ----------
    parent : object or None
        Kept for its interface.
    """

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        """The module's parameter node, made if there is none."""
        nodes = self.getAllParameterNodes()
        return nodes[0] if nodes else self.createParameterNode()

    def getAllParameterNodes(self) -> list[Any]:
        """Every parameter node of the module."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        """Add a parameter node to the scene: a singleton, unless ``isSingletonParameterNode`` is False."""
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        """Show a message for a while."""
        slicer.util.delayDisplay(message, requestedDelay or msec or 100)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's self test."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.messageDelay = 1000

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        """Show a message for a while."""
        slicer.util.delayDisplay(message, requestedDelay or msec or self.messageDelay)

    def runTest(self) -> None:
        """Run the tests; subclasses override this, and one that does not says so, as in the desktop application."""
        logging.warning("%s defines no test.", type(self).__name__)
