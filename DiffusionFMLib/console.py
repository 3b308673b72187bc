"""What the command line shows: a progress bar, warnings and errors on stderr, results on stdout."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from DiffusionFMLib.events import Artifact, Cancelled, Event, Failed, Result, Warned
from DiffusionFMLib.events import Progress as ProgressEvent

LIGHTS = {"green": "green", "amber": "yellow", "red": "red"}


class EventSink:
    """Shows events in a terminal; plain lines when stderr is none.

    Parameters
    ----------
    quiet : bool
        Only warnings and errors.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self.result: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.artifacts: list[Artifact] = []

    def __enter__(self) -> EventSink:
        if self._console.is_terminal and not self._quiet:
            bar = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
            times = TextColumn("{task.fields[left]}"), TimeElapsedColumn()
            self._bar = Progress(*bar, *times, console=self._console)
            self._task = self._bar.add_task("Starting", total=1.0, left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event, and keep the result, warnings and artifacts."""
        match event:
            case ProgressEvent():
                self._advance(event)
            case Warned():
                self.warnings.append(event.message)
                self._console.print(f"[yellow]warning:[/] {escape(event.message)}")
            case Failed():
                self._console.print(f"[red]error:[/] {escape(event.message)}")
                if event.hint:
                    self._console.print(f"  {escape(event.hint)}")
                for value, description in event.choices.items():
                    self._console.print(f"  {value}: {description}", markup=False)
                if event.traceback:
                    self._console.print(event.traceback, markup=False)
            case Cancelled():
                kept = (
                    "what was finished is kept, and a rerun continues there"
                    if self.artifacts
                    else "nothing was written"
                )
                self._console.print(f"cancelled: {kept}")
            case Result():
                self.result = event.data
            case Artifact():
                self.artifacts.append(event)
            case _:
                pass

    def _advance(self, event: ProgressEvent) -> None:
        if self._bar is not None and self._task is not None:
            left = "" if event.eta is None else f"{_duration(event.eta)} left"
            self._bar.update(self._task, completed=event.fraction, description=event.stage, left=left)
        elif not self._quiet and event.stage != self._stage:
            self._stage = event.stage
            self._console.print(f"{event.fraction:4.0%} {event.stage}", markup=False)


def show_result(job: str, result: dict[str, Any]) -> None:
    """Print a finished job's result for people, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    if job == "info":
        _show_scan(console, result)
        return
    if "quality" in result:
        facts, light, color = result["quality"]["facts"], result["quality"]["light"], _color(result["quality"])
        console.print(f"{escape(result['name'])}: {escape(facts)}, quality [{color}]{light}[/]")
    reused = result.get("reused") or []
    if reused:
        console.print(f"kept from an earlier run: {', '.join(reused)}", markup=False)
    for label in ("maps", "tracts", "files"):
        if result.get(label):
            console.print(f"{label}: {', '.join(result[label])}", markup=False)
    for method, names in result.get("beside", {}).items():
        console.print(f"and beside them, by {method}: {', '.join(names)}", markup=False)
    if "assigned" in result:
        assigned, count = result["assigned"], result["count"]
        console.print(f"{assigned} of {count} streamlines ({assigned / count:.0%}) join {result['regions']} regions")
    elif "count" in result:
        console.print(f"{result['count']} streamlines", markup=False)
    console.print(f"in {result['out']}", markup=False)


def _show_scan(console: Console, result: dict[str, Any]) -> None:
    quality = result["quality"]
    table = Table(show_header=False, box=None, title=escape(result["name"]), title_justify="left")
    table.add_row("scan", escape(quality["facts"]))
    table.add_row("directions", f"{quality['n_directions']} distinct")
    snr = "not estimated"
    if quality["snr"] is not None:
        snr = f"{_number(quality['snr'])} at b0, {_number(quality['snr_weighted'])} at the highest b-value"
    table.add_row("SNR", snr)
    motion = "not estimated"
    if quality["motion_mm"] is not None:
        motion = f"{_number(quality['motion_mm'])} mm at most, {_number(quality['motion_median_mm'])} mm median"
    table.add_row("motion", motion)
    table.add_row("outlier slices", f"{len(quality['outliers'])} ({quality['outlier_fraction']:.1%})")
    table.add_row("brain mask", f"{quality['mask_ml']:.0f} ml")
    gradients = quality["gradients"]
    if gradients is not None:
        told = gradients["sentence"] in quality["findings"]
        table.add_row("gradients", gradients["verdict"] if told else escape(gradients["sentence"]))
    for model, reasons in result["methods"].items():
        able = [method for method, reason in reasons.items() if reason is None]
        part = "supported" if len(able) == len(reasons) else f"supported, with the method {' or '.join(able)} only"
        table.add_row(f"model {model}", part if able else escape(result["models"][model]))
    table.add_row("quality", f"[{_color(quality)}]{quality['light']}[/]")
    console.print(table)
    for line in (*quality["findings"], *result["notes"]):
        console.print(f"- {line}", markup=False)


def _color(quality: dict[str, Any]) -> str:
    return LIGHTS.get(quality["light"], "default")


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
