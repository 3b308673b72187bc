"""The training loop, on Lightning Fabric: one process or many, in pieces, the same by seed. It knows no model."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from DiffusionFMLib.errors import DiffusionFMError, JobCancelled, SettingsError
from DiffusionFMLib.events import Report
from DiffusionFMLib.io import digest_of
from DiffusionFMLib.training.plot import PLOT, plot_log
from DiffusionFMLib.training.settings import TrainSettings
from DiffusionFMLib.training.task import Losses, Task

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT: Final = "checkpoint.ckpt"
LOG: Final = "log.jsonl"

LOG_STEPS: Final = 50
CHECKPOINT_SECONDS: Final = 120.0

AVERAGED_SHARE: Final = 0.1
AVERAGED_STEPS: Final = 500
"""The weights are averaged over about the last tenth of the steps, at most so many: the start soon counts no more."""

MAX_GRADIENT: Final = 4.0
MAX_LEFT_OUT: Final = 20
"""Steps without a finite gradient, one after another; more are no accident."""

LASTING: Final = ("preset", "model", "rotary", "sampler", "crop", "measured", "seed")
"""Settings that a run keeps from its first piece to its last."""

_PATHS: Final = ("out", "anatomies", "scans")


def train_task(settings: TrainSettings, task: Task, report: Report) -> Path:
    """Train, or go on with it; returns the weights' file.

    Parameters
    ----------
    settings : TrainSettings
        The same settings give the same weights, in however many pieces they are made.
    task : Task
    report : Report

    Raises
    ------
    SettingsError
        If no folder is given, or it holds a run with other settings.
    DiffusionFMError
        If Lightning is not installed, the folder's checkpoint is of another version, or training diverges.
    """
    if not settings.out:
        msg = "No folder for the training run is given."
        raise SettingsError(msg, "Name one with --out.")
    fabric = _fabric(settings, task.precision)
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    pool = Path(settings.anatomies) if settings.anatomies else folder / "anatomies"
    if fabric.global_rank == 0:
        # made by one process, read by all
        task.prepare(pool, fabric.device, report)
    fabric.barrier()
    if fabric.global_rank:
        task.prepare(pool, fabric.device, report)
    run = _Run(settings, fabric, task, folder)
    run.take_up()
    run.go_on(report)
    weights = folder / f"{task.kind}.safetensors"
    if fabric.global_rank == 0:
        facts = {**settings.to_dict(), "done": run.step, "examples": run.step * task.batch * fabric.world_size}
        if settings.start:
            facts["start"] = digest_of(Path(settings.start))
        hidden = {*_PATHS, *settings.foreign}
        task.save(weights, run.averaged, {name: fact for name, fact in facts.items() if name not in hidden})
    return weights


class _Run:
    """State of a run: network, its moving average, optimiser and step."""

    def __init__(self, settings: TrainSettings, fabric: Fabric, task: Task, folder: Path) -> None:
        self.settings, self.fabric, self.task, self.folder = settings, fabric, task, folder
        self.steps = settings.steps or task.steps
        self.step = 0
        self._left_out = 0
        self.network, self.optimiser = fabric.setup(task.network, task.optimiser())
        self._ema = torch.optim.swa_utils.AveragedModel(task.network, multi_avg_fn=_average)

    @property
    def averaged(self) -> nn.Module:
        """The network with the moving average of its weights."""
        return self._ema.module

    def take_up(self) -> None:
        """Load the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if path.is_file():
            there = self.fabric.load(path)["progress"].get("settings", {})
            for name, value in there.items():
                if value != (asked := getattr(self.settings, name)):
                    msg = f"{self.folder} holds a run with {name} {value}; this one has {asked}."
                    raise SettingsError(msg, "Choose another folder, or the settings of the run that is there.")
            state = self._state()
            rest = self.fabric.load(path, state)
            self.step = int(state["progress"]["step"])
            if rest:
                msg = f"{path} holds {', '.join(rest)}, which this version does not know."
                raise DiffusionFMError(msg, "Choose another folder.")

    def go_on(self, report: Report) -> None:
        """Train until all steps are done or the time is up."""
        end = time.monotonic() + 60 * self.settings.minutes if self.settings.minutes else float("inf")
        saved, watch = time.monotonic(), _Watch(self.folder / LOG, self.task.compared_with)
        while self.step < self.steps and not self._all(time.monotonic() >= end):
            self._report(report)
            rate = self._one_step(watch)
            if self.fabric.global_rank == 0 and self.step % LOG_STEPS == 0:
                watch.write(self.step, rate)
            if self._all(time.monotonic() - saved > CHECKPOINT_SECONDS):
                self.save()
                saved = time.monotonic()
        self.save()

    def _all(self, first: bool) -> bool:
        """What the first of several processes found: by clocks of their own they would save and stop at other steps."""
        return self.fabric.broadcast(first)

    def _report(self, report: Report) -> None:
        """Tell how far it is; a run that is cancelled here is kept as it is."""
        try:
            report.progress(self.step, self.steps, "Training")
        except JobCancelled:
            # other processes may not have been cancelled, and would be waited for
            if self.fabric.world_size == 1:
                self.save()
            raise

    def save(self) -> None:
        """Write the checkpoint, under a temporary name first, and the log's plot."""
        temporary = self.folder / f".{CHECKPOINT}.part"
        self.fabric.save(temporary, self._state())
        if self.fabric.global_rank == 0:
            temporary.replace(self.folder / CHECKPOINT)
            plot_log(self.folder / LOG, self.folder / PLOT)
        self.fabric.barrier()

    def _state(self) -> dict[str, Any]:
        progress = {"step": self.step, "settings": {name: getattr(self.settings, name) for name in LASTING}}
        return {"network": self.network, "average": self._ema, "optimiser": self.optimiser, "progress": progress}

    def _one_step(self, watch: _Watch) -> float:
        """Returns the learning rate."""
        # by step and process, so that a run taken up again sees what it would have seen
        rng = np.random.default_rng([self.settings.seed, self.step, self.fabric.global_rank])
        rate = self.task.set_rates(self.optimiser, self.step, self.steps)
        result = self.task.losses(self.network, self.step, self.steps, rng)
        self.optimiser.zero_grad()
        self.fabric.backward(result.total)
        norm = self.fabric.clip_gradients(self.network, self.optimiser, max_norm=MAX_GRADIENT, error_if_nonfinite=False)
        self.step += 1
        if norm is not None and not torch.isfinite(norm):
            # a voxel whose system rounding made singular: rare, and nothing to learn from
            self._left_out += 1
            if self._left_out > MAX_LEFT_OUT:
                msg = f"The last {self._left_out} steps had no finite gradient: training has diverged."
                raise DiffusionFMError(msg, "Start again in another folder, with another seed.")
            watch.leave_out()
            return rate
        self._left_out = 0
        self.optimiser.step()
        self._ema.update_parameters(self.task.network)
        watch.add(result, float(norm) if norm is not None else float("nan"))
        return rate


