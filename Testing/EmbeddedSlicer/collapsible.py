"""A titled section that folds, as CTK's."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

HEADER = 24
"""Height of the title, pixels."""

UNLIMITED = 16_777_215
"""Qt's QWIDGETSIZE_MAX."""


class CollapsibleButton(QtWidgets.QWidget):
    """``ctkCollapsibleButton``: a header with an arrow, over a content that it hides.

    The layout that users set holds the content; the header lies in a margin above it.
    """

    contentsCollapsed = QtCore.Signal(bool)
    toggled = QtCore.Signal(bool)
    clicked = QtCore.Signal(bool)

    def __init__(self, *arguments: Any) -> None:
        """Take a text, a parent, or both."""
        parent = next((a for a in arguments if isinstance(a, QtWidgets.QWidget)), None)
        QtWidgets.QWidget.__init__(self, parent)
        self._text = next((a for a in arguments if isinstance(a, str)), "")
        self._collapsed = False
        self._hovered = False
        self._hiding = False
        self._shown: set[QtWidgets.QWidget] = set()
        QtWidgets.QWidget.setContentsMargins(self, 0, HEADER, 0, 0)
        QtWidgets.QWidget.setFocusPolicy(self, QtCore.Qt.FocusPolicy.TabFocus)
        QtWidgets.QWidget.setMinimumHeight(self, HEADER)
        policy = QtWidgets.QSizePolicy.Policy
        QtWidgets.QWidget.setSizePolicy(self, policy.Preferred, policy.Preferred)

    def setText(self, text: str) -> None:
        """Set the title."""
        self._text = str(text)
        self.update()

    def setCollapsed(self, collapsed: bool) -> None:
        """Fold or unfold the content."""
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        self._hiding = True
        if collapsed:
            self._shown = {child for child in self._content() if not child.isHidden()}
        for child in self._shown:
            if collapsed:
                self._hide(child)
            else:
                child.show()
        self._hiding = False
        QtWidgets.QWidget.setMaximumHeight(self, HEADER if collapsed else UNLIMITED)
        self.updateGeometry()
        self.update()
        self.contentsCollapsed.emit(collapsed)
        self.toggled.emit(not collapsed)

    def setChecked(self, checked: bool) -> None:
        """The same as unfolding: CTK's section is a button that is down while open."""
        self.setCollapsed(not checked)

    text = QtCore.Property(str, lambda self: self._text, setText)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, setCollapsed)
    checked = QtCore.Property(bool, lambda self: not self._collapsed, setChecked)

    def _content(self) -> list[QtWidgets.QWidget]:
        return [c for c in QtCore.QObject.children(self) if isinstance(c, QtWidgets.QWidget) and not c.isWindow()]

    # --- Qt's events ----------------------------------------------------------------------------------------------

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        """Hide what is added while folded; called by Qt."""
        if event.added() and event.child().isWidgetType():
            event.child().installEventFilter(self)
            if self._collapsed:
                self._shown.add(event.child())
                self._hiding = True
                self._hide(event.child())
                self._hiding = False
        if event.removed():
            self._shown.discard(event.child())

    def eventFilter(self, child: QtCore.QObject, event: QtCore.QEvent) -> bool:
        """Remember what a module shows or hides while folded, for when it unfolds; called by Qt."""
        if not self._collapsed or self._hiding:
            return False
        if event.type() == QtCore.QEvent.Type.ShowToParent:
            self._shown.add(child)
            QtCore.QTimer.singleShot(0, self, self._hideAgain)
        elif event.type() == QtCore.QEvent.Type.HideToParent:
            self._shown.discard(child)
        return False

    def _hideAgain(self) -> None:
        if self._collapsed:
            self._hiding = True
            for child in self._shown:
                self._hide(child)
            self._hiding = False

    @staticmethod
    def _hide(child: QtWidgets.QWidget) -> None:
        child.hide()
        # else Qt would not tell when a module hides what is hidden already
        child.setAttribute(QtCore.Qt.WidgetAttribute.WA_WState_ExplicitShowHide, False)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        """Draw the header; called by Qt."""
        painter = QtGui.QPainter(self)
        painter.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        palette = QtWidgets.QWidget.palette(self)
        header = QtCore.QRectF(0.5, 0.5, QtWidgets.QWidget.width(self) - 1, HEADER - 3)
        role = QtGui.QPalette.ColorRole
        painter.setPen(QtGui.QPen(palette.color(role.Mid)))
        painter.setBrush(palette.color(role.Midlight if self._hovered else role.Button))
        painter.drawRoundedRect(header, 4, 4)
        color = palette.color(role.Highlight if QtWidgets.QWidget.hasFocus(self) else role.ButtonText)
        painter.setPen(QtCore.Qt.PenStyle.NoPen)
        painter.setBrush(color)
        middle = header.center().y()
        points = ((9, -4), (9, 4), (14, 0)) if self._collapsed else ((7, -2), (15, -2), (11, 3))
        painter.drawPolygon([QtCore.QPointF(x, middle + y) for x, y in points])
        painter.setPen(color)
        font = QtWidgets.QWidget.font(self)
        font.setBold(True)
        painter.setFont(font)
        title = QtGui.QFontMetrics(font).elidedText(
            self._text, QtCore.Qt.TextElideMode.ElideRight, int(header.width()) - 30
        )
        painter.drawText(header.adjusted(22, 0, -6, 0), QtCore.Qt.AlignmentFlag.AlignVCenter, title)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        """Fold or unfold by the header; called by Qt."""
        if event.position().y() <= HEADER and event.button() == QtCore.Qt.MouseButton.LeftButton:
            self.click()

    def click(self) -> None:
        """Fold or unfold as a click does."""
        self.setCollapsed(not self._collapsed)
        self.clicked.emit(not self._collapsed)

    def keyPressEvent(self, event: QtGui.QKeyEvent) -> None:
        """Fold or unfold by the space bar; called by Qt."""
        if event.key() == QtCore.Qt.Key.Key_Space:
            self.click()
        else:
            QtWidgets.QWidget.keyPressEvent(self, event)

    def enterEvent(self, event: QtGui.QEnterEvent) -> None:
        """Called by Qt."""
        self._hovered = True
        self.update()

    def leaveEvent(self, event: QtCore.QEvent) -> None:
        """Called by Qt."""
        self._hovered = False
        self.update()
