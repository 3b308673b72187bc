"""CTK's small widgets: combo boxes, paths, colours, search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets


class ComboBox(QtWidgets.QComboBox):
    """``ctkComboBox``: a combo box with a text for no choice."""

    def _setDefaultText(self, text: str) -> None:
        QtWidgets.QComboBox.setPlaceholderText(self, text)

    defaultText = QtCore.Property(str, lambda self: QtWidgets.QComboBox.placeholderText(self), _setDefaultText)


class CheckableComboBox(QtWidgets.QComboBox):
    """``ctkCheckableComboBox``: items with a check box each."""

    checkedIndexesChanged = QtCore.Signal()

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        QtWidgets.QComboBox.model(self).rowsInserted.connect(self._prepare)
        QtWidgets.QComboBox.model(self).itemChanged.connect(lambda _: self.checkedIndexesChanged.emit())

    def _prepare(self, _: Any, first: int, last: int) -> None:
        for row in range(first, last + 1):
            item = QtWidgets.QComboBox.model(self).item(row)
            item.setFlags(QtCore.Qt.ItemFlag.ItemIsUserCheckable | QtCore.Qt.ItemFlag.ItemIsEnabled)
            item.setData(QtCore.Qt.CheckState.Unchecked, QtCore.Qt.ItemDataRole.CheckStateRole)

    def checkedIndexes(self) -> list[QtCore.QModelIndex]:
        """Indexes of the checked items."""
        model = QtWidgets.QComboBox.model(self)
        rows = [model.item(row) for row in range(model.rowCount())]
        return [item.index() for item in rows if item.checkState() == QtCore.Qt.CheckState.Checked]

    def setCheckState(self, index: QtCore.QModelIndex, state: QtCore.Qt.CheckState) -> None:
        """Check or uncheck an item."""
        QtWidgets.QComboBox.model(self).itemFromIndex(index).setCheckState(QtCore.Qt.CheckState(state))


class PathLineEdit(QtWidgets.QWidget):
    """``ctkPathLineEdit``: a path, typed or browsed; without CTK's history of earlier paths.

    ``filters`` takes the names of CTK's flags (``"ctkPathLineEdit::Dirs"``) as text, or their numbers.
    """

    currentPathChanged = QtCore.Signal(str)
    validInputChanged = QtCore.Signal(bool)

    Dirs, Files, Drives, NoSymLinks = 1, 2, 4, 8
    Readable, Writable, Executable, Hidden = 16, 32, 64, 256

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._filters = self.Files
        self._nameFilters: list[str] = []
        self._label = ""
        self._settingKey = ""
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        self._edit = QtWidgets.QLineEdit()
        self._browseButton = QtWidgets.QToolButton()
        self._browseButton.setText("…")
        self._browseButton.setToolTip("Browse")
        layout.addWidget(self._edit, 1)
        layout.addWidget(self._browseButton)
        self._edit.textChanged.connect(self.currentPathChanged)
        self._browseButton.clicked.connect(self.browse)

    def browse(self) -> None:
        """Let the user choose a file or folder."""
        dialog = QtWidgets.QFileDialog
        here = self._edit.text()
        if self._filters & self.Dirs and not self._filters & self.Files:
            path = dialog.getExistingDirectory(self, self._label, here)
        elif self._filters & self.Writable:
            path = dialog.getSaveFileName(self, self._label, here, ";;".join(self._nameFilters))[0]
        else:
            path = dialog.getOpenFileName(self, self._label, here, ";;".join(self._nameFilters))[0]
        if path:
            self._edit.setText(path)

    def setCurrentPath(self, path: str | Path) -> None:
        """Set the path."""
        self._edit.setText(str(path))

    def addCurrentPathToHistory(self) -> None:
        """Does nothing: there is no history."""

    def _setFilters(self, filters: str | int) -> None:
        names = str(filters).split("|") if isinstance(filters, str) else []
        self._filters = sum(getattr(self, n.rpartition("::")[2]) for n in names) if names else int(filters)

    def _setNameFilters(self, filters: list[str]) -> None:
        self._nameFilters = list(filters)

    currentPath = QtCore.Property(str, lambda self: self._edit.text(), setCurrentPath)
    filters = QtCore.Property("QVariant", lambda self: self._filters, _setFilters)
    nameFilters = QtCore.Property("QStringList", lambda self: self._nameFilters, _setNameFilters)
    label = QtCore.Property(str, lambda self: self._label, lambda self, v: setattr(self, "_label", v))
    settingKey = QtCore.Property(str, lambda self: self._settingKey, lambda self, v: setattr(self, "_settingKey", v))
    showBrowseButton = QtCore.Property(
        bool, lambda self: not self._browseButton.isHidden(), lambda self, v: self._browseButton.setVisible(v)
    )


class DirectoryButton(QtWidgets.QPushButton):
    """``ctkDirectoryButton``: a button that shows and asks for a folder."""

    directoryChanged = QtCore.Signal(str)
    directorySelected = QtCore.Signal(str)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._directory = "."
        QtWidgets.QPushButton.setText(self, self._directory)
        self.clicked.connect(self.browse)

    def browse(self) -> None:
        """Let the user choose."""
        chosen = QtWidgets.QFileDialog.getExistingDirectory(self, "", self._directory)
        if chosen:
            self.setDirectory(chosen)
            self.directorySelected.emit(chosen)

    def setDirectory(self, directory: str) -> None:
        """Set the folder."""
        if directory != self._directory:
            self._directory = str(directory)
            QtWidgets.QPushButton.setText(self, self._directory)
            self.directoryChanged.emit(self._directory)

    directory = QtCore.Property(str, lambda self: self._directory, setDirectory)


class ColorPickerButton(QtWidgets.QPushButton):
    """``ctkColorPickerButton``: a button that shows and asks for a colour."""

    colorChanged = QtCore.Signal(QtGui.QColor)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._color = QtGui.QColor("black")
        self.clicked.connect(self.changeColor)

    def changeColor(self) -> None:
        """Let the user choose."""
        chosen = QtWidgets.QColorDialog.getColor(self._color, self)
        if chosen.isValid():
            self.setColor(chosen)

    def setColor(self, color: QtGui.QColor) -> None:
        """Set the colour."""
        if color != self._color:
            self._color = QtGui.QColor(color)
            swatch = QtGui.QPixmap(16, 16)
            swatch.fill(self._color)
            QtWidgets.QPushButton.setIcon(self, QtGui.QIcon(swatch))
            self.colorChanged.emit(self._color)

    color = QtCore.Property(QtGui.QColor, lambda self: self._color, setColor)


class SearchBox(QtWidgets.QLineEdit):
    """``ctkSearchBox``: a line with a button that clears it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        QtWidgets.QLineEdit.setClearButtonEnabled(self, True)
