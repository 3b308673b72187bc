"""The prior's view of the neighbourhood: pooled information, and what any network's output stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from DiffusionFMLib.prior.estimate import BoxView
from DiffusionFMLib.prior.information import LOOK_LEVELS, FrontEnd, Information
from DiffusionFMLib.prior.neighbourhood import (
    B0_ROWS,
    LOG_WEIGHT_RANGE,
    PASSES,
    SHIFTS,
    START_WEIGHTS,
    WEIGHTS,
    Lattice,
    Neighbourhood,
    Surroundings,
    network_input,
    rows_of,
)
from DiffusionFMLib.prior.neighbourhood import VOXELS as VOXELS_EACH
from DiffusionFMLib.prior.network import (
    CONDITIONS,
    LOG_PRECISION_RANGE,
    STIFFNESS,
    NetworkShape,
    PriorNetwork,
    conditions,
)
from DiffusionFMLib.prior.systems import add_diagonal, inverse, pack, solve, unpack

P, PACKED = 7, 28
SHAPE = (6, 5, 4)
VOXELS = 120
CHANNELS = 3 * P + PACKED


def information(seed: int = 0) -> Information:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(P, P, VOXELS, generator=generator, dtype=torch.float64)
    vector = torch.randn(P, VOXELS, generator=generator, dtype=torch.float64)
    return Information(pack(torch.einsum("ikv,jkv->ijv", half, half)), vector)


def network(seed: int = 0, levels: int = 2) -> PriorNetwork:
    torch.manual_seed(seed)
    made = PriorNetwork(NetworkShape(P, 16, levels, 1)).eval()
    with torch.no_grad():
        made.head.weight.normal_(std=0.3)
        made.linear.weight.normal_(std=0.1)
    return made


def b0_part(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    precision = torch.rand(1, VOXELS, generator=generator, dtype=torch.float64)
    return torch.cat([precision, torch.randn(1, VOXELS, generator=generator, dtype=torch.float64)])


def rows(data: Information) -> torch.Tensor:
    return torch.cat([data.precision, data.vector]).reshape(-1, *SHAPE)


def ridge(sums: torch.Tensor) -> torch.Tensor:
    sums = sums.reshape(len(sums), -1)
    return solve(add_diagonal(sums[:PACKED], 1.0), sums[PACKED:])


EVERYWHERE = torch.ones(VOXELS, dtype=torch.bool)


def test_neighbourhoods_are_binomial_filters_of_the_information() -> None:
    neighbourhood = Neighbourhood.of(information(), b0_part(), SHAPE, EVERYWHERE)
    expected = []
    for passes, voxels in zip(PASSES, VOXELS_EACH, strict=True):
        sums = rows(information()).numpy()
        for axis in (1, 2, 3) * passes:
            sums = ndimage.correlate1d(sums, np.array([0.25, 0.5, 0.25]), axis=axis, mode="constant")
        expected.append(ridge(voxels * torch.as_tensor(sums)))
    torch.testing.assert_close(neighbourhood.estimates(), torch.cat(expected))


def test_weights_join_the_neighbours_that_they_name() -> None:
    """Against a loop over voxels and neighbours."""
    data, generator = information(), torch.Generator().manual_seed(4)
    neighbourhood = Neighbourhood.of(data, b0_part(), SHAPE, EVERYWHERE)
    log_weights = torch.randn(WEIGHTS, *SHAPE, generator=generator, dtype=torch.float64)
    weighted = torch.cat([data.precision, data.vector])
    weighted[[PACKED - 1, -1]] -= b0_part()
    own = torch.cat([weighted, b0_part()]).reshape(-1, *SHAPE)
    wide = torch.cat([neighbourhood.wide[:-2], neighbourhood.wide[-2:]])
    wide[[PACKED - 1, PACKED + P - 1]] -= wide[-2:]
    sums = torch.zeros_like(own)
    for place in np.ndindex(*SHAPE):
        here = (slice(None), *place)
        weights, of_b0 = np.split(np.exp(log_weights[here].numpy()), 2)
        weights = weights * START_WEIGHTS
        for (i, j, k), weight, factor in zip(SHIFTS, weights, of_b0, strict=False):
            other = np.add(place, (i, j, k))
            if (other >= 0).all() and (other < SHAPE).all():
                sums[here][:-2] += weight * own[(slice(None), *other)][:-2]
                sums[here][-2:] += weight * factor * own[(slice(None), *other)][-2:]
        sums[here][:-2] += weights[-1] * wide[here][:-2]
        sums[here][-2:] += weights[-1] * of_b0[-1] * wide[here][-2:]
    sums[[PACKED - 1, PACKED + P - 1]] += sums[-2:]
    sums = sums[:-2]
    torch.testing.assert_close(neighbourhood.weighed(log_weights), ridge(sums))


def test_the_weights_have_the_right_derivatives() -> None:
    data, generator = information(), torch.Generator().manual_seed(5)
    shape = (3, 2, 2)
    part = Information(data.precision[:, :12], data.vector[:, :12])
    neighbourhood = Neighbourhood.of(part, b0_part()[:, :12], shape, EVERYWHERE[:12])
    log_weights = torch.randn(WEIGHTS, *shape, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(neighbourhood.weighed, log_weights.requires_grad_())


def test_a_lonely_voxel_speaks_for_itself() -> None:
    """Neighbours add to what a voxel knows, and take nothing away: without them it is the ridge estimate."""
    data, alone = information(), torch.zeros(VOXELS, dtype=torch.bool)
    alone[47] = True
    neighbourhood = Neighbourhood.of(data, b0_part(), SHAPE, alone)
    log_weights = torch.zeros(WEIGHTS, *SHAPE, dtype=torch.float64)
    log_weights[len(START_WEIGHTS) - 1] = LOG_WEIGHT_RANGE[0]
    expected = ridge(rows(data))[:, 47]
    torch.testing.assert_close(neighbourhood.estimates()[:P, 47], expected)
    torch.testing.assert_close(neighbourhood.weighed(log_weights)[:, 47], expected, rtol=1e-3, atol=1e-3)


def test_nothing_comes_in_from_outside_the_brain() -> None:
    data, mask = information(), torch.ones(VOXELS, dtype=torch.bool)
    mask[::3] = False
    wild = torch.where(mask, 1.0, 1e6).double()
    front = FrontEnd(data.vector, inverse(add_diagonal(data.precision, 1.0)), b0_part())
    one = network_input(front, Neighbourhood.of(data, b0_part(), SHAPE, mask), mask)
    outside = Information(data.precision, data.vector * wild)
    other = network_input(
        FrontEnd(front.mean * wild, front.covariance, front.b0),
        Neighbourhood.of(outside, b0_part() * wild, SHAPE, mask),
        mask,
    )
    assert one.shape == (CHANNELS, *SHAPE)
    torch.testing.assert_close(other, one)
    assert not one.reshape(CHANNELS, -1)[:, ~mask].any()


@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_whatever_the_output_the_prior_is_a_gaussian(size: float) -> None:
    raw = size * torch.randn(P + PACKED, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior = network().local_prior(raw[:P], raw[P:])
    dense = unpack(prior.precision).permute(2, 0, 1)
    assert float(torch.linalg.eigvalsh(dense).min()) > 0
    # determinant of a unit triangle is one: without what stiffens it the diagonal alone decides
    diagonal = dense.diagonal(dim1=1, dim2=2)
    bare = dense - torch.diag_embed(diagonal * STIFFNESS / (1 + STIFFNESS))
    logs = (raw[P:][[0, 7, 13, 18, 22, 25, 27]] + 3.5).clamp(*LOG_PRECISION_RANGE).sum(0)
    if size < 10:
        torch.testing.assert_close(torch.logdet(bare), logs, rtol=1e-6, atol=1e-4)
    assert torch.isfinite(prior.information().vector).all()
    torch.testing.assert_close(prior.mean, raw[:P])


def test_a_crop_and_the_whole_volume_agree() -> None:
    """No statistics of the volume come in: away from its border a crop gives what the whole gives."""
    made = network(levels=1)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1, CHANNELS, 40, 24, 24, generator=generator)
    mask, told = torch.ones(1, 1, 40, 24, 24), torch.randn(1, CONDITIONS, generator=generator)
    with torch.no_grad():
        whole = made(features, mask, told)
        crop = made(features[:, :, :32], mask[:, :, :32], told)
    torch.testing.assert_close(crop[:, :, :16], whole[:, :, :16], rtol=0, atol=1e-4)
    assert not torch.allclose(crop[:, :, 31:], whole[:, :, 31:32], atol=1e-3)


def test_voxels_in_a_list_get_what_those_of_a_volume_get() -> None:
    """Of a brain with holes, up to the faces of the scan; also voxels that lie alone."""
    made = network().double()
    generator = torch.Generator().manual_seed(4)
    brain = torch.rand(7, 6, 5, generator=generator) < 0.6
    brain[5] = False
    with torch.no_grad():
        made.linear.bias.normal_(generator=generator)
        made.stem.bias.normal_(generator=generator)
    lattice = Lattice.within(brain.numpy(), 1, made.shape.multiple, torch.device("cpu"))
    count = len(lattice.place)
    first, spread = (torch.randn(rows, count, generator=generator, dtype=torch.float64) for rows in (P, PACKED))
    half = torch.randn(P, P, count, generator=generator, dtype=torch.float64)
    data = Information(pack(torch.einsum("ikv,jkv->ijv", half, half)), torch.randn(P, count, dtype=torch.float64))
    own = rows_of(data, torch.rand(B0_ROWS, count, generator=generator, dtype=torch.float64))
    told = torch.randn(1, CONDITIONS, generator=generator, dtype=torch.float64)

    view = BoxView.of(torch.cat([first, spread, own]), lattice.place, lattice.shape, P)
    with torch.no_grad():
        raw = made(view.features, view.brain, told)[0]
        mean, triangle = made.mean(raw, view.neighbourhood, lattice.place), made.triangle(raw, lattice.place)
        surroundings, estimates = Surroundings.of(own, lattice)
        estimates = torch.cat([first, estimates])
        hidden = made.hidden(estimates, spread, lattice, told)
        for voxels in (slice(0, 50), slice(50, count)):
            part = made.raw(hidden, estimates, lattice, voxels)
            torch.testing.assert_close(made.mean_of(part, surroundings, voxels), mean[:, voxels])
            torch.testing.assert_close(made.triangle(part), triangle[:, voxels])
    assert float(mean.std()) > 0.1
    assert float(triangle.std()) > 0.1


def test_the_network_heeds_what_it_is_told_of_the_scan() -> None:
    made = network()
    with torch.no_grad():
        for stage in made.down:
            for block in stage.blocks:
                block.modulate.weight.normal_(std=0.1)
        features, mask = torch.randn(2, CHANNELS, 8, 8, 8), torch.ones(2, 1, 8, 8, 8)
        features[1] = features[0]
        told = conditions(
            torch.tensor([[2.0, 2.0, 2.0], [1.0, 1.0, 3.0]]),
            torch.tensor([[0.0] * 3, [0.5] * 3]),
            torch.tensor([0.05, 0.2]),
            torch.tensor([torch.inf, torch.inf]),
        )
        raw = made(features, mask, told)
    assert told.shape == (2, CONDITIONS)
    assert float((raw[0] - raw[1]).abs().max()) > 0.01


def test_no_look_is_told_as_one_that_shows_nothing() -> None:
    scan = torch.full((4, 3), 2.0), torch.zeros(4, 3), torch.full((4,), 0.05)
    told = conditions(*scan, torch.tensor([torch.inf, *LOOK_LEVELS[::-1], 1.0]))
    assert torch.equal(told[0], told[1])
    assert float(told[0, -1]) == 0
    assert float(told[2, -1]) > float(told[3, -1]) > 0
