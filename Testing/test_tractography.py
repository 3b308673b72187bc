"""Streamlines follow the fibres, in every frame that a scan may be stored in."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, JobCancelled, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.settings import TrackSettings
from DiffusionFMLib.tractography import Tracts, track

SHAPE = (48, 40, 36)
CENTRE = np.array([5.0, -7.0, 11.0])
FIBRE = np.array([1.0, 2.0, 0.7]) / np.linalg.norm([1.0, 2.0, 0.7])
HALF_LENGTH = 35.0

OBLIQUE = Rotation.from_euler("xyz", [15, -20, 25], degrees=True).as_matrix()
GRIDS = {
    "RAS": np.diag([2.0, 2.0, 2.0]),
    "LAS": np.diag([-2.0, 2.0, 2.0]),
    "LPS": np.diag([-2.0, -2.0, 2.0]),
    "anisotropic": np.diag([-1.75, 1.75, 3.0]),
    "oblique": OBLIQUE @ np.diag([2.0, 2.0, 2.5]),
    "oblique, left-handed": OBLIQUE @ np.diag([-2.0, 2.0, 2.5]),
    "oblique, axes permuted": OBLIQUE @ np.array([[0, 0, 2.0], [-2.0, 0, 0], [0, 2.0, 0]]),
}


def grid_affine(axes: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = CENTRE - axes @ ((np.array(SHAPE) - 1) / 2)
    return affine


def straight_fibre(affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Tensors of a straight rod along `FIBRE` through `CENTRE`, 70 mm long, in isotropic surroundings."""
    xyz = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3] - CENTRE
    along = xyz @ FIBRE
    away = np.linalg.norm(xyz - along[..., None] * FIBRE, axis=-1)
    d = np.tile(0.8e-3 * np.eye(3), (*SHAPE, 1, 1))
    d[(np.abs(along) <= HALF_LENGTH) & (away <= 6)] = 0.3e-3 * np.eye(3) + 1.4e-3 * np.outer(FIBRE, FIBRE)
    return d[..., [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]].astype(np.float32)


def track_straight(axes: NDArray[np.float64] | None = None, **settings: object) -> Tracts:
    affine = grid_affine(GRIDS["LAS"] if axes is None else axes)
    return track(straight_fibre(affine), np.ones(SHAPE, bool), affine, TrackSettings(**settings), SilentReport())


@pytest.mark.parametrize("tracker", ["deterministic", "probabilistic"])
@pytest.mark.parametrize("grid", GRIDS)
def test_streamlines_follow_a_straight_fibre_in_every_frame(grid: str, tracker: str) -> None:
    tracts = track_straight(GRIDS[grid], tracker=tracker, max_count=300)

    assert len(tracts) == 300
    ends = np.array([line[[0, -1]] for line in tracts.streamlines]) - CENTRE
    run = ends[:, 1] - ends[:, 0]
    angles = np.degrees(np.arccos(np.clip(np.abs(run @ FIBRE) / np.linalg.norm(run, axis=1), 0, 1)))
    assert np.median(angles) < (0.1 if tracker == "deterministic" else 4)
    reach = np.sort(ends @ FIBRE, axis=1)
    np.testing.assert_allclose(np.median(reach, axis=0), [-HALF_LENGTH, HALF_LENGTH], atol=2)
    # no point strays from the rod by more than a voxel
    points = tracts.points - CENTRE
    away = np.linalg.norm(points - (points @ FIBRE)[:, None] * FIBRE, axis=1)
    assert away.max() < 6 + 3
    assert 0.75 < np.median(tracts.fa) < 0.81


def test_a_mirrored_tensor_field_is_not_mistaken_for_the_true_one() -> None:
    affine = grid_affine(GRIDS["LAS"])
    tensor = straight_fibre(affine) * np.array([1, -1, -1, 1, 1, 1], np.float32)
    with pytest.raises(ProtocolError):
        # the directions now leave the rod that they lie in
        track(tensor, np.ones(SHAPE, bool), affine, TrackSettings(min_length=40.0), SilentReport())


