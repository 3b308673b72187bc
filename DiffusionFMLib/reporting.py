"""How a running job speaks: progress of the whole, artifacts and warnings as events, and failures made plain."""

from __future__ import annotations

import errno
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping

from DiffusionFMLib.errors import DeviceError, DiffusionFMError, InputError, JobCancelled, OutputError
from DiffusionFMLib.events import Artifact, Event, Failed, Progress, Warned

PROGRESS_INTERVAL = 0.1
"""Seconds between two progress events of one stage."""

_SETTLED = 1.0
"""Seconds a job must have run before its remaining time means anything."""


class JobReport:
    """A `Report` that turns what a job says into events, and stops it when it was cancelled.

    Parameters
    ----------
    id : str
        The request's.
    emit : callable
        Takes each `Event`; called from one thread at a time.
    cancelled : threading.Event
        Set by whoever wants the job to stop.
    """

    def __init__(self, id: str, emit: Callable[[Event], None], cancelled: threading.Event) -> None:
        self.id = id
        self._emit = emit
        self._cancelled = cancelled
        self._begun = time.monotonic()
        self._spans: dict[str, tuple[float, float]] = {}
        self._titles: Mapping[str, str] = {}
        self._span = (0.0, 1.0)
        self._fraction = 0.0
        self._last = ("", 0.0)
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def plan(self, costs: Mapping[str, float], titles: Mapping[str, str] | None = None) -> None:
        """Declare the job's stages.

        Parameters
        ----------
        costs : mapping of str to float
            Title of each stage, in their order, to its expected cost in any common unit.
        titles : mapping of str to str, optional
            What computing code calls a stage to its title.
        """
        self._titles = titles or {}
        total = sum(costs.values()) or 1.0
        begin = 0.0
        for stage, cost in costs.items():
            self._spans[stage] = (begin / total, (begin + cost) / total)
            begin += cost

    def enter(self, stage: str) -> None:
        """Begin a planned stage; progress is counted within its share from here on."""
        self._span = self._spans[stage]
        self.progress(0, 1, stage)

    def progress(self, done: float, total: float, stage: str) -> None:
        """See `Report`."""
        self.check()
        stage = self._titles.get(stage, stage)
        begin, end = self._spans.get(stage, self._span)
        part = min(max(done / total, 0.0), 1.0) if total > 0 else 1.0
        # a fit's threads report too
        with self._lock:
            # a stage's inner steps may each count from zero: the whole never goes back
            self._fraction = max(self._fraction, begin + part * (end - begin))
            now = time.monotonic()
            if stage == self._last[0] and now - self._last[1] < PROGRESS_INTERVAL and done < total:
                return
            self._last = (stage, now)
            elapsed = now - self._begun
            eta = elapsed * (1 - self._fraction) / self._fraction if elapsed > _SETTLED and self._fraction > 0 else None
            self._emit(Progress(self.id, float(done), float(total), stage, round(self._fraction, 4), eta))

    def warning(self, code: str, message: str) -> None:
        """See `Report`; the same sentence is told once, whoever found it."""
        with self._lock:
            if message not in self._warned:
                self._warned.add(message)
                self._emit(Warned(self.id, code, message))

    def check(self) -> None:
        """See `Report`."""
        if self._cancelled.is_set():
            raise JobCancelled

    def artifact(self, artifact: Artifact) -> None:
        """Announce a finished file."""
        self._emit(artifact)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
_ALLOCATION = (
    "can't allocate memory",
    "can't start new thread",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
)


def explained(error: BaseException) -> DiffusionFMError | None:
    """What the user can do about an exception of Python, the system or torch; None if it is a bug of ours."""
    if isinstance(error, DiffusionFMError):
        return error
    # torch's own class, by name: importing torch to look at an error could fail in turn
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        msg = "The graphics card ran out of memory."
        return DeviceError(
            msg, "Close other programs that use it, lower the memory limit (--memory-mib), or choose the device cpu."
        )
    allocation = isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATION)
    if isinstance(error, MemoryError) or allocation or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        msg = "The computer ran out of memory."
        return DeviceError(
            msg, "Close other programs, lower the memory limit (--memory-mib), or use a computer with more memory."
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith("DiffusionFM"):
        msg = f"The package '{error.name}' is not installed in {sys.executable}."
        if not isinstance(error, ModuleNotFoundError):
            msg = f"A package in {sys.executable} is too old or broken: {error}."
        return DiffusionFMError(msg, "Install DiffusionFM again with all it depends on.")
    if isinstance(error, OSError):
        where = error.filename or "the results"
        if error.errno in _FULL:
            msg = f"No space is left to write {where} ({error.strerror})."
            return OutputError(msg, "Free some space or choose another output folder.")
        if error.errno in _FORBIDDEN:
            msg = f"{where} cannot be used ({error.strerror})."
            return OutputError(msg, "Choose another folder, or change its permissions.")
        if error.errno == errno.ENOENT:
            msg = f"{where} is not there ({error.strerror})."
            return InputError(msg, "Check the path; it may have been moved while the job ran.")
    return None


def failure(id: str, error: BaseException) -> Failed:
    """The event that ends a request that raised `error`."""
    known = explained(error)
    if known is not None:
        return Failed(id, known.code, known.message, known.hint, choices=known.choices)
    trace = "".join(traceback.format_exception(error))
    message = f"{type(error).__name__}: {error}"
    return Failed(id, "bug", message, "This is a fault of DiffusionFM: please report it with the log.", trace)
