"""Training as a command: events to a sink, errors made plain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from DiffusionFMLib.errors import JobCancelled, SettingsError
from DiffusionFMLib.events import Artifact, Cancelled, Event, Finished, Report, Result
from DiffusionFMLib.reporting import JobReport, failure
from DiffusionFMLib.training.settings import ENCODER, TrainSettings


def run_training(settings: TrainSettings, sink: Callable[[Event], None], cancelled: threading.Event) -> Event:
    """Train; emits its events, the terminal one last, and returns that one."""
    begun = time.monotonic()
    terminal: Event
    try:
        weights = train(settings, JobReport("train", sink, cancelled))
        sink(Artifact("train", str(weights), "weights", weights.stem, f"Weights of the {weights.stem}"))
        sink(Result("train", {"out": settings.out, "files": [weights.name]}))
        terminal = Finished("train", time.monotonic() - begun)
    except JobCancelled:
        from DiffusionFMLib.training.calibration import UNCALIBRATED
        from DiffusionFMLib.training.loop import CHECKPOINT

        checkpoint = Path(settings.out) / (UNCALIBRATED if settings.calibrate else CHECKPOINT)
        if checkpoint.is_file():
            sink(Artifact("train", str(checkpoint), "checkpoint", checkpoint.stem, "The run so far"))
        terminal = Cancelled("train")
    except Exception as error:
        terminal = failure("train", error)
    sink(terminal)
    return terminal


def train(settings: TrainSettings, report: Report) -> Path:
    """Train what the settings name; returns the weights' file. See `loop.train_task`.

    Raises
    ------
    SettingsError
        If there is a choice that the network named does not have.
    """
    from DiffusionFMLib.training.loop import train_task

    wrong = [name for name in settings.foreign if getattr(settings, name) != getattr(TrainSettings, name)]
    if wrong:
        msg = f"{' and '.join(wrong)}: no option for training --model {settings.model}."
        raise SettingsError(msg, "Leave it out, or train the other network.")

    if settings.model == ENCODER:
        from DiffusionFMLib.training.pretraining import EncoderTask

        return train_task(settings, EncoderTask(settings), report)
    if settings.calibrate:
        from DiffusionFMLib.training.calibration import calibrate

        return calibrate(settings, report)
    from DiffusionFMLib.training.prior import PriorTask

    return train_task(settings, PriorTask(settings), report)
