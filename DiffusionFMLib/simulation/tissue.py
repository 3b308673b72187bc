"""What each tissue looks like in a diffusion scan.

Axons are sticks that fan out around their bundle's direction, with hindered water between them; grey matter has
neurites in all directions, CSF and oedema are free. This is richer than any model that is fitted, at every b-value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from DiffusionFMLib.simulation.anatomy import Fibres

INSIDE_AXONS: Final = 0.55
INSIDE_NEURITES: Final = 0.35
"""Share of the signal that comes from inside axons in white matter, and neurites in grey."""

INTRA_DIFFUSIVITY: Final = 2.3
EXTRA_AXIAL: Final = 1.25
EXTRA_RADIAL: Final = 0.78
GM_EXTRA_DIFFUSIVITY: Final = 1.05
CSF_DIFFUSIVITY: Final = 3.0
OEDEMA_DIFFUSIVITY: Final = 2.0
"""Diffusivities, um2/ms, of a healthy adult at body temperature (Novikov et al., 2018)."""

WM_S0: Final = 500.0
GM_S0: Final = 640.0
CSF_S0: Final = 1500.0
OEDEMA_S0: Final = 1150.0
"""T2-weighted signal of each tissue without diffusion weighting, in the scan's units."""

STICKS: Final = 6
"""Sticks of a fibre population, evenly around its direction: fewer would show their number at high b-values."""


@dataclass(frozen=True, eq=False)
class FibrePopulation:
    """Fibres that run together through each of V voxels.

    Parameters
    ----------
    s0 : array, shape (V,)
        Signal without diffusion weighting.
    intra : array, shape (V,)
        Share of it from inside the axons.
    frame : array, shape (V, 3, 3)
        Rows: the direction in RAS, and two axes across it.
    spread : array, shape (V,)
        Mean square sine of the axons' angle to the direction.
    """

    s0: NDArray[np.float32]
    intra: NDArray[np.float32]
    frame: NDArray[np.float32]
    spread: NDArray[np.float32]

    def signal(self, b: float, direction: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise-free signal, shape (V,); `b` in ms/um2, `direction` a unit vector in RAS."""
        along, across, beside = (self.frame @ direction).T
        inside = np.zeros_like(along)
        axial, radial = np.sqrt(1 - self.spread) * along, np.sqrt(self.spread)
        for angle in np.arange(STICKS) * (2 * np.pi / STICKS):
            cosine = axial + radial * (np.float32(np.cos(angle)) * across + np.float32(np.sin(angle)) * beside)
            inside += np.exp(-b * INTRA_DIFFUSIVITY * cosine**2)
        # the mean over the fan of tensors that are axially symmetric
        anisotropy = (EXTRA_AXIAL - EXTRA_RADIAL) * (1 - 1.5 * self.spread)
        mean = (EXTRA_AXIAL + 2 * EXTRA_RADIAL) / 3
        outside = np.exp(-b * (mean + anisotropy * (along**2 - np.float32(1 / 3))))
        return self.s0 * (self.intra * (inside / STICKS) + (1 - self.intra) * outside)


@dataclass(frozen=True, eq=False)
class Microstructure:
    """What is in each of V voxels.

    Parameters
    ----------
    populations : tuple of FibrePopulation
    gm, csf, oedema : array, shape (V,)
        Signal without diffusion weighting of grey matter, CSF and oedema.
    """

    populations: tuple[FibrePopulation, ...]
    gm: NDArray[np.float32]
    csf: NDArray[np.float32]
    oedema: NDArray[np.float32]

    def signal(self, bval: float, direction: NDArray[np.float64]) -> NDArray[np.float32]:
        """Noise-free signal of one volume, shape (V,); `bval` in s/mm2, `direction` a unit vector in RAS."""
        b = bval * 1e-3
        root = np.sqrt(b * INTRA_DIFFUSIVITY)
        neurites = np.sqrt(np.pi) / 2 * erf(root) / root if root else 1.0
        grey = INSIDE_NEURITES * neurites + (1 - INSIDE_NEURITES) * np.exp(-b * GM_EXTRA_DIFFUSIVITY)
        signal = self.gm * np.float32(grey)
        signal += self.csf * np.float32(np.exp(-b * CSF_DIFFUSIVITY))
        signal += self.oedema * np.float32(np.exp(-b * OEDEMA_DIFFUSIVITY))
        for population in self.populations:
            signal += population.signal(b, direction.astype(np.float32))
        return signal


def fill(
    fractions: NDArray[np.float32],
    fibres: Fibres,
    water: NDArray[np.float32],
    texture: NDArray[np.float32],
) -> Microstructure:
    """Microstructure of voxels.

    Parameters
    ----------
    fractions : array, shape (V, 3)
        White matter, grey matter, CSF.
    fibres : Fibres
        Fibre populations of the same voxels.
    water : array, shape (V,)
        Fraction of the tissue that oedema replaced.
    texture : array, shape (V,)
        Smooth variation around zero of how tightly axons are packed.
    """
    wm, gm, csf = fractions.T
    dry = 1 - water
    intra = (INSIDE_AXONS * (1 + 0.3 * texture)).astype(np.float32)
    populations = tuple(
        FibrePopulation(
            (WM_S0 * wm * dry * fibres.fractions[:, k]).astype(np.float32),
            intra,
            _frames(fibres.directions[:, k]),
            fibres.dispersion[:, k].astype(np.float32),
        )
        for k in range(fibres.directions.shape[1])
    )
    return Microstructure(
        populations,
        (GM_S0 * gm * dry * (1 + 0.05 * texture)).astype(np.float32),
        (CSF_S0 * csf).astype(np.float32),
        (OEDEMA_S0 * (wm + gm) * water).astype(np.float32),
    )


def _frames(directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors, shape (V, 3), with two axes across each, shape (V, 3, 3) (Duff et al., 2017)."""
    x, y, z = directions.T
    sign = np.copysign(1, z)
    a = -1 / (sign + z)
    b = x * y * a
    across = np.stack([1 + sign * x * x * a, sign * b, -sign * x], axis=-1)
    beside = np.stack([b, sign + y * y * a, -y], axis=-1)
    return np.stack([directions, across, beside], axis=1).astype(np.float32)
