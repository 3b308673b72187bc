"""What the encoder's reconstructions are judged by, and what they are compared with, where the answer is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.mae import DIFFUSION, Sample, draw_mask, same_shell_mean
from DiffusionFMLib.encoder.shape import PRESETS, EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.training.signal_scans import SignalScan

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from predictions import harmonic_prediction, harmonics, tensor_prediction
from reconstruction import HARMONICS, KINDS, MEAN, ROTARY, TENSOR, Case, refitted, scores_of, slabs
from scores import paired, psnr, similarity

PATCH = PRESETS["small"].patch
GTAB = GradientTable(np.repeat([1000.0, 2000.0], 15), np.vstack([spread_directions(15), -spread_directions(15)]))
TENSORS = np.array([[1.6, 0.1, 0.0, 0.4, 0.05, 0.3], [0.5, 0.0, 0.2, 1.2, 0.0, 0.6]])
"""Of the left half and of the right: xx, xy, xz, yy, yz, zz, um2/ms."""


def signal() -> np.ndarray:
    """Of two tensors, shape (30, 14, 12, 10); edges that are no multiples of a patch's."""
    x, y, z = GTAB.bvecs.T
    products = np.stack([x * x, 2 * x * y, 2 * x * z, y * y, 2 * y * z, z * z])
    both = np.exp(-(GTAB.bvals / 1000)[:, None] * (TENSORS @ products).T)
    return both[:, (np.arange(14) > 6).astype(int)][:, :, None, None].repeat(12, 2).repeat(10, 3)


def scan() -> SignalScan:
    inside = np.ones((14, 12, 10), bool)
    inside[0] = False
    return SignalScan((signal() * inside).astype(np.float16), inside, GTAB)


def sample() -> Sample:
    return next(slabs(scan(), PATCH))[1]


def hidden_error(found: torch.Tensor, one: Sample, masked: torch.Tensor) -> float:
    """Root mean square."""
    error = (found - one.patches)[masked[..., None] & one.inside]
    return float(error.square().mean().sqrt())


def test_models_that_hold_predict_what_is_hidden() -> None:
    one = sample()
    masked = draw_mask(DIFFUSION, 30, len(one.where), np.random.default_rng(0))
    # the weak prior pulls a little, the less the lower the noise is said to be
    assert hidden_error(tensor_prediction(one, masked, GTAB, 1e-3), one, masked) < 2e-3
    mean = hidden_error(same_shell_mean(one, masked), one, masked)
    assert hidden_error(harmonic_prediction(one, masked, GTAB), one, masked) < 0.8 * mean
    # nothing hidden helps to predict it
    other = torch.where(masked[..., None], torch.rand_like(one.patches), one.patches)
    spoilt = Sample(other, one.inside, one.positions, one.where, one.grid, one.protocol, one.shells)
    for predict in (lambda s: tensor_prediction(s, masked, GTAB, 0.04), lambda s: harmonic_prediction(s, masked, GTAB)):
        torch.testing.assert_close(predict(spoilt), predict(one))


def test_harmonics_are_even_and_fit_what_they_span() -> None:
    basis, orders = harmonics(GTAB.bvecs[:15])
    assert basis.shape == (15, 15)
    assert sorted(orders.tolist()) == [0] + 5 * [2] + 9 * [4]
    torch.testing.assert_close(harmonics(-GTAB.bvecs[:15])[0], basis)
    # squares of components are of order 2 at most
    x2 = torch.as_tensor(GTAB.bvecs[:15, 0] ** 2)
    low = basis[:, orders <= 2]
    fitted = low @ torch.linalg.lstsq(low, x2).solution
    torch.testing.assert_close(fitted, x2)


def test_psnr_is_in_whole_decibels() -> None:
    # a tenth of the peak is 20 dB, not 10
    assert psnr(np.full(5, 0.1)) == pytest.approx(20)
    assert psnr(np.full(5, 0.2), peak=2.0) == pytest.approx(20)


def test_similarity_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    one = rng.random((14, 13, 12))
    np.testing.assert_allclose(similarity(one, one), 1)
    # constants: only the luminance term is left
    alike = similarity(np.full((9, 9, 9), 0.5), np.full((9, 9, 9), 0.25))
    np.testing.assert_allclose(alike, (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4))
    other = one + rng.normal(0, 0.3, one.shape)
    # written out at one voxel, far enough from the border for whole windows
    at = np.array([7, 6, 6])
    reach = np.arange(-5, 6)
    grid = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1)
    window = np.exp(-0.5 * (grid**2).sum(-1) / 1.5**2)
    window /= window.sum()
    a, b = (v[tuple(slice(c - 5, c + 6) for c in at)] for v in (one, other))
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
    cab = (window * (a - ma) * (b - mb)).sum()
    expected = (2 * ma * mb + 1e-4) * (2 * cab + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    assert similarity(one, other)[tuple(at)] == pytest.approx(expected, rel=1e-6)


def test_paired_intervals_hold_the_difference_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        common = rng.normal(0, 5, 6)
        mean, half = paired(common + rng.normal(0.4, 0.3, 6), common)
        held += abs(mean - 0.4) <= half
    assert 0.93 < held / 1000 < 0.97
    assert np.isnan(paired(np.array([1.0]), np.array([0.5]))[1])


def test_scores_tell_which_method_is_right() -> None:
    one = scan()
    fa, md = refitted(one, one.signal.astype(np.float32), 0.01)
    for place, tensor in zip((3, 10), TENSORS, strict=True):
        assert md[place, 5, 5] == pytest.approx(tensor[[0, 3, 5]].mean(), abs=2e-3)
        evals = np.linalg.eigvalsh(tensor[[[0, 1, 2], [1, 3, 4], [2, 4, 5]]])
        expected = np.sqrt(1.5 * ((evals - evals.mean()) ** 2).sum() / (evals**2).sum())
        assert fa[place, 5, 5] == pytest.approx(expected, abs=2e-3)
    case = Case(one, signal(), fa, md, 0.01)
    torch.manual_seed(0)
    shape = EncoderShape(
        24, 2, 1, 24, 1, 24, PATCH, directions="even", position_divisor=4.0, axes="scanner", brain_only=True
    )
    networks = {ROTARY: DiffusionTransformer(shape).eval()}
    for kind in KINDS:
        scores = scores_of(case, kind, 0, networks)
        assert set(scores) == {MEAN, TENSOR, HARMONICS, ROTARY}
        for shell in ("PSNR b1000", "PSNR b2000"):
            # what made the signal wins, and a network that learnt nothing loses
            best = max(scores, key=lambda name, shell=shell: scores[name][shell])
            assert best == TENSOR
            assert scores[ROTARY][shell] < scores[MEAN][shell]
        assert scores[TENSOR]["FA"] < 0.5 * scores[MEAN]["FA"]
    assert {"SSIM b1000", "SSIM b2000", "MD"} < set(scores[MEAN])
    again = scores_of(case, kind, 0, networks)
    assert again == scores


def test_slabs_cover_a_scan_once() -> None:
    one = scan()
    parts = list(slabs(one, PATCH))
    assert [(part.start, part.stop) for part, _ in parts] == [(0, 4), (4, 8), (8, 12)]
    assert sum(int(sample.inside.sum()) for _, sample in parts) == one.inside.sum()
    found = parts[1][1]
    assert found.positions[0].tolist() == [1.5, 1.5, 5.5]
    np.testing.assert_array_equal(
        found.volumes(found.patches, PATCH)[:, :14].numpy(), one.signal[..., 4:8].astype(np.float32)
    )
    assert isinstance(found.protocol, EncoderProtocol)
