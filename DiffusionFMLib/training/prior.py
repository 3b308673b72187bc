"""Training of the prior on crops of anatomies whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from DiffusionFMLib.errors import InputError, SettingsError
from DiffusionFMLib.events import Report
from DiffusionFMLib.physics import MODELS, LogLinearModel
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.left_out import judged_channels
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.weights import load_weights, save_weights
from DiffusionFMLib.training.examples import ExampleMaker
from DiffusionFMLib.training.kept_scans import kept_scans
from DiffusionFMLib.training.losses import add_measured, batch_input, losses, posterior_of
from DiffusionFMLib.training.measured_scans import MeasuredMaker, MeasuredScan, can_spare
from DiffusionFMLib.training.settings import PRESETS, TrainSettings
from DiffusionFMLib.training.task import Losses, anatomies

WARM_UP: Final = 100
"""Steps that the learning rate rises over."""

COOL_DOWN: Final = 0.3
"""Share of the steps, at the end, that it falls over; constant before, so that a run can be made longer."""

WEIGHT_DECAY: Final = 1e-3
LOOK_PROBABILITY: Final = 0.25
"""Of examples with a noisy look at the truth, so that any prior can be sampled; all of a sampler's have one."""


class PriorTask:
    """See `task.Task`.

    Parameters
    ----------
    settings : TrainSettings

    Raises
    ------
    SettingsError
        If there is no prior for the model, its crops are of a size that the network cannot take, the weights to start
        from are of another network, or options do not go together.
    InputError
        If these weights cannot be read.
    """

    kind = "prior"
    compared_with = "ridge"

    def __init__(self, settings: TrainSettings) -> None:
        model = MODELS[settings.model]
        if not isinstance(model, LogLinearModel):
            msg = f"There is no prior for {model.title}."
            raise SettingsError(msg, "Choose another model.")
        self._settings, self._model, self._preset = settings, model, PRESETS[settings.preset]
        preset = self._preset
        self.batch, self.steps, self.precision = preset.batch, preset.steps, preset.precision
        self._coordinates = coordinates_of(model)
        self._judged = judged_channels(self._coordinates.orders)
        self._measured: MeasuredMaker | None = None
        if settings.measured and (not settings.scans or settings.sampler):
            msg = "--measured needs scans, and is not for samplers."
            raise SettingsError(msg, "Name scans with --scans, or leave one of the two out.")
        torch.manual_seed(settings.seed)
        shape = NetworkShape(len(self._coordinates), preset.channels, preset.levels, preset.blocks)
        self._crop = settings.crop or preset.crop
        if self._crop % shape.multiple or self._crop <= 2 * preset.margin:
            msg = f"crop is {self._crop} voxels; expected a multiple of {shape.multiple} above {2 * preset.margin}."
            raise SettingsError(msg, "Choose another --crop.")
        network = PriorNetwork(shape)
        if settings.start:
            _start_from(Path(settings.start), network, model)
        self.network: PriorNetwork = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def prepare(self, pool: Path, device: torch.device, report: Report) -> None:
        """Make or read anatomies and scans; raises InputError if there are no scans in the folder of scans."""
        preset, looks = self._preset, 1.0 if self._settings.sampler else LOOK_PROBABILITY
        groups = anatomies(preset.brains, preset.phantoms, self._settings.scans, pool, report)
        size = self._crop, preset.margin
        self._maker = ExampleMaker(groups, self._model, self._coordinates, *size, looks, device)
        if self._settings.measured:
            kept = kept_scans(MeasuredScan, "measured", Path(self._settings.scans), pool, report)
            real = [scan for scan in kept if can_spare(scan, self._model)]
            if not real:
                msg = (
                    f"No scan in {self._settings.scans} has enough volumes for {self._model.title}, and some to spare."
                )
                raise InputError(msg, "Choose other scans, or leave out --measured.")
            self._measured = MeasuredMaker(real, self._model, self._coordinates, *size, device)

    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.network.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))

    def set_rates(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> float:
        """Warm-up, constant, cool-down."""
        left = (steps - step) / (COOL_DOWN * steps)
        rate = self._preset.learning_rate * min(1.0, (step + 1) / WARM_UP, max(left, 0.01))
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate

    def losses(self, network: nn.Module, step: int, steps: int, rng: np.random.Generator) -> Losses:
        """Of new examples."""
        examples = [self._maker.draw(rng) for _ in range(self.batch)]
        real = [self._measured.draw(rng) for _ in range(self.batch // 2)] if self._measured else []
        raw = network(*batch_input([*examples, *real]))
        simulated, measured = raw.split([len(examples), len(real)])
        result = losses(posterior_of(self.network, simulated, examples), examples, rng)
        return add_measured(result, self.network, measured, real, self._judged.to(raw.device)) if real else result

    def save(self, path: Path, network: nn.Module, facts: dict[str, Any]) -> None:
        """Write the prior's weights."""
        save_weights(path, network, self._model, facts)  # type: ignore[arg-type]


def _start_from(path: Path, network: PriorNetwork, model: LogLinearModel) -> None:
    """Give a network the weights of a file."""
    trained = load_weights(path)
    if (trained.model.name, trained.network.shape) != (model.name, network.shape):
        held, expected = f"{trained.network.shape} for {trained.model.title}", f"{network.shape} for {model.title}"
        msg = f"{path} holds {held}; expected {expected}."
        raise SettingsError(msg, "Choose weights of the same model and preset.")
    network.load_state_dict(trained.network.state_dict())
