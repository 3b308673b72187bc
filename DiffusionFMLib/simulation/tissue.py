"""What each tissue looks like in a diffusion scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.physics.tensor_arrays import quadratic_form
from DiffusionFMLib.simulation.anatomy import Fibres

WM_AXIAL: Final = 1.7
WM_RADIAL: Final = 0.3
GM_DIFFUSIVITY: Final = 0.85
CSF_DIFFUSIVITY: Final = 3.0
OEDEMA_DIFFUSIVITY: Final = 2.0
"""Diffusivities, um2/ms, of a healthy adult at body temperature (Pierpaoli et al., 1996)."""

WM_S0: Final = 500.0
GM_S0: Final = 640.0
CSF_S0: Final = 1500.0
OEDEMA_S0: Final = 1150.0
"""T2-weighted signal of each tissue without diffusion weighting, in the scan's units."""


@dataclass(frozen=True, eq=False)
class Compartments:
    """Mixture of Gaussian compartments at each of V voxels: S = sum of S0 exp(-b g'Dg).

    Parameters
    ----------
    s0 : array, shape (C, V)
        Signal of each compartment at b0, its volume fraction included.
    tensors : array, shape (C, V, 6), um2/ms
        Dxx, Dxy, Dxz, Dyy, Dyz, Dzz in RAS.
    """

    s0: NDArray[np.float32]
    tensors: NDArray[np.float32]

    def signal(self, bval: float, direction: NDArray[np.float64]) -> NDArray[np.float32]:
        """Noise-free signal of one volume, shape (V,); `bval` in s/mm2, `direction` a unit vector in RAS."""
        if not bval:
            return self.s0.sum(axis=0)
        along = self.tensors @ quadratic_form(direction).astype(np.float32)
        return (self.s0 * np.exp(-1e-3 * np.float32(bval) * along)).sum(axis=0)


def compartments(
    fractions: NDArray[np.float32],
    fibres: Fibres,
    water: NDArray[np.float32],
    texture: NDArray[np.float32],
) -> Compartments:
    """Compartments of voxels: two fibre populations, grey matter, CSF and oedema.

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
    radial = WM_RADIAL * (1 + 0.5 * texture[:, None])
    axial = WM_AXIAL * (1 - 0.1 * texture[:, None])
    # dispersed fibres: the tensor of the mean dyad, axially symmetric about the mean direction
    spread = fibres.dispersion
    along = radial + (axial - radial) * (1 - spread)
    across = radial + (axial - radial) * spread / 2
    u = fibres.directions
    dyad = np.stack([u[..., i] * u[..., j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], axis=-1)
    identity = np.array([1, 0, 0, 1, 0, 1], np.float32)
    fibre = across[..., None] * identity + (along - across)[..., None] * dyad
    isotropic = [
        d * np.broadcast_to(identity, (len(wm), 6)) for d in (GM_DIFFUSIVITY, CSF_DIFFUSIVITY, OEDEMA_DIFFUSIVITY)
    ]
    dry = 1 - water
    s0 = [
        *(WM_S0 * wm * dry * fibres.fractions[:, k] for k in (0, 1)),
        GM_S0 * gm * dry * (1 + 0.05 * texture),
        CSF_S0 * csf,
        OEDEMA_S0 * (wm + gm) * water,
    ]
    return Compartments(
        np.stack(s0).astype(np.float32), np.stack([fibre[:, 0], fibre[:, 1], *isotropic]).astype(np.float32)
    )
