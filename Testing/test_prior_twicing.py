"""Twicing: what a prior gets wrong alike in neighbouring voxels is found in their measurements, and noise is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.information import Information, Measurements, front_end
from DiffusionFMLib.prior.neighbourhood import VOXELS, filtered
from DiffusionFMLib.prior.posterior import posterior
from DiffusionFMLib.prior.systems import add_diagonal, multiply, pack, unpack
from DiffusionFMLib.prior.twicing import FIRMNESS, shared_noise, twiced

WHITE = (0.0, 0.0, 0.0)
SHAPE = (7, 6, 5)


def case(size: int = 7) -> tuple[Tensor, Information, NDArray[np.bool_]]:
    """Means and information of some of the voxels of a box, and which these are."""
    generator = torch.Generator().manual_seed(size)
    mask = (torch.rand(SHAPE, generator=generator) < 0.7).numpy()
    mean, vector = (torch.randn(size, int(mask.sum()), generator=generator, dtype=torch.float64) for _ in range(2))
    half = torch.randn(size, size, int(mask.sum()), generator=generator, dtype=torch.float64)
    return mean, Information(pack(torch.einsum("ikv,jkv->ijv", half, half)), vector), mask


@pytest.mark.parametrize("size", [7, 22])
def test_it_is_a_solve_of_what_is_left_around_each_voxel(size: int) -> None:
    mean, given, mask = case(size)
    matrices = unpack(given.precision).numpy()
    left = given.vector.numpy() - np.einsum("ijv,jv->iv", matrices, mean.numpy())

    def summed(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        volume = np.zeros((*rows.shape[:-1], *SHAPE))
        volume[..., mask] = rows
        for axis in (-3, -2, -1):
            volume = ndimage.correlate1d(volume, np.array([0.25, 0.5, 0.25]), axis=axis, mode="constant")
        return VOXELS[0] * volume[..., mask]

    correlation, firmness = (0.5, 0.2, 0.0), np.arange(1.0, size + 1)
    systems = summed(matrices).transpose(2, 0, 1) + shared_noise(correlation) * np.diag(firmness)
    expected = mean.numpy() + np.linalg.solve(systems, summed(left).T[..., None])[..., 0].T
    np.testing.assert_allclose(twiced(mean, given, firmness, mask, correlation).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_nothing_is_left_of_what_is_right() -> None:
    """Measurements that the mean explains, whatever it is, leave it as it is."""
    mean, given, mask = case()
    explained = Information(given.precision, multiply(given.precision, mean))
    torch.testing.assert_close(twiced(mean, explained, np.ones(len(mean)), mask, WHITE), mean)


@pytest.mark.parametrize("correlation", [(0.0, 0.0, 0.0), (0.5, 0.3, 0.1), (0.66, 0.66, 0.66)])
def test_shared_noise_is_what_the_filter_leaves(correlation: tuple[float, float, float]) -> None:
    """Of noise that is correlated as if each voxel had shares of those before it."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 96, 96, 96, generator=generator, dtype=torch.float64)
    white = float(filtered(noise, 1)[:, 4:-4, 4:-4, 4:-4].var())
    values = noise.numpy()
    for axis, near in enumerate(correlation, 1):
        values = ndimage.convolve1d(values, near ** np.arange(12) * (1 - near**2) ** 0.5, axis=axis, mode="wrap")
    left = float(filtered(torch.from_numpy(values), 1)[:, 4:-4, 4:-4, 4:-4].var())
    assert left / values.var() / white == pytest.approx(shared_noise(correlation), rel=0.03)


@pytest.mark.parametrize("sigma", [0.1, 0.05])
def test_a_lesion_that_the_prior_does_not_expect_is_found(sigma: float) -> None:
    """Six directions; a ball of higher diffusivity in tissue that a sharp prior knows: less is missed, noise stays."""
    shape, coordinates, model = (14, 14, 14), coordinates_of(DTI()), DTI()
    size, packed = 7, 28
    grid = np.stack(np.meshgrid(*(np.arange(n) - 6.5 for n in shape), indexing="ij"), -1)
    ball = (np.linalg.norm(grid, axis=-1) < 3.6).ravel()
    healthy = np.array([0.8, 0, 0, 0.8, 0, 0.8, 0.0])
    ill = np.array([1.3, 0, 0, 1.3, 0, 1.3, 0.0])
    theta = np.where(ball, ill[:, None], healthy[:, None])
    gtab = GradientTable(np.r_[0, np.full(6, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(6)])
    design = WhitenedDesign.of(model, gtab, coordinates, dtype=torch.float64)
    clean = torch.as_tensor(np.exp(model.design(gtab) @ theta))
    noise = torch.tensor(sigma, dtype=torch.float64)
    signal = RicianNoise().sample(clean, noise, torch.Generator().manual_seed(0))
    measurements = Measurements(signal, design, noise)
    expected = coordinates.whiten(torch.as_tensor(healthy)[:, None]).expand(size, ball.size)
    precision = add_diagonal(torch.zeros(packed, ball.size, dtype=torch.float64), 200.0)
    prior = Information(precision, multiply(precision, expected))
    first = posterior(prior, [measurements], [front_end(measurements)[1]]).mean
    firmness = np.repeat(FIRMNESS["dti"], coordinates.orders)
    second = twiced(first, measurements.around(first), firmness, np.ones(shape, bool), WHITE)

    def md(u: Tensor) -> np.ndarray:
        return coordinates.theta(u).numpy()[[0, 3, 5]].mean(0)

    core = (np.linalg.norm(grid, axis=-1) < 2.6).ravel()
    far = (np.linalg.norm(grid, axis=-1) > 5).ravel()
    missed = [float(np.mean(1.3 - md(u)[core])) for u in (first, second)]
    assert missed[0] > 0.05
    assert missed[1] < 0.6 * missed[0]
    # where the prior is right, by how much noise of that level makes WLS miss MD
    wls = np.sqrt(np.linalg.inv(np.einsum("ni,n,nj->ij", model.design(gtab), np.exp(model.design(gtab) @ healthy) ** 2,
                                          model.design(gtab)))[[0, 3, 5]][:, [0, 3, 5]].sum() / 9) * sigma  # fmt: skip
    assert np.sqrt(np.mean((md(second)[far] - 0.8) ** 2)) < 0.5 * wls
