"""The overlays that there are, and what each shows. Loads without torch: Slicer's own process reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from DiffusionFMLib.maps import MapSpec

FEATURES, ATTENTION = "features", "attention"
"""What files are named by, before the overlay's own name."""

UNPROVEN = "It did not pass the gate that overlays are put to: see the README."
"""What the sidecar of such a one says."""

ALL = "all"
"""The setting that leaves none out."""


@dataclass(frozen=True)
class Overlay:
    """An overlay.

    Parameters
    ----------
    spec : MapSpec
        Its description is the plain sentence that people read; none of them is about causes.
    family : {"features", "attention"}
    of_point : bool
        It is about a place that is pointed at, and asked of a resident worker; there is no file of it.
    of_head : bool
        There is one for each block and head.
    standard : bool
        It passed the gate (``Testing/Evaluation/overlays.py``): much the same from other directions of the same scan,
        another with random weights, and what it marks matters more to a readout than other places. What did not pass is
        called unproven, and not shown by itself.
    """

    spec: MapSpec
    family: str
    of_point: bool = False
    of_head: bool = False
    standard: bool = False

    def path(self, out: Path, stem: str) -> Path:
        """Where it goes in an output folder; `stem` is the scan's name."""
        return out / f"{stem}_{self.family}_{self.spec.name}.nii.gz"


_UNIT: Final = (0.0, 1.0)

_ALL: Final = (
    Overlay(
        MapSpec(
            "rollout", "Attention rollout", "",
            "Which places each layer's summary draws on when attention is followed through all blocks, relative to all "
            "of the layer alike: raw weights, which do not tell what matters to the result.",
            (0.9, 1.2), "inferno",
        ),
        ATTENTION, standard=True,
    ),
    Overlay(
        MapSpec(
            "similarity", "Similarity to the point", "",
            "How alike the learned features are to those at the point: 1 is the same, 0 is no more than on average.",
            _UNIT, "inferno",
        ),
        FEATURES, of_point=True,
    ),
    Overlay(
        MapSpec(
            "pca", "Feature colours", "",
            "The three main components of the learned features as red, green and blue: alike colours are tissue that "
            "the encoder finds alike; a colour means nothing by itself.",
            _UNIT, "rgb", ("red", "green", "blue"),
        ),
        FEATURES,
    ),
    Overlay(
        MapSpec(
            "surprise", "Surprise", "sigma",
            "How far measured signal lies from what the encoder expects of it after seeing other directions, in units "
            "of the noise: noise alone would be 1. It holds the encoder's own error too: fluid is bright in any scan.",
            (1.0, 6.0), "inferno",
        ),
        ATTENTION,
    ),
    Overlay(
        MapSpec(
            "influence", "Influence on FA", "",
            "How much what the encoder's features say of FA elsewhere in the layer changes when this place, two by two "
            "patches, is hidden; by 12 directions at most.",
            (0.0, 0.005), "inferno",
        ),
        ATTENTION,
    ),
    Overlay(
        MapSpec(
            "directions", "Attention to directions", "",
            "How far attention over the directions differs from what it is for a signal that is the same in all of a "
            "shell: 0 is what the directions' geometry alone gives.",
            (0.0, 0.1), "inferno",
        ),
        ATTENTION, of_head=True,
    ),
    Overlay(
        MapSpec(
            "raw", "Raw attention of the point", "",
            "Which places the point attends to within its layer of patches, relative to attending to all alike: raw "
            "weights, which do not tell what matters to the result.",
            (0.5, 2.0), "inferno",
        ),
        ATTENTION, of_point=True, of_head=True,
    ),
)  # fmt: skip

OVERLAYS: Final = {overlay.spec.name: overlay for overlay in _ALL}
"""By name: what passed, then from what is easiest to understand to raw weights."""


ON_ATTENTION: Final = frozenset({"directions", "raw", "rollout"})
"""Those for which attention is kept."""


def wanted(choice: str) -> frozenset[str]:
    """Names of the overlays that a setting means: all, or those that passed and those that cost nothing more."""
    return frozenset(
        name for name, overlay in OVERLAYS.items() if choice == ALL or overlay.standard or overlay.family == FEATURES
    )
