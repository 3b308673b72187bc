"""Which regions streamlines join: a matrix of their number, and of means over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.io import Image, LabelImage
from DiffusionFMLib.tractography import sample, segment_lengths

OUTSIDE_TOLERANCE = 0.5 + 1e-3
"""How far beyond the outermost voxel centres a point may lie, voxels: to their edge, and what float32 rounds."""


@dataclass(frozen=True, eq=False)
class Connectome:
    """Streamlines between regions; all matrices are symmetric, with rows and columns in the order of the labels.

    Parameters
    ----------
    labels : array, shape (R,), int32
        Number of each region, ascending.
    counts : array, shape (R, R), int64
        Streamlines with an end in one and an end in the other; on the diagonal those with both ends in one.
    lengths : array, shape (R, R), mm
        Their mean length; NaN where there are none.
    means : array, shape (R, R), optional
        Mean of a map along them, each streamline's by its length; NaN where there are none.
    streamlines : int
        All of them, those whose ends lie in no region among them.
    """

    labels: NDArray[np.int32]
    counts: NDArray[np.int64]
    lengths: NDArray[np.float64]
    means: NDArray[np.float64] | None
    streamlines: int

    @property
    def assigned(self) -> int:
        """Streamlines with both ends in a region."""
        return int(np.triu(self.counts).sum())


def connect(
    lines: Sequence[NDArray[np.float32]],
    regions: LabelImage,
    radius: float,
    along: NDArray[np.float32] | None = None,
) -> Connectome:
    """Count the streamlines that join each two regions, by their ends.

    An end belongs to the region whose voxel it lies in; where there is none, to that of the nearest voxel of any
    region, as far as its centre is nearer than the radius: MRtrix3's radial search (Smith et al., 2015). Streamlines
    end at the edge of white matter, mostly short of the grey matter that regions are drawn in.

    Parameters
    ----------
    lines : sequence of arrays, shape (n, 3), RAS mm
    regions : LabelImage
        In any grid.
    radius : float, mm
        0 takes the voxel that an end lies in only.
    along : array, shape (P,), optional
        A map's values at all points, one streamline after another.

    Raises
    ------
    InputError
        If there are no streamlines, a point is not finite, or none of them joins two regions.
    """
    kept = [line for line in lines if len(line)]
    if not kept:
        msg = "There are no streamlines to count."
        raise InputError(msg, "Track with a lower minimum length or FA, or choose another file.")
    points = np.concatenate(kept, dtype=np.float32)
    if not np.isfinite(points).all():
        msg = f"{np.count_nonzero(~np.isfinite(points).all(axis=1))} points of the streamlines are not finite numbers."
        raise InputError(msg, "Write the streamlines again.")
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    labels = np.unique(regions.data[regions.data > 0])
    ends = np.concatenate([points[offsets[:-1]], points[offsets[1:] - 1]])
    found = _label_at(ends, regions, radius).reshape(2, -1)
    joined = (found > 0).all(axis=0)
    if not joined.any():
        if not _in_grid(ends, regions.affine, regions.data.shape).any():
            msg = f"{regions.name} lies elsewhere than the streamlines: none of their ends is within the image."
            raise InputError(msg, "Choose a label image in the scanner space of the scan, not in that of a template.")
        msg = (
            f"None of {len(kept)} streamlines has both ends in a region of {regions.name}, or within {radius:g} mm of "
            f"one; {np.count_nonzero(found)} of {found.size} ends are."
        )
        raise InputError(msg, "Choose a label image in the scanner space of the scan, or raise the radius.")

    first, last = np.sort(np.searchsorted(labels, found[:, joined]), axis=0)
    pairs = first * len(labels) + last
    segments = segment_lengths(points, offsets)
    lengths = np.add.reduceat(segments, offsets[:-1])
    counts = _symmetric(pairs, len(labels))
    with np.errstate(invalid="ignore"):
        mean_lengths = _symmetric(pairs, len(labels), lengths[joined]) / counts
        means = None
        if along is not None:
            means = _symmetric(pairs, len(labels), _means_along(along, segments, offsets)[joined]) / counts
    return Connectome(labels, counts.astype(np.int64), mean_lengths, means, len(lines))


def sample_within(image: Image, lines: Sequence[NDArray[np.float32]], name: str) -> NDArray[np.float32]:
    """A map's values at all points of streamlines, shape (P,), interpolated linearly.

    Raises
    ------
    InputError
        If a point lies outside the map.
    """
    points = np.concatenate([np.zeros((0, 3), np.float32), *lines])
    outside = np.count_nonzero(~_in_grid(points, image.affine, image.data.shape))
    if outside:
        msg = f"{name} does not cover the streamlines: {outside} of their {len(points)} points lie outside of it."
        raise InputError(msg, "Choose a map of the scan that they were tracked in.")
    return sample(image.data, points, image.affine)


def _voxels(points: NDArray[np.float32], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.linalg.inv(affine)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def _in_grid(points: NDArray[np.float32], affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    voxels = _voxels(points, affine)
    inside = (voxels >= -OUTSIDE_TOLERANCE) & (voxels <= np.array(shape) - 1 + OUTSIDE_TOLERANCE)
    return np.asarray(inside.all(axis=1))


def _label_at(points: NDArray[np.float32], regions: LabelImage, radius: float) -> NDArray[np.int32]:
    """Label of the region that each point belongs to, shape (P,); 0 where there is none."""
    from scipy.spatial import cKDTree

    found = np.zeros(len(points), np.int32)
    voxels = np.rint(_voxels(points, regions.affine)).astype(np.int64)
    inside = ((voxels >= 0) & (voxels < regions.data.shape)).all(axis=1)
    found[inside] = regions.data[tuple(voxels[inside].T)]
    open_ends = np.flatnonzero(found == 0)
    if radius > 0 and len(open_ends):
        labelled = np.argwhere(regions.data)
        centres = labelled @ regions.affine[:3, :3].T + regions.affine[:3, 3]
        _, nearest = cKDTree(centres).query(points[open_ends], distance_upper_bound=radius)
        near = nearest < len(centres)
        found[open_ends[near]] = regions.data[tuple(labelled[nearest[near]].T)]
    return found


def _means_along(
    values: NDArray[np.float32], segments: NDArray[np.float64], offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean of a map along each streamline, whose steps need not be equally long, shape (M,)."""
    middles = values.astype(np.float64)
    middles[1:] = (middles[1:] + middles[:-1]) / 2
    lengths = np.add.reduceat(segments, offsets[:-1])
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(middles * segments, offsets[:-1]) / lengths
    # a streamline that goes nowhere has the map's value there
    return np.where(lengths > 0, means, values[offsets[:-1]])


def _symmetric(
    pairs: NDArray[np.int64], regions: int, weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Sums by pair of regions (lower index times their number, plus higher), shape (R, R)."""
    upper = np.bincount(pairs, weights, regions**2).reshape(regions, regions).astype(np.float64)
    return upper + np.triu(upper, 1).T
