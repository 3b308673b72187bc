"""Brain mask from the diffusion scan alone, on DIPY's median_otsu.

median_otsu as it stands keeps eyes and jaw muscles (bright at b0), loses the middle of the brain where a head coil
is weak, means another thing on every voxel size, and cuts a field of view that is all brain in two. So here

1. it runs on a 3 mm isotropic grid: its radius is a length, and thick slices are treated as thin ones;
2. the diffusion-weighted mean finds the brain, because eyes, CSF and scalp are dark there;
3. the coil's profile, as the brain found so far shows it, is divided out, and it is found again;
4. the b0 mean adds the rim of CSF, and no more than a few mm of it;
5. a field of view without background is taken whole.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition

GRID_MM: Final = 3.0
"""Edge of the isotropic voxels that the mask is made on, mm."""

MEDIAN_RADIUS: Final = 1
MEDIAN_PASSES: Final = 2
"""median_otsu's own settings, on that grid."""

COIL_SIGMA_MM: Final = 20.0
"""Width of the Gaussian that takes the coil's profile from the brain's signal, mm."""

COIL_PASSES: Final = 3

BRIDGE_MM: Final = 6.0
"""What hangs on the brain by less than twice this radius (muscle, eyes, optic nerve) is cut off, mm."""

RIM_MM: Final = 4.5
"""How far the b0's mask may reach beyond that of the diffusion-weighted mean, mm."""

CLOSING_MM: Final = 9.0
"""Ventricles and cisterns with an opening up to twice this radius belong to the brain, mm."""

BACKGROUND: Final = 0.25
"""Background is darker than this fraction of the brain; where nothing is, the field of view is all brain."""

AIR: Final = 0.1
"""At b0 nothing in a brain's surface is darker than this fraction of its median: sinuses that closing took in go."""

B_FOR_MASK: Final = 1000.0
"""The shell nearest to this b-value is used: CSF is dark and tissue still well above the noise, s/mm2."""

WHOLE_BRAIN_ML: Final = (600.0, 2200.0)
"""Volumes that an intracranial mask of a whole head has (children to large adults), ml."""

WHOLE_HEAD_MM: Final = (130.0, 130.0, 100.0)
"""A field of view shorter than this along any of its axes (sorted, longest first) is a slab or a crop, mm."""


_made: WeakKeyDictionary[Acquisition, NDArray[np.bool_]] = WeakKeyDictionary()


def brain_mask(acquisition: Acquisition) -> NDArray[np.bool_]:
    """Brain mask of a scan.

    Parameters
    ----------
    acquisition : Acquisition
        Its own mask, if any, is not looked at.

    Returns
    -------
    mask : ndarray, shape (X, Y, Z), bool
        Never empty, unless the scan is.

    Notes
    -----
    Takes 1 to 2 s on one core, whatever the voxel size; the same scan's mask is remembered as long as the scan is
    there, since the quality summary and the fit both ask for it.
    """
    if acquisition not in _made:
        _made[acquisition] = _make_mask(acquisition)
    return _made[acquisition].copy()


def _make_mask(acquisition: Acquisition) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    b0, weighted = _contrasts(acquisition)
    extent = np.array(acquisition.shape) * acquisition.voxel_sizes
    grid = np.maximum(np.round(extent / GRID_MM), 1).astype(int)
    low_b0, low_weighted = resample(b0, grid), resample(weighted, grid)
    core = _brain_core(low_weighted)
    if not core.any() or _all_tissue(low_b0, core):
        return acquisition.signal.max(axis=3) > 0
    rim = _otsu(_flatten(low_b0, core))
    mask = resample(_with_rim(core, rim).astype(np.float32), np.array(acquisition.shape)) > 0.5
    # air at the surface; also the exact zeros outside a stripped scan
    mask = _largest(mask & (b0 > AIR * (np.median(b0[mask]) if mask.any() else 0)))
    # dark places deep inside, as of bleeding, are brain
    return binary_fill_holes(mask) if mask.any() else b0 > 0


def mask_doubt(acquisition: Acquisition, mask: NDArray[np.bool_]) -> str:
    """Why a mask cannot be that of the brain in this field of view, as a sentence; empty when it can.

    Parameters
    ----------
    acquisition : Acquisition
    mask : ndarray, shape (X, Y, Z), bool
    """
    volume = mask.sum() * acquisition.voxel_volume / 1000
    low, high = WHOLE_BRAIN_ML
    if not mask.any():
        return "The brain mask is empty."
    if volume > high:
        return f"The brain mask has {volume:.0f} ml, more than any human brain: it holds other tissue or background."
    extent = np.sort(np.array(acquisition.shape) * acquisition.voxel_sizes)[::-1]
    if volume < low and (extent >= WHOLE_HEAD_MM).all():
        return f"The brain mask has only {volume:.0f} ml in a field of view that holds a whole head."
    return ""


