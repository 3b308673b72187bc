"""What the evaluation stands on: its truth, its simplest opponents, and how it counts errors."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, DTI, MODELS
from DiffusionFMLib.physics.tensor_arrays import spread_directions

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from baselines import KURTOSIS, RIDGE_MEAN, least_squares, ridge_of, smoothed_scan
from brain_phantom import SCRIPT, BrainPhantom
from microstructure import errors
from per_scan import neighbourhoods, train_on_scan

AFFINE = np.diag([-2.0, 2, 2, 1])


def scheme(*shells: tuple[float, int]) -> GradientTable:
    bvals = np.concatenate([[0.0], *(np.full(count, bval) for bval, count in shells)])
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *(spread_directions(count) for _, count in shells)]))


def scan(signal: np.ndarray, gtab: GradientTable) -> Acquisition:
    """Voxels in a row."""
    signal = signal.reshape(-1, 1, 1, len(gtab)).astype(np.float32)
    return Acquisition(signal, AFFINE, gtab, np.ones(signal.shape[:3], bool))


def tensors(count: int) -> np.ndarray:
    """Parameters of prolate tensors in all directions, shape (count, 7)."""
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(count, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    across, along = rng.uniform(0.3, 0.8, (2, count, 1, 1))
    matrix = across * np.eye(3) + along * axis[:, :, None] * axis[:, None]
    return np.column_stack([matrix[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], np.full(count, np.log(800))])


def test_the_ridge_starts_from_a_ball_of_the_stated_kurtosis():
    mean, sd = ridge_of(DKI())
    maps = DKI().maps(torch.as_tensor(mean))
    expected = KURTOSIS / RIDGE_MEAN[0] ** 2
    assert float(maps["mk"]) == pytest.approx(expected, rel=1e-6)
    assert float(maps["mkt"]) == pytest.approx(expected, rel=1e-6)
    assert len(sd) == 22
    assert (sd > 0).all()


def test_the_ridge_gives_way_to_data():
    gtab = scheme((1000, 60), (2000, 60))
    theta = np.tile(ridge_of(DKI())[0], (5, 1))
    theta[:, :6] = tensors(5)[:, :6]
    theta[:, 6:21] *= np.linspace(0.5, 1.5, 5)[:, None]
    theta[:, 21] = np.log(800)
    noiseless = scan(DKI().signal(torch.as_tensor(theta), gtab).numpy(), gtab)
    found = least_squares(noiseless, noiseless.mask, np.full(5, 0.1), ridge=True, model=DKI()).T
    np.testing.assert_allclose(found, theta, atol=1e-3)
    # told that the noise is as large as the signal, it stays where it started
    kept = least_squares(noiseless, noiseless.mask, np.full(5, 800.0), ridge=True, model=DKI()).T
    assert np.abs(kept - theta)[:, 6:21].max() > 0.1


def test_the_network_of_a_scan_finds_its_tensors():
    gtab = scheme((1000, 20))
    theta = tensors(2000)
    signal = DTI().signal(torch.as_tensor(theta), gtab).numpy().astype(np.float32)
    found = train_on_scan(scan(signal, gtab), "dti", steps=480)
    maps, truth = (MODELS["dti"].maps(torch.as_tensor(part)) for part in (found, theta))
    # it starts from a ball, whose FA is .34 off on average
    assert float((maps["fa"] - truth["fa"]).abs().mean()) < 0.06
    assert float((maps["md"] - truth["md"]).abs().mean()) * 1e3 < 0.03
    np.testing.assert_allclose(maps["s0"], 800, rtol=0.05)
    once, again = (train_on_scan(scan(signal[:600], gtab), "noddi", steps=2) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_neighbours_are_those_in_the_mask():
    gtab = scheme((1000, 6))
    signal = np.random.default_rng(0).uniform(1, 2, (4, 3, 3, 7)).astype(np.float32)
    mask = np.ones((4, 3, 3), bool)
    mask[3] = False
    around, scale = neighbourhoods(Acquisition(signal, AFFINE, gtab, mask), 1)
    assert around.shape == (27, 27, 7)
    voxel = np.flatnonzero((np.argwhere(mask) == [2, 1, 1]).all(1))[0]
    assert scale[voxel] == pytest.approx(signal[1:3, :, :, 0].mean(), rel=1e-5)
    expected = np.where(mask[1:, ..., None], signal[1:], 0).reshape(27, 7) / scale[voxel]
    np.testing.assert_allclose(around[voxel], expected, rtol=1e-6)
    own, _ = neighbourhoods(Acquisition(signal, AFFINE, gtab, mask), 0)
    np.testing.assert_allclose(own[:, 0], signal[mask] / signal[mask][:, :1], rtol=1e-6)


def test_averaging_stays_inside_the_mask():
    gtab = scheme((1000, 6))
    signal = np.full((9, 9, 9, 7), 1e6, np.float32)
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 2:7, 2:7] = True
    signal[mask] = 5
    averaged = smoothed_scan(Acquisition(signal, AFFINE, gtab, mask), mask, 0.7)
    np.testing.assert_allclose(averaged.signal[mask], 5, rtol=1e-6)
    assert (averaged.signal[~mask] == 1e6).all()


def test_what_is_not_a_number_counts_as_zero():
    found = errors({"mk": np.array([1.0, np.nan, np.inf])}, {"mk": np.array([1.0, 2.0, 2.0])})
    assert found["mk"] == pytest.approx(((8 / 3) ** 0.5, -4 / 3))


def test_the_truth_is_that_of_the_published_tables(monkeypatch):
    if not SCRIPT.is_file():
        pytest.skip(f"no phantom: {SCRIPT} is not there")
    phantom = BrainPhantom()
    # the script spreads directions by repulsion, which takes a minute
    code = phantom._code["make_scheme"].__globals__
    monkeypatch.setitem(code, "electrostatic", lambda count, *_, **__: spread_directions(count))
    some = np.zeros_like(phantom.judged)
    some.flat[np.flatnonzero(phantom.judged)[::200]] = True
    phantom.judged = some
    published = phantom.reference()
    tensor = phantom.truth("dti")
    np.testing.assert_allclose(tensor["fa"], published["fa"], atol=1e-4)
    np.testing.assert_allclose(tensor["md"], published["md"] * 1e3, atol=1e-4)
    np.testing.assert_allclose(phantom.truth("dki")["mk"], published["mk"], atol=1e-2)
