"""Questions to the resident worker beside its runs: one at a time, the newest of each kind, never in a run's way."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Cancelled, Event, Failed, Finished, Result
from DiffusionFMSlicer.process import WorkerProcess

LOOK_MS = 15
"""Pause between two looks for an answer: what follows the mouse must not wait for the panel's slow timer."""

LOST = "The background process has ended, and forgot the features. Compute them again."


@dataclass
class _Query:
    """A question, and what to do with its answer.

    Parameters
    ----------
    body : dict
        ``what`` and its arguments.
    onAnswer : callable(dict)
    onRefused : callable(str, str)
        Gets a sentence for people, and the error's code.
    worker : int, optional
        Process that it was sent to.
    """

    body: dict[str, Any]
    onAnswer: Callable[[dict[str, Any]], None]
    onRefused: Callable[[str, str], None]
    worker: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Queries:
    """Asks the worker while nothing runs.

    Parameters
    ----------
    worker : WorkerProcess
    isIdle : callable
        Whether the worker may be asked now; while it may not, questions wait.
    schedule : callable(int, callable)
        Calls back after so many milliseconds.
    """

    def __init__(
        self, worker: WorkerProcess, isIdle: Callable[[], bool], schedule: Callable[[int, Callable[[], None]], None]
    ) -> None:
        self._worker = worker
        self._isIdle = isIdle
        self._schedule = schedule
        self._waiting: dict[str, _Query] = {}
        self._asked: _Query | None = None
        self._looking = False

    def ask(
        self, body: dict[str, Any], onAnswer: Callable[[dict[str, Any]], None], onRefused: Callable[[str, str], None]
    ) -> None:
        """Ask as soon as the worker is free; a question that still waits for that is replaced by one of its kind.

        Parameters
        ----------
        body : dict
            ``what`` and its arguments.
        onAnswer : callable(dict)
        onRefused : callable(str, str)
            Called with a sentence for people, and the error's code, if there is no answer.
        """
        self._waiting[body["what"]] = _Query(body, onAnswer, onRefused)
        self.pump()

    def forget(self) -> None:
        """Drop all questions, and answers that still come."""
        self._waiting.clear()
        self._asked = None

    def pump(self) -> None:
        """Send the next question if the worker is free."""
        if self._asked is not None and self._asked.worker != self._worker.pid:
            lost, self._asked = self._asked, None
            lost.onRefused(LOST, "")
        if self._asked is not None or not self._waiting or not self._isIdle():
            return
        query = self._waiting.pop(next(iter(self._waiting)))
        if not self._worker.running:
            # a fresh one knows of nothing that it could be asked
            self._waiting.clear()
            query.onRefused(LOST, "")
            return
        try:
            self._worker.send({"id": query.id, "op": "query", **query.body})
        except DiffusionFMError as error:
            query.onRefused(f"{error.message} {error.hint}".strip(), error.code)
            return
        query.worker = self._worker.pid
        self._asked = query
        if not self._looking:
            self._looking = True
            self._schedule(LOOK_MS, self._look)

    def take(self, event: Event) -> bool:
        """Whether an event is about a question; its answer is handed on."""
        query = self._asked
        if query is None or event.id != query.id:
            return False
        if isinstance(event, Result):
            query.onAnswer(event.data)
        elif isinstance(event, Failed):
            self._worker.log.extend(event.traceback.splitlines())
            query.onRefused(f"{event.message} {event.hint}".strip(), event.code)
        # what was called may have dropped it, as when the scene was closed meanwhile
        if self._asked is query and isinstance(event, Finished | Failed | Cancelled):
            self._asked = None
            self.pump()
        return True

    def _look(self) -> None:
        self._looking = False
        self._worker.poll()
        if self._asked is not None and not self._looking:
            self._looking = True
            self._schedule(LOOK_MS, self._look)
