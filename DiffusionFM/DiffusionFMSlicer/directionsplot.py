"""A small plot of attention over directions, drawn for the panel: it needs no plot view."""

from __future__ import annotations

from typing import Any

import numpy as np
import qt

from DiffusionFMSlicer.directions import BEYOND, Directions

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""By shell; told apart by colour-blind people too, and neighbours have other shapes beside."""

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 230, 44, 10, 40, 40
"""Height, and room around the axes, pixels."""

SIZE = 4
"""Half of a mark, pixels."""


def reach(directions: Directions) -> float:
    """Where the vertical axis ends, both ways: a round number beyond all marks."""
    highest = max((float(np.abs(s.beyond).max()) for s in directions.series if len(s.beyond)), default=0.0)
    decade = 10.0 ** np.floor(np.log10(max(highest, 1e-9)))
    return float(next(step * decade for step in (1, 2, 5, 10) if step * decade >= highest)) if highest > 0 else 1.0


def draw(directions: Directions, width: int, palette: Any, ratio: float = 1.0) -> Any:
    """The plot.

    Parameters
    ----------
    directions : Directions
    width : int, pixels
    palette : QPalette
        The panel's, so that it is as dark or bright.
    ratio : float
        Of the screen's own pixels to these, along an edge.

    Returns
    -------
    QPixmap
    """
    picture = qt.QPixmap(round(ratio * width), round(ratio * HEIGHT))
    picture.setDevicePixelRatio(ratio)
    picture.fill(palette.color(qt.QPalette.Base))
    painter = qt.QPainter()
    painter.begin(picture)
    painter.setRenderHint(qt.QPainter.Antialiasing, True)
    _Plot(painter, directions, width, palette).draw()
    painter.end()
    return picture


class _Plot:
    """The parts of one drawing; see `draw`."""

    def __init__(self, painter: Any, directions: Directions, width: int, palette: Any) -> None:
        self._painter = painter
        self._directions = directions
        self._right = width - RIGHT
        self._text = palette.color(qt.QPalette.Text)
        self._reach = reach(directions)
        font = painter.font()
        font.setPixelSize(11)
        painter.setFont(font)

    def draw(self) -> None:
        self._axes()
        for index, series in enumerate(self._directions.series):
            color = qt.QColor(COLORS[index % len(COLORS)])
            for angle, beyond in zip(series.angles, series.beyond, strict=True):
                self._mark(index, color, self._x(angle), self._y(beyond))
        self._legend()

    def _x(self, angle: float) -> int:
        return round(LEFT + (self._right - LEFT) * angle / 90)

    def _y(self, beyond: float) -> int:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (self._reach - beyond) / (2 * self._reach))

    def _axes(self) -> None:
        faint = qt.QColor(self._text)
        faint.setAlpha(60)
        for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
            y = self._y(value * self._reach)
            self._painter.setPen(qt.QPen(self._text if value == 0 else faint))
            self._painter.drawLine(LEFT, y, self._right, y)
            self._write(f"{value * self._reach:+.3g}" if value else "0", LEFT - 5, y + 4, 1.0)
        for angle in (0, 30, 60, 90):
            x = self._x(angle)
            self._painter.setPen(qt.QPen(faint))
            self._painter.drawLine(x, TOP, x, HEIGHT - BOTTOM)
            self._write(f"{angle}°", x, HEIGHT - BOTTOM + 14, 1.0 if angle == 90 else 0.5)
        self._write(BEYOND, 4, 13, 0.0)
        self._write(self._directions.axis, (LEFT + self._right) // 2, HEIGHT - 8, 0.5)

    def _write(self, text: str, x: int, y: int, before: float) -> None:
        self._painter.setPen(qt.QPen(self._text))
        self._painter.drawText(round(x - before * self._painter.fontMetrics().horizontalAdvance(text)), y, text)

    def _legend(self) -> None:
        x = LEFT
        for index, series in enumerate(self._directions.series):
            self._mark(index, qt.QColor(COLORS[index % len(COLORS)]), x + SIZE, 26)
            self._write(series.title, x + 3 * SIZE, 30, 0.0)
            x += 3 * SIZE + self._painter.fontMetrics().horizontalAdvance(series.title) + 14

    def _mark(self, index: int, color: Any, x: int, y: int) -> None:
        painter = self._painter
        painter.setPen(qt.QPen(color))
        painter.setBrush(qt.QBrush(color))
        if index % 3 == 0:
            painter.drawEllipse(x - SIZE, y - SIZE, 2 * SIZE, 2 * SIZE)
        elif index % 3 == 1:
            painter.drawRect(x - SIZE + 1, y - SIZE + 1, 2 * SIZE - 2, 2 * SIZE - 2)
        else:
            painter.drawLine(x - SIZE, y - SIZE, x + SIZE, y + SIZE)
            painter.drawLine(x - SIZE, y + SIZE, x + SIZE, y - SIZE)
