"""What a run is to the panel: its state, its outcome, and what the runner tells of it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Protocol

from DiffusionFMLib.events import Progress


class State(Enum):
    """What the runner does."""

    IDLE = auto()
    RUNNING = auto()
    CANCELLING = auto()


class Outcome(Enum):
    """How a request ended."""

    FINISHED = auto()
    CANCELLED = auto()
    FAILED = auto()


class Listener(Protocol):
    """What the runner tells the panel."""

    def onStarted(self, device: str) -> None:
        """The worker took the request."""

    def onProgress(self, progress: Progress) -> None:
        """See `Progress`."""

    def onWarning(self, message: str) -> None:
        """Something the user should know."""

    def onNode(self, node: Any) -> None:
        """A result is in the scene."""

    def onAnswer(self, job: str, scan: Any, answer: dict[str, Any]) -> None:
        """A job's result: the quality summary of a scan, the series of a folder..."""

    def onEnded(self, job: str, outcome: Outcome, message: str, hint: str, choices: dict[str, str]) -> None:
        """The request is over, and everything it made is in the scene; `choices` are those of a `Failed`."""
