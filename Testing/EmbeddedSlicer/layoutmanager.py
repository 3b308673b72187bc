"""Layouts of views: ``slicer.app.layoutManager()``."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

from EmbeddedSlicer.observers import Observers
from EmbeddedSlicer.scene import Scene
from EmbeddedSlicer.views import SliceView, ThreeDView
from EmbeddedSlicer.viewwidgets import SliceWidget, ThreeDWidget, ViewWidget

_KINDS = {"vtkMRMLSliceNode": (SliceWidget, SliceView), "vtkMRMLViewNode": (ThreeDWidget, ThreeDView)}


class LayoutManager(QtCore.QObject):
    """Shows the views that the scene's layout node asks for.

    Layouts are those of ``vtkMRMLLayoutNode``, in Slicer's XML, so that a module's own ones work too. What it leaves
    out: plot, table and other views (an empty place stands there), and several windows.
    """

    layoutChanged = QtCore.Signal(int)

    tableViewCount = plotViewCount = 0

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._scene = scene
        self._widgets: dict[tuple[str, str], ViewWidget] = {}
        self._visible: list[ViewWidget] = []
        self._shown: tuple[int, str] | None = None
        self._root: QtWidgets.QWidget | None = None
        self._viewport = QtWidgets.QWidget()
        layout = QtWidgets.QVBoxLayout(self._viewport)
        layout.setContentsMargins(0, 0, 0, 0)
        self._node = scene.layoutLogic.GetLayoutNode()
        self._observers = Observers(self)
        self._observers.add(self._node, vtk.vtkCommand.ModifiedEvent, self._update)
        self._observers.add(scene.mrml, scene.mrml.EndCloseEvent, self._update)
        self._observers.add(scene.mrml, scene.mrml.EndImportEvent, self._update)
        if self._node.GetViewArrangement() == 0:
            self._node.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        self._update()

    # --- as qMRMLLayoutManager ----------------------------------------------------------------------------------------

    layout = property(lambda self: self._node.GetViewArrangement())

    def viewport(self) -> QtWidgets.QWidget:
        """The widget that holds the views."""
        return self._viewport

    def layoutLogic(self) -> Any:
        """Makes the view nodes."""
        return self._scene.layoutLogic

    def setLayout(self, layout: int) -> None:
        """Set the number of the layout."""
        self._node.SetViewArrangement(layout)

    def sliceViewNames(self) -> list[str]:
        """Names of the slice views of this layout."""
        return [w.view.node.GetLayoutName() for w in self._visible if isinstance(w, SliceWidget)]

    def sliceWidget(self, name: str) -> SliceWidget | None:
        """A slice view by its name, or None."""
        return self._widgets.get(("vtkMRMLSliceNode", name))  # type: ignore[return-value]

    @property
    def threeDViewCount(self) -> int:
        """Number of 3D views of this layout."""
        return len(self._threeD())

    def threeDWidget(self, which: int | str) -> ThreeDWidget | None:
        """A 3D view by its position or name, or None."""
        if isinstance(which, str):
            return self._widgets.get(("vtkMRMLViewNode", which))  # type: ignore[return-value]
        return self._threeD()[which] if which < self.threeDViewCount else None

    def mrmlSliceLogics(self) -> Any:
        """A collection of the slice logics."""
        return self._scene.applicationLogic.GetSliceLogics()

    def resetThreeDViews(self) -> None:
        """Centre every 3D view on what it shows."""
        for widget in self._threeD():
            widget.view.fit()

    def resetSliceViews(self) -> None:
        """Fit every slice view to its volumes."""
        for name in self.sliceViewNames():
            self._widgets["vtkMRMLSliceNode", name].view.fit()

    # --- for the window -----------------------------------------------------------------------------------------------

    def visibleWidgets(self) -> list[ViewWidget]:
        """Views of this layout, in its order."""
        return list(self._visible)

    def renderAll(self) -> None:
        """Render every visible view now."""
        for widget in self._visible:
            widget.picture.forceRender()

    def scheduleRenderAll(self) -> None:
        """Render every visible view soon."""
        for widget in self._visible:
            widget.picture.scheduleRender()

    def closeViews(self) -> None:
        """Close the views for good."""
        for widget in self._widgets.values():
            widget.view.close()

    def _threeD(self) -> list[ThreeDWidget]:
        return [w for w in self._visible if isinstance(w, ThreeDWidget)]

    def _update(self, *_: Any) -> None:
        number = self._node.GetViewArrangement()
        wanted = number, self._node.GetCurrentLayoutDescription() or ""
        if wanted == self._shown or not wanted[1] or self._scene.mrml.IsBatchProcessing():
            return
        self._shown = wanted
        for widget in self._visible:
            widget.setParent(None)
            widget.view.node.SetMappedInLayout(False)
        self._visible = []
        old, self._root = self._root, self._build(ElementTree.fromstring(wanted[1]))
        if old is not None:
            self._viewport.layout().removeWidget(old)
            old.hide()
            old.deleteLater()
        self._viewport.layout().addWidget(self._root)
        for widget in self._visible:
            widget.view.node.SetMappedInLayout(True)
            widget.show()
        self._root.show()
        self.layoutChanged.emit(number)

    def _build(self, element: ElementTree.Element) -> QtWidgets.QWidget:
        if element.tag == "view":
            return self._view(element)
        items = element.findall("item")
        kind = element.get("type", "horizontal")
        if kind == "tab":
            tabs = QtWidgets.QTabWidget()
            for item in items:
                child = self._build(item[0])
                tabs.addTab(child, item.get("name") or getattr(child, "viewName", ""))
            return tabs
        if kind == "grid":
            return self._grid(items)
        orientation = QtCore.Qt.Orientation.Vertical if kind == "vertical" else QtCore.Qt.Orientation.Horizontal
        splitter = QtWidgets.QSplitter(orientation)
        splitter.setChildrenCollapsible(False)
        splitter.setHandleWidth(3)
        for index, item in enumerate(items):
            splitter.addWidget(self._build(item[0]))
            splitter.setStretchFactor(index, 1)
        share = [int(item.get("splitSize", "0")) or 500 for item in items]
        splitter.setSizes(share)
        return splitter

    def _grid(self, items: list[ElementTree.Element]) -> QtWidgets.QWidget:
        widget = QtWidgets.QWidget()
        grid = QtWidgets.QGridLayout(widget)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(3)
        for item in items:
            place = [int(item.get(name, default)) for name, default in _GRID_PLACE]
            grid.addWidget(self._build(item[0]), *place)
        return widget

    def _view(self, element: ElementTree.Element) -> QtWidgets.QWidget:
        kind, name = element.get("class", ""), element.get("singletontag", "")
        node = self._scene.mrml.GetSingletonNode(name, kind)
        if kind not in _KINDS or node is None:
            place = QtWidgets.QLabel(f"{kind} views are not in this host.")
            place.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
            return place
        widget = self._widgets.get((kind, name))
        if widget is None:
            makeWidget, makeView = _KINDS[kind]
            widget = makeWidget(makeView(node, self._scene.applicationLogic))
            self._widgets[kind, name] = widget
        self._visible.append(widget)
        return widget


_GRID_PLACE = ("row", "0"), ("column", "0"), ("rowspan", "1"), ("colspan", "1")