def test_tracts_are_packed_consistently() -> None:
    tracts = track_straight(max_count=50)
    assert (tracts.points.dtype, tracts.offsets.dtype, tracts.fa.dtype) == (np.float32, np.int64, np.float32)
    assert tracts.offsets[0] == 0
    assert tracts.offsets[-1] == len(tracts.points) == len(tracts.fa)
    expected = [np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in tracts.streamlines]
    np.testing.assert_allclose(tracts.lengths, expected, rtol=1e-4)


@pytest.mark.parametrize("tracker", ["deterministic", "probabilistic"])
def test_same_seed_same_streamlines(tracker: str) -> None:
    first, again = (track_straight(tracker=tracker, max_count=200, seed=3) for _ in range(2))
    other = track_straight(tracker=tracker, max_count=200, seed=4)
    np.testing.assert_array_equal(first.points, again.points)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert first.points.shape != other.points.shape or (first.points != other.points).any()


def test_count_limit_keeps_a_random_subset() -> None:
    everything = track_straight(max_count=0)
    some = track_straight(max_count=100)
    assert len(some) == 100 < len(everything)

    def across(tracts: Tracts) -> NDArray[np.float64]:
        middles = np.array([line.mean(axis=0) for line in tracts.streamlines]) - CENTRE
        return middles @ np.cross(FIBRE, [0, 0, 1.0])

    # the first hundred in the image's order would all lie at one edge of the rod
    assert across(some).std() > 0.8 * across(everything).std()


def test_seed_density_sets_the_number_of_streamlines() -> None:
    sparse, dense = (len(track_straight(seed_density=density, max_count=0)) for density in (0.5, 4.0))
    assert dense == pytest.approx(8 * sparse, rel=0.15)


def test_lengths_and_step_are_millimetres() -> None:
    tracts = track_straight(GRIDS["anisotropic"], step=0.7, min_length=66.0, max_length=72.0, max_count=0)
    assert tracts.lengths.min() >= 65.9
    assert tracts.lengths.max() <= 72.1
    steps = np.linalg.norm(np.diff(tracts.streamlines[0], axis=0), axis=1)
    np.testing.assert_allclose(steps, 0.7, atol=1e-3)


def test_streamlines_stay_in_the_mask_and_start_in_the_seed_mask() -> None:
    affine = grid_affine(GRIDS["oblique, left-handed"])
    tensor = straight_fibre(affine)
    x = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3] - CENTRE
    mask, seeds = x @ FIBRE < 10, np.abs(x @ FIBRE + 20) < 3
    tracts = track(tensor, mask, affine, TrackSettings(max_count=0), SilentReport(), seed_mask=seeds)
    reach = (tracts.points - CENTRE) @ FIBRE
    assert reach.max() < 10 + 2.5
    for line in tracts.streamlines:
        assert np.abs((line - CENTRE) @ FIBRE + 20).min() < 3 + 2.5


