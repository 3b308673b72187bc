"""Look of the host's window: Qt's Fusion style in dark colours."""

from __future__ import annotations

from PySide6 import QtGui, QtWidgets

_ROLES = {
    "Window": "#2b2d31",
    "WindowText": "#e6e6e6",
    "Base": "#1f2124",
    "AlternateBase": "#26282c",
    "ToolTipBase": "#3a3d42",
    "ToolTipText": "#f0f0f0",
    "Text": "#e6e6e6",
    "Button": "#3a3d42",
    "ButtonText": "#ececec",
    "BrightText": "#ff6b5e",
    "Light": "#565a61",
    "Midlight": "#484c53",
    "Mid": "#222427",
    "Dark": "#17181a",
    "Shadow": "#000000",
    "Highlight": "#3d8bd4",
    "HighlightedText": "#ffffff",
    "Link": "#6fb3f2",
    "PlaceholderText": "#8b8f96",
}
_DISABLED = "#7b7f86"
FONT_SIZE = 12
"""Pixels."""

_SHEET = """
QToolTip { border: 1px solid #565a61; padding: 3px; }
QSplitter::handle { background: #17181a; }
QScrollArea { border: 0; }
#moduleTitle { font-size: 15px; font-weight: bold; padding: 8px 10px; background: #222427; }
#DataProbeCollapsibleWidget { background: #222427; }
#DataProbeCollapsibleWidget QLabel { color: #e6e6e6; background: transparent; }
"""


def apply(application: QtWidgets.QApplication) -> None:
    """Give an application the host's look."""
    application.setStyle("Fusion")
    palette = QtGui.QPalette()
    for name, color in _ROLES.items():
        palette.setColor(getattr(QtGui.QPalette.ColorRole, name), QtGui.QColor(color))
    for name in ("WindowText", "Text", "ButtonText"):
        palette.setColor(
            QtGui.QPalette.ColorGroup.Disabled, getattr(QtGui.QPalette.ColorRole, name), QtGui.QColor(_DISABLED)
        )
    application.setPalette(palette)
    font = application.font()
    font.setPixelSize(FONT_SIZE)
    application.setFont(font)
    application.setStyleSheet(_SHEET)
