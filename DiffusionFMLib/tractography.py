"""Streamlines that follow the diffusion tensor, by DIPY's compiled trackers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import image_rotation
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX, fractional_anisotropy, quadratic_form
from DiffusionFMLib.settings import TrackSettings

SEEDS_PER_CHUNK = {"deterministic": 2000, "probabilistic": 500}
"""Seeds tracked between two looks at the cancel button: well under a second of work on two cores."""

ODF_ORDER = 8
ODF_POWER = 4.0
"""Exponent on the tensor's ODF: of a tensor with FA 0.8 it leaves a half width at half maximum of 9 degrees."""


@dataclass(frozen=True, eq=False)
class Tracts:
    """Streamlines, one after another.

    Parameters
    ----------
    points : array, shape (P, 3), float32, RAS mm
    offsets : array, shape (M + 1,), int64
        Streamline i is ``points[offsets[i]:offsets[i + 1]]``.
    fa : array, shape (P,), float32
        Fractional anisotropy at each point, interpolated linearly.
    """

    points: NDArray[np.float32]
    offsets: NDArray[np.int64]
    fa: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def streamlines(self) -> list[NDArray[np.float32]]:
        """Each streamline's points: views, shape (n, 3), RAS mm."""
        return np.split(self.points, self.offsets[1:-1])

    @property
    def lengths(self) -> NDArray[np.float64]:
        """Length of each streamline, shape (M,), mm."""
        return np.add.reduceat(segment_lengths(self.points, self.offsets), self.offsets[:-1])


