"""Anatomies from NODDI maps of real scans: true shares of neurites, dispersion and fluid."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from DiffusionFMLib.gradients import fsl_to_ras, image_rotation
from DiffusionFMLib.physics.noddi import kappa_of
from DiffusionFMLib.physics.watson import watson_coefficients
from DiffusionFMLib.training.anatomies import FIELDS, Anatomy, trimmed
from DiffusionFMLib.training.cleaning import CLEANING, denoised, noise_of

MAPS: Final = ("fiso", "ficvf", "ODI", "theta", "phi")
"""Names that NODDI toolboxes give their maps: share of fluid, of neurites in the rest, dispersion, and the mean
direction's polar angles in FSL's gradient frame, radians."""

PAIRS: Final = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
ODI_RANGE: Final = (0.02, 0.98)

WHITE_ODI, GREY_ODI = 0.3, 0.5
"""Tissue of lower dispersion is white matter, of higher grey, and a mixture in between."""

TYPICAL_NEURITES: Final = 0.5
PACKING: Final = 1.35
"""How strongly the share of neurites follows the texture in rendering, on average."""

MAX_TEXTURE: Final = 0.4
FLUID, NEURITES = 0.9, 0.95
"""Where there is more fluid, or all else seems to be neurites, the fit cannot tell."""


def has_neurite_maps(folder: Path) -> bool:
    """Whether a folder holds all maps of a NODDI fit."""
    return all((folder / f"{name}.nii.gz").is_file() for name in MAPS)


def neurite_anatomy(folder: Path) -> Anatomy:
    """What is in each voxel of a scan that NODDI was fitted to; its noise is taken out by total variation.

    Raises
    ------
    InputError
        If a map cannot be read.
    """
    from DiffusionFMLib.io.reading import read_image

    images = [read_image(folder / f"{name}.nii.gz") for name in MAPS]
    fluid, neurites, odi, theta, phi = (image.data.astype(np.float64) for image in images)
    affine = images[0].affine
    inside = torch.as_tensor((odi > 0) & np.isfinite(fluid + neurites + odi + theta + phi))
    polar = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
    axes = np.tensordot(image_rotation(affine).T @ fsl_to_ras(affine), polar, 1)
    odi = odi.clip(*ODI_RANGE)
    neurites = np.where((fluid < FLUID) & (neurites < NEURITES), neurites, TYPICAL_NEURITES)
    dyads = [(1 - odi) * axes[i] * axes[j] for i, j in PAIRS]
    volume = torch.as_tensor(np.where(inside, [fluid, neurites, odi, *dyads], 0)).float()
    clean = denoised(volume, inside, CLEANING * noise_of(volume, inside))[:, inside].double().numpy()
    fields = np.zeros((len(FIELDS), *inside.shape), np.float16)
    fields[:, inside.numpy()] = _contents(clean[0].clip(0, 1), clean[1], clean[2].clip(*ODI_RANGE), clean[3:])
    return Anatomy(trimmed(fields), np.linalg.norm(affine[:3, :3], axis=0))


def _contents(
    fluid: NDArray[np.float64], neurites: NDArray[np.float64], odi: NDArray[np.float64], dyads: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fields, shape (13, V), of NODDI's values, shape (V,) each, and dyads, shape (6, V)."""
    white = ((GREY_ODI - odi) / (GREY_ODI - WHITE_ODI)).clip(0, 1)
    matrices = np.empty((odi.size, 3, 3))
    for value, (i, j) in zip(dyads, PAIRS, strict=True):
        matrices[:, i, j] = matrices[:, j, i] = value
    evecs = np.linalg.eigh(matrices)[1]
    # mean of P_2 over the axons, and from it the mean square sine of their angle to the mean direction
    spread = (1 - watson_coefficients(kappa_of(torch.as_tensor(odi)), 2)[:, 1].numpy()) * 2 / 3
    tissue = 1 - fluid
    nothing = np.zeros_like(fluid)
    texture = ((neurites / TYPICAL_NEURITES - 1) / PACKING).clip(-MAX_TEXTURE, MAX_TEXTURE)
    return np.concatenate(
        [
            [tissue * white, nothing, tissue * (1 - white), fluid],
            evecs[:, :, 2].T,
            evecs[:, :, 1].T,
            [spread, spread, texture],
        ]
    )
