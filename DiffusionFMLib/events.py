"""What a job tells the outside while it runs: one dataclass per event, one JSON line each.

The worker writes them to its standard output, the CLI turns them into a progress bar, and the module into its
panel. `Report` is what the computing code sees.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol

from DiffusionFMLib.errors import DiffusionFMError


@dataclass(frozen=True)
class Event:
    """Base of all events; `id` is that of the request it answers."""

    kind: ClassVar[str] = ""
    terminal: ClassVar[bool] = False
    id: str

    def to_json(self) -> str:
        """The event as one line of JSON, without a line break."""
        return json.dumps({"event": self.kind, **asdict(self)}, allow_nan=False)


@dataclass(frozen=True)
class Started(Event):
    """The worker took the request; `device` is where it computes, `pid` its process."""

    kind = "started"
    device: str
    pid: int


@dataclass(frozen=True)
class Progress(Event):
    """`done` of `total` units of `stage`; `eta` in seconds for the whole job, or None while unknown.

    `fraction` is that of the whole job, 0..1.
    """

    kind = "progress"
    done: float
    total: float
    stage: str
    fraction: float
    eta: float | None = None


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know; the job goes on. `code` is stable, `message` is for people."""

    kind = "warning"
    code: str
    message: str


@dataclass(frozen=True)
class Artifact(Event):
    """A finished file.

    `role` is ``map``, ``tracts``, ``matrix``, ``sidecar``, ``image``, ``weights`` or ``checkpoint``; `array` is a raw
    copy for the scene (``.npy``, or ``.npz`` for tracts) when the request asked for one; `affine` is voxel to RAS for
    maps. `method` is what a map was made with: beside those of the method that was asked for there may be others, to
    compare.
    """

    kind = "artifact"
    path: str
    role: str
    name: str
    title: str = ""
    unit: str = ""
    window: tuple[float, float] | None = None
    colors: str = ""
    array: str | None = None
    affine: list[list[float]] | None = None
    method: str = ""


@dataclass(frozen=True)
class Result(Event):
    """The answer of a job or a query, as plain JSON."""

    kind = "result"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed(Event):
    """The job failed: `code` of the error class (``bug`` if it is ours), message, hint, and a traceback for bugs.

    `choices` are those of the error: what the user may choose among, with descriptions.
    """

    kind = "failed"
    terminal = True
    code: str
    message: str
    hint: str = ""
    traceback: str = ""
    choices: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cancelled(Event):
    """The job ended because it was asked to."""

    kind = "cancelled"
    terminal = True


@dataclass(frozen=True)
class Finished(Event):
    """The job is done; everything it made was announced."""

    kind = "finished"
    terminal = True
    seconds: float = 0.0


EVENTS: dict[str, type[Event]] = {
    event.kind: event for event in (Started, Progress, Warned, Artifact, Result, Failed, Cancelled, Finished)
}


def parse_event(line: str) -> Event:
    """The event of a line of JSON.

    Raises
    ------
    DiffusionFMError
        If the line is not an event.
    """
    try:
        values = json.loads(line)
        return EVENTS[values.pop("event")](**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"The worker wrote a line that is no event: {line[:200]!r}."
        raise DiffusionFMError(msg, "Look at the log.") from error


class Report(Protocol):
    """What computing code tells, and asks, the outside. Every call but `warning` is also a place to stop at."""

    def progress(self, done: float, total: float, stage: str) -> None:
        """Tell how far `stage` is; raises `JobCancelled` if the user cancelled."""

    def warning(self, code: str, message: str) -> None:
        """Tell the user something; the job goes on."""

    def check(self) -> None:
        """Raise `JobCancelled` if the user cancelled; cheap, for inner loops."""


class SilentReport:
    """A `Report` that keeps warnings and says nothing: for use as a library, and for tests."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []

    def progress(self, done: float, total: float, stage: str) -> None:
        """See `Report`."""

    def warning(self, code: str, message: str) -> None:
        """See `Report`."""
        self.warnings.append((code, message))

    def check(self) -> None:
        """See `Report`."""


class NotingReport:
    """A `Report` that also keeps the warnings that it passes on: they belong to a result, whenever it is asked for.

    Parameters
    ----------
    whole : Report

    Attributes
    ----------
    warnings : list of list of str
        Code and message of each; plain JSON.
    """

    def __init__(self, whole: Report) -> None:
        self._whole = whole
        self.warnings: list[list[str]] = []
        self.progress = whole.progress
        self.check = whole.check

    def warning(self, code: str, message: str) -> None:
        """See `Report`."""
        self.warnings.append([code, message])
        self._whole.warning(code, message)


class PartReport:
    """A `Report` of one of several equal parts of a stage, each of which counts from zero.

    Parameters
    ----------
    whole : Report
    part, parts : int
        Which of how many, from 0.
    """

    def __init__(self, whole: Report, part: int, parts: int) -> None:
        self._whole, self._part, self._parts = whole, part, parts
        self.warning = whole.warning
        self.check = whole.check

    def progress(self, done: float, total: float, stage: str) -> None:
        """See `Report`."""
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 1.0
        self._whole.progress(self._part + share, self._parts, stage)
