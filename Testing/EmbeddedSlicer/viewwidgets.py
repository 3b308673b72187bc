"""Views as Qt widgets: the picture with its mouse, and the bar above it."""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from EmbeddedSlicer import overlays
from EmbeddedSlicer.observers import Observers
from EmbeddedSlicer.views import SliceView, ThreeDView, View

RENDER_DELAY = 15
"""A picture is made this long after the first request for it, ms, so that a burst of changes costs one."""

_BAR = """
#viewBar QLabel { font-weight: bold; }
#viewBar QToolButton { border: 0; padding: 1px; }
#viewBar QSlider::groove:horizontal { height: 4px; border-radius: 2px; background: rgba(0, 0, 0, 70); }
#viewBar QSlider::handle:horizontal { width: 12px; margin: -4px 0; border-radius: 6px; background: #202124; }
"""

_MOUSE = {
    QtCore.Qt.MouseButton.LeftButton: "LeftButton",
    QtCore.Qt.MouseButton.MiddleButton: "MiddleButton",
    QtCore.Qt.MouseButton.RightButton: "RightButton",
}


class Picture(QtWidgets.QWidget):
    """Shows what a view renders, and hands it mouse and keys.

    The view renders off screen and the picture is copied: that works on every platform of Qt, also without a screen.

    Parameters
    ----------
    view : View
    """

    rendered = QtCore.Signal()

    def __init__(self, view: View, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.view = view
        self.renderCount = 0
        self._image: QtGui.QImage | None = None
        self._timer = QtCore.QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(RENDER_DELAY)
        self._timer.timeout.connect(self.forceRender)
        view.onRenderRequest = self.scheduleRender
        self.setMouseTracking(True)
        self.setFocusPolicy(QtCore.Qt.FocusPolicy.WheelFocus)
        self.setMinimumSize(120, 100)
        self.setContextMenuPolicy(QtCore.Qt.ContextMenuPolicy.PreventContextMenu)

    # --- as qMRMLSliceView and qMRMLThreeDView ------------------------------------------------------------------------

    def scheduleRender(self) -> None:
        """Render soon."""
        if not self._timer.isActive() and not slicer.app.renderPaused:
            self._timer.start()

    def forceRender(self) -> None:
        """Render now."""
        self._timer.stop()
        if self.view.onRenderRequest is None:
            return
        pixels = self.view.grab()
        height, width, _ = pixels.shape
        self._image = QtGui.QImage(pixels.data, width, height, 3 * width, QtGui.QImage.Format.Format_RGB888).copy()
        self.renderCount += 1
        self.update()
        self.rendered.emit()

    def renderWindow(self) -> Any:
        """The VTK window."""
        return self.view.renderWindow

    def interactor(self) -> Any:
        """The VTK interactor."""
        return self.view.interactor

    def interactorStyle(self) -> Any:
        """What turns mouse and keys into MRML interactions."""
        return self.view.style

    def displayableManagerByClassName(self, name: str) -> Any:
        """One of the view's displayable managers, or None."""
        return self.view.group.GetDisplayableManagerByClassName(name)

    def image(self) -> QtGui.QImage:
        """The last picture, without the text that is drawn over it."""
        if self._image is None or self._timer.isActive():
            self.forceRender()
        assert self._image is not None
        return self._image

    # --- Qt's events --------------------------------------------------------------------------------------------------

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Called by Qt."""
        painter = QtGui.QPainter(self)
        painter.fillRect(self.rect(), QtCore.Qt.GlobalColor.black)
        if self._image is not None:
            painter.setRenderHint(QtGui.QPainter.RenderHint.SmoothPixmapTransform)
            painter.drawImage(self.rect(), self._image)
        if isinstance(self.view, SliceView):
            overlays.drawSliceText(painter, self.rect(), self.view)

    def resizeEvent(self, event: QtGui.QResizeEvent) -> None:
        """Called by Qt."""
        scale = self.devicePixelRatioF()
        self.view.resize(max(round(self.width() * scale), 1), max(round(self.height() * scale), 1))
        self.scheduleRender()

    def showEvent(self, event: QtGui.QShowEvent) -> None:
        """Called by Qt."""
        self.scheduleRender()

    def _tell(
        self, event: Any, position: QtCore.QPointF, key: str = "\0", symbol: str | None = None, repeats: int = 0
    ) -> Any:
        modifiers = event.modifiers()
        scale = self.devicePixelRatioF()
        x, y = round(position.x() * scale), round((self.height() - 1 - position.y()) * scale)
        control = int(bool(modifiers & QtCore.Qt.KeyboardModifier.ControlModifier))
        shift = int(bool(modifiers & QtCore.Qt.KeyboardModifier.ShiftModifier))
        self.view.interactor.SetEventInformation(x, y, control, shift, key, repeats, symbol)
        self.view.interactor.SetAltKey(int(bool(modifiers & QtCore.Qt.KeyboardModifier.AltModifier)))
        return self.view.interactor

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """Called by Qt."""
        interactor = self._tell(event, event.position())
        if event.button() in _MOUSE:
            interactor.InvokeEvent(f"{_MOUSE[event.button()]}PressEvent")

    def mouseDoubleClickEvent(self, event: QtGui.QMouseEvent) -> None:
        """Called by Qt."""
        interactor = self._tell(event, event.position(), repeats=1)
        if event.button() in _MOUSE:
            interactor.InvokeEvent(f"{_MOUSE[event.button()]}DoubleClickEvent")

    def mouseReleaseEvent(self, event: QtGui.QMouseEvent) -> None:
        """Called by Qt."""
        interactor = self._tell(event, event.position())
        if event.button() in _MOUSE:
            interactor.InvokeEvent(f"{_MOUSE[event.button()]}ReleaseEvent")

    def mouseMoveEvent(self, event: QtGui.QMouseEvent) -> None:
        """Called by Qt."""
        self._tell(event, event.position()).InvokeEvent(vtk.vtkCommand.MouseMoveEvent)

    def wheelEvent(self, event: QtGui.QWheelEvent) -> None:
        """Called by Qt."""
        interactor = self._tell(event, event.position())
        forward = event.angleDelta().y() > 0
        interactor.InvokeEvent(
            vtk.vtkCommand.MouseWheelForwardEvent if forward else vtk.vtkCommand.MouseWheelBackwardEvent
        )

    def enterEvent(self, event: QtGui.QEnterEvent) -> None:
        """Called by Qt."""
        self.view.interactor.InvokeEvent(vtk.vtkCommand.EnterEvent)

    def leaveEvent(self, event: QtCore.QEvent) -> None:
        """Called by Qt."""
        self.view.interactor.InvokeEvent(vtk.vtkCommand.LeaveEvent)

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        """Called by Qt."""
        position = QtCore.QPointF(self.mapFromGlobal(QtGui.QCursor.pos()))
        key = event.text()[:1] or "\0"
        interactor = self._tell(
            event, position, key if key.isascii() else "\0", QtGui.QKeySequence(event.key()).toString()
        )
        interactor.InvokeEvent(vtk.vtkCommand.KeyPressEvent)
        interactor.InvokeEvent(vtk.vtkCommand.CharEvent)


class ViewWidget(QtWidgets.QWidget):
    """A view with the bar above it, tinted in the view's colour."""

    def __init__(self, view: View, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self.view = view
        self.picture = Picture(view)
        self.bar = QtWidgets.QWidget()
        self.bar.setObjectName("viewBar")
        self.bar.setFixedHeight(24)
        self._label = QtWidgets.QLabel(view.node.GetLayoutLabel() or view.node.GetLayoutName())
        self._label.setToolTip(f"{view.node.GetLayoutName()} view")
        self._label.setMinimumWidth(16)
        self._label.setAlignment(QtCore.Qt.AlignmentFlag.AlignCenter)
        self._fit = QtWidgets.QToolButton()
        self._fit.setText("⤢")
        self._fit.setToolTip("Fit to what is shown")
        self._fit.clicked.connect(view.fit)
        row = QtWidgets.QHBoxLayout(self.bar)
        row.setContentsMargins(6, 0, 8, 0)
        row.setSpacing(6)
        row.addWidget(self._label)
        row.addWidget(self._fit)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self.bar)
        layout.addWidget(self.picture, 1)
        color = QtGui.QColor.fromRgbF(*view.node.GetLayoutColor())
        self.bar.setStyleSheet(
            f"#viewBar {{ background: {color.name()}; }} #viewBar * {{ color: black; background: transparent; }}" + _BAR
        )


class SliceWidget(ViewWidget):
    """Stands in for ``qMRMLSliceWidget``."""

    def __init__(self, view: SliceView, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(view, parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal)
        self._slider.setToolTip("Position of the slice")
        self._offset = QtWidgets.QLabel()
        self._offset.setAlignment(QtCore.Qt.AlignmentFlag.AlignRight | QtCore.Qt.AlignmentFlag.AlignVCenter)
        self._offset.setMinimumWidth(82)
        row = self.bar.layout()
        row.insertWidget(2, self._slider, 1)
        row.insertWidget(3, self._offset)
        self._low, self._step = 0.0, 1.0
        self._slider.valueChanged.connect(lambda tick: view.logic.SetSliceOffset(self._low + tick * self._step))
        self._observers = Observers(self)
        self._observers.add(view.logic, vtk.vtkCommand.ModifiedEvent, self._showOffset)
        self._observers.add(view.node, vtk.vtkCommand.ModifiedEvent, self._showOffset)
        self._showOffset()

    def _showOffset(self, *_: Any) -> None:
        bounds, resolution = [0.0, 0.0], vtk.reference(1.0)
        logic = self.view.logic
        if not logic.GetSliceOffsetRangeResolution(bounds, resolution):
            bounds = [-100.0, 100.0]
        offset = logic.GetSliceOffset()
        self._low, self._step = bounds[0], max(float(resolution), 1e-3)
        blocker = QtCore.QSignalBlocker(self._slider)
        self._slider.setRange(0, round((bounds[1] - bounds[0]) / self._step))
        self._slider.setValue(round((offset - self._low) / self._step))
        blocker.unblock()
        self._offset.setText(overlays.placeText(self.view.node))

    # --- as qMRMLSliceWidget ------------------------------------------------------------------------------------------

    def sliceLogic(self) -> Any:
        """The view's slice logic."""
        return self.view.logic

    def mrmlSliceNode(self) -> Any:
        """The view's node."""
        return self.view.node

    def mrmlSliceCompositeNode(self) -> Any:
        """Which volumes are shown."""
        return self.view.compositeNode

    def sliceView(self) -> Picture:
        """The picture."""
        return self.picture

    def sliceController(self) -> QtWidgets.QWidget:
        """The bar."""
        return self.bar

    def interactorStyle(self) -> Any:
        """What turns mouse and keys into MRML interactions."""
        return self.view.style

    def fitSliceToBackground(self) -> None:
        """Show all of the volumes."""
        self.view.fit()


class ThreeDWidget(ViewWidget):
    """Stands in for ``qMRMLThreeDWidget``."""

    def __init__(self, view: ThreeDView, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(view, parent)
        self.bar.layout().addStretch(1)

    # --- as qMRMLThreeDWidget -----------------------------------------------------------------------------------------

    def mrmlViewNode(self) -> Any:
        """The view's node."""
        return self.view.node

    def threeDView(self) -> Picture:
        """The picture."""
        return self.picture

    def threeDController(self) -> QtWidgets.QWidget:
        """The bar."""
        return self.bar
