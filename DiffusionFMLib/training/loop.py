"""The training loop of the prior, on Lightning Fabric: one process or many, in pieces, the same by seed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from DiffusionFMLib.errors import DiffusionFMError, SettingsError
from DiffusionFMLib.events import Report
from DiffusionFMLib.physics import MODELS, LogLinearModel
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.weights import digest_of, load_weights, save_weights
from DiffusionFMLib.training.anatomies import Anatomy, random_phantoms, simulated_brains
from DiffusionFMLib.training.examples import ExampleMaker
from DiffusionFMLib.training.losses import Losses, batch_input, losses, posterior_of
from DiffusionFMLib.training.plot import PLOT, plot_log
from DiffusionFMLib.training.scan_anatomies import scan_anatomies
from DiffusionFMLib.training.settings import PRESETS, Preset, TrainSettings

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CHECKPOINT: Final = "checkpoint.ckpt"
WEIGHTS: Final = "prior.safetensors"
LOG: Final = "log.jsonl"

LOG_STEPS: Final = 50
CHECKPOINT_SECONDS: Final = 120.0

WARM_UP: Final = 100
"""Steps that the learning rate rises over."""

COOL_DOWN: Final = 0.3
"""Share of the steps, at the end, that it falls over; constant before, so that a run can be made longer."""

EMA: Final = 0.998
WEIGHT_DECAY: Final = 1e-3
MAX_GRADIENT: Final = 4.0
MAX_LEFT_OUT: Final = 20
"""Steps without a finite gradient, one after another; more are no accident."""

LOOK_PROBABILITY: Final = 0.25


def train(settings: TrainSettings, report: Report) -> Path:
    """Train the prior, or go on with it; returns the weights' file.

    Parameters
    ----------
    settings : TrainSettings
        The same settings give the same weights, in however many pieces they are made.
    report : Report

    Raises
    ------
    SettingsError
        If no folder is given, or there is no prior for the model, or the weights to start from are of another network.
    InputError
        If these weights cannot be read, or there are no scans in the folder of scans.
    DiffusionFMError
        If Lightning is not installed.
    """
    if not settings.out:
        msg = "No folder for the training run is given."
        raise SettingsError(msg, "Name one with --out.")
    model = MODELS[settings.model]
    if not isinstance(model, LogLinearModel):
        msg = f"There is no prior for {model.title}."
        raise SettingsError(msg, "Choose another model.")
    coordinates = coordinates_of(model)
    preset = PRESETS[settings.preset]
    torch.manual_seed(settings.seed)
    network = PriorNetwork(NetworkShape(len(coordinates), preset.channels, preset.levels, preset.blocks))
    if settings.start:
        _start_from(Path(settings.start), network, model)
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    fabric = _fabric(settings, preset.precision)
    folder = Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    pool = Path(settings.anatomies) if settings.anatomies else folder / "anatomies"
    if fabric.global_rank == 0:
        # made by one process, read by all
        _anatomies(settings, preset, pool, report)
    fabric.barrier()

    groups = _anatomies(settings, preset, pool, report)
    maker = ExampleMaker(groups, model, coordinates, preset.crop, preset.margin, LOOK_PROBABILITY, fabric.device)
    run = _Run(settings, fabric, network, maker, folder)
    run.take_up()
    run.go_on(report)
    if fabric.global_rank == 0:
        facts = {**settings.to_dict(), "done": run.step, "examples": run.step * preset.batch * fabric.world_size}
        if settings.start:
            facts["start"] = digest_of(Path(settings.start))
        save_weights(folder / WEIGHTS, run.averaged, model, {k: v for k, v in facts.items() if k not in _PATHS})
    return folder / WEIGHTS


_PATHS: Final = ("out", "anatomies", "scans")


def _start_from(path: Path, network: PriorNetwork, model: LogLinearModel) -> None:
    """Give a network the weights of a file."""
    trained = load_weights(path)
    if (trained.model.name, trained.network.shape) != (model.name, network.shape):
        held, expected = f"{trained.network.shape} for {trained.model.title}", f"{network.shape} for {model.title}"
        msg = f"{path} holds {held}; expected {expected}."
        raise SettingsError(msg, "Choose weights of the same model and preset.")
    network.load_state_dict(trained.network.state_dict())


def _anatomies(settings: TrainSettings, preset: Preset, pool: Path, report: Report) -> list[list[Anatomy]]:
    """Simulated heads, random anatomies, and those of scans when there are any."""
    groups = [
        list(simulated_brains(pool, preset.brains, report)),
        list(random_phantoms(pool, preset.phantoms, report)),
    ]
    if settings.scans:
        groups.append(list(scan_anatomies(Path(settings.scans), pool, report)))
    return [group for group in groups if group]


class _Run:
    """State of a run: network, its moving average, optimiser and step."""

    def __init__(
        self, settings: TrainSettings, fabric: Fabric, network: PriorNetwork, maker: ExampleMaker, folder: Path
    ) -> None:
        self.settings, self.fabric, self.maker, self.folder = settings, fabric, maker, folder
        self.preset = PRESETS[settings.preset]
        self.steps = settings.steps or self.preset.steps
        self.step = 0
        self._left_out = 0
        self.raw = network
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
        self.network, self.optimiser = fabric.setup(network, optimiser)
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
        self._ema = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average)

    @property
    def averaged(self) -> PriorNetwork:
        """The network with the moving average of its weights."""
        return self._ema.module  # type: ignore[return-value]

    def take_up(self) -> None:
        """Load the folder's checkpoint, if there is one."""
        path = self.folder / CHECKPOINT
        if path.is_file():
            state = self._state()
            rest = self.fabric.load(path, state)
            self.step = int(state["progress"]["step"])
            if rest:
                msg = f"{path} holds {', '.join(rest)}, which this version does not know."
                raise DiffusionFMError(msg, "Choose another folder.")

    def go_on(self, report: Report) -> None:
        """Train until all steps are done or the time is up."""
        end = time.monotonic() + 60 * self.settings.minutes if self.settings.minutes else float("inf")
        saved, watch = time.monotonic(), _Watch(self.folder / LOG)
        while self.step < self.steps and time.monotonic() < end:
            report.progress(self.step, self.steps, "Training")
            self._one_step(watch)
            if self.fabric.global_rank == 0 and self.step % LOG_STEPS == 0:
                watch.write(self.step, self._learning_rate())
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the checkpoint, under a temporary name first, and the log's plot."""
        temporary = self.folder / f".{CHECKPOINT}.part"
        self.fabric.save(temporary, self._state())
        if self.fabric.global_rank == 0:
            temporary.replace(self.folder / CHECKPOINT)
            plot_log(self.folder / LOG, self.folder / PLOT)
        self.fabric.barrier()

    def _state(self) -> dict[str, Any]:
        progress = {"step": self.step}
        return {"network": self.network, "average": self._ema, "optimiser": self.optimiser, "progress": progress}

    def _learning_rate(self) -> float:
        left = (self.steps - self.step) / (COOL_DOWN * self.steps)
        return self.preset.learning_rate * min(1.0, (self.step + 1) / WARM_UP, max(left, 0.01))

    def _one_step(self, watch: _Watch) -> None:
        # by step and process, so that a run taken up again sees what it would have seen
        rng = np.random.default_rng([self.settings.seed, self.step, self.fabric.global_rank])
        examples = [self.maker.draw(rng) for _ in range(self.preset.batch)]
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        raw = self.network(*batch_input(examples))
        result = losses(posterior_of(self.raw, raw, examples), examples, rng)
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
            return
        self._left_out = 0
        self.optimiser.step()
        self._ema.update_parameters(self.raw)
        watch.add(result, float(norm) if norm is not None else float("nan"))


class _Watch:
    """Means of what training tells, written as one line of JSON every so many steps."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start()

    def _start(self) -> None:
        self._count, self._since = 0, time.monotonic()
        self._sums: dict[str, float] = defaultdict(float)
        self._squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def leave_out(self) -> None:
        """A step whose gradient was not finite."""
        self._sums["left_out"] += 1

    def add(self, result: Losses, norm: float) -> None:
        self._count += 1
        for name, value in {**result.parts, "loss": float(result.total.detach()), "gradient": norm}.items():
            self._sums[name] += value
        for name, (ours, ridge, _) in result.squares.items():
            self._squares[name][0] += ours
            self._squares[name][1] += ridge

    def write(self, step: int, learning_rate: float) -> None:
        """Means since the last line; ``to_ridge`` is the error over the ridge estimate's, by noise and tissue."""
        if not self._count:
            return
        line = {
            "step": step,
            "learning_rate": round(learning_rate, 6),
            "seconds_per_step": round((time.monotonic() - self._since) / self._count, 3),
            **{name: round(total / self._count, 5) for name, total in self._sums.items()},
            "to_ridge": {
                name: round((ours / ridge) ** 0.5, 3) for name, (ours, ridge) in sorted(self._squares.items()) if ridge
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
