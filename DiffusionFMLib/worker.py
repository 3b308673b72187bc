"""The resident background process: requests as JSON lines on stdin, events as JSON lines on stdout.

One request is computed at a time, in the main thread; another thread reads stdin, so that a cancel acts at once
and the end of stdin (the parent is gone) ends this process. Start it with ``python -m DiffusionFMLib.worker``.

=========================================================  ==============================================
``{"id", "op": "run", "job", "settings", "arrays"}``        started, progress..., artifact..., result, finished
``{"id", "op": "query", "what", ...}``                      result, finished
``{"id", "op": "cancel"}``                                  the named request, queued or running, ends as cancelled
``{"op": "shutdown"}``                                      cancels what runs and ends the process
=========================================================  ==============================================

Every run and query ends with exactly one of finished, failed or cancelled.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from DiffusionFMLib.errors import DeviceError, JobCancelled, SettingsError
from DiffusionFMLib.events import Cancelled, Event, Finished, Result, Started
from DiffusionFMLib.jobs import discard_temporaries, resolve_device, run
from DiffusionFMLib.reporting import JobReport, failure
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import JOBS

IDLE_AFTER = 0.3
"""Seconds without a request after which what the next one will need is loaded."""

OPERATIONS = ("run", "query", "cancel", "shutdown")


@dataclass(frozen=True)
class Request:
    """One line of stdin.

    Parameters
    ----------
    id : str
    op : str
        One of `OPERATIONS`.
    body : dict
        Everything else: ``job``, ``settings`` and ``arrays`` of a run, ``what`` and its arguments of a query.
    cancelled : threading.Event
    """

    id: str
    op: str
    body: dict[str, Any] = field(default_factory=dict)
    cancelled: threading.Event = field(default_factory=threading.Event)


def parse_request(line: str | bytes) -> Request:
    """The request of a line of JSON.

    Raises
    ------
    SettingsError
        If the line is no JSON object, or `op` or `id` is missing or wrong.
    """
    try:
        body = json.loads(line)
    except ValueError as error:
        msg = f"A request is not JSON: {str(line[:100])!r} ({error})."
        raise SettingsError(msg, "Send one JSON object per line.") from error
    if not isinstance(body, dict):
        msg = f"A request is {type(body).__name__}; expected a JSON object."
        raise SettingsError(msg, "Send one JSON object per line.")
    id, op = body.pop("id", ""), body.pop("op", None)
    if op not in OPERATIONS:
        msg = f"A request's op is {op!r}; expected one of {', '.join(OPERATIONS)}."
        raise SettingsError(msg, "Correct the request.")
    if not isinstance(id, str) or (not id and op != "shutdown"):
        msg = f"A request's id is {id!r}; expected a string that is not empty."
        raise SettingsError(msg, "Give every request an id of its own.")
    return Request(id, op, body)


def execute(request: Request, emit: Callable[[Event], None], session: Session) -> Event:
    """Serve a run or a query: emits its events, the terminal one last, and returns that one; never raises.

    The command line calls this too, in its own process.
    """
    begun = time.monotonic()
    terminal: Event
    try:
        report = JobReport(request.id, emit, request.cancelled)
        report.check()
        answer = _query(request, session) if request.op == "query" else _run(request, report, emit, session)
        emit(Result(request.id, answer))
        terminal = Finished(request.id, time.monotonic() - begun)
    except JobCancelled:
        terminal = Cancelled(request.id)
    except (Exception, SystemExit) as error:
        terminal = failure(request.id, error)
        if terminal.code == DeviceError.code:
            # what is remembered may be what there is no memory for
            session.clear()
    emit(terminal)
    return terminal


def _run(request: Request, report: JobReport, emit: Callable[[Event], None], session: Session) -> dict[str, Any]:
    job, values, arrays = (request.body.get(name) for name in ("job", "settings", "arrays"))
    if job not in JOBS:
        msg = f"There is no job {job!r}; expected one of {', '.join(JOBS)}."
        raise SettingsError(msg, "Correct the request.")
    if not isinstance(values, dict) or not isinstance(arrays, str | None):
        msg = f"A run's settings are {values!r} and its arrays {arrays!r}; expected an object, and a path or null."
        raise SettingsError(msg, "Correct the request.")
    settings = JOBS[job].from_dict(values)
    emit(Started(request.id, resolve_device(settings), os.getpid()))
    return run(job, settings, report, session, Path(arrays) if arrays else None)


def _query(request: Request, session: Session) -> dict[str, Any]:
    return session.query(request.body)


class Worker:
    """Serves requests until shutdown or the end of its input.

    Parameters
    ----------
    lines : iterable of bytes
        Requests; read by a thread of its own.
    emit : callable
        Takes each `Event`; called from two threads.
    abandon : callable
        Ends the process at once; called when the input ends.
    idle : callable
        Called once, by the main thread, when there is nothing to do yet.
    """

    def __init__(
        self,
        lines: Iterable[bytes],
        emit: Callable[[Event], None],
        abandon: Callable[[], None],
        idle: Callable[[], None],
    ) -> None:
        self._lines = lines
        self._emit = emit
        self._abandon = abandon
        self._idle: Callable[[], None] | None = idle
        self._queue: queue.Queue[Request] = queue.Queue()
        self._pending: dict[str, Request] = {}
        self._lock = threading.Lock()

    def serve(self) -> None:
        """Serve requests, one at a time; returns after ``shutdown``."""
        threading.Thread(target=self._listen, name="requests", daemon=True).start()
        session = Session()
        while (request := self._next()).op != "shutdown":
            execute(request, self._emit, session)
            with self._lock:
                del self._pending[request.id]

    def _next(self) -> Request:
        if self._idle is not None:
            try:
                return self._queue.get(timeout=IDLE_AFTER)
            except queue.Empty:
                self._idle()
                self._idle = None
        return self._queue.get()

    def _listen(self) -> None:
        try:
            for line in self._lines:
                if line.strip():
                    self._take(line)
        except OSError as error:
            sys.stderr.write(f"requests cannot be read any more: {error}\n")
        self._abandon()

    def _take(self, line: bytes) -> None:
        try:
            request = parse_request(line)
        except SettingsError as error:
            self._emit(failure(_id_of(line), error))
            return
        with self._lock:
            if request.op == "cancel":
                # an id that is not pending has just ended: nothing to do
                if request.id in self._pending:
                    self._pending[request.id].cancelled.set()
                return
            if request.op == "shutdown":
                for pending in self._pending.values():
                    pending.cancelled.set()
            elif request.id in self._pending:
                msg = f"Request {request.id!r} is already being served."
                self._emit(failure("", SettingsError(msg, "Give every request an id of its own.")))
                return
            else:
                self._pending[request.id] = request
        self._queue.put(request)


def _id_of(line: bytes) -> str:
    """The id of a request that is otherwise broken, so that its sender hears of it; empty if it has none."""
    try:
        id = json.loads(line).get("id", "")
    except (ValueError, AttributeError):
        return ""
    return id if isinstance(id, str) else ""


def _preload() -> None:
    """Load what the next job will need while the user still chooses settings.

    Not in a thread beside a job: SciPy looks at a torch that is only half imported, and fails.
    """
    try:
        import nibabel  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"not preloaded: {error}\n")


def main() -> None:
    """Run the worker on this process's stdin and stdout; ends the process."""
    faulthandler.enable()
    # events leave by a private copy of stdout; whatever else prints, native libraries included, goes to the log
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def end(status: int) -> NoReturn:
        discard_temporaries()
        sys.stderr.flush()
        os._exit(status)

    def abandon(*_: object) -> None:
        end(0)

    def emit(event: Event) -> None:
        line = event.to_json()
        try:
            with lock:
                events.write(line + "\n")
                events.flush()
        except OSError as error:
            sys.stderr.write(f"nobody reads the events any more: {error}\n")
            abandon()

    def crash(what: threading.ExceptHookArgs) -> None:
        # a worker that hears nothing any more could be neither cancelled nor ended
        threading.__excepthook__(what)
        end(1)

    threading.excepthook = crash
    signal.signal(signal.SIGTERM, abandon)
    try:
        Worker(sys.stdin.buffer, emit, abandon, _preload).serve()
    except BaseException:
        traceback.print_exc()
        end(1)
    # an ordinary exit would trip over the thread that still reads stdin
    end(0)


if __name__ == "__main__":
    main()
