"""Where tissue is and which way its fibres run, at any point of ICBM152 space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Report
from DiffusionFMLib.simulation.bundles import BUNDLES, GROUPS, Bundle, curves

FIELD_SPACING: Final = 2.0
"""Grid that the fibre architecture is laid out on, mm."""

FIELD_LOW: Final = np.array([-80.0, -114.0, -74.0])
FIELD_SHAPE: Final = (81, 99, 82)
"""Corner and size of that grid: the whole brain."""

NEAR: Final = 1.6
FAR: Final = 5.0
"""Standard deviations that a bundle blurs with, mm: its own edge, and how far it reaches where nothing else does."""

FAR_WEIGHT: Final = 0.06
RADIAL_WEIGHT: Final = 0.12
"""How much the far blur, and the fibres that enter the cortex at right angles, count beside a bundle's core."""

RADIAL_DISPERSION: Final = 0.06

CORE_DENSITY: Final = 0.35
"""Density above which fibres of a bundle run parallel."""

SHARPNESS: Final = 1.6
"""Exponent on the template's tissue probabilities: an average of many heads has softer edges than one head."""

SHIFT: Final = 1.2
SHIFT_WAVELENGTHS: Final = (55.0, 110.0)
SHIFT_WAVES: Final = 8
"""Shift of an individual's anatomy from the template's, mm, and lengths, mm, and number of its plane waves."""

FOLDING: Final = 0.1
FOLD_WAVELENGTHS: Final = (10.0, 30.0)
FOLD_WAVES: Final = 24
"""Folds that an average of many heads has not: root mean square of their derivatives, which turn fibres and let sheets
undulate; lengths, mm, and number of their plane waves."""

POINTS_PER_CHUNK: Final = 100_000

