"""Attention over a scan's directions at one point, in the terms of a plot; knows nothing of Slicer or Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.gradients import GradientTable

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
    b0 : float or None, %
        Mean of the volumes that have no direction.
    """

    axis: str
    series: tuple[Series, ...]
    b0: float | None

    def sentence(self) -> str:
        """What the plot shows, for people."""
        text = (
            "Each mark is a volume of the scan: above 0 it gets more attention at this point than the directions' "
            "geometry alone gives it."
        )
        return text if self.b0 is None else f"{text} Volumes without a direction (b 0): {self.b0:+.0f} % on average."


def directionsOf(answer: dict[str, Any], axis: NDArray[np.float64] | None) -> Directions:
    """Angles and attention by shell.

    Parameters
    ----------
    answer : dict
        ``bvals`` (N,), ``bvecs`` (N, 3) in scanner RAS, ``attention`` (N,) and ``geometry`` (N,) that both add up to 1.
    axis : array, shape (3,), optional
        Main direction of the diffusion; that of the volume with the most attention when not given.
    """
    gtab = GradientTable(answer["bvals"], answer["bvecs"])
    attention = np.array(answer["attention"], float)
    beyond = (attention - np.array(answer["geometry"], float)) * len(gtab) * 100
    title = "Angle to the main direction, V1 (degrees)"
    if axis is None:
        axis = gtab.bvecs[np.argmax(np.where(gtab.bvecs.any(axis=1), beyond, -np.inf))]
        title = "Angle to the direction that stands out most (degrees)"
    angles = np.rad2deg(np.arccos(np.clip(np.abs(gtab.bvecs @ axis), 0, 1)))
    series = []
    for shell in gtab.shells:
        which = np.array(shell.indices)
        # vendors' trace volumes have no direction
        which = which[~gtab.trace_mask[which]]
        series.append(Series(f"b {shell.bval:.0f}", angles[which], beyond[which]))
    return Directions(title, tuple(series), float(beyond[gtab.b0_mask].mean()) if gtab.b0_mask.any() else None)
