"""The main job on a simulated scan, or the user's, without a viewer: maps, tracts, features, and a figure of them."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Artifact, Event, Finished
from DiffusionFMLib.reporting import failure
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import EncodeSettings, Settings, SimulateSettings, TrackSettings, option
from DiffusionFMLib.worker import Request, execute

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from DiffusionFMLib.console import EventSink

FIGURE = "figure.png"

SHOWN = ("colorfa", "fa", "md", "rollout")
"""Maps in the figure, the last an overlay that passed its gate."""

SIDES = (("P", "A", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))
"""Letters at the left, right, upper and lower edge of a sagittal, coronal and axial picture."""


@dataclass(frozen=True)
class DemoSettings(Settings):
    """Maps, tracts, learned features and a figure of a simulated scan, or of yours."""

    dwi: str = option("", "Diffusion scan; one is simulated when not given.", path=True)
    out: str = option("demo", "Folder that everything goes to.", path=True)
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))
    voxel_size: float = option(2.5, "Voxel edge of the simulated scan.", minimum=1, maximum=5, unit="mm")


def demo(settings: DemoSettings, sink: EventSink, cancelled: threading.Event) -> Event:
    """Simulate if need be, fit, track, encode, and draw; returns the event that ended it."""
    session = Session()
    dwi = settings.dwi
    if not dwi:
        simulate = SimulateSettings(out=str(Path(settings.out) / "scan"), voxel_size=settings.voxel_size)
        terminal = _run("simulate", simulate, sink, cancelled, session, None)
        if not isinstance(terminal, Finished):
            return terminal
        dwi = sink.result["dwi"]
    maps = str(Path(settings.out) / "maps")
    track = TrackSettings(dwi=dwi, out=maps, device=settings.device, max_count=3000)
    encode = EncodeSettings(dwi=dwi, out=maps, device=settings.device)
    with tempfile.TemporaryDirectory(prefix="diffusionfm-") as arrays:
        terminal = _run("track", track, sink, cancelled, session, arrays)
        if isinstance(terminal, Finished):
            terminal = _run("encode", encode, sink, cancelled, session, arrays)
        if isinstance(terminal, Finished):
            try:
                draw(sink.artifacts, Path(settings.out) / FIGURE, sink.result["name"])
            except (DiffusionFMError, OSError, ImportError) as error:
                terminal = failure(terminal.id, error)
                sink(terminal)
    sink.result = {**sink.result, "files": [FIGURE], "out": settings.out}
    return terminal


def _run(
    job: str, settings: Settings, sink: EventSink, cancelled: threading.Event, session: Session, arrays: str | None
) -> Event:
    body = {"job": job, "settings": settings.to_dict(), "arrays": arrays}
    return execute(Request(job, "run", body, cancelled), sink, session)


def draw(artifacts: list[Artifact], path: Path, title: str) -> None:
    """Draw colour FA, FA, MD and an overlay in three planes, and the tracts from three sides.

    Parameters
    ----------
    artifacts : list of Artifact
        Of ``track`` and ``encode`` jobs that were asked for arrays.
    path : Path
        PNG to write.
    title : str
        Over all of it: the scan's name.
    """
    from matplotlib.figure import Figure

    maps = {a.name: a for a in artifacts if a.role == "map" and a.array}
    volumes = {name: _canonical(maps[name]) for name in (*SHOWN, "status")}
    sizes = _canonical_sizes(maps["fa"])
    tracts = next(a for a in artifacts if a.role == "tracts")
    inside = np.argwhere(volumes["status"] > 0)
    low, high = inside.min(0), inside.max(0) + 1
    middle = np.rint(inside.mean(0)).astype(int)

    figure = Figure(figsize=(15, 9), facecolor="black", layout="constrained")
    axes = figure.subplots(3, 5)
    for row, axis in enumerate((0, 1, 2)):
        plane = tuple(middle[a] if a == axis else slice(low[a], high[a]) for a in range(3))
        across, up = (a for a in range(3) if a != axis)
        extent = (0, sizes[across] * (high - low)[across], 0, sizes[up] * (high - low)[up])
        for column, name in enumerate(SHOWN):
            image = np.swapaxes(volumes[name][plane], 0, 1)
            vmin, vmax = maps[name].window or (0, 1)
            image = np.clip(image, 0, 1) if image.ndim == 3 else image
            colors = maps[name].colors if image.ndim == 2 else None
            drawn = axes[row, column].imshow(image, origin="lower", cmap=colors, vmin=vmin, vmax=vmax, extent=extent)
            axes[0, column].set_title(maps[name].title, color="white")
            if row == len(axes) - 1 and image.ndim == 2:
                _draw_scale(drawn, list(axes[:, column]), maps[name].unit)
        _draw_tracts(axes[row, -1], Path(tracts.array or ""), (across, up))
    axes[0, -1].set_title("Tracts", color="white")
    for row, letters in zip(axes, SIDES, strict=True):
        for ax in row:
            _draw_sides(ax, letters)
    for ax in axes[1:].flat:
        # as radiologists look at it: the patient's right is on the left
        ax.invert_xaxis()
    figure.suptitle(title, color="white")
    for ax in axes.flat:
        ax.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)


def _canonical(artifact: Artifact) -> np.ndarray:
    """A map's data with its axes nearest to RAS, so that every scan is drawn the same way up."""
    from nibabel.orientations import apply_orientation, io_orientation

    data = np.swapaxes(np.load(artifact.array or ""), 0, 2)
    return apply_orientation(data, io_orientation(np.array(artifact.affine)))


def _canonical_sizes(artifact: Artifact) -> np.ndarray:
    """Voxel edges of a map along the axes that `_canonical` gives it, mm."""
    from nibabel.orientations import io_orientation

    affine = np.array(artifact.affine)
    return np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(io_orientation(affine)[:, 0])]


def _draw_scale(drawn: AxesImage, axes: list[Axes], unit: str) -> None:
    """Below a column, what its colours stand for."""
    scale = axes[0].figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.6, aspect=25, pad=0.01)
    scale.set_label(unit, color="white")
    scale.ax.tick_params(colors="white")
    scale.outline.set_edgecolor("white")


def _draw_sides(ax: Axes, letters: tuple[str, str, str, str]) -> None:
    from matplotlib.patheffects import withStroke

    for letter, x, y in zip(letters, (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.98, 0.02), strict=True):
        across = {0.02: "left", 0.98: "right"}.get(x, "center")
        up = {0.02: "bottom", 0.98: "top"}.get(y, "center")
        # readable on bright tissue too
        edge = [withStroke(linewidth=2, foreground="black")]
        ax.text(x, y, letter, color="white", ha=across, va=up, transform=ax.transAxes, path_effects=edge)


def _draw_tracts(ax: Axes, path: Path, axes: tuple[int, int]) -> None:
    from matplotlib.collections import LineCollection

    with np.load(path) as tracts:
        points, offsets = tracts["points"], tracts["offsets"]
    lines = np.split(points, offsets[1:-1])
    ends = np.array([line[-1] - line[0] for line in lines])
    colors = np.abs(ends) / np.maximum(np.linalg.norm(ends, axis=1, keepdims=True), 1e-6)
    ax.add_collection(LineCollection([line[:, axes] for line in lines], colors=colors, linewidths=0.3, alpha=0.6))
    ax.autoscale()
    ax.set_aspect("equal")
