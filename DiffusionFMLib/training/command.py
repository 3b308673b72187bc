"""Training as a command: events to a sink, errors made plain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from DiffusionFMLib.errors import JobCancelled
from DiffusionFMLib.events import Artifact, Cancelled, Event, Finished, Result
from DiffusionFMLib.reporting import JobReport, failure
from DiffusionFMLib.training.settings import TrainSettings


def run_training(settings: TrainSettings, sink: Callable[[Event], None], cancelled: threading.Event) -> Event:
    """Train; emits its events, the terminal one last, and returns that one."""
    begun = time.monotonic()
    terminal: Event
    try:
        from DiffusionFMLib.training.loop import train

        weights = train(settings, JobReport("train", sink, cancelled))
        sink(Artifact("train", str(weights), "weights", "prior", "Weights of the prior"))
        sink(Result("train", {"out": settings.out, "files": [weights.name]}))
        terminal = Finished("train", time.monotonic() - begun)
    except JobCancelled:
        terminal = Cancelled("train")
    except Exception as error:
        terminal = failure("train", error)
    sink(terminal)
    return terminal
