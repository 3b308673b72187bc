"""Samples of the posterior: right where the answer is known, and the same by seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.neighbourhood import Neighbourhood
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.sampling import sample
from DiffusionFMLib.prior.systems import unpack
from DiffusionFMLib.prior.weights import TrainedPrior

SHAPE = (16, 16, 16)


class SameEverywhere(PriorNetwork):
    """The prior that is the same Gaussian in every voxel, whatever the data: its posterior is known exactly."""

    def forward(self, features: Tensor, mask: Tensor, conditions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        raw = torch.cat([0.3 * torch.randn(35, generator=generator), torch.zeros(28)])
        raw[7:][[0, 7, 13, 18, 22, 25, 27]] -= 2.0
        return raw[None, :, None, None, None].expand(1, 63, *features.shape[2:])

    def mean(self, raw: Tensor, neighbourhood: Neighbourhood, at: Tensor | None = None) -> Tensor:
        return raw[:7].reshape(7, -1)[:, at]


@pytest.fixture(scope="module")
def scan() -> ScanPosterior:
    """The same signal in every voxel, so that voxels are repeated draws."""
    gtab = GradientTable(np.r_[0, np.full(6, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(6)])
    theta = np.array([1.3, 0.1, 0.0, 0.7, 0.0, 0.5, np.log(300.0)])
    signal = np.tile(np.exp(DTI().design(gtab) @ theta).astype(np.float32), (*SHAPE, 1))
    mask = np.ones(SHAPE, bool)
    noise = NoiseEstimate(20.0, np.full(SHAPE, 20.0, np.float32), (0.0, 0.0, 0.0), 9)
    trained = TrainedPrior(SameEverywhere(NetworkShape()), DTI(), coordinates_of(DTI()), {})
    return ScanPosterior(Acquisition(signal, np.eye(4), gtab), mask, noise, trained)


def test_samples_have_the_mean_and_covariance_of_a_known_posterior(scan: ScanPosterior) -> None:
    ((_, _, exact),) = scan.given(None, SilentReport())
    drawn = sample(scan, 1, SilentReport(), levels=8)
    sd = exact.covariance()[[0, 7, 13, 18, 22, 25, 27], 0].sqrt()
    assert 0.05 < float(sd.min())
    off = (drawn.mean(1) - exact.mean[:, 0]) / sd
    # 4096 draws, and weights that follow the answer a little
    assert float(off.abs().max()) < 0.12
    expected = unpack(exact.covariance())[..., 0] / (sd[:, None] * sd)
    found = torch.cov(drawn) / (sd[:, None] * sd)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.12)


def test_the_same_seed_gives_the_same_sample(scan: ScanPosterior) -> None:
    one, same, other = (sample(scan, seed, SilentReport(), levels=2) for seed in (1, 1, 2))
    torch.testing.assert_close(one, same)
    assert float((one - other).abs().mean()) > 0.05


def test_a_sample_is_parameters_of_the_scan(scan: ScanPosterior) -> None:
    theta = scan.in_ras(sample(scan, 0, SilentReport(), levels=2))
    assert theta.shape == (7, len(scan))
    assert np.median(theta[6]) == pytest.approx(np.log(300.0), abs=0.1)
