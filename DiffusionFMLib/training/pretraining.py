"""Pretraining of the encoder as a masked autoencoder."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from DiffusionFMLib.encoder.checkpoint import load_encoder, save_encoder
from DiffusionFMLib.encoder.mae import (
    MASKS,
    Batch,
    MaskedAutoencoder,
    Sample,
    draw_mask,
    masked_weight,
    same_shell_mean,
    square_errors,
)
from DiffusionFMLib.encoder.shape import PRESETS as SHAPES
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.events import Report
from DiffusionFMLib.training.kept_scans import kept_scans
from DiffusionFMLib.training.settings import ENCODER, Preset, TrainSettings
from DiffusionFMLib.training.signal_scans import SignalScan
from DiffusionFMLib.training.slab_examples import SlabMaker
from DiffusionFMLib.training.task import Losses, anatomies

WARM_UP: Final = 40 / 300
"""Share of the steps that the learning rate rises over, as in the paper."""

LEAST_RATE: Final = 0.02
"""Of the learning rate, at the end of its cosine: the paper's 1e-6 of 5e-5."""

WEIGHT_DECAY: Final = (0.04, 0.4)
"""When training begins and when it ends."""


@dataclass(frozen=True)
class EncoderPreset(Preset):
    """Size of a training run of the encoder.

    Parameters
    ----------
    shape : EncoderShape
    crop : tuple of int, voxels
        Edges of the slabs.
    """

    shape: EncoderShape
    crop: tuple[int, int, int]


_SMALL: Final = SHAPES["small"]
_PATIENT: Final = {name: getattr(_SMALL, name) for name in ("directions", "position_divisor", "axes", "brain_only")}

PRESETS: Final = {
    "tiny": EncoderPreset(
        2, 20, 1e-3, 0, 2, "32-true",
        replace(_SMALL, hidden=24, heads=2, blocks=1, mlp=24, decoder_blocks=1, decoder_mlp=24), (16, 16, 4),
    ),
    "small": EncoderPreset(4, 12_000, 1e-3, 40, 40, "32-true", _SMALL, (24, 24, 4)),
    "base": EncoderPreset(
        8, 20_000, 5e-4, 100, 50, "bf16-mixed",
        replace(_SMALL, hidden=192, heads=3, blocks=8, mlp=768, decoder_blocks=3, decoder_mlp=384), (80, 80, 4),
    ),
    "large": EncoderPreset(
        8, 100_000, 2e-4, 200, 50, "bf16-mixed", replace(SHAPES["paper"], **_PATIENT), (160, 160, 4)
    ),
}  # fmt: skip
"""Named as the prior's. tiny is for tests. small is for CPUs, two hours on a core, in many steps of small slabs: these
teach more than the same time with a quarter of the steps, of slabs four times the size. large has the paper's
transformer. The paper's learning rate, 5e-5, is for its width and 300 epochs of 745 scans; narrower ones stand more,
and runs here are shorter."""


