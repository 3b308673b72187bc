"""Noise estimation: level, map and correlation of noise that was put in are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.preprocessing.noise import NoiseExtractor, estimate_noise, noise_in_blocks
from DiffusionFMLib.simulation.scanner import repelled_directions

SHAPE = (28, 30, 26)
S0 = 100.0


def table(n_b0: int, shells: dict[int, int]) -> GradientTable:
    bvecs = np.concatenate([np.zeros((n_b0, 3)), *(repelled_directions(count) for count in shells.values())])
    return GradientTable(np.concatenate([np.zeros(n_b0), *(np.full(n, b) for b, n in shells.items())]), bvecs)


def crossing_fibres(gtab: GradientTable, seed: int = 0) -> np.ndarray:
    """Noise-free signal of two fibres per voxel, of two compartments each, whose directions and share vary smoothly."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(7, *SHAPE)), (0, 4, 4, 4))
    axes = smooth[:6].reshape(2, 3, *SHAPE)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    share = 0.5 + 0.4 * np.tanh(smooth[6] / smooth[6].std())
    cosines = np.einsum("fcxyz,nc->fxyzn", axes, gtab.bvecs) ** 2
    b = gtab.bvals / 1000
    one, other = np.exp(-b * (0.3 + 1.6 * cosines))
    return S0 * (share[..., None] * one + (1 - share[..., None]) * other)


