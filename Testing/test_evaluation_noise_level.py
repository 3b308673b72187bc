"""The noise that six directions show is compared with the right one, of the right volumes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from noise_level import largest_shell, row_of

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.tensor_arrays import spread_directions


@pytest.fixture
def scan() -> Acquisition:
    """Nothing but noise, of standard deviation 10, on a constant signal; shells of 6 and of 15 directions."""
    bvecs = np.concatenate([np.zeros((1, 3)), spread_directions(6), np.zeros((1, 3)), spread_directions(15)])
    gtab = GradientTable(np.repeat([0.0, 700.0, 0.0, 1500.0], [1, 6, 1, 15]), bvecs)
    signal = np.random.default_rng(0).normal(500, 10, (14, 14, 14, len(gtab)))
    return Acquisition(signal.astype(np.float32), np.diag([2.0, 2, 2, 1]), gtab)


def test_the_largest_shell_comes_with_all_b0s_in_their_order(scan: Acquisition) -> None:
    one = largest_shell(scan)
    assert one.gtab.bvals.tolist() == [0.0, 0.0, *[1500.0] * 15]
    np.testing.assert_array_equal(one.signal[..., 1], scan.signal[..., 7])


def test_level_is_told_over_the_right_one(scan: Acquisition) -> None:
    few = scan.subset(np.arange(7), "few")
    _, given, snr, level, right, found = row_of("noise", few, np.ones(few.shape, bool), 5.0, 50.0, (0.0, 0.0, 0.0))
    assert (given, snr, right) == (few.gtab.summary(), "50", "0.00 0.00 0.00")
    assert float(level) == pytest.approx(2, abs=0.1)
    assert [float(part) for part in found.split()] == pytest.approx([0, 0, 0], abs=0.06)
