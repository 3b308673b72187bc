"""Parameter maps: what a model declares, and what an estimator gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MapSpec:
    """Declaration of a map, read by the writer, the CLI and the viewer.

    Parameters
    ----------
    name : str
        As in file names: ``fa``.
    title : str
        As people say it: ``FA``.
    unit : str
        ``mm2/s``, or empty for a ratio.
    description : str
        One plain sentence.
    window : tuple of float
        Lowest and highest value shown.
    colors : str
        Colour map: ``grey``, ``viridis``, ``inferno``, ``labels``; ``rgb`` for three components, 0..1, that are red,
        green and blue themselves; ``direction`` for unit vectors.
    components : tuple of str
        Names of the last axis of a 4-D map; empty for a scalar map.
    """

    name: str
    title: str
    unit: str
    description: str
    window: tuple[float, float]
    colors: str = "grey"
    components: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ParameterMap:
    """A map in the scan's own grid.

    Parameters
    ----------
    spec : MapSpec
    data : array, shape (X, Y, Z) or (X, Y, Z, C), float32
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm.
    provenance : mapping
        What it was computed from and how; written to its sidecar.
    """

    spec: MapSpec
    data: NDArray[np.float32]
    affine: NDArray[np.float64]
    provenance: Mapping[str, Any] = field(default_factory=dict)


class FitStatus(IntEnum):
    """How a voxel's fit ended; the text says what it means and what to do."""

    OUTSIDE = 0, "Outside the mask: not fitted."
    OK = 1, "Fitted."
    CLIPPED = (
        2,
        "Fitted, but a value was outside what is physical and set to its bound: low SNR or too few directions.",
    )
    NOT_CONVERGED = (
        3,
        "The iteration stopped at its limit: the value is the best so far; look at the residual.",
    )
    DEGENERATE = 4, "No usable signal (zero, constant or saturated): maps are zero here; check the mask."

    meaning: str

    def __new__(cls, value: int, meaning: str = "") -> FitStatus:
        """Make a member that is its number and carries its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


STATUS = MapSpec(
    "status",
    "Fit status",
    "",
    "How each voxel's fit ended: " + " ".join(f"{s.value} {s.name.lower()}," for s in FitStatus).rstrip(",") + ".",
    (0, max(FitStatus)),
    "labels",
)

RESIDUAL = MapSpec(
    "residual",
    "Residual",
    "",
    "Root mean square of measured minus fitted signal, as a fraction of S0.",
    (0.0, 0.2),
    "inferno",
)

DATA_FRACTION = MapSpec(
    "datafraction",
    "Data fraction",
    "",
    "How much of a voxel's maps came from its own measurements, 0 to 1; the rest is what its neighbours and the "
    "training say.",
    (0.0, 1.0),
    "viridis",
)

DISAGREEMENT = MapSpec(
    "disagreement",
    "Disagreement",
    "sigma",
    "How far the measurements of a voxel and of those around it lie from what the prior makes of them, in standard "
    "deviations of what most places show: do not trust maps where it is above 3. Lesions that the prior gets right do "
    "not show.",
    (0.0, 6.0),
    "inferno",
)


def standard_deviation(spec: MapSpec) -> MapSpec:
    """The map of how sure the prior is of a scalar map."""
    return replace(
        standard_error(spec),
        name=f"{spec.name}_sd",
        title=f"{spec.title} sd",
        description=f"Standard deviation of {spec.title}, given the data and the prior.",
    )


def standard_error(spec: MapSpec) -> MapSpec:
    """The map of a scalar map's standard error."""
    low, high = spec.window
    return replace(
        spec,
        name=f"{spec.name}_se",
        title=f"{spec.title} standard error",
        description=f"How far {spec.title} would vary if the scan were repeated, by the noise that the fit leaves; "
        "1000 where the data do not tell: at the end of its range, or where nothing determines it.",
        window=(0.0, (high - low) / 4),
        colors="inferno",
    )


def with_fit_maps(specs: Iterable[MapSpec], standard_errors: bool = False) -> tuple[MapSpec, ...]:
    """What a fit of a model with these maps gives: they, their standard errors if asked for, residual and status."""
    specs = tuple(specs)
    errors = tuple(standard_error(spec) for spec in specs if not spec.components) if standard_errors else ()
    return (*specs, *errors, RESIDUAL, STATUS)


def with_prior_maps(specs: Iterable[MapSpec]) -> tuple[MapSpec, ...]:
    """What the generative prior gives of a model with these maps: more, that tell how far they can be trusted."""
    specs = tuple(specs)
    spread = tuple(standard_deviation(spec) for spec in specs if not spec.components)
    return (*specs, *spread, DATA_FRACTION, DISAGREEMENT, RESIDUAL, STATUS)
