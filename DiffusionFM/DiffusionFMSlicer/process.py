"""The resident worker process, as the module sees it: requests in, events out, never blocking.

Knows nothing of Qt: a timer calls `WorkerProcess.poll`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Event, parse_event

CANCEL_GRACE = 3.0
"""Seconds that a cancelled worker gets before its process tree is killed."""

POLL_INTERVAL_MS = 100
POLL_BUDGET = 0.05
"""Seconds that one poll may spend on events, so that a flood of them does not block the panel."""

FAREWELL = 0.4
"""Seconds between closing a hung worker's input, so that it may remove half-written files, and killing it."""

LOG_LINES = 2000
EXIT_GRACE = 1.0
"""Seconds to wait for the last output of a process that has ended: a grandchild may hold its pipes open."""


def workerCommand() -> list[str]:
    """How to start the worker: with Slicer's Python where there is one, else with the running one."""
    return [shutil.which("PythonSlicer") or sys.executable, "-m", "DiffusionFMLib.worker"]


def workerEnvironment(base: Mapping[str, str]) -> dict[str, str]:
    """The worker's environment: the library is found where this module found it."""
    import DiffusionFMLib

    root = str(Path(DiffusionFMLib.__file__).resolve().parent.parent)
    paths = [root, *(p for p in base.get("PYTHONPATH", "").split(os.pathsep) if p and p != root)]
    environment = {
        **base, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8",
    }  # fmt: skip
    if shutil.which("PythonSlicer"):
        # packages of another Python 3 in the user's home must not shadow Slicer's own
        environment["PYTHONNOUSERSITE"] = "1"
    return environment


def killTree(process: subprocess.Popen[str]) -> None:
    """End a process and everything it started, at once."""
    if os.name == "nt":
        command = ["taskkill", "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, check=False, creationflags=subprocess.CREATE_NO_WINDOW)  # type: ignore[attr-defined]
    else:
        # the group outlives its leader as long as a grandchild runs
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


class WorkerProcess:
    """Starts the worker when it is first needed, and again after it died.

    Parameters
    ----------
    onEvent : callable(Event)
        Called from `poll`, in order.
    onExit : callable(int)
        Called once from `poll` after the process ended by itself or was killed, after its last event; gets the
        exit status. Not called after `stop`.
    command : list of str, optional
    popen : callable, optional
        Stands for `subprocess.Popen` in tests.
    clock : callable, optional
        Monotonic seconds.
    """

    def __init__(
        self,
        onEvent: Callable[[Event], None],
        onExit: Callable[[int], None],
        command: list[str] | None = None,
        popen: Callable[..., Any] = subprocess.Popen,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.onEvent = onEvent
        self.onExit = onExit
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._command = command
        self._popen = popen
        self._clock = clock
        self._process: Any = None
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._open = 0
        self._killAt = float("inf")
        self._closeAt = float("inf")

    @property
    def running(self) -> bool:
        """Whether there is a process whose end was not yet reported."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Process id, while there is one."""
        return self._process.pid if self._process is not None else None

    def send(self, request: Mapping[str, Any]) -> None:
        """Pass a request to the worker; starts one if there is none.

        Raises
        ------
        DiffusionFMError
            If no worker can be started.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        self._write(request)

    def cancel(self, requestId: str) -> None:
        """Ask the worker to stop a request; after a grace of `CANCEL_GRACE` seconds, `poll` kills it."""
        if self._process is not None:
            self._killAt = min(self._killAt, self._clock() + CANCEL_GRACE)
            self._write({"id": requestId, "op": "cancel"})

    def settled(self) -> None:
        """Take back a pending kill: the cancelled request has ended."""
        self._killAt = float("inf")

    def poll(self) -> None:
        """Deliver what the worker said since the last call."""
        end = self._clock() + POLL_BUDGET
        while self._clock() < end:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                self._checkProcess()
                return
            if line is None:
                self._open -= 1
                continue
            try:
                event = parse_event(line)
            except DiffusionFMError as error:
                self.log.append(str(error))
                continue
            self.onEvent(event)

    def kill(self) -> None:
        """End the worker and all it started; `poll` reports its exit."""
        if self._process is not None:
            killTree(self._process)

    def stop(self) -> None:
        """End the worker quietly and forget it: closing its input makes it exit, a kill makes sure."""
        process, self._process = self._process, None
        if process is None:
            return
        # the end of its input makes the worker remove half-written files and exit
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_GRACE)
        killTree(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_GRACE)
        # readers of the old process keep their own queue: nothing of it reaches the next one
        self._lines = queue.SimpleQueue()

    def _start(self) -> None:
        if self._process is not None:
            self.stop()
        group: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined]
            if os.name == "nt"
            else {"start_new_session": True}
        )
        command = self._command or workerCommand()
        try:
            self._process = self._popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                encoding="utf-8", errors="replace", env=workerEnvironment(os.environ), **group,
            )  # fmt: skip
        except OSError as error:
            msg = f"The background process cannot be started: {error}."
            raise DiffusionFMError(msg, f"Check that this program exists: {command[0]}") from error
        self._lines = queue.SimpleQueue()
        self._open = 1
        self._killAt = self._closeAt = float("inf")
        threading.Thread(target=self._readEvents, args=(self._process.stdout, self._lines), daemon=True).start()
        threading.Thread(target=self._readLog, args=(self._process.stderr,), daemon=True).start()

    def _readEvents(self, stream: Any, lines: queue.SimpleQueue[str | None]) -> None:
        with stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    def _readLog(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self.log.append(line.rstrip("\n")[:1000])

    def _write(self, request: Mapping[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            # it died a moment ago: poll will see that, and report it
            self.log.append("The worker no longer reads requests.")

    def _checkProcess(self) -> None:
        if self._process is None:
            return
        now = self._clock()
        status = self._process.poll()
        if status is None:
            if now >= self._killAt:
                self._endHung(now)
            return
        self._closeAt = min(self._closeAt, now + EXIT_GRACE)
        if self._open > 0 and now < self._closeAt:
            return
        killTree(self._process)
        self._process = None
        self.onExit(status)

    def _endHung(self, now: float) -> None:
        if not self._process.stdin.closed:
            self.log.append(f"The worker did not stop within {CANCEL_GRACE:g} s: it is ended.")
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.close()
            self._killAt = now + FAREWELL
            return
        self._killAt = float("inf")
        self.kill()