class EncoderTask:
    """See `task.Task`.

    Parameters
    ----------
    settings : TrainSettings

    Raises
    ------
    SettingsError
        If the weights to start from are of another network.
    InputError
        If they cannot be read.
    """

    kind = ENCODER
    compared_with = "mean"

    def __init__(self, settings: TrainSettings) -> None:
        self._settings, self._preset = settings, PRESETS[settings.preset]
        preset = self._preset
        self.batch, self.steps, self.precision = preset.batch, preset.steps, preset.precision
        torch.manual_seed(settings.seed)
        self._transformer = DiffusionTransformer(replace(preset.shape, rotary=settings.rotary))
        self.network = MaskedAutoencoder(self._transformer)
        if settings.start:
            _start_from(Path(settings.start), self._transformer)

    def prepare(self, pool: Path, device: torch.device, report: Report) -> None:
        """Make or read anatomies, and scans' signals; raises InputError if there are none in the folder of scans."""
        preset, scans = self._preset, self._settings.scans
        groups = anatomies(preset.brains, preset.phantoms, "", pool, report)
        real = list(kept_scans(SignalScan, "signal", Path(scans), pool, report)) if scans else []
        dtype = torch.float32 if preset.precision.startswith("32") else torch.bfloat16
        self._maker = SlabMaker(groups, real, self._transformer.shape, preset.crop, dtype, device)

    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW; biases, norms and tokens do not decay."""
        decayed = [p for p in self.network.parameters() if p.squeeze().ndim > 1]
        others = [p for p in self.network.parameters() if p.squeeze().ndim <= 1]
        groups = [{"params": decayed, "decays": True}, {"params": others, "decays": False, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, betas=(0.9, 0.999))

    def set_rates(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> float:
        """Warm-up, then a cosine; and a cosine for the weight decay over all steps."""
        warm = max(1, round(WARM_UP * steps))
        fall = LEAST_RATE + (1 - LEAST_RATE) * _falling((step - warm) / max(1, steps - warm))
        rate = self._preset.learning_rate * ((step + 1) / warm if step < warm else fall)
        first, last = WEIGHT_DECAY
        for group in optimiser.param_groups:
            group["lr"] = rate
            if group["decays"]:
                group["weight_decay"] = last + (first - last) * _falling(step / steps)
        return rate

    def losses(self, network: nn.Module, step: int, steps: int, rng: np.random.Generator) -> Losses:
        """Of new slabs; one step hides places, the next directions."""
        kind = MASKS[step % len(MASKS)]
        samples = [self._maker.draw(rng) for _ in range(self.batch)]
        masks = [draw_mask(kind, len(s.patches), s.patches.shape[1], rng).to(s.patches.device) for s in samples]
        return losses(network(Batch(samples, masks)), samples, masks, kind, masked_weight(step / steps))

    def save(self, path: Path, network: nn.Module, facts: dict[str, Any]) -> None:
        """Write the encoder's weights, its decoder among them."""
        save_encoder(path, network.network, facts)  # type: ignore[arg-type]


def losses(found: list[Tensor], samples: list[Sample], masks: list[Tensor], kind: str, weight: float) -> Losses:
    """(1 - weight) times the mean square error of visible tokens and weight times that of hidden ones.

    Errors of hidden tokens are watched beside those of the shell's mean there, by shell and kind of mask.
    """
    visible, hidden = (
        [square_errors(f, s, ~m if seen else m) for f, s, m in zip(found, samples, masks, strict=True)]
        for seen in (True, False)
    )
    parts = [
        torch.stack([square for square, _ in group]).sum() / max(1, sum(count for _, count in group))
        for group in (visible, hidden)
    ]
    squares: dict[str, tuple[float, float, int]] = defaultdict(lambda: (0.0, 0.0, 0))
    with torch.no_grad():
        for f, s, m in zip(found, samples, masks, strict=True):
            mean = same_shell_mean(s, m)
            for shell in s.shells.unique():
                here = m & (s.shells == shell)[:, None]
                (ours, count), (theirs, _) = square_errors(f, s, here), square_errors(mean, s, here)
                # b-values differ from protocol to protocol; their order is what all have
                name = f"shell{int(shell) + 1}_{kind}"
                before = squares[name]
                squares[name] = (before[0] + float(ours), before[1] + float(theirs), before[2] + count)
    total = (1 - weight) * parts[0] + weight * parts[1]
    told = {f"visible_{kind}": float(parts[0].detach()), f"hidden_{kind}": float(parts[1].detach())}
    return Losses(total, told, dict(squares))


def _falling(done: float) -> float:
    """From 1 to 0 along half a cosine."""
    return (1 + cos(pi * min(max(done, 0.0), 1.0))) / 2


def _start_from(path: Path, network: DiffusionTransformer) -> None:
    """Give a network the weights of a file."""
    trained = load_encoder(path)
    if trained.network.shape != network.shape:
        msg = f"{path} holds {trained.network.shape}; expected {network.shape}."
        raise SettingsError(msg, "Choose weights of the same preset.")
    network.load_state_dict(trained.network.state_dict())
