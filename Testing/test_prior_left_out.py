"""Volumes that were left out of a box: they judge a posterior as its formula says, and nothing that they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import ive

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.estimate import BoxView
from DiffusionFMLib.prior.left_out import FREEDOM, Box, LeftOut, judged_channels, leave_out, student
from DiffusionFMLib.prior.neighbourhood import WEIGHTS
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork

EDGE, MARGIN, SIGMA = 12, 2, 0.04
COORDINATES = coordinates_of(DTI())
THETA = np.array([1.3, 0.1, 0.0, 0.6, 0.0, 0.5, 0.05])
FLUID = np.array([3.0, 0, 0, 3.0, 0, 3.0, 0.3])
VOLUMES = 15


def protocol() -> GradientTable:
    directions = spread_directions(VOLUMES - 1)
    return GradientTable(np.r_[0, np.full(VOLUMES - 1, 1000.0)], np.r_[np.zeros((1, 3)), directions])


def box(seed: int = 0) -> Box:
    """The same tissue in every voxel, but fluid in the first layers and nothing in the last, with Rician noise."""
    rng = np.random.default_rng(seed)
    theta = np.tile(THETA, (EDGE, EDGE, EDGE, 1))
    theta[:4] = FLUID
    inside = np.ones((EDGE, EDGE, EDGE), bool)
    inside[-4:] = False
    clean = np.exp(theta[inside] @ DTI().design(protocol()).T).T
    noise = SIGMA * rng.normal(size=(2, *clean.shape))
    signal = torch.tensor(np.hypot(clean + noise[0], noise[1]), dtype=torch.float32)
    place = torch.from_numpy(np.flatnonzero(inside))
    return Box(signal, torch.full((len(place),), SIGMA), place, EDGE)


def network() -> PriorNetwork:
    """Neighbours joined, nothing learnt."""
    torch.manual_seed(0)
    result = PriorNetwork(NetworkShape(7, 16, 1, 1)).eval()
    with torch.no_grad():
        for layer in (result.head, result.linear):
            layer.weight.zero_()
            layer.bias.zero_()
    return result


def left(one: Box, known: float | None = None) -> tuple[BoxView, LeftOut, torch.Tensor]:
    design = WhitenedDesign.of(DTI(), protocol(), COORDINATES)
    held = np.array([3, 8])
    given = np.setdiff1d(np.arange(VOLUMES), held)
    view, left_out = leave_out(one, design, given, held, MARGIN, None if known is None else one.sigma * known)
    return view, left_out, torch.zeros(7 + 28 + WEIGHTS, *(EDGE - 2 * MARGIN,) * 3)


def test_tissue_inside_is_judged_and_neither_fluid_nor_air() -> None:
    _, left_out, _ = left(box())
    x = left_out.judged // (EDGE - 2 * MARGIN) ** 2 + MARGIN
    # by what the neighbours say together, of which tissue says more than fluid
    assert int(x.min()) in (3, 4)
    assert int(x.max()) == EDGE - 5
    assert left_out.signal.shape == (2, len(left_out.judged))


def test_residuals_are_those_of_the_rician_mean() -> None:
    _, left_out, _ = left(box())
    u = COORDINATES.whiten(torch.as_tensor(THETA)[:, None]).float().expand(7, len(left_out.judged))
    clean = np.exp(DTI().design(protocol()) @ THETA)[[3, 8]]
    x = clean**2 / (2 * SIGMA**2)
    # mean of a Rician variable, from exponentially scaled Bessel functions
    mean = SIGMA * np.sqrt(np.pi / 2) * ((1 + x) * ive(0, x / 2) + x * ive(1, x / 2))
    expected = (left_out.signal.numpy() - mean[:, None]) / SIGMA
    np.testing.assert_allclose(left_out.residuals(u).numpy(), expected, atol=5e-3)
    # noise alone is left of the truth, where that is tissue
    tissue = left_out.judged >= 2 * (EDGE - 2 * MARGIN) ** 2
    assert float(left_out.residuals(u)[:, tissue].square().mean()) == pytest.approx(1, abs=0.1)


def test_students_t_counts_small_residuals_by_their_squares() -> None:
    x = torch.tensor([0.0, 0.01, 1.0, 50.0])
    expected = FREEDOM * np.log1p(x.numpy() ** 2 / FREEDOM)
    np.testing.assert_allclose(student(x).numpy(), expected, rtol=1e-5)
    assert float(student(x)[1]) == pytest.approx(1e-4, rel=1e-3)


def test_what_misleads_is_judged_worse() -> None:
    trained = network()
    _, left_out, raw = left(box())
    good = float(left_out.misfit(trained, raw))
    for channel in (1, 4):
        wrong = raw.clone()
        wrong[channel] = 0.8
        assert float(left_out.misfit(trained, wrong)) > good + 0.02


def test_the_known_noise_is_the_posteriors_and_not_the_judges() -> None:
    trained = network()
    _, right, raw = left(box())
    _, off, _ = left(box(), known=2.0)
    # which voxels are tissue is seen with the noise that is known, so that a few differ
    both = [torch.isin(a.judged, b.judged) for a, b in ((right, off), (off, right))]
    residuals, means = (
        [of(one)[:, where] for one, where in zip((right, off), both, strict=True)]
        for of in (
            lambda one: one.residuals(torch.zeros(7, len(one.judged))),
            lambda one: one.posterior_mean(trained, raw),
        )
    )
    torch.testing.assert_close(*residuals)
    assert not torch.allclose(*means, atol=1e-3)


def test_a_box_of_air_is_judged_as_nothing() -> None:
    one = box()
    corner = one.place[-3:]
    _, left_out, raw = left(Box(one.signal[:, -3:], one.sigma[-3:], corner, EDGE))
    assert float(left_out.misfit(network(), raw)) == 0


@pytest.mark.parametrize("model", [DTI(), DKI()])
def test_means_over_directions_are_not_judged(model: DTI | DKI) -> None:
    orders = coordinates_of(model).orders
    size = sum(orders)
    change, triangle, weights, b0 = judged_channels(orders).split(
        [size, size * (size + 1) // 2, WEIGHTS // 2, WEIGHTS // 2]
    )
    means = sum(count == 1 for count in orders)
    assert int(change.sum()) == int(triangle.sum()) == size - means
    assert not change[0]
    assert not change[-1]
    assert weights.all()
    assert not b0.any()
