"""Twicing: what a prior gets wrong alike in neighbouring voxels is found in their measurements, and noise is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.information import Information, Measurements, front_end
from DiffusionFMLib.prior.neighbourhood import VOXELS
from DiffusionFMLib.prior.posterior import posterior
from DiffusionFMLib.prior.systems import add_diagonal, multiply, pack, unpack
from DiffusionFMLib.prior.twicing import interior, twiced

P, PACKED = 7, 28
SHAPE = (7, 6, 5)


def information(voxels: int, seed: int = 0) -> Information:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(P, P, voxels, generator=generator, dtype=torch.float64)
    vector = torch.randn(P, voxels, generator=generator, dtype=torch.float64)
    return Information(pack(torch.einsum("ikv,jkv->ijv", half, half)), vector)


def some_places(share: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.rand(int(np.prod(SHAPE)), generator=generator) < share).nonzero()[:, 0]


def case(seed: int = 0) -> tuple[Tensor, Information, Tensor, Tensor]:
    """Means, information and firmness of some of the voxels of a box, and where they lie."""
    place, generator = some_places(), torch.Generator().manual_seed(seed + 10)
    mean = torch.randn(P, len(place), generator=generator, dtype=torch.float64)
    firmness = torch.rand(P, len(place), generator=generator, dtype=torch.float64) + 0.5
    return mean, information(len(place), seed), firmness, place


def test_it_is_a_solve_of_what_is_left_around_each_voxel() -> None:
    mean, given, firmness, place = case()
    matrices = unpack(given.precision).numpy()
    left = given.vector.numpy() - np.einsum("ijv,jv->iv", matrices, mean.numpy())

    def summed(rows: np.ndarray) -> np.ndarray:
        volume = np.zeros((*rows.shape[:-1], int(np.prod(SHAPE))))
        volume[..., place] = rows
        volume = volume.reshape(*rows.shape[:-1], *SHAPE)
        for axis in (-3, -2, -1):
            volume = ndimage.correlate1d(volume, np.array([0.25, 0.5, 0.25]), axis=axis, mode="constant")
        return VOXELS[0] * volume.reshape(*rows.shape[:-1], -1)[..., place]

    systems = summed(matrices).transpose(2, 0, 1) + np.einsum("iv,ij->vij", firmness.numpy(), np.eye(P))
    expected = mean.numpy() + np.linalg.solve(systems, summed(left).T[..., None])[..., 0].T
    np.testing.assert_allclose(twiced(mean, given, firmness, place, SHAPE).numpy(), expected, rtol=1e-9, atol=1e-9)


def test_derivatives_are_right() -> None:
    mean, given, firmness, place = case()
    some = slice(0, 14)
    part = Information(given.precision[:, some], given.vector[:, some])
    inputs = mean[:, some].requires_grad_(), firmness[:, some].requires_grad_()
    assert torch.autograd.gradcheck(lambda m, f: twiced(m, part, f, place[some], SHAPE), inputs)


def test_nothing_is_left_of_what_is_right() -> None:
    """Measurements that the mean explains, whatever it is, leave it as it is."""
    mean, given, firmness, place = case()
    explained = Information(given.precision, multiply(given.precision, mean))
    torch.testing.assert_close(twiced(mean, explained, firmness, place, SHAPE), mean)


def test_firm_priors_stay() -> None:
    mean, given, firmness, place = case()
    torch.testing.assert_close(twiced(mean, given, 1e12 * firmness, place, SHAPE), mean, atol=1e-9, rtol=0)


def test_the_interior_has_all_neighbours() -> None:
    place = torch.arange(int(np.prod(SHAPE)))
    expected = np.zeros(SHAPE, bool)
    expected[1:-1, 1:-1, 1:-1] = True
    assert np.array_equal(interior(place, SHAPE).numpy(), expected.ravel())


@pytest.mark.parametrize("sigma", [0.1, 0.05])
def test_a_lesion_that_the_prior_does_not_expect_is_found(sigma: float) -> None:
    """Six directions; a ball of higher diffusivity in tissue that a sharp prior knows: less is missed, noise stays."""
    shape, coordinates, model = (14, 14, 14), coordinates_of(DTI()), DTI()
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
    expected = coordinates.whiten(torch.as_tensor(healthy)[:, None]).expand(P, ball.size)
    precision = add_diagonal(torch.zeros(PACKED, ball.size, dtype=torch.float64), 200.0)
    prior = Information(precision, multiply(precision, expected))
    first = posterior(prior, [measurements], [front_end(measurements)[1]]).mean
    firmness = torch.full((P, ball.size), 20.0, dtype=torch.float64)
    second = twiced(first, measurements.around(first), firmness, torch.arange(ball.size), shape)

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