def _contrasts(acquisition: Acquisition) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean b0 and mean diffusion-weighted volume, shape (X, Y, Z); each stands in where the other is missing."""
    gtab = acquisition.gtab
    chosen: list[tuple[int, ...]] = [tuple(np.flatnonzero(gtab.b0_mask))]
    if gtab.shells:
        chosen.append(min(gtab.shells, key=lambda shell: abs(shell.bval - B_FOR_MASK)).indices)
    means = []
    for indices in chosen:
        if indices:
            # one volume at a time: indexing by a list would copy the scan
            total = np.zeros(acquisition.shape, np.float32)
            for i in indices:
                total += acquisition.signal[..., i]
            means.append(total / np.float32(len(indices)))
    return means[0], means[-1]


def _brain_core(weighted: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Brain in the diffusion-weighted mean, tight, with holes."""
    flat = weighted
    core = np.zeros(weighted.shape, bool)
    for _ in range(COIL_PASSES + 1):
        core = _largest_part(_otsu(flat))
        if not core.any():
            break
        flat = _flatten(weighted, core)
    return core


def _otsu(volume: NDArray[np.float32]) -> NDArray[np.bool_]:
    from dipy.segment.mask import median_otsu

    if volume.max() <= volume.min():
        return np.zeros(volume.shape, bool)
    _, mask = median_otsu(volume, median_radius=MEDIAN_RADIUS, numpass=MEDIAN_PASSES)
    return mask.astype(bool)


def _flatten(volume: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The volume over its coil profile, taken from the brain and continued outwards; brain is near 1."""
    from scipy.ndimage import gaussian_filter

    inside = brain.astype(np.float32)
    sigma = COIL_SIGMA_MM / GRID_MM
    level = gaussian_filter(volume * inside, sigma, mode="constant")
    weight = gaussian_filter(inside, sigma, mode="constant")
    typical = float(np.median(volume[brain]))
    profile = level / np.maximum(weight, 1e-3)
    # far from the brain the profile fades to nothing, and dividing by it would light the background up;
    # very bright fluid would pull Otsu's threshold above the tissue
    return np.minimum(volume / np.maximum(profile, 0.2 * typical + 1e-12), 2.0).astype(np.float32)


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part of a mask after thin bridges to others are cut; edges of the field of view do not erode."""
    from scipy.ndimage import binary_dilation, binary_opening

    width = int(np.ceil(2 * BRIDGE_MM / GRID_MM))
    padded = np.pad(mask, width, mode="edge")
    largest = _largest(binary_opening(padded, _ball(BRIDGE_MM)))
    # opening also rounds the gyri off: what lies within its radius is given back
    return _crop(binary_dilation(largest, _ball(BRIDGE_MM)) & padded, width)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected part; nothing for an empty mask."""
    from scipy.ndimage import label

    labels, count = label(mask)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else mask


def _with_rim(core: NDArray[np.bool_], b0_mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Brain with its rim of CSF, ventricles and cisterns."""
    from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes

    width = int(np.ceil(2 * CLOSING_MM / GRID_MM))
    core, b0_mask = np.pad(core, width, mode="edge"), np.pad(b0_mask, width, mode="edge")
    mask = core | (binary_dilation(core, _ball(RIM_MM)) & b0_mask)
    mask = _crop(binary_closing(mask, _ball(CLOSING_MM)), width)
    # slice by slice too: where the field of view cuts a ventricle, it is a hole only within the slice
    for axis in range(3):
        mask = np.stack([binary_fill_holes(plane) for plane in np.moveaxis(mask, axis, 0)], axis)
    return binary_fill_holes(mask)


def _all_tissue(volume: NDArray[np.float32], brain: NDArray[np.bool_]) -> bool:
    """Whether the darkest corner of the field of view is still tissue."""
    return bool(np.percentile(volume, 5) > BACKGROUND * np.median(volume[brain]))


def resample(volume: NDArray[np.float32], shape: NDArray[np.int_]) -> NDArray[np.float32]:
    """A volume on another number of voxels over the same field of view, linearly."""
    from scipy.ndimage import zoom

    factors = np.asarray(shape) / np.asarray(volume.shape)
    return zoom(volume, factors, order=1, mode="nearest", grid_mode=True)


def _ball(radius: float) -> NDArray[np.bool_]:
    reach = int(radius // GRID_MM)
    offsets = np.mgrid[-reach : reach + 1, -reach : reach + 1, -reach : reach + 1] * GRID_MM
    return (offsets**2).sum(axis=0) <= radius**2 + 1e-6


def _crop(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    return mask[width:-width, width:-width, width:-width]
