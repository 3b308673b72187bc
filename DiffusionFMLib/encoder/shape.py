"""Size and conventions of a diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from DiffusionFMLib.encoder.drope import LAYOUTS
from DiffusionFMLib.errors import SettingsError

DIRECTION_FEATURES: Final = {"polar": 3, "even": 7}
"""How directions are told, and in how many numbers; see `embedding.direction_features`."""

AXES: Final = ("scanner", "image")


@dataclass(frozen=True)
class EncoderShape:
    """What has to be known besides the weights.

    Parameters
    ----------
    hidden : int
        C, a multiple of 12 and of twice the heads.
    heads, blocks, mlp : int
        Of the encoder; `mlp` is the width inside.
    decoder_blocks, decoder_mlp : int
        Of the decoder; 0 blocks: there is none.
    patch : tuple of int
        Voxels along x, y and z.
    slab : int
        Layers of patches that spatial attention sees together.
    rotary : bool
        D-RoPE in the attention over directions.
    layout : {"paper", "official"}
        Of its frequencies; see `drope.LAYOUTS`.
    directions : {"polar", "even"}
        ``even`` leaves the network unchanged when directions change sign.
    position_divisor : float, voxels
        Places are divided by it. The public code's pretraining has 300, its other scripts 1.
    axes : {"scanner", "image"}
        Directions and places along the patient's axes; or along the image's, with directions in FSL's frame, as in the
        public code.
    brain_only : bool
        Patches without a voxel of the mask are no tokens.
    last_relu : bool
        Whether the decoder's reconstruction ends with a rectifier, as in the public code.

    Raises
    ------
    SettingsError
        If sizes do not fit each other.
    """

    hidden: int
    heads: int
    blocks: int
    mlp: int
    decoder_blocks: int
    decoder_mlp: int
    patch: tuple[int, int, int]
    slab: int = 1
    rotary: bool = True
    layout: str = "paper"
    directions: str = "polar"
    position_divisor: float = 300.0
    axes: str = "image"
    brain_only: bool = False
    last_relu: bool = False

    def __post_init__(self) -> None:
        if self.hidden % 12 or self.heads < 1 or self.hidden % (2 * self.heads):
            msg = f"A transformer of width {self.hidden} cannot have {self.heads} heads."
            raise SettingsError(msg, "Choose a width that is a multiple of 12 and of twice the heads.")
        allowed = (("layout", LAYOUTS), ("directions", tuple(DIRECTION_FEATURES)), ("axes", AXES))
        for name, choices in allowed:
            if getattr(self, name) not in choices:
                msg = f"A transformer's {name} is '{getattr(self, name)}'; expected one of {', '.join(choices)}."
                raise SettingsError(msg, "Correct it.")

    @property
    def head(self) -> int:
        """Entries of a head."""
        return self.hidden // self.heads

    @property
    def patch_voxels(self) -> int:
        """Voxels of a patch."""
        return self.patch[0] * self.patch[1] * self.patch[2]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self) | {"patch": list(self.patch)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EncoderShape:
        """The inverse of `to_dict`."""
        x, y, z = values["patch"]
        return cls(**{**values, "patch": (x, y, z)})


PRESETS: Final = {
    "paper": EncoderShape(384, 3, 10, 1536, 3, 384, (8, 8, 4)),
    "small": EncoderShape(
        96, 3, 4, 384, 2, 192, (4, 4, 4), directions="even", position_divisor=4.0, axes="scanner", brain_only=True
    ),
}
"""``paper``: as published, 41 million weights. ``small``: 1.2 million, for two CPU cores. It has the paper's 1.5
features per voxel, in patches of a quarter of the size, whose places it counts in patches. A token of one direction
costs 1.5 million multiplications, so that 96 x 96 x 60 voxels and 32 directions, 276,000 tokens if air were among them,
are 4e11: some ten seconds on two cores, which leaves room for a second pass with patches shifted by half."""