@torch.no_grad()
def _average(averaged: Sequence[Tensor], current: Sequence[Tensor], seen: Tensor | int) -> None:
    """Move the averaged weights towards the current ones, `seen` of which were averaged before."""
    share = 1 / max(1.0, min(AVERAGED_SHARE * float(seen), AVERAGED_STEPS))
    for average, value in zip(averaged, current, strict=True):
        average.lerp_(value, share)


class _Watch:
    """Means of what training tells, written as one line of JSON every so many steps."""

    def __init__(self, path: Path, compared_with: str) -> None:
        self._path, self._compared_with = path, compared_with
        self._start()

    def _start(self) -> None:
        self._count, self._since = 0, time.monotonic()
        self._sums: dict[str, float] = defaultdict(float)
        # not all steps have all numbers
        self._counts: dict[str, int] = defaultdict(int)
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def leave_out(self) -> None:
        """A step whose gradient was not finite."""
        self._sums["left_out"] += 1

    def add(self, result: Losses, norm: float) -> None:
        self._count += 1
        for name, value in {**result.parts, "loss": float(result.total.detach()), "gradient": norm}.items():
            self._sums[name] += value
            self._counts[name] += 1
        for name, (ours, theirs, _) in result.squares.items():
            self._squares[name][0] += ours
            self._squares[name][1] += theirs

    def write(self, step: int, learning_rate: float) -> None:
        """Means since the last line; ``to_...`` is the error over that of what it is compared with."""
        if not self._count:
            return
        line = {
            "step": step,
            "learning_rate": round(learning_rate, 6),
            "seconds_per_step": round((time.monotonic() - self._since) / self._count, 3),
            **{name: round(total / (self._counts[name] or self._count), 5) for name, total in self._sums.items()},
            f"to_{self._compared_with}": {
                name: round((ours / theirs) ** 0.5, 3)
                for name, (ours, theirs) in sorted(self._squares.items())
                if theirs
            },
        }
        with self._path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        self._start()


def _fabric(settings: TrainSettings, precision: str) -> Fabric:
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        msg = "Training needs Lightning, which is not installed."
        raise DiffusionFMError(msg, "Install it with pip install 'diffusionfm[train]'.") from error
    fabric = Fabric(
        accelerator=settings.device,
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric
