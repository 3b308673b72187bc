"""The log of a training run as a picture, for whoever watches it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT: Final = "log.png"

COLUMNS: Final = 4
SMOOTHED: Final = 0.1
"""Share of the log that the bold lines average over."""

SHOWN: Final = 98
"""Percentile of a panel's values that it reaches up to."""


def plot_log(log: Path, path: Path) -> None:
    """Draw a log as PNG: nothing without Matplotlib, which training does not need, or before the first line.

    Parameters
    ----------
    log : Path
        One line of JSON every so many steps, as training writes it.
    path : Path
        PNG to write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        return
    lines = read_log(log)
    if not lines:
        return
    temporary = path.with_name(f".{path.name}.part")
    FigureCanvasAgg(figure_of(lines)).print_png(temporary)
    temporary.replace(path)


def read_log(log: Path) -> list[dict[str, Any]]:
    """Lines of a log by ascending step; of a step that was done twice, after an interruption, the later one."""
    lines: dict[int, dict[str, Any]] = {}
    if log.is_file():
        for text in log.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                lines[int(line["step"])] = line
            except (ValueError, KeyError, TypeError):
                # a run that was killed may have left half a line
                continue
    return [lines[step] for step in sorted(lines)]


def figure_of(lines: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each number of the log, the loss first, and one for errors of each place over others' errors."""
    # not pyplot: it would choose a backend, and keep figures, for the whole process
    from matplotlib.figure import Figure

    steps = np.array([line["step"] for line in lines])
    numbers = {name: None for line in lines for name, value in line.items() if isinstance(value, int | float)}
    panels: dict[str, dict[str, NDArray[np.float64]]] = {
        name: {"": _column(lines, name)} for name in sorted(numbers, key=lambda name: name != "loss") if name != "step"
    }
    for key in sorted({key for line in lines for key in line if key.startswith("to_")}):
        ratios = [line.get(key, {}) for line in lines]
        for name in sorted({name for ratio in ratios for name in ratio}):
            kind, _, place = name.rpartition("_")
            panels.setdefault(f"error / {key.removeprefix('to_')}'s, {place}", {})[kind] = _column(ratios, name)

    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 2.4 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True)
    for ax, (title, curves) in zip(grid.flat, panels.items(), strict=False):
        for place, (label, values) in enumerate(curves.items()):
            _draw(ax, steps, values, label, f"C{place}")
        _limit(ax, np.concatenate(list(curves.values())))
        ax.set_title(title, fontsize="medium")
        if any(curves):
            ax.axhline(1, color="grey", linewidth=0.8)
            ax.legend(fontsize="x-small")
    for ax in grid.flat[len(panels) :]:
        ax.set_axis_off()
    for ax in grid[-1]:
        ax.set_xlabel("step")
    return figure


def _column(lines: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([line.get(name, np.nan) for line in lines], float)


def _draw(ax: Axes, steps: NDArray[np.int_], values: NDArray[np.float64], label: str, color: str) -> None:
    """A thin line of the values, and a bold one of their running mean."""
    ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.4)
    window = np.ones(2 * int(SMOOTHED * len(values) / 2) + 1)
    known = np.isfinite(values)
    # the mean of what is known within the window, which ends where the log ends
    totals, counts = (
        np.convolve(summed, window)[len(window) // 2 :][: len(values)] for summed in (np.where(known, values, 0), known)
    )
    smooth = np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
    ax.plot(steps, smooth, color=color, linewidth=1.6, label=label)


def _limit(ax: Axes, values: NDArray[np.float64]) -> None:
    """Leave the highest values out of the picture: the first steps' would flatten all that follow."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, [0, SHOWN]) if len(known) else (0.0, 0.0)
    if high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
