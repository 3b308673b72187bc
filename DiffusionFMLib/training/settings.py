"""What a training run is made of: presets, and what a person chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from DiffusionFMLib.settings import Settings, option


@dataclass(frozen=True)
class Preset:
    """Size of a training run, of whatever network.

    Parameters
    ----------
    batch : int
        Examples per step and process.
    steps : int
    learning_rate : float
        The highest.
    brains, phantoms : int
        Anatomies to train on: simulated heads, and random ones.
    precision : str
        Of the network, as Lightning Fabric names it.
    """

    batch: int
    steps: int
    learning_rate: float
    brains: int
    phantoms: int
    precision: str


@dataclass(frozen=True)
class PriorPreset(Preset):
    """Size of a training run of the prior, whose systems are solved in float32 whatever the precision.

    Parameters
    ----------
    channels, levels, blocks : int
        See `NetworkShape`.
    crop, margin : int
        Edge of the crops, voxels, and how many at each face are only there as neighbours.
    """

    channels: int
    levels: int
    blocks: int
    crop: int
    margin: int


PRESETS: Final = {
    "tiny": PriorPreset(2, 20, 1e-3, 0, 2, "32-true", 16, 1, 1, 16, 2),
    "small": PriorPreset(4, 10_000, 1e-3, 40, 40, "32-true", 16, 2, 1, 20, 2),
    "base": PriorPreset(16, 20_000, 1e-3, 100, 100, "bf16-mixed", 48, 2, 2, 32, 4),
    "large": PriorPreset(32, 100_000, 1e-3, 200, 200, "bf16-mixed", 64, 3, 2, 32, 4),
}
"""Of the prior. tiny is for tests; small trains on a CPU in about 2 h. base is meant for half an hour of one GPU, and
large for more: neither has been timed yet."""

ENCODER: Final = "encoder"
"""What stands in the place of a signal model where the encoder is trained; its presets, in `pretraining`, have the same
names."""

OWN_OPTIONS: Final = {"prior": ("sampler", "crop", "measured", "calibrate"), ENCODER: ("rotary",)}
"""That the other network does not have."""


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Training of the prior, or of the encoder, on simulated scans and on yours."""

    out: str = option("", "Folder of checkpoint, log and weights; a run that is there is taken up again.", path=True)
    preset: str = option("small", "Size of the run.", choices=tuple(PRESETS))
    model: str = option("dti", "Signal model whose prior is trained, or the encoder.", choices=("dti", "dki", ENCODER))
    rotary: bool = option(
        True, "Attention over directions turns by their distances (D-RoPE); of the encoder only.", advanced=True
    )
    sampler: bool = option(
        False,
        "Train what samples are drawn with: every example has a noisy look at the truth; of the prior only.",
        advanced=True,
    )
    crop: int = option(
        0,
        "Edge of the crops; the preset's when 0; of the prior only.",
        minimum=0,
        maximum=256,
        unit="voxels",
        advanced=True,
    )
    anatomies: str = option("", "Folder that anatomies are kept in; below the run's own when not given.", path=True)
    scans: str = option(
        "",
        "Scans whose anatomy (encoder: signal) is trained on beside the simulated: a BIDS dataset, or folders of "
        "NIfTI, bval and bvec.",
        path=True,
    )
    measured: bool = option(
        False, "Learn from the scans' signals too: to predict volumes that were left out; of the prior only."
    )
    calibrate: bool = option(
        False,
        "Leave the weights as they are, and learn how large the errors of their maps are, on simulated scans; of the "
        "prior only.",
    )
    start: str = option(
        "", "Weights to start from; when not given, random ones, and those shipped to calibrate.", path=True
    )
    steps: int = option(
        0, "Steps in all, or scans to calibrate on; the preset's when 0.", minimum=0, maximum=10_000_000
    )
    minutes: float = option(
        0.0, "Stop after this time, to be taken up again; no limit when 0.", minimum=0, maximum=100_000, unit="min"
    )
    devices: int = option(1, "Processes on this machine.", minimum=1, maximum=64, advanced=True)
    nodes: int = option(1, "Machines.", minimum=1, maximum=1024, advanced=True)
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "Seed of everything random.", minimum=0, maximum=2**31 - 1)

    @property
    def foreign(self) -> tuple[str, ...]:
        """Options that the network trained does not have."""
        return OWN_OPTIONS["prior" if self.model == ENCODER else ENCODER]
