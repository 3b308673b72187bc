"""Maps of few volumes beside those of the others: a scan whose answer is known."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent / "Evaluation"))

from baselines import WLS
from methods import PRIOR
from repeated import compared, shell_of

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io.writing import write_acquisition
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.weights import weights_file

SIGMA = 8.0


@pytest.fixture(scope="module")
def scan() -> Acquisition:
    """Three slabs of 400: white matter, grey matter and fluid; 3 b0s, 20 directions, SNR 50."""
    rng = np.random.default_rng(0)
    bvecs = np.concatenate([np.zeros((3, 3)), spread_directions(20)])
    gtab = GradientTable(np.r_[np.zeros(3), np.full(20, 1000.0)], bvecs)
    theta = np.zeros((12, 12, 9, 7), np.float32)
    theta[..., 6] = np.log(50 * SIGMA)
    theta[..., [0, 3, 5]] = np.repeat(np.float32([[1.5, 0.4, 0.4], [0.8, 0.8, 0.8], [2.6, 2.6, 2.6]]), 3, 0)
    clean = DTI().signal(torch.from_numpy(theta), gtab).numpy()
    noise = SIGMA * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    return Acquisition(signal, np.diag([2.0, 2, 2, 1]), gtab, np.ones(signal.shape[:3], bool))


def test_least_squares_are_as_far_apart_as_their_errors_say(scan: Acquisition) -> None:
    judges, methods = compared(scan, 6, range(1), weights_file("", DTI()))
    assert {place for place, _ in judges} == {"white matter", "other tissue", "fluid"}
    # MD of the other 14 directions and 2 b0s: its noise is known
    assert judges["other tissue", "md"] == pytest.approx(0.020, abs=0.004)
    error, bias, together = methods["other tissue", "md", WLS]
    assert error == pytest.approx(np.hypot(judges["other tissue", "md"], 0.031), rel=0.25)
    assert abs(bias) < 0.01
    assert together < 0.4
    assert len(methods["fluid", "fa", PRIOR]) == 5


def test_a_judge_without_volumes_is_told(scan: Acquisition) -> None:
    with pytest.raises(SystemExit, match=r"leaves 2 b0s and 5 directions.*fewer --directions"):
        compared(scan, 15, range(1), weights_file("", DTI()))
    with pytest.raises(SystemExit, match=r"leaves 0 b0s and 14 directions.*several b0s"):
        compared(scan.subset(np.arange(2, 23), "one b0"), 6, range(1), weights_file("", DTI()))


def test_a_shell_is_taken_with_the_b0s_and_without_what_has_no_signal(scan: Acquisition, tmp_path: Path) -> None:
    signal = scan.signal.copy()
    signal[0, 0, 0] = 0
    bvals = np.r_[scan.gtab.bvals[:11], scan.gtab.bvals[11:] + 1500]
    written = replace(scan, signal=signal, gtab=GradientTable(bvals, scan.gtab.bvecs))
    write_acquisition(written, tmp_path / "dwi.nii.gz")
    found = shell_of(tmp_path / "dwi.nii.gz", 1200)
    assert found.gtab.bvals.tolist() == [0.0] * 3 + [1000.0] * 8
    assert found.mask is not None
    assert not found.mask[0, 0, 0]
    assert found.mask.sum() == found.mask.size - 1
