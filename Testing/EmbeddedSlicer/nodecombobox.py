"""The combo box of MRML nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vtk
from PySide6 import QtCore, QtWidgets

from EmbeddedSlicer.observers import Observers

_REFRESHING_EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndBatchProcessEvent", "EndCloseEvent", "EndImportEvent")
_ADD, _RENAME, _REMOVE = "add", "rename", "remove"


def _property(kind: Any, field: str) -> QtCore.Property:
    def set_(self: Any, value: Any) -> None:
        setattr(self, field, list(value) if isinstance(value, (list, tuple)) else value)
        self._refresh()

    return QtCore.Property(kind, lambda self: getattr(self, field), set_)


class NodeComboBox(QtWidgets.QWidget):
    """``qMRMLNodeComboBox``: choose, add, rename and remove nodes of given classes.

    As in Slicer the selection follows the scene: a removed node is unselected, and where "None" is not offered the
    first node is selected.
    """

    currentNodeChanged = QtCore.Signal(object)
    currentNodeIDChanged = QtCore.Signal(str)
    nodeActivated = QtCore.Signal(object)
    nodeAdded = QtCore.Signal(object)
    nodeAddedByUser = QtCore.Signal(object)
    currentNodeRenamed = QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._box = QtWidgets.QComboBox()
        self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._box.setMinimumContentsLength(8)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        QtWidgets.QWidget.setFocusProxy(self, self._box)
        self._scene: Any = None
        self._observers = Observers(self)
        self._listed: dict[str, tuple[Any, int]] = {}
        self._nodeTypes: list[str] = []
        self._attributes: dict[str, dict[str, str | None]] = {}
        self._noneEnabled = False
        self._noneDisplay = "None"
        self._addEnabled = self._removeEnabled = True
        self._editEnabled = self._renameEnabled = False
        self._showHidden = False
        self._showChildNodeTypes = True
        self._selectNodeUponCreation = True
        self._baseName = ""
        self._currentID = ""
        self._box.activated.connect(self._activated)

    nodeTypes = _property("QStringList", "_nodeTypes")
    noneEnabled = _property(bool, "_noneEnabled")
    noneDisplay = _property(str, "_noneDisplay")
    addEnabled = _property(bool, "_addEnabled")
    removeEnabled = _property(bool, "_removeEnabled")
    editEnabled = _property(bool, "_editEnabled")
    renameEnabled = _property(bool, "_renameEnabled")
    showHidden = _property(bool, "_showHidden")
    showChildNodeTypes = _property(bool, "_showChildNodeTypes")
    selectNodeUponCreation = _property(bool, "_selectNodeUponCreation")
    baseName = _property(str, "_baseName")

    def setNodeTypes(self, types: list[str]) -> None:
        """Set the classes of the nodes to list."""
        self.nodeTypes = types

    def addAttribute(self, nodeType: str, name: str, value: Any = None) -> None:
        """List nodes of a class only if they have an attribute, with a value unless that is None."""
        self._attributes.setdefault(nodeType, {})[name] = None if value is None else str(value)
        self._refresh()

    # --- scene ----------------------------------------------------------------------------------------------------

    def mrmlScene(self) -> Any:
        """The scene, or None."""
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        """Set the scene whose nodes are listed."""
        self._observers.clear()
        self._listed = {}
        self._scene = scene
        if scene is not None:
            for event in _REFRESHING_EVENTS:
                self._observers.add(scene, getattr(scene, event), self._sceneChanged)
            self._observers.add(scene, scene.NodeAddedEvent, self._announce)
        self._refresh()

    def _sceneChanged(self, *_: Any) -> None:
        if not self._scene.IsBatchProcessing():
            self._refresh()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _announce(self, caller: Any, event: str, node: Any) -> None:
        if self._lists(node):
            self.nodeAdded.emit(node)

    def _lists(self, node: Any) -> bool:
        kind = next(
            (t for t in self._nodeTypes if (node.IsA(t) if self._showChildNodeTypes else node.GetClassName() == t)),
            None,
        )
        if kind is None or (node.GetHideFromEditors() and not self._showHidden):
            return False
        wanted = self._attributes.get(kind, {})
        return all(node.GetAttribute(n) is not None and v in (None, node.GetAttribute(n)) for n, v in wanted.items())

    def _nodes(self) -> list[Any]:
        if self._scene is None:
            return []
        nodes = [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if self._lists(node)]

    # --- list -----------------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        nodes = self._nodes()
        self._observeNames(nodes)
        ids = [node.GetID() for node in nodes]
        blocker = QtCore.QSignalBlocker(self._box)
        self._box.clear()
        if self._noneEnabled:
            self._box.addItem(self._noneDisplay, "")
        for node in nodes:
            self._box.addItem(node.GetName() or "", node.GetID())
        self._addActions()
        blocker.unblock()
        wanted = self._currentID if self._currentID in ids else ""
        if not wanted and not self._noneEnabled and ids:
            wanted = ids[0]
        self._select(wanted)

    def _addActions(self) -> None:
        actions = []
        single = self._nodeTypes[0] if self._nodeTypes else ""
        if self._addEnabled and single and self._scene is not None:
            tag = self._scene.GetTypeDisplayNameByClassName(single) or single
            actions.append((f"Create new {tag}", _ADD))
        if self._renameEnabled:
            actions.append(("Rename current node...", _RENAME))
        if self._removeEnabled and self._nodeTypes:
            actions.append(("Delete current node", _REMOVE))
        if actions and self._box.count():
            self._box.insertSeparator(self._box.count())
        for text, action in actions:
            self._box.addItem(text, None)
            self._box.setItemData(self._box.count() - 1, action, QtCore.Qt.ItemDataRole.UserRole + 1)

    def _observeNames(self, nodes: list[Any]) -> None:
        present = {node.GetID(): node for node in nodes}
        for id_ in [i for i, (node, _) in self._listed.items() if present.get(i) is not node]:
            self._observers.remove(self._listed.pop(id_))
        for id_, node in present.items():
            if id_ not in self._listed:
                self._listed[id_] = self._observers.add(node, vtk.vtkCommand.ModifiedEvent, self._nodeModified)

    def _nodeModified(self, node: Any, event: str) -> None:
        row = self._box.findData(node.GetID())
        if row < 0 or not self._lists(node):
            self._refresh()
        elif self._box.itemText(row) != node.GetName():
            self._box.setItemText(row, node.GetName())
            if node.GetID() == self._currentID:
                self.currentNodeRenamed.emit(node.GetName())

    def _activated(self, row: int) -> None:
        action = self._box.itemData(row, QtCore.Qt.ItemDataRole.UserRole + 1)
        actions: dict[str, Callable[[], Any]] = {
            _ADD: self._addByUser,
            _RENAME: self.renameCurrentNode,
            _REMOVE: self.removeCurrentNode,
        }
        if action in actions:
            self._select(self._currentID)
            actions[action]()
        else:
            self._select(self._box.itemData(row) or "")
            self.nodeActivated.emit(self.currentNode())

    def _select(self, id_: str) -> None:
        blocker = QtCore.QSignalBlocker(self._box)
        row = self._box.findData(id_) if id_ or self._noneEnabled else -1
        self._box.setCurrentIndex(row)
        blocker.unblock()
        if id_ != self._currentID:
            self._currentID = id_
            self.currentNodeIDChanged.emit(id_)
            self.currentNodeChanged.emit(self.currentNode())

    # --- selection ------------------------------------------------------------------------------------------------

    def currentNode(self) -> Any:
        """The selected node, or None."""
        return self._scene.GetNodeByID(self._currentID) if self._scene is not None and self._currentID else None

    def setCurrentNode(self, node: Any) -> None:
        """Select a node; None, or one that is not listed, selects nothing."""
        self._select(node.GetID() if node is not None and self._box.findData(node.GetID()) >= 0 else "")

    def setCurrentNodeID(self, id_: str) -> None:
        """Select a node by its ID."""
        self._select(id_ if id_ and self._box.findData(id_) >= 0 else "")

    currentNodeID = QtCore.Property(str, lambda self: self._currentID, setCurrentNodeID)
    currentNodeId = QtCore.Property(str, lambda self: self._currentID, setCurrentNodeID)

    def nodeCount(self) -> int:
        """Number of listed nodes."""
        return len(self._listed)

    def nodeFromIndex(self, index: int) -> Any:
        """A listed node by its position."""
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addNode(self, nodeType: str = "") -> Any:
        """Add a node of the first, or a given, class to the scene."""
        kind = nodeType or self._nodeTypes[0]
        node = self._scene.AddNewNodeByClass(
            kind, self._scene.GenerateUniqueName(self._baseName) if self._baseName else ""
        )
        if self._selectNodeUponCreation:
            self.setCurrentNode(node)
        return node

    def _addByUser(self) -> None:
        self.nodeAddedByUser.emit(self.addNode())

    def removeCurrentNode(self) -> None:
        """Remove the selected node from the scene."""
        if self.currentNode() is not None:
            self._scene.RemoveNode(self.currentNode())

    def renameCurrentNode(self) -> None:
        """Ask the user for a new name of the selected node."""
        node = self.currentNode()
        if node is None:
            return
        name, accepted = QtWidgets.QInputDialog.getText(self, "Rename", "New name:", text=node.GetName())
        if accepted and name:
            node.SetName(name)
