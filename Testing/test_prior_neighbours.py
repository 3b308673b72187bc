"""What neighbours' kurtosis makes of a posterior: against a solve in every voxel, and known truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from DiffusionFMLib.prior.coordinates import KURTOSIS_SD, MD_SD, TYPICAL_KURTOSIS, TYPICAL_MD
from DiffusionFMLib.prior.kurtosis import MAX_MD, SCATTER, SHARED, mean_apparent_kurtosis, told_by_neighbours

UNKNOWNS = 22
SHAPE = (5, 4, 3)


def posterior(mask: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Means and covariances of masked voxels, some of them fluid."""
    generator = torch.Generator().manual_seed(seed)
    count = int(mask.sum())
    u = 0.3 * torch.randn(UNKNOWNS, count, generator=generator, dtype=torch.float64)
    u[0, ::5] = (2.5 - TYPICAL_MD) / MD_SD
    half = 0.2 * torch.randn(count, UNKNOWNS, UNKNOWNS, generator=generator, dtype=torch.float64)
    return u, (half @ half.mT + 0.01 * torch.eye(UNKNOWNS)).permute(1, 2, 0).contiguous()


def holes(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[0, 0, 0] = True
    return mask


def of_mean(w: Tensor, md: float) -> Tensor:
    """Coordinates, shape (22, V), of tissue with such kurtosis."""
    u = torch.zeros(UNKNOWNS, len(w), dtype=torch.float64)
    u[0] = (md - TYPICAL_MD) / MD_SD
    u[6] = (w * md**2 - TYPICAL_KURTOSIS) / KURTOSIS_SD[0]
    return u


def brute_force(u: Tensor, covariance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same, voxel by voxel, with derivatives by automatic differentiation and information that is added up."""
    places = [tuple(p) for p in mask.nonzero().tolist()]
    number = {place: k for k, place in enumerate(places)}
    tissue = TYPICAL_MD + MD_SD * u[0] < MAX_MD
    found, spread = u, covariance.clone()
    for _ in range(2):
        point = found.clone().requires_grad_()
        mk = mean_apparent_kurtosis(point)
        (slope,) = torch.autograd.grad(mk.sum(), point)
        mk = mk.detach()
        variance = torch.einsum("iv,ijv,jv->v", slope, covariance, slope)
        new = u.clone()
        for place, k in number.items():
            if not tissue[k]:
                continue
            near = []
            for shift in product((-1, 0, 1), repeat=3):
                other = number.get(tuple(a + b for a, b in zip(place, shift, strict=True)))
                if any(shift) and other is not None and tissue[other]:
                    near.append((0.5 ** (3 + sum(map(abs, shift))), other))
            total = sum(weight for weight, _ in near)
            if total / (7 / 8) <= 0.05:
                continue
            mean, uncertain = (sum(weight * v[o] for weight, o in near) / total for v in (mk, variance))
            known = 1 / (SCATTER**2 + SHARED * uncertain)
            precision = torch.linalg.inv(covariance[..., k])
            told = mean - mk[k] + slope[:, k] @ found[:, k]
            joined = precision + known * torch.outer(slope[:, k], slope[:, k])
            new[:, k] = torch.linalg.solve(joined, precision @ u[:, k] + known * told * slope[:, k])
            spread[..., k] = torch.linalg.inv(joined)
        found = new
    return found, spread


def test_it_is_what_a_solve_in_every_voxel_gives() -> None:
    mask = holes()
    u, covariance = posterior(mask)
    expected, spread = brute_force(u, covariance, mask)
    found = told_by_neighbours(u, covariance, mask)
    assert float((expected - u).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(covariance, spread, rtol=1e-9, atol=1e-9)


def test_a_voxel_that_failed_fails_alone() -> None:
    mask = holes()
    u, covariance = posterior(mask)
    u[:, 7], covariance[..., 7] = np.nan, np.nan
    found = told_by_neighbours(u, covariance, mask)
    assert torch.equal(torch.isnan(found).any(0).nonzero()[:, 0], torch.tensor([7]))


def test_fluid_and_voxels_without_neighbours_stay_as_they_are() -> None:
    mask = holes()
    mask[2:] = False
    mask[4, 3, 2] = True
    u, covariance = posterior(mask)
    before = covariance.clone()
    found = told_by_neighbours(u, covariance, mask)
    same = TYPICAL_MD + MD_SD * u[0] > MAX_MD
    same[-1] = True
    assert torch.equal(found[:, same], u[:, same])
    assert torch.equal(covariance[..., same], before[..., same])
    assert not torch.equal(found, u)


@pytest.mark.parametrize("sure", [False, True])
def test_noise_goes_where_measurements_are_unsure_and_borders_stay_where_they_are_not(sure: bool) -> None:
    shape = (12, 12, 12)
    mask = torch.ones(shape, dtype=torch.bool)
    # two tissues, one beside the other
    w = torch.full(shape, 0.7, dtype=torch.float64)
    w[6:] = 1.0
    truth = of_mean(w.reshape(-1), 0.8)
    # errors of MD and V that nearly cancel in a signal: V's is 4 times that of MD, of b = 1 to 2
    direction = torch.zeros(UNKNOWNS, dtype=torch.float64)
    direction[0], direction[6] = 1 / MD_SD, 4 / KURTOSIS_SD[0]
    sd = 0.005 if sure else 0.05
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, sd, mask.sum()))
    covariance = sd**2 * torch.outer(direction, direction) + 1e-8 * torch.eye(UNKNOWNS)
    covariance = covariance[..., None].repeat(1, 1, len(noise))
    u = truth + direction[:, None] * noise
    found = told_by_neighbours(u, covariance, mask)
    before, after = (mean_apparent_kurtosis(one) - w.reshape(-1) for one in (u, found))
    if sure:
        assert float(after.square().mean()) < 1.1 * float(before.square().mean())
        assert float(after.reshape(shape)[5:7].mean((1, 2)).abs().max()) < 0.02
    else:
        assert float(after.square().mean()) < 0.25 * float(before.square().mean())
