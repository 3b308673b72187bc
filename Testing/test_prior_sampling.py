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
from DiffusionFMLib.prior.information import LOOK_LEVELS, front_end
from DiffusionFMLib.prior.neighbourhood import Lattice, Surroundings
from DiffusionFMLib.prior.network import START_LOG_PRECISION, NetworkShape, PriorNetwork
from DiffusionFMLib.prior.sampling import COARSE, STRUCTURE, sample, smooth_noise, structure
from DiffusionFMLib.prior.systems import unpack
from DiffusionFMLib.prior.weights import TrainedPrior

SHAPE = (16, 16, 16)

WIDTH = 4.0
"""So that voxels 4, 8 and 16 mm apart are as alike as FA of heads is: .78, .61 and .37."""

VOXEL = COARSE
"""So that both grids are the same, which the known field is made for."""

DEAF = 1e9
"""Noise that leaves the measurements nothing to say."""


class SameEverywhere(PriorNetwork):
    """The prior that is the same Gaussian in every voxel, whatever the data: its posterior is known exactly."""

    def hidden(self, estimates: Tensor, spread: Tensor, lattice: Lattice, conditions: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        raw = torch.cat([0.3 * torch.randn(35, generator=generator), torch.zeros(28)])
        raw[7:][[0, 7, 13, 18, 22, 25, 27]] -= 2.0
        return raw[:, None].expand(63, len(lattice.place))

    def raw(self, hidden: Tensor, estimates: Tensor, lattice: Lattice, voxels: slice) -> Tensor:
        return hidden[:, voxels]

    def mean_of(self, raw: Tensor, surroundings: Surroundings, voxels: slice) -> Tensor:
        return raw[:7]


class SmoothField(SameEverywhere):
    """The prior of a stationary Gaussian field on `SHAPE`, exact from a look alone: voxels are alike over `WIDTH`."""

    @staticmethod
    def spectrum() -> Tensor:
        offset = torch.fft.fftfreq(SHAPE[0]) * SHAPE[0]
        distance = torch.stack(torch.meshgrid(offset, offset, offset, indexing="ij")).square().sum(0).sqrt()
        power = torch.fft.fftn((-distance / WIDTH).exp()).real.clamp_min(0)
        return power / power.mean()

    def hidden(self, estimates: Tensor, spread: Tensor, lattice: Lattice, conditions: Tensor) -> Tensor:
        variance = (LOOK_LEVELS[1] * (-2 * conditions[0, -1]).exp()) ** 2
        look = (1 + variance) * estimates[:7].reshape(7, *SHAPE)
        gain = self.spectrum() / (self.spectrum() + variance)
        mean = torch.fft.ifftn(gain * torch.fft.fftn(look, dim=(1, 2, 3)), dim=(1, 2, 3)).real
        # what is known beside the voxel's own look
        precision = 1 / (variance * gain.mean()) - 1 / variance
        raw = torch.zeros(63, len(lattice.place))
        raw[:7] = ((mean / (variance * gain.mean()) - look / variance) / precision).flatten(1)
        raw[[7, 14, 20, 25, 29, 32, 34]] = precision.log() - START_LOG_PRECISION
        return raw


def posterior_of(network: PriorNetwork, sigma: float, shape: tuple[int, int, int] = SHAPE) -> ScanPosterior:
    """The same signal in every voxel, so that voxels are repeated draws."""
    gtab = GradientTable(np.r_[0, np.full(6, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(6)])
    theta = np.array([1.3, 0.1, 0.0, 0.7, 0.0, 0.5, np.log(300.0)])
    signal = np.tile(np.exp(DTI().design(gtab) @ theta).astype(np.float32), (*shape, 1))
    noise = NoiseEstimate(20.0, np.full(shape, sigma, np.float32), (0.0, 0.0, 0.0), 9)
    trained = TrainedPrior(network, DTI(), coordinates_of(DTI()), {})
    return ScanPosterior(
        Acquisition(signal, np.diag([VOXEL, VOXEL, VOXEL, 1]), gtab), np.ones(shape, bool), noise, trained
    )


@pytest.fixture(scope="module")
def scan() -> ScanPosterior:
    return posterior_of(SameEverywhere(NetworkShape()), 20.0)


def test_samples_have_the_mean_and_covariance_of_a_known_posterior(scan: ScanPosterior) -> None:
    ((_, _, exact),) = scan.given(None, SilentReport())
    drawn = sample(scan, 1, SilentReport())
    sd = exact.covariance()[[0, 7, 13, 18, 22, 25, 27], 0].sqrt()
    assert 0.05 < float(sd.min())
    off = (drawn.mean(1) - exact.mean[:, 0]) / sd
    # 4096 draws, and weights that follow the answer a little
    assert float(off.abs().max()) < 0.12
    expected = unpack(exact.covariance())[..., 0] / (sd[:, None] * sd)
    found = torch.cov(drawn) / (sd[:, None] * sd)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.12)


def test_samples_without_data_are_as_rich_as_a_known_field_and_as_smooth() -> None:
    field = posterior_of(SmoothField(NetworkShape()), DEAF)
    drawn = torch.cat([sample(field, seed, SilentReport()) for seed in range(3)]).reshape(-1, *SHAPE)
    truth = torch.fft.ifftn(SmoothField.spectrum()).real
    # a little is lost in steps, and by starting from a finite level
    assert 0.85 < float(drawn.square().mean() / truth[0, 0, 0]) ** 0.5 < 1.05
    for distance in (1, 2, 4):
        likeness = (drawn * drawn.roll(distance, 2)).mean() / drawn.square().mean()
        assert float(likeness) == pytest.approx(float(truth[distance, 0, 0] / truth[0, 0, 0]), abs=0.06)


def test_noise_that_samples_start_from_is_normal_and_as_smooth_as_heads(scan: ScanPosterior) -> None:
    generator = torch.Generator().manual_seed(0)
    volumes = [smooth_noise(scan, torch.randn(7, *SHAPE, generator=generator)).reshape(7, *SHAPE) for _ in range(8)]
    noise = torch.cat(volumes)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    step = round(8 / VOXEL)
    likeness = float((noise * noise.roll(step, 1)).mean())
    # a Gaussian filter of width w leaves exp(-d^2 / 4 w^2) of a voxel's likeness to itself
    assert likeness == pytest.approx(np.exp(-((step * VOXEL) ** 2) / (4 * STRUCTURE**2)), abs=0.08)


def test_structures_are_made_in_coarse_voxels_of_the_same_space_without_the_data(scan: ScanPosterior) -> None:
    coarse = scan.told_nothing(np.ones((31, 11, 1), bool))
    np.testing.assert_allclose(coarse.voxel_sizes, [VOXEL / 2, VOXEL * 1.5, VOXEL])
    np.testing.assert_allclose(coarse.told()[0, :3], 2 * np.log(coarse.voxel_sizes / 2), rtol=1e-5)
    torch.testing.assert_close(coarse.told()[0, 3:], scan.told()[0, 3:])
    _, data = front_end(coarse.measured(slice(None)))
    assert len(coarse) == 31 * 11
    assert float(data.precision.abs().max()) < 1e-6
    assert len(scan) == np.prod(SHAPE)


def test_structures_vary_within_what_is_seen_of_a_head() -> None:
    fine = posterior_of(SameEverywhere(NetworkShape()), DEAF, (9, 8, 1))
    fine.mask[0] = False
    fine = fine.told_nothing(fine.mask)
    drawn = structure(fine, torch.Generator().manual_seed(0), SilentReport(), levels=4)
    assert drawn.shape == (7, 64)
    assert float(drawn.std(1).min()) > 0.05


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2)])
def test_a_mask_of_hardly_any_voxels_can_be_sampled(shape: tuple[int, int, int]) -> None:
    scan = posterior_of(SameEverywhere(NetworkShape()), 20.0, shape)
    assert bool(torch.isfinite(sample(scan, 0, SilentReport(), levels=4)).all())


def test_the_same_seed_gives_the_same_sample(scan: ScanPosterior) -> None:
    one, same, other = (sample(scan, seed, SilentReport(), levels=2) for seed in (1, 1, 2))
    torch.testing.assert_close(one, same)
    assert float((one - other).abs().mean()) > 0.05


def test_a_sample_is_parameters_of_the_scan(scan: ScanPosterior) -> None:
    theta = scan.in_ras(sample(scan, 0, SilentReport(), levels=2))
    assert theta.shape == (7, len(scan))
    assert np.median(theta[6]) == pytest.approx(np.log(300.0), abs=0.1)
