"""The numbers that the prior is judged by, where their answer is known, and the simulated scans it is judged on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from Evaluation.scores import auc, coverage, coverage_by_sd, detected, lumps, recovery, rmse, spearman
from Evaluation.simulated_scans import EDGE, GAP, PATHOLOGIES, Head, Scan, protocol

from DiffusionFMLib.physics import DKI, DTI
from DiffusionFMLib.simulation.scanner import repelled_directions
from DiffusionFMLib.training.anatomies import FIELDS, Anatomy, random_phantom
from DiffusionFMLib.training.protocols import Protocol


@pytest.fixture(scope="module")
def head() -> Head:
    return Head.of(random_phantom(1004), 0)


def uniform_head(**weights: float) -> Head:
    """All voxels alike, fibres along x, in voxels of 2 mm."""
    fields = np.zeros((len(FIELDS), 12, 12, 12), np.float16)
    for name, weight in {"x1": 1.0, "x2": 1.0, "spread1": 0.05, "spread2": 0.05, **weights}.items():
        fields[FIELDS.index(name)] = weight
    return Head.of(Anatomy(fields, np.full(3, 2.0)), 0)


def test_coverage_counts_errors_within_the_interval() -> None:
    # the 50 % interval of a standard normal ends at 0.674, the 90 % one at 1.645
    error = np.array([0.0, 0.6, -0.6, 0.7, -1.6, 1.7, 3.0, -3.0])
    assert coverage(error, np.ones(8), 0.5) == 3 / 8
    assert coverage(error, np.ones(8), 0.9) == 5 / 8
    assert coverage(error, np.full(8, 2.0), 0.9) == 1.0
    assert coverage(error * 2, np.full(8, 2.0), 0.5) == 3 / 8


def test_coverage_of_right_intervals_is_their_share_in_each_group() -> None:
    rng = np.random.default_rng(0)
    sd = rng.uniform(0.1, 3, 40_000)
    error = rng.normal(0, sd)
    np.testing.assert_allclose(coverage_by_sd(error, sd, 0.9), 0.9, atol=0.02)
    # too narrow where it is small
    parts = coverage_by_sd(error, np.where(sd < 1, sd / 3, sd), 0.9)
    assert parts[0] < 0.5
    assert parts[-1] == pytest.approx(0.9, abs=0.02)


def test_recovery_is_the_share_of_a_change_that_was_found() -> None:
    true = np.array([0.5, -0.5, 1.0, 0.0])
    assert recovery(true, true) == 1.0
    assert recovery(0.4 * true, true) == pytest.approx(0.4)
    assert recovery(np.zeros(4), true) == 0.0
    assert recovery(-true, true) == -1.0
    # what is found where nothing changed is no part of it
    assert recovery(true + [0, 0, 0, 7.0], true) == 1.0


def test_auc_is_the_chance_of_the_right_order() -> None:
    normal = np.array([1.0, 2.0, 3.0, 4.0])
    assert auc(np.array([5.0, 6.0]), normal) == 1.0
    assert auc(np.array([0.0]), normal) == 0.0
    assert auc(np.array([2.5]), normal) == 0.5
    assert auc(np.array([3.0]), normal) == 2.5 / 4
    rng = np.random.default_rng(1)
    # of two normal distributions one sd apart: Phi(1 / sqrt(2))
    assert auc(rng.normal(1, 1, 20_000), rng.normal(0, 1, 20_000)) == pytest.approx(0.7602, abs=0.01)


def test_detection_is_counted_at_a_limit_that_few_normal_voxels_exceed() -> None:
    normal = np.arange(1001) / 1000
    limit, share = detected(np.array([0.5, 0.94, 0.96, 2.0]), normal, 0.05)
    assert limit == pytest.approx(0.95)
    assert share == 0.5


def test_lumps_are_connected_and_large() -> None:
    flagged = np.zeros((20, 20, 20), bool)
    grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"), axis=-1) * 2.0
    flagged |= np.linalg.norm(grid - 12, axis=-1) <= 4.1
    assert lumps(flagged, np.full(3, 2.0), 6.0) == 1
    assert lumps(flagged, np.full(3, 2.0), 12.0) == 0
    # as many voxels, none beside another
    scattered = np.zeros_like(flagged)
    scattered[::2, ::2, ::2] = True
    assert scattered.sum() > flagged.sum()
    assert lumps(scattered, np.full(3, 2.0), 6.0) == 0


def test_simple_scores() -> None:
    assert rmse(np.array([3.0, -4.0, 0.0, 0.0])) == 2.5
    assert spearman(np.array([1.0, 2.0, 30.0]), np.array([0.1, 5.0, 6.0])) == 1.0
    assert spearman(np.array([1.0, 2.0, 30.0]), np.array([9.0, 5.0, 1.0])) == -1.0


def test_lesions_are_as_large_and_as_far_apart_as_asked(head: Head) -> None:
    wanted = [(name, size) for name in PATHOLOGIES for size in (4.0, 10.0)]
    ill = head.with_lesions(wanted, 3)
    assert sorted((lesion.pathology, lesion.diameter) for lesion in ill.lesions) == sorted(wanted)
    edge = head.voxel_sizes[0]
    grid = np.stack(np.unravel_index(np.arange(EDGE**3), head.shape), axis=1) * edge
    for lesion in ill.lesions:
        # balls at the box's border are cut
        assert len(lesion.voxels) * edge**3 <= 1.6 * np.pi / 6 * lesion.diameter**3
        others = np.concatenate([other.voxels for other in ill.lesions if other is not lesion])
        apart = np.linalg.norm(grid[lesion.voxels][:, None] - grid[others][None, ::7], axis=-1)
        assert apart.min() > GAP - 1.5 * edge
    everywhere = np.concatenate([lesion.voxels for lesion in ill.lesions])
    assert not ill.healthy[everywhere].any()
    assert head.healthy.sum() > ill.healthy.sum() > 0.5 * head.healthy.sum()


def test_lesions_change_what_they_should_and_nothing_else(head: Head) -> None:
    how = protocol(12, 20.0)
    ill = head.with_lesions([(name, 10.0) for name in PATHOLOGIES], 3)
    before, after = (Scan.of(one, how, 5) for one in (head, ill))
    far = ill.healthy[ill.mask.ravel()]
    # the same noise, wherever the head is the same
    np.testing.assert_array_equal(
        before.acquisition.signal[before.mask][far], after.acquisition.signal[after.mask][far]
    )
    np.testing.assert_allclose(before.theta[:, far], after.theta[:, far], atol=1e-6)
    index = np.cumsum(ill.mask.ravel()) - 1
    md = [scan.theta[[0, 3, 5]].mean(0) for scan in (before, after)]
    change = {one.pathology: (md[1] - md[0])[index[one.voxels]].mean() for one in ill.lesions}
    assert change["oedema"] > 0.3
    assert change["cavity"] > 0.8
    assert change["infarct"] < -0.2
    assert 0.02 < change["demyelination"] < 0.3


def test_truth_of_uniform_tissue() -> None:
    how = protocol(30, 20.0)
    water = Scan.of(uniform_head(fluid=1.0), how, 0)
    diffusivity = uniform_head(fluid=1.0).contents.properties.fluid
    np.testing.assert_allclose(water.theta[[0, 3, 5]], diffusivity, rtol=2e-3)
    np.testing.assert_allclose(water.theta[[1, 2, 4]], 0, atol=2e-3)
    fibres = Scan.of(uniform_head(fibre1=1.0), how, 0)
    evals, evecs = np.linalg.eigh(fibres.theta[np.array([[0, 1, 2], [1, 3, 4], [2, 4, 5]])].transpose(2, 0, 1))
    assert np.abs(evecs[:, 0, 2]).min() > 0.999
    fa = DTI().maps(torch.as_tensor(fibres.theta.T))["fa"]
    assert float(fa.min()) > 0.3
    # the noise is as told
    one, other = (Scan.of(uniform_head(fluid=1.0), how, seed).acquisition.signal[..., 0] for seed in (0, 1))
    assert (one - other).std() / 2**0.5 == pytest.approx(1 / 20, rel=0.05)
    assert water.sigma == pytest.approx(1 / 20)


def test_truth_of_kurtosis_is_that_of_signals_without_noise() -> None:
    first = repelled_directions(12)
    bvecs = np.vstack([np.zeros((1, 3)), first[::2], first[1::2]])
    how = Protocol(np.repeat([0.0, 1000, 2000], [1, 6, 6]), bvecs, 1e-6, np.zeros(3))
    water, fibres = (Scan.of(uniform_head(**{tissue: 1.0}), how, 0, DKI()) for tissue in ("fluid", "fibre1"))
    # in fluid nothing is left at b = 2000 to tell kurtosis from
    np.testing.assert_allclose(water.theta[[0, 3, 5]], uniform_head(fluid=1.0).contents.properties.fluid, rtol=0.02)
    gtab = fibres.acquisition.gtab
    predicted = DKI().signal(torch.as_tensor(fibres.theta.T), gtab).numpy()
    np.testing.assert_allclose(predicted, fibres.acquisition.signal[fibres.mask], atol=0.02)
    tensor = Scan.of(uniform_head(fibre1=1.0), how, 0)
    worse = DTI().signal(torch.as_tensor(tensor.theta.T), gtab).numpy() - fibres.acquisition.signal[fibres.mask]
    assert np.abs(worse).max() > 0.03
