"""Denoising, Gibbs ringing, motion with gradient rotation, and the order that `prepare` does them in."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from brain_scans import NOISE, head

from DiffusionFMLib.errors import InputError, JobCancelled, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.preprocessing import prepare
from DiffusionFMLib.preprocessing.denoise import mppca, remove_gibbs
from DiffusionFMLib.preprocessing.motion import correct_motion
from DiffusionFMLib.settings import FitSettings

# coarse, so that registering a dozen volumes takes seconds
SMALL = {"voxel": (5.0, 5.0, 5.0), "shape": (38, 44, 34)}


class CancelAfter(SilentReport):
    """Cancels some time after the first checkpoint of `stage`, and notes when."""

    def __init__(self, stage: str, seconds: float) -> None:
        super().__init__()
        self.stage, self.seconds, self.due = stage, seconds, float("inf")

    def progress(self, done: float, total: float, stage: str) -> None:
        assert 0 <= done <= total
        if stage == self.stage and self.due == float("inf"):
            self.due = time.monotonic() + self.seconds
        self.check()

    def check(self) -> None:
        if time.monotonic() >= self.due:
            raise JobCancelled


def block(scan, size=16):
    """The middle of a scan, so that slow methods stay quick."""
    low = [(n - size) // 2 for n in scan.shape]
    return replace(scan, signal=scan.signal[tuple(slice(a, a + size) for a in low)].copy())


def turn(degrees, axis):
    """Rotation matrix about an axis in RAS."""
    a, k = np.deg2rad(degrees), np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    return np.eye(3) + np.sin(a) * cross + (1 - np.cos(a)) * cross @ cross


def _degrees(rotation):
    return np.rad2deg(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))


def _apart(a, b):
    """Angle between axes, degrees."""
    return np.rad2deg(np.arccos(np.abs((a * b).sum(axis=1)).clip(0, 1)))


def test_prepare_makes_a_mask_and_notes_it():
    scan, truth = head(count=6)
    ready = prepare(scan, FitSettings(), SilentReport())
    assert (ready.mask == truth).mean() > 0.98
    assert "Brain mask made automatically" in ready.notes[-1]
    assert ready.signal is scan.signal


def test_prepare_keeps_the_users_mask():
    scan, truth = head(count=6)
    ready = prepare(scan.with_mask(truth), FitSettings(), SilentReport())
    assert (ready.mask == truth).all()
    assert ready.notes == scan.notes


def test_prepare_refuses_a_scan_without_signal():
    scan, _ = head(count=6)
    with pytest.raises(InputError, match="no signal"):
        prepare(replace(scan, signal=np.zeros_like(scan.signal)), FitSettings(), SilentReport())


def test_prepare_does_everything_in_order():
    scan, _ = head(count=4, shape=(20, 22, 18), voxel=(10.0, 10.0, 10.0))
    ready = prepare(scan, FitSettings(denoise="mppca", gibbs=True, motion=True), SilentReport())
    assert [note.split()[0] for note in ready.notes] == ["Denoised", "Gibbs", "Motion", "Brain"]
    assert ready.mask is not None


def test_denoising_removes_noise_and_keeps_the_signal():
    scan, truth = head(count=20, n_b0=2)
    scan, inside = block(scan), block(scan.with_signal(truth[..., None].repeat(22, 3), "truth")).signal[..., 0] > 0
    clean = mppca(scan.with_mask(inside), SilentReport())
    pair = scan.signal[inside][:, 0] - scan.signal[inside][:, 1]
    denoised = clean.signal[inside][:, 0] - clean.signal[inside][:, 1]
    assert pair.std() == pytest.approx(NOISE * np.sqrt(2), rel=0.1)
    assert denoised.std() < 0.6 * pair.std()
    assert abs(float((clean.signal - scan.signal)[inside].mean())) < 0.002


def test_denoising_leaves_the_surroundings_and_works_on_a_single_slice():
    scan, _ = head(count=8)
    scan = replace(scan, signal=scan.signal[:, :, 20:21])
    mask = np.zeros(scan.shape, bool)
    mask[20:30, 20:30] = True
    clean = mppca(scan.with_mask(mask), SilentReport())
    assert np.isfinite(clean.signal).all()
    assert (clean.signal[:15] == scan.signal[:15]).all()
    assert (clean.signal[mask] != scan.signal[mask]).any()


def test_denoising_needs_volumes():
    scan, _ = head(count=2)
    with pytest.raises(ProtocolError, match="3 volumes"):
        mppca(scan, SilentReport())


def test_gibbs_ringing_shrinks():
    from scipy.ndimage import uniform_filter

    scan, _ = head(count=1)
    edge = np.zeros((96, 96))
    edge[20:76, 20:76] = 1
    # what a scanner does: k-space cut off
    kspace = np.fft.fftshift(np.fft.fft2(edge))[24:72, 24:72]
    ringing = np.abs(np.fft.ifft2(np.fft.ifftshift(kspace))) / 4
    signal = np.repeat(np.repeat(ringing[:, :, None, None], 2, 2), 2, 3).astype(np.float32)
    still = replace(scan, signal=signal)
    clean = remove_gibbs(still, SilentReport())
    flat = uniform_filter((edge > 0).astype(float), 17)[::2, ::2] == 1
    assert clean.signal[..., 0, 0][flat].std() < 0.5 * ringing[flat].std()
    assert (clean.signal >= 0).all()


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("denoise", FitSettings(denoise="mppca")),
        ("gibbs", FitSettings(gibbs=True)),
        ("motion", FitSettings(motion=True)),
    ],
)
def test_cancel_stops_within_three_seconds(stage, settings):
    scan, truth = head(count=12)
    report = CancelAfter(stage, 0.3)
    with pytest.raises(JobCancelled):
        prepare(scan.with_mask(truth), settings, report)
    assert time.monotonic() - report.due < 3


@pytest.fixture(scope="module")
def turned():
    """A scan whose head lies otherwise in the last volumes, corrected; and what is true of it."""
    count, rotation = 10, turn(10, [0.3, -0.5, 0.8])
    turns = np.broadcast_to(np.eye(3), (1 + count, 3, 3)).copy()
    turns[7:] = rotation
    axes = turn(20, [1, 0.2, 0.1]) * np.array([-1, 1, 1])
    moved, truth = head(count=count, axes=axes, turns=turns, **SMALL)
    fixed, motion = correct_motion(moved.with_mask(truth), SilentReport())
    return moved, truth, turns, fixed, motion


def test_motion_is_found_and_gradients_rotate_with_the_head(turned):
    moved, _, turns, fixed, motion = turned
    for v in range(1, len(turns)):
        assert _degrees(motion.transforms[v, :3, :3].T @ turns[v]) < 1.0
    # seen from the head, which is where the tensor lives, the gradient turned the other way
    seen = np.einsum("nji,nj->ni", turns, moved.gtab.bvecs)[7:]
    assert _apart(fixed.gtab.bvecs[7:], seen).max() < 1.0
    assert _apart(np.einsum("nij,nj->ni", turns, moved.gtab.bvecs)[7:], seen).min() > 3


def test_still_volumes_are_not_resampled(turned):
    moved, _, _, fixed, motion = turned
    still = motion.displacement == 0
    assert still[:7].sum() >= 4
    assert (fixed.signal[..., still] == moved.signal[..., still]).all()
    assert (fixed.gtab.bvecs[still] == moved.gtab.bvecs[still]).all()


def test_rotated_gradients_explain_the_aligned_signal(turned):
    moved, truth, turns, fixed, _ = turned
    inside = truth & (moved.signal[..., 1:7].std(axis=3) > 0.05)

    def misfit(bvecs):
        i, j = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 1, 2, 1, 2, 2])
        g = bvecs[1:]
        design = g[:, i] * g[:, j]
        log = np.log(np.maximum(fixed.signal[inside][:, 1:], 1e-3))
        return float(np.median(np.abs(log - log @ (design @ np.linalg.pinv(design)).T)))

    # resampling thin bundles leaves a misfit of its own, so the gain is less than the angle suggests
    assert misfit(fixed.gtab.bvecs) < 0.95 * misfit(moved.gtab.bvecs)
    assert misfit(fixed.gtab.bvecs) < 0.9 * misfit(np.einsum("nij,nj->ni", turns, moved.gtab.bvecs))