def test_streamlines_stop_where_fa_falls() -> None:
    affine = grid_affine(GRIDS["RAS"])
    tensor = straight_fibre(affine)
    x = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3] - CENTRE
    # half of the rod keeps its direction, but has an FA of 0.19
    weak = (x @ FIBRE > 0) & (tensor[..., 1] > 1e-5)
    d = 0.7e-3 * np.eye(3) + 0.2e-3 * np.outer(FIBRE, FIBRE)
    tensor[weak] = d[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    stopped, passed = (
        track(tensor, np.ones(SHAPE, bool), affine, TrackSettings(stop_fa=fa, max_count=200), SilentReport())
        for fa in (0.3, 0.1)
    )
    assert np.median(((stopped.points - CENTRE) @ FIBRE).max()) < 4
    assert ((passed.points - CENTRE) @ FIBRE).max() > HALF_LENGTH - 3
    assert stopped.fa.min() > 0.2


def test_nowhere_to_start_says_what_to_do() -> None:
    with pytest.raises(ProtocolError, match="nowhere to start") as caught:
        track_straight(seed_fa=0.95)
    assert "Lower the FA" in caught.value.hint


def test_no_streamline_long_enough_says_what_to_do() -> None:
    with pytest.raises(ProtocolError, match="None of") as caught:
        track_straight(min_length=80.0)
    assert "minimum length" in caught.value.hint


def test_grids_that_differ_are_refused() -> None:
    affine = grid_affine(GRIDS["RAS"])
    tensor = straight_fibre(affine)
    whole = np.ones(SHAPE, bool)
    with pytest.raises(InputError, match="mask has shape"):
        track(tensor, whole[:-1], affine, TrackSettings(), SilentReport())
    with pytest.raises(InputError, match="seed mask has shape"):
        track(tensor, whole, affine, TrackSettings(), SilentReport(), seed_mask=whole[:-1])
    with pytest.raises(ProtocolError, match="empty"):
        track(tensor, ~whole, affine, TrackSettings(), SilentReport())


class CancelAfter(SilentReport):
    """A user who cancels at the n-th report."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self.left = reports
        self.cancelled_at = 0.0

    def progress(self, done: float, total: float, stage: str) -> None:
        assert 0 <= done <= total
        self.left -= 1
        if self.left < 0:
            raise JobCancelled


@pytest.mark.parametrize("tracker", ["deterministic", "probabilistic"])
def test_cancelling_takes_effect_at_the_next_chunk(tracker: str) -> None:
    affine = grid_affine(GRIDS["RAS"])
    settings = TrackSettings(tracker=tracker, seed_density=64.0, max_count=0)
    started = time.monotonic()
    with pytest.raises(JobCancelled):
        track(straight_fibre(affine), np.ones(SHAPE, bool), affine, settings, CancelAfter(2))
    # 120 000 seeds would take many times as long
    assert time.monotonic() - started < 10


def test_real_scan_gives_anatomy(scans) -> None:
    import nibabel

    folder = scans / "test" / "philips_bangalore_32dir"
    image = nibabel.load(folder / "dwi.nii.gz")
    # every other voxel in plane: 3.5 mm is enough to see the big bundles
    affine = image.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    signal = np.asarray(image.dataobj[::2, ::2], np.float32)
    gtab = GradientTable.from_fsl(np.loadtxt(folder / "dwi.bval"), np.loadtxt(folder / "dwi.bvec").T, image.affine)
    mean_b0 = signal[..., gtab.b0_mask].mean(axis=-1)
    scan = Acquisition(signal, affine, gtab, mask=mean_b0 > 0.25 * np.percentile(mean_b0, 98))
    maps = fit(scan, MODELS["dti"], dataclasses.replace(TrackSettings(), method="ols"), SilentReport()).maps
    fa, md = maps["fa"].data, maps["md"].data
    brain = scan.mask & (md < 1.5e-3) & (md > 0.3e-3)

    tracts = track(maps["tensor"].data, brain, affine, TrackSettings(max_count=5000), SilentReport())

    assert len(tracts) > 3000
    assert 35 < np.median(tracts.lengths) < 110
    x, y, z = tracts.points.T
    middle = np.median(np.argwhere(brain) @ affine[:3, :3].T + affine[:3, 3], axis=0)
    pieces = [slice(a, b) for a, b in zip(tracts.offsets[:-1], tracts.offsets[1:], strict=True)]
    callosal = [p for p in pieces if np.ptp(x[p]) > 40 and (x[p].min() < middle[0] < x[p].max())]
    rising = [p for p in pieces if np.ptp(z[p]) > 70 and np.ptp(z[p]) > 1.5 * np.ptp(y[p])]
    running = [p for p in pieces if np.ptp(y[p]) > 70 and np.ptp(y[p]) > 1.5 * np.ptp(z[p])]
    # 73..109 over 24 draws (seeds, methods, grids): a bar at their middle would fall by chance
    assert len(callosal) > 50
    assert len(rising) > 50
    assert len(running) > 50
    # callosal fibres cross the midline going sideways
    at_midline = [np.argmin(np.abs(x[p] - middle[0])) + p.start for p in callosal]
    step = np.gradient(tracts.points, axis=0)[at_midline]
    assert np.median(np.abs(step[:, 0]) / np.linalg.norm(step, axis=1)) > 0.9
    assert fa[brain].mean() > 0.15