def scan(gtab: GradientTable, sigma, blur: tuple[float, ...] = (0, 0, 0), seed: int = 1) -> Acquisition:
    """A magnitude image; noise in both channels blurred in space, then scaled back to sigma."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, *SHAPE, len(gtab)))
    for axis, width in enumerate(blur, start=1):
        if width:
            noise = gaussian_filter1d(noise, width, axis=axis, mode="wrap")
    noise *= np.asarray(sigma)[..., None] / noise.std() if np.ndim(sigma) else sigma / noise.std()
    return Acquisition(np.hypot(crossing_fibres(gtab) + noise[0], noise[1]).astype(np.float32), np.eye(4) * 2, gtab)


MASK = np.zeros(SHAPE, bool)
MASK[3:-3, 3:-3, 3:-3] = True


@pytest.mark.parametrize(
    ("gtab", "tolerance"),
    [
        # twelve directions cannot tell sharp crossings, which every voxel here has, from noise
        (table(1, {1000: 12}), 0.18),
        (table(1, {1000: 30}), 0.05),
        (table(4, {1000: 6}), 0.05),
        (table(6, {1000: 30, 2000: 60}), 0.05),
    ],
    ids=str,
)
@pytest.mark.parametrize("snr", [6, 25])
def test_level_is_found(gtab, tolerance, snr):
    found = estimate_noise(scan(gtab, S0 / snr), MASK)
    assert found.sigma == pytest.approx(S0 / snr, rel=tolerance)
    assert np.median(found.sigma_map[MASK]) == pytest.approx(S0 / snr, rel=tolerance)
    assert np.all(found.sigma_map[~MASK] == 0)


def test_rician_noise_at_next_to_no_signal_is_not_taken_for_less():
    gtab = table(1, {3000: 30})
    assert estimate_noise(scan(gtab, S0 / 4), MASK).sigma == pytest.approx(S0 / 4, rel=0.08)


def test_map_follows_noise_that_varies():
    # across the scan sigma doubles
    sigma = 3 * 2 ** np.broadcast_to(np.linspace(0, 1, SHAPE[0])[:, None, None], SHAPE)
    found = estimate_noise(scan(table(1, {1000: 30}), sigma), MASK)
    ratio = found.sigma_map[MASK] / sigma[MASK]
    assert np.abs(ratio - 1).mean() < 0.1
    for x in (5, 14, 22):
        there = MASK[x]
        assert found.sigma_map[x][there].mean() == pytest.approx(sigma[x, 0, 0], rel=0.1)


def test_correlation_is_found_axis_by_axis():
    blur = (0.6, 0.0, 0.45)
    expected = []
    for width in blur:
        spike = np.zeros(64)
        spike[32] = 1
        kernel = gaussian_filter1d(spike, width) if width else spike
        expected.append(float((kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()))
    found = estimate_noise(scan(table(1, {1000: 30}), 4.0, blur), MASK)
    assert found.correlation == pytest.approx(expected, abs=0.03)


def test_pulsation_in_a_few_voxels_changes_little():
    gtab = table(1, {1000: 30})
    odd = scan(gtab, 4.0)
    signal = odd.signal.copy()
    signal[10:14, 10:14, 10:14] *= np.random.default_rng(2).uniform(0.5, 1.5, len(gtab))
    found = estimate_noise(Acquisition(signal, odd.affine, gtab), MASK)
    assert found.sigma == pytest.approx(4, rel=0.05)
    assert found.sigma_map[12, 12, 12] < 5


def test_what_is_extracted_is_blind_to_anatomy_and_as_large_as_the_noise():
    gtab = table(3, {1000: 30, 2000: 64})
    extract = NoiseExtractor(gtab)
    assert extract.freedom == 2 + 15 + 19
    assert np.sqrt(np.square(extract(crossing_fibres(gtab))).mean()) < 0.005 * S0
    rng = np.random.default_rng(0)
    found = extract(rng.normal(50, 2, (20_000, len(gtab))))
    assert found.std() == pytest.approx(2, rel=0.01)
    np.testing.assert_allclose(np.corrcoef(found.T), np.eye(extract.freedom), atol=0.04)


def test_nothing_to_go_by_is_none():
    few = table(1, {1000: 6})
    assert estimate_noise(scan(few, 4.0), MASK) is None
    plenty = table(1, {1000: 30})
    constant = Acquisition(np.full((*SHAPE, len(plenty)), 5, np.float32), np.eye(4), plenty)
    assert estimate_noise(constant, MASK) is None
    assert estimate_noise(scan(plenty, 4.0), np.zeros(SHAPE, bool)) is None


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize(("sigma", "excess"), [(2.0, 0.6), (4.0, 0.3), (10.0, 0.1)])
def test_blocks_tell_the_noise_where_directions_are_too_few(count, sigma, excess):
    gtab = table(1, {1000: count})
    assert estimate_noise(scan(gtab, sigma), MASK) is None
    found = noise_in_blocks(scan(gtab, sigma), MASK)
    # fibres that turn within a few voxels, as everywhere here, count as noise: the more, the less there is of it
    assert 0.95 * sigma < found.sigma < (1 + excess) * sigma
    assert (found.sigma_map[MASK] == np.float32(found.sigma)).all()
    assert not found.sigma_map[~MASK].any()
    assert max(found.correlation) < 0.1


@pytest.mark.parametrize("edge", [3, 5])
def test_correlation_is_found_in_blocks_axis_by_axis(edge):
    gtab = table(1, {1000: 6})
    blurred = scan(gtab, 10.0, blur=(0.6, 0, 0.4))
    mask = MASK.copy()
    if edge == 3:
        mask[::4] = False
    found = noise_in_blocks(blurred, mask)
    assert found.sigma == pytest.approx(10, rel=0.15)
    # of Gaussian weights, by lag
    weights = [np.exp(-(np.arange(-3, 4) ** 2) / (2 * width**2)) for width in (0.6, 0.4)]
    x, z = (float((w[1:] * w[:-1]).sum() / (w**2).sum()) for w in weights)
    np.testing.assert_allclose(found.correlation, [x, 0, z], atol=0.08)


def test_blocks_tell_it_where_no_two_directions_share_a_b_value():
    gtab = table(1, {800: 1, 1600: 1, 2400: 1})
    for sigma in (10.0, 30.0):
        assert noise_in_blocks(scan(gtab, sigma), MASK).sigma == pytest.approx(sigma, rel=0.07)


@pytest.mark.parametrize("count", [6, 30])
def test_a_spike_is_no_noise(count):
    spiked = scan(table(1 if count == 6 else 4, {1000: count}), 10.0)
    spiked.signal[8, 8, 8] *= 1e6
    found = noise_in_blocks(spiked, MASK) if count == 6 else estimate_noise(spiked, MASK)
    assert found is not None
    assert found.sigma == pytest.approx(10, rel=0.1)


def test_a_single_slice_has_blocks_too():
    plane = scan(table(1, {1000: 6}), 10.0)
    one = Acquisition(plane.signal[:, :, 8:9], plane.affine, plane.gtab)
    assert noise_in_blocks(one, MASK[:, :, 8:9]).sigma == pytest.approx(10, rel=0.2)


def test_no_noise_in_blocks_is_none_at_all():
    gtab = table(1, {1000: 3})
    flat = Acquisition(np.full((*SHAPE, 4), 7, np.float32), np.eye(4), gtab)
    assert noise_in_blocks(flat, MASK).sigma == 0
    # what a program made has rounding for noise
    assert noise_in_blocks(Acquisition(crossing_fibres(gtab).astype(np.float32), np.eye(4), gtab), MASK).sigma < 1
    scattered = np.zeros(SHAPE, bool)
    scattered[::2, ::2, ::2] = True
    assert noise_in_blocks(scan(gtab, 10.0), scattered).sigma == 0
