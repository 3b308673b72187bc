"""Lesions: what disease adds to the simulated brain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

OEDEMA_CENTRE: Final = (28.0, 34.0, 22.0)
"""Right frontal white matter, RAS mm: on one side only, so that a mirrored picture is noticed."""

OEDEMA_RADII: Final = (11.0, 17.0, 13.0)
"""Semi-axes, mm."""


@dataclass(frozen=True, eq=False)
class Lesion:
    """Free water in the tissue.

    Parameters
    ----------
    water : array, shape (X, Y, Z), float32
        Fraction of the tissue's volume that became freely diffusing water.
    label : array, shape (X, Y, Z), bool
        Where that is visible.
    """

    water: NDArray[np.float32]
    label: NDArray[np.bool_]


def oedema(grid: NDArray[np.float64], wm: NDArray[np.float32], rng: np.random.Generator) -> Lesion:
    """Vasogenic oedema: an irregular region that spreads along white matter and spares the cortex.

    Parameters
    ----------
    grid : array, shape (X, Y, Z, 3), RAS mm
    wm : array, shape (X, Y, Z)
        White matter fraction.
    rng : numpy.random.Generator
        Draws its outline.
    """
    r = (grid - OEDEMA_CENTRE) / OEDEMA_RADII
    distance = np.linalg.norm(r, axis=-1)
    # an outline of a few plane waves looks grown, not drawn
    for wavelength, height in ((30.0, 0.16), (17.0, 0.11), (10.0, 0.06)):
        wave = rng.normal(size=(3, 3))
        wave *= 2 * np.pi / wavelength / np.linalg.norm(wave, axis=1, keepdims=True)
        phases = rng.uniform(0, 2 * np.pi, 3)
        for k, phase in zip(wave, phases, strict=True):
            distance += height * np.sin(grid @ k + phase) / np.sqrt(3)
    depth = np.clip((1.05 - distance) / 0.3, 0, 1)
    water = (0.6 * depth * np.clip((wm - 0.25) / 0.5, 0, 1)).astype(np.float32)
    return Lesion(water, water > 0.15)