_PAIRS: Final = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@dataclass(frozen=True, eq=False)
class Tissue:
    """Volume fractions of a voxel; outside the brain all are zero.

    Parameters
    ----------
    wm, gm, csf : array, shape (X, Y, Z), float32
    brain : array, shape (X, Y, Z), bool
    """

    wm: NDArray[np.float32]
    gm: NDArray[np.float32]
    csf: NDArray[np.float32]
    brain: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fibres:
    """Up to two fibre populations at each of V points.

    Parameters
    ----------
    directions : array, shape (V, 2, 3), unit vectors in RAS
    fractions : array, shape (V, 2)
        Shares of the white matter; they sum to 1.
    dispersion : array, shape (V, 2)
        Mean square sine of the angle to the direction, 0 (parallel) to 2/3 (isotropic).
    """

    directions: NDArray[np.float32]
    fractions: NDArray[np.float32]
    dispersion: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Warp:
    """How one head differs from the template: a smooth shift, and folds within it, which fibres follow.

    Parameters
    ----------
    waves : array, shape (K, 3), rad/mm
    phases : array, shape (K,)
    shifts : array, shape (K, 3), mm
        Of a point along each wave.
    """

    waves: NDArray[np.float64]
    phases: NDArray[np.float64]
    shifts: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, shift: float = SHIFT, folding: float = FOLDING) -> Warp:
        """That of a new head, so that no half mirrors the other.

        Parameters
        ----------
        rng : numpy.random.Generator
        shift : float, mm
            Root mean square shift along each axis.
        folding : float
            Root mean square of each derivative of the folds; 0 for none.
        """
        wavelengths = rng.uniform(*SHIFT_WAVELENGTHS, SHIFT_WAVES)
        smooth = cls._of_waves(wavelengths, np.full(SHIFT_WAVES, shift * np.sqrt(2 / SHIFT_WAVES)), rng)
        if not folding:
            return smooth
        shortest, longest = np.log(FOLD_WAVELENGTHS)
        wavelengths = np.exp(rng.uniform(shortest, longest, FOLD_WAVES))
        # longer ones shift more, and turn fibres as much
        folds = cls._of_waves(wavelengths, folding * np.sqrt(6 / FOLD_WAVES) * wavelengths / (2 * np.pi), rng)
        return cls(
            np.concatenate([smooth.waves, folds.waves]),
            np.concatenate([smooth.phases, folds.phases]),
            np.concatenate([smooth.shifts, folds.shifts]),
        )

    @classmethod
    def _of_waves(
        cls, wavelengths: NDArray[np.float64], heights: NDArray[np.float64], rng: np.random.Generator
    ) -> Warp:
        """Plane waves of any direction and phase; `heights` are standard deviations of their shift along each axis."""
        waves = rng.normal(size=(len(wavelengths), 3))
        waves *= (2 * np.pi / wavelengths / np.linalg.norm(waves, axis=1))[:, None]
        phases = rng.uniform(0, 2 * np.pi, len(waves))
        return cls(waves, phases, rng.normal(0, heights[:, None], waves.shape))

    def points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points of the head, shape (..., 3), RAS mm, lie in the template, ICBM152 mm."""
        warped = points.copy()
        for wave, phase, shift in zip(self.waves, self.phases, self.shifts, strict=True):
            warped += np.sin(points @ wave + phase)[..., None] * shift
        return warped

    def fibres(self, points: NDArray[np.float64], fibres: Fibres) -> Fibres:
        """Fibres of the head at points, shape (V, 3), RAS mm, which in the template are those given."""
        derivatives = np.broadcast_to(np.eye(3), (len(points), 3, 3)).copy()
        for wave, phase, shift in zip(self.waves, self.phases, self.shifts, strict=True):
            derivatives += np.cos(points @ wave + phase)[:, None, None] * np.multiply.outer(shift, wave)
        turned = np.linalg.solve(derivatives, fibres.directions.swapaxes(1, 2)).swapaxes(1, 2)
        turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
        return replace(fibres, directions=turned.astype(np.float32))


def tissue(points: NDArray[np.float64], voxel_size: float, report: Report) -> Tissue:
    """Tissue fractions of voxels, from the ICBM152 2009a symmetric maps that nilearn ships.

    Parameters
    ----------
    points : array, shape (X, Y, Z, 3), mm
        Their centres in ICBM152 space.
    voxel_size : float, mm
    report : Report
        Asked now and then whether to stop: a first call takes seconds.

    Raises
    ------
    DiffusionFMError
        If nilearn is not installed.
    """
    from scipy import ndimage

    try:
        from nilearn import datasets
    except ImportError as error:
        msg = "Simulating a brain needs the ICBM152 tissue maps of nilearn, which is not installed."
        raise DiffusionFMError(msg, "Install it with pip install 'diffusionfm[train]'.") from error
    report.check()
    images = [
        datasets.load_mni152_wm_template(resolution=1),
        datasets.load_mni152_gm_template(resolution=1),
        datasets.load_mni152_brain_mask(resolution=1),
    ]
    affine = images[0].affine
    report.check()
    # a voxel's signal is the mean over it: blur to its size before sampling its centre
    blur = 0.4 * float(np.sqrt(max(voxel_size**2 - 1, 0)))

    wm, gm, brain = (np.asarray(image.dataobj, np.float32) for image in images)
    labels, _ = ndimage.label(brain > 0.5)
    brain = (labels == np.bincount(labels[labels > 0]).argmax()).astype(np.float32)
    wm, gm = wm * brain, gm * brain
    # the template calls half of the brainstem grey: there most of it is tracts
    moved = 0.6 * gm * _brainstem(wm.shape, affine)
    wm, gm = wm + moved, gm - moved

    to_voxel = np.linalg.inv(affine)
    voxels = np.moveaxis(points @ to_voxel[:3, :3].T + to_voxel[:3, 3], -1, 0)
    sampled = []
    for volume in (wm, gm, brain):
        blurred = ndimage.gaussian_filter(volume, blur, truncate=3) if blur else volume
        sampled.append(np.clip(ndimage.map_coordinates(blurred, voxels, order=1), 0, 1))
    wm, gm, brain = sampled
    csf = np.clip(brain - wm - gm, 0, 1)
    wm, gm, csf = (volume**SHARPNESS for volume in (wm, gm, csf))
    share = brain / np.maximum(wm + gm + csf, 1e-6)
    return Tissue(wm * share, gm * share, csf * share, brain > 0.5)


def _brainstem(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Soft mask of midbrain, pons and medulla."""
    axes = [np.arange(n) * affine[i, i] + affine[i, 3] for i, n in enumerate(shape)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    centre = -26 + 0.25 * (-30 - z)
    inside = 1.3 - ((x / 19) ** 2 + ((y - centre) / 16) ** 2)
    return (np.clip(inside / 0.3, 0, 1) * np.clip((-6 - z) / 6, 0, 1)).astype(np.float32)


class Architecture:
    """The fibre orientation field: build once, look up anywhere.

    Each bundle's curves are laid into a grid as dyads (tangent times tangent), blurred, and summed by group; the
    two groups that are densest at a point are its fibre populations, so that crossings come about where bundles
    of different groups meet.

    Parameters
    ----------
    report : Report
        Asked between two steps whether to stop.
    """

    def __init__(self, report: Report) -> None:
        from scipy import ndimage

        self._report = report
        self._groups: list[NDArray[np.float32]] = []
        for group in GROUPS:
            report.check()
            raw = np.zeros((7, *FIELD_SHAPE), np.float32)
            for bundle in BUNDLES:
                if bundle.group == group:
                    raw += _rasterise(bundle)
            near = ndimage.gaussian_filter(raw, (0, *[NEAR / FIELD_SPACING] * 3), truncate=3)
            near += FAR_WEIGHT * ndimage.gaussian_filter(raw, (0, *[FAR / FIELD_SPACING] * 3), truncate=2)
            self._groups.append(near)
        self._groups.append(_radial())

    def fibres(self, points: NDArray[np.float64]) -> Fibres:
        """Fibre populations at points, shape (V, 3), mm."""
        parts = []
        for start in range(0, len(points), POINTS_PER_CHUNK):
            self._report.check()
            parts.append(self._fibres(points[start : start + POINTS_PER_CHUNK]))
        return Fibres(
            np.concatenate([p.directions for p in parts]),
            np.concatenate([p.fractions for p in parts]),
            np.concatenate([p.dispersion for p in parts]),
        )

    def _fibres(self, points: NDArray[np.float64]) -> Fibres:
        from scipy import ndimage

        voxels = ((points - FIELD_LOW) / FIELD_SPACING).T
        density = np.stack([ndimage.map_coordinates(g[6], voxels, order=1, mode="nearest") for g in self._groups], 1)
        # fibres share the space: a group twice as dense does not take all of it
        share = np.sqrt(np.maximum(density, 0))
        order = np.argsort(-share, axis=1)[:, :2]
        fractions = np.take_along_axis(share, order, axis=1)
        fractions /= np.maximum(fractions.sum(axis=1, keepdims=True), 1e-6)
        # a population too thin to be seen leaves its place to the other
        second = np.clip((fractions[:, 1] - 0.2) / 0.3, 0, 1) * 0.5
        fractions = np.stack([1 - second, second], axis=1)

        dyads = np.empty((len(points), 2, 3, 3), np.float32)
        for k, group in enumerate(self._groups):
            for rank in (0, 1):
                here = order[:, rank] == k
                at = voxels[:, here]
                weight = np.maximum(density[here, k], 1e-6)
                for channel, (i, j) in enumerate(_PAIRS):
                    value = ndimage.map_coordinates(group[channel], at, order=1, mode="nearest") / weight
                    dyads[here, rank, i, j] = dyads[here, rank, j, i] = value
        evals, evecs = np.linalg.eigh(dyads)
        spread = 1 - evals[..., 2] / np.maximum(evals.sum(axis=-1), 1e-6)
        # fibres run parallel in a bundle's core, and every way where they enter the cortex
        loose = np.exp(-np.take_along_axis(density, order, axis=1) / CORE_DENSITY)
        core = np.array([*GROUPS.values(), RADIAL_DISPERSION])[order]
        dispersion = np.clip(core + 0.6 * spread + 0.3 * loose, 0, 0.5)
        return Fibres(evecs[..., 2], fractions.astype(np.float32), dispersion.astype(np.float32))


def _rasterise(bundle: Bundle) -> NDArray[np.float32]:
    """Dyads (xx, xy, xz, yy, yz, zz) and density of a bundle's curves, shape (7, X, Y, Z); about 1 in its core."""
    points, tangents = (a.reshape(-1, 3) for a in curves(bundle))
    voxel = np.rint((points - FIELD_LOW) / FIELD_SPACING).astype(np.int64)
    inside = ((voxel >= 0) & (voxel < FIELD_SHAPE)).all(axis=1)
    flat = np.ravel_multi_index(tuple(voxel[inside].T), FIELD_SHAPE)
    tangents = tangents[inside]
    size = int(np.prod(FIELD_SHAPE))
    density = np.bincount(flat, minlength=size)
    scale = bundle.weight / np.quantile(density[density > 0], 0.9)
    channels = [np.bincount(flat, tangents[:, i] * tangents[:, j], size) for i, j in _PAIRS]
    return (np.stack([*channels, density]) * scale).reshape(7, *FIELD_SHAPE).astype(np.float32)


def _radial() -> NDArray[np.float32]:
    """Fibres that enter the cortex: along the gradient of the distance to the deep white matter's core."""
    axes = [FIELD_LOW[i] + FIELD_SPACING * np.arange(n) for i, n in enumerate(FIELD_SHAPE)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    hemisphere = np.where(grid[..., :1] < 0, -1.0, 1.0)
    # each hemisphere's core is a rod along its length, the cerebellum's a shorter one
    core = np.stack([24 * hemisphere[..., 0], np.clip(grid[..., 1], -55, 35), np.full(FIELD_SHAPE, 14.0)], axis=-1)
    low = np.stack([20 * hemisphere[..., 0], np.clip(grid[..., 1], -62, -56), np.full(FIELD_SHAPE, -36.0)], axis=-1)
    cerebellum = (grid[..., 1] < -36) & (grid[..., 2] < -20 + 0.25 * (grid[..., 1] + 60))
    away = grid - np.where(cerebellum[..., None], low, core)
    away /= np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1e-3)
    channels = [away[..., i] * away[..., j] for i, j in _PAIRS]
    return (RADIAL_WEIGHT * np.stack([*channels, np.ones(FIELD_SHAPE)])).astype(np.float32)
