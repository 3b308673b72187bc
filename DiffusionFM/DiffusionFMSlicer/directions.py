"""Attention over a scan's directions at one point, in the terms of a plot; knows nothing of Slicer or Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import GradientTable

SENTENCE = (
    "Each mark is a volume of the scan: above 0 it gets more attention at this point than the directions' geometry "
    "alone gives it."
)
"""What the plot shows, for people."""

BEYOND = "Attention beyond geometry (% of an even share)"


@dataclass(frozen=True)
class Series:
    """The volumes of one shell.

    Parameters
    ----------
    title : str
        ``b 1000``.
    angles : array, shape (M,), degrees
        0..90.
    beyond : array, shape (M,), %
        Attention minus what geometry alone gives; 100 is as much as each volume had if all had the same.
    """

    title: str
    angles: NDArray[np.float64]
    beyond: NDArray[np.float64]


@dataclass(frozen=True)
class Directions:
    """What there is to plot.

    Parameters
    ----------
    axis : str
        What the angles are to.
    series : tuple of Series
        By b-value.
    """

    axis: str
    series: tuple[Series, ...]


def directionsOf(answer: dict[str, Any], axis: NDArray[np.float64] | None) -> Directions:
    """Angles and attention by shell.

    Parameters
    ----------
    answer : dict
        ``bvals`` (N,), ``bvecs`` (N, 3) in scanner RAS, ``attention`` (N,) and ``geometry`` (N,) that both add up to 1.
        All volumes have a direction.
    axis : array, shape (3,), optional
        Main direction of the diffusion; that of the volume with the most attention beyond geometry when not given.
    """
    gtab = GradientTable(answer["bvals"], answer["bvecs"], b0_threshold=0)
    attention = np.array(answer["attention"], float)
    beyond = (attention - np.array(answer["geometry"], float)) * len(gtab) * 100
    title = "Angle to the main direction, V1 (degrees)"
    if axis is None:
        axis = gtab.bvecs[np.argmax(beyond)]
        title = "Angle to the direction that stands out most (degrees)"
    angles = np.rad2deg(np.arccos(np.clip(np.abs(gtab.bvecs @ axis), 0, 1)))
    series = []
    for shell in gtab.shells:
        which = np.array(shell.indices)
        series.append(Series(f"b {shell.bval:.0f}", angles[which], beyond[which]))
    return Directions(title, tuple(series))