def segment_lengths(points: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Length of the segment that ends at each point, shape (P,), mm; 0 at a streamline's first. See `Tracts`."""
    lengths = np.zeros(len(points))
    lengths[1:] = np.linalg.norm(np.diff(points.astype(np.float64), axis=0), axis=1)
    # the segment that ends at a streamline's first point joins two streamlines
    lengths[offsets[:-1]] = 0
    return lengths


@dataclass(frozen=True, eq=False)
class _Field:
    """What the trackers walk through, cropped to the mask: grid, main directions and FA."""

    affine: NDArray[np.float64]
    fa: NDArray[np.float64]
    directions: NDArray[np.float64]
    tensor: NDArray[np.float64]
    inside: NDArray[np.bool_]
    seeds: NDArray[np.bool_]

    @cached_property
    def voxel_sizes(self) -> NDArray[np.float64]:
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def track(
    tensor: NDArray[np.float32],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    settings: TrackSettings,
    report: Report,
    seed_mask: NDArray[np.bool_] | None = None,
) -> Tracts:
    """Streamlines along a tensor field.

    ``deterministic`` follows the main direction, interpolated between voxels (EuDX; Garyfallidis, 2012);
    ``probabilistic`` draws each step from the fourth power of the tensor's orientation distribution function,
    ``psi(u) ~ (u' D^-1 u)^(-3/2)`` (Aganj et al., 2010), so that streamlines spread where anisotropy is low. Seeds
    lie at random places in their voxels and are taken in random order until `settings.max_count` streamlines are
    found: those kept are a random subset. The same settings give the same streamlines.

    Parameters
    ----------
    tensor : array, shape (X, Y, Z, 6), mm2/s
        Dxx, Dxy, Dxz, Dyy, Dyz, Dzz in scanner RAS.
    mask : array, shape (X, Y, Z), bool
        Streamlines stop at its edge.
    affine : array, shape (4, 4)
        Voxel to scanner RAS mm; oblique, left-handed and anisotropic grids are fine.
    settings : TrackSettings
    report : Report
        Progress; cancelling takes effect between two chunks of seeds.
    seed_mask : array, shape (X, Y, Z), bool, optional
        Where to start; the whole mask when not given.

    Returns
    -------
    Tracts

    Raises
    ------
    InputError
        If shapes do not match, or the minimum length is not below the maximum.
    ProtocolError
        If there is no voxel to start from, or no streamline was long enough.
    """
    _check_input(tensor, mask, settings, seed_mask)
    field = _field(tensor, mask, np.asarray(affine, np.float64), settings, seed_mask)
    rng = np.random.default_rng(settings.seed)
    seeds, seed_directions = _seeds(field, settings.seed_density, rng)
    report.check()
    walk = _walker(field, settings, int(rng.integers(1 << 20, 1 << 21)), report)

    kept: list[NDArray[np.float64]] = []
    wanted = settings.max_count or len(seeds) + 1
    chunk = SEEDS_PER_CHUNK[settings.tracker]
    for start in range(0, len(seeds), chunk):
        done = start if wanted > len(seeds) else max(start, len(seeds) * len(kept) // wanted)
        report.progress(done, len(seeds), "Tracking")
        for line in walk(seeds[start : start + chunk], seed_directions[start : start + chunk]):
            length = np.linalg.norm(np.diff(line, axis=0) * field.voxel_sizes, axis=1).sum()
            if settings.min_length <= length <= settings.max_length:
                kept.append(line)
        if len(kept) >= wanted:
            del kept[wanted:]
            break
    if not kept:
        msg = f"None of {len(seeds)} seeds gave a streamline of {settings.min_length:g} to {settings.max_length:g} mm."
        raise ProtocolError(msg, "Lower the minimum length or the FA to stop at, or allow a larger angle.")
    report.progress(len(seeds), len(seeds), "Tracking")
    return _tracts(kept, field)


def _check_input(
    tensor: NDArray[np.float32],
    mask: NDArray[np.bool_],
    settings: TrackSettings,
    seed_mask: NDArray[np.bool_] | None,
) -> None:
    for name, shape in (("mask", mask.shape), ("seed mask", mask.shape if seed_mask is None else seed_mask.shape)):
        if (*shape, 6) != tensor.shape:
            msg = f"The {name} has shape {shape} but the tensor map has {tensor.shape}; expected the same grid."
            raise InputError(msg, f"Choose a {name} drawn on this scan.")
    if not settings.min_length < settings.max_length:
        msg = f"The minimum length is {settings.min_length:g} mm, the maximum {settings.max_length:g} mm."
        raise InputError(msg, "Choose a minimum below the maximum.")


def _field(
    tensor: NDArray[np.float32],
    mask: NDArray[np.bool_],
    affine: NDArray[np.float64],
    settings: TrackSettings,
    seed_mask: NDArray[np.bool_] | None,
) -> _Field:
    """Crop to the mask, leaving one voxel around it to interpolate with, and diagonalise the tensors there."""
    if not mask.any():
        msg = "The brain mask is empty; expected the voxels that streamlines may pass."
        raise ProtocolError(msg, "Choose another mask, or the automatic one.")
    found = np.nonzero(mask)
    low = np.array([max(int(axis.min()) - 1, 0) for axis in found])
    box = tuple(slice(lo, int(axis.max()) + 2) for lo, axis in zip(low, found, strict=True))
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low

    inside = np.ascontiguousarray(mask[box])
    d = np.asarray(tensor[box], np.float64)
    inside &= np.isfinite(d).all(axis=-1)
    evals, evecs = np.linalg.eigh(d[inside][:, AS_MATRIX])
    fa = np.zeros(inside.shape)
    fa[inside] = fractional_anisotropy(np.maximum(evals, 0))

    start = inside & (fa > settings.seed_fa)
    if seed_mask is not None:
        start &= seed_mask[box]
    if not start.any():
        where = "the brain mask" if seed_mask is None else "the seed mask"
        msg = f"No voxel of {where} has an FA above {settings.seed_fa:g}, so there is nowhere to start."
        raise ProtocolError(msg, "Lower the FA to start at, or choose another seed mask.")

    # the trackers step along the image's axes: the directions go into their frame, with its handedness
    rotation = image_rotation(affine)
    return _Field(affine, fa, evecs[:, :, 2] @ rotation, d[inside], inside, start)


def _seeds(field: _Field, density: float, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shuffled starting points, in voxels of the cropped grid, and their first directions along its axes."""
    index = np.full(field.inside.shape, -1)
    index[field.inside] = np.arange(len(field.directions))
    voxels = np.argwhere(field.seeds)
    count = np.floor(density + rng.random(len(voxels))).astype(int)
    chosen = rng.permutation(np.repeat(np.arange(len(voxels)), count))
    if not len(chosen):
        chosen = rng.integers(len(voxels), size=1)
    first = field.directions[index[tuple(voxels[chosen].T)]]
    return voxels[chosen] + rng.uniform(-0.5, 0.5, (len(chosen), 3)), np.ascontiguousarray(first)


def _walker(field: _Field, settings: TrackSettings, random_seed: int, report: Report) -> Any:
    """Function from a chunk of seeds to their streamlines, all in voxels of the cropped grid."""
    from dipy.core.sphere import HemiSphere
    from dipy.data import get_sphere
    from dipy.tracking.stopping_criterion import ThresholdStoppingCriterion
    from dipy.tracking.tracker import eudx_tracking, probabilistic_tracking

    step = settings.step or field.voxel_sizes.min() / 2
    common = {
        "affine": np.eye(4),
        "voxel_size": field.voxel_sizes,
        # DIPY turns lengths into numbers of points; `track` measures the real ones
        "min_len": 2 * step,
        "max_len": settings.max_length + 2 * step,
        "step_size": step,
        "max_angle": settings.max_angle,
        "random_seed": random_seed,
    }
    stop = ThresholdStoppingCriterion(field.fa, settings.stop_fa)
    if settings.tracker == "deterministic":
        peaks = _peaks(field)

        def walk(seeds: NDArray[np.float64], directions: NDArray[np.float64]) -> Any:
            return eudx_tracking(
                seeds, stop, seed_directions=directions, pam=peaks, pmf_threshold=settings.stop_fa, **common
            )
    else:
        # the sampling sphere decides the time; this one halves that of DIPY's default
        sphere = HemiSphere.from_sphere(get_sphere(name="symmetric362"))
        odf = _odf(field, sphere, settings.stop_fa, report)

        def walk(seeds: NDArray[np.float64], directions: NDArray[np.float64]) -> Any:
            return probabilistic_tracking(
                seeds, stop, seed_directions=directions, sh=odf, sphere=sphere, legacy=False, **common
            )

    return walk


def _peaks(field: _Field) -> Any:
    """Main directions as DIPY's peaks: every voxel has a vertex of its own, so that none is rounded to a sphere's."""
    from dipy.direction.peaks import PeaksAndMetrics

    peaks = PeaksAndMetrics()
    peaks.odf_vertices = field.directions
    peaks.peak_indices = np.zeros((*field.inside.shape, 1), np.int32)
    peaks.peak_indices[field.inside, 0] = np.arange(len(field.directions))
    peaks.peak_values = field.fa[..., None]
    return peaks


def _odf(field: _Field, sphere: Any, stop_fa: float, report: Report) -> NDArray[np.float64]:
    """Spherical harmonics of the sharpened tensor ODF along the image's axes, peak 1, shape (X, Y, Z, 45)."""
    from dipy.reconst.shm import real_sh_descoteaux
    from scipy import ndimage

    basis, _, _ = real_sh_descoteaux(ODF_ORDER, sphere.theta, sphere.phi, legacy=False)
    project = np.linalg.pinv(basis).T
    squares = quadratic_form(sphere.vertices @ image_rotation(field.affine).T).T
    # interpolation reaches one voxel beyond those that may be passed
    needed = ndimage.binary_dilation(field.fa >= stop_fa, np.ones((3, 3, 3)))[field.inside]
    d = field.tensor[needed][:, AS_MATRIX]
    # noise can leave an eigenvalue at or below zero
    evals, evecs = np.linalg.eigh(d)
    evals = np.maximum(evals, np.maximum(evals[:, 2:] * 0.05, 1e-9))
    inverse = ((evecs / evals[:, None, :]) @ evecs.swapaxes(1, 2)).reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]
    coefficients = np.empty((len(d), basis.shape[1]))
    for start in range(0, len(d), 10_000):
        report.check()
        part = slice(start, start + 10_000)
        odf = (inverse[part] @ squares) ** (-1.5 * ODF_POWER)
        odf /= odf.max(axis=1, keepdims=True)
        coefficients[part] = odf @ project
    volume = np.zeros((*field.inside.shape, basis.shape[1]))
    where = field.inside.copy()
    where[field.inside] = needed
    volume[where] = coefficients
    return volume


def sample(
    values: NDArray[np.float32], points: NDArray[np.float32], affine: NDArray[np.float64]
) -> NDArray[np.float32]:
    """A map's values at points, interpolated linearly.

    Parameters
    ----------
    values : array, shape (X, Y, Z)
    points : array, shape (P, 3), RAS mm
    affine : array, shape (4, 4)
        Voxel to RAS mm of the map.

    Returns
    -------
    array, shape (P,), float32
    """
    from scipy.ndimage import map_coordinates

    inverse = np.linalg.inv(affine)
    voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
    return map_coordinates(values, voxels.T, order=1, mode="nearest").astype(np.float32)


def _tracts(lines: list[NDArray[np.float64]], field: _Field) -> Tracts:
    from scipy.ndimage import map_coordinates

    offsets = np.concatenate([[0], np.cumsum([len(line) for line in lines])]).astype(np.int64)
    voxels = np.concatenate(lines)
    fa = map_coordinates(field.fa, voxels.T, order=1, mode="nearest").astype(np.float32)
    points = voxels @ field.affine[:3, :3].T + field.affine[:3, 3]
    return Tracts(points.astype(np.float32), offsets, fa)
