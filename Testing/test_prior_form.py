"""The prior without weights: what the data say, the solve that joins it with a prior, and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import exp1
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, MODELS
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX, spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.prior.information import Information, Measurements, exponential_integral, front_end
from DiffusionFMLib.prior.posterior import posterior
from DiffusionFMLib.prior.systems import add_diagonal, inverse, log_determinant, multiply, pack, solve, unpack
from DiffusionFMLib.settings import FitSettings

COORDINATES = coordinates_of(DTI())
P, PACKED = 7, 28


def table(count: int, n_b0: int = 1, bval: float = 1000.0) -> GradientTable:
    bvecs = np.concatenate([np.zeros((n_b0, 3)), spread_directions(count)])
    return GradientTable(np.r_[np.zeros(n_b0), np.full(count, bval)], bvecs)


def tensors(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Parameters of white matter in random directions, shape (7, V)."""
    rng = np.random.default_rng(seed)
    axes = Rotation.random(count, rng=rng).as_matrix()
    evals = rng.uniform([1.2, 0.3, 0.2], [1.8, 0.6, 0.5], (count, 3))
    matrices = np.einsum("vij,vj,vkj->vik", axes, evals, axes)
    rows, columns = np.triu_indices(3)
    return np.concatenate([matrices[:, rows, columns].T, rng.normal(0, 0.2, (1, count))])


def scan(theta: NDArray[np.float64], gtab: GradientTable, sigma: float, seed: int = 0) -> Tensor:
    """Noisy signal, shape (N, V), float64."""
    clean = torch.as_tensor(np.exp(DTI().design(gtab) @ theta))
    generator = torch.Generator().manual_seed(seed)
    return RicianNoise().sample(clean, torch.tensor(sigma, dtype=torch.float64), generator)


def measure(signal: Tensor, gtab: GradientTable, sigma: float) -> Measurements:
    design = WhitenedDesign.of(DTI(), gtab, COORDINATES, dtype=torch.float64)
    return Measurements(signal, design, torch.tensor(sigma, dtype=torch.float64))


def test_b0_volumes_say_what_they_say_without_the_others() -> None:
    gtab = table(9, n_b0=3)
    signal, few = scan(tensors(60), gtab, 0.06), GradientTable(np.zeros(3), np.zeros((3, 3)))
    front, _ = front_end(measure(signal, gtab, 0.06))
    alone = measure(signal[:3], few, 0.06).around(front.mean)
    torch.testing.assert_close(front.b0, torch.stack([alone.precision[-1], alone.vector[-1]]))
    # and of nothing but ln S0
    assert not alone.precision[:-1].any()
    assert not alone.vector[:-1].any()


def unit_prior(voxels: int, precision: float = 1.0) -> Information:
    nothing = torch.zeros(PACKED, voxels, dtype=torch.float64)
    return Information(add_diagonal(nothing, precision), torch.zeros(P, voxels, dtype=torch.float64))


def join(signal: Tensor, gtab: GradientTable, sigma: float, prior: Information):
    measurements = measure(signal, gtab, sigma)
    return posterior(prior, [measurements], [front_end(measurements)[1]])


def normal(voxels: int, seed: int = 1) -> Tensor:
    return torch.randn(P, voxels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive_definite(voxels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(P, P, voxels, generator=generator, dtype=torch.float64)
    return torch.einsum("ikv,jkv->ijv", half, half) + 0.5 * torch.eye(P, dtype=torch.float64)[..., None]


def test_packed_systems_agree_with_dense_algebra() -> None:
    dense = positive_definite(5)
    packed, vector = pack(dense), normal(5)
    torch.testing.assert_close(unpack(packed), dense)
    torch.testing.assert_close(multiply(packed, vector), torch.einsum("ijv,jv->iv", dense, vector))
    batched = dense.permute(2, 0, 1)
    torch.testing.assert_close(solve(packed, vector), torch.linalg.solve(batched, vector.T).T)
    torch.testing.assert_close(unpack(inverse(packed)).permute(2, 0, 1), torch.linalg.inv(batched))
    torch.testing.assert_close(log_determinant(packed), torch.logdet(batched))


def test_derivatives_of_packed_systems() -> None:
    packed = pack(positive_definite(3)).requires_grad_()
    rhs = normal(3).requires_grad_()
    assert torch.autograd.gradcheck(solve, (packed, rhs))
    assert torch.autograd.gradcheck(log_determinant, (packed,))


def test_posterior_is_differentiable_by_the_prior() -> None:
    gtab, theta = table(6), tensors(4)
    measurements = measure(scan(theta, gtab, 0.05), gtab, 0.05)
    data = measurements.around(torch.zeros(P, 4, dtype=torch.float64))
    truth = COORDINATES.whiten(torch.as_tensor(theta))

    # weights follow the prior too, but derivatives leave that out: so they are held still
    class Still:
        def around(self, u: Tensor) -> Information:
            return data

    def loss(precision: Tensor, vector: Tensor) -> Tensor:
        result = posterior(Information(precision, vector), [Still()], [data])
        return (result.mean - truth).square().sum(0) + 0.1 * result.log_prob(truth)

    precision = pack(positive_definite(4)).requires_grad_()
    vector = normal(4).requires_grad_()
    assert torch.autograd.gradcheck(loss, (precision, vector))


def test_exponential_integral_is_that_of_scipy() -> None:
    x = torch.as_tensor(np.geomspace(1e-6, 60, 500))
    np.testing.assert_allclose(exponential_integral(x, (-x).exp()).numpy(), exp1(x.numpy()), atol=2e-3)


def test_whitened_coordinates_are_those_of_the_model() -> None:
    theta, gtab = torch.as_tensor(tensors(6)), table(12)
    u = COORDINATES.whiten(theta)
    torch.testing.assert_close(COORDINATES.theta(u), theta)
    design = WhitenedDesign.of(DTI(), gtab, COORDINATES, dtype=torch.float64)
    torch.testing.assert_close(design.log_signal(u).exp(), DTI().signal(theta.T, gtab).T)


def turn(rotation: NDArray[np.float64], theta: NDArray[np.float64]) -> NDArray[np.float64]:
    matrices = np.einsum("ij,jkv,lk->ilv", rotation, theta[np.array(AS_MATRIX)], rotation)
    return np.concatenate([matrices[np.triu_indices(3)], theta[6:]])


@pytest.mark.parametrize("mirror", [1, -1], ids=["rotation", "reflection"])
def test_turning_gradients_turns_the_form_without_stretching_it(mirror: int) -> None:
    rotation = mirror * Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    gtab, theta = table(9), tensors(5)
    # in whitened coordinates, a rotation is orthogonal: the unit prior looks the same from everywhere
    basis = np.eye(7)
    turned = COORDINATES.theta(torch.as_tensor(basis)).numpy()
    matrix = COORDINATES.whiten(torch.as_tensor(turn(rotation, turned))).numpy()
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(7), atol=1e-12)

    signal = scan(theta, gtab, 0.05)
    one, other = (front_end(measure(signal, g, 0.05)) for g in (gtab, gtab.rotated(rotation)))
    q = torch.as_tensor(matrix)
    torch.testing.assert_close(other[0].mean, q @ one[0].mean)
    expected = torch.einsum("ij,jkv,lk->ilv", q, unpack(one[1].precision), q)
    torch.testing.assert_close(unpack(other[1].precision), expected)
    torch.testing.assert_close(other[1].vector, q @ one[1].vector)


def test_with_many_volumes_it_tends_to_weighted_least_squares() -> None:
    theta, sigma = tensors(300), 0.02
    distance, fraction = [], []
    for count in (6, 30, 300):
        gtab = table(count, n_b0=max(1, count // 10))
        signal = scan(theta, gtab, sigma)
        acquisition = Acquisition(signal.T.reshape(10, 10, 3, -1).float().numpy(), np.eye(4), gtab)
        wls = fit(acquisition, MODELS["dti"], FitSettings(reweightings=3), SilentReport()).parameters.T
        result = join(signal, gtab, sigma, unit_prior(300, 4.0))
        apart = COORDINATES.whiten(torch.as_tensor(wls).double()) - result.mean
        distance.append(float(apart.square().mean().sqrt()))
        fraction.append(float(result.data_fraction().mean()))
    assert distance[2] < 0.01
    assert distance[0] > 10 * distance[2]
    assert fraction == sorted(fraction)
    assert 0.99 < fraction[2] < 1


def test_data_enter_once() -> None:
    """Two halves of a scan, the first as the prior of the second, make the whole: nothing is counted twice."""
    gtab, theta, sigma = table(20, n_b0=2), tensors(50), 0.02
    signal = scan(theta, gtab, sigma)
    prior = unit_prior(50, 2.0)
    whole = join(signal, gtab, sigma, prior)
    halves = [np.r_[0, 2:22:2], np.r_[1, 3:22:2]]
    informations = [measure(signal[half], gtab.subset(half), sigma).around(whole.mean) for half in halves]
    total = informations[0] + informations[1] + prior
    torch.testing.assert_close(solve(total.precision, total.vector), whole.mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(total.precision, whole.precision, rtol=0.02, atol=1.0)


def test_without_data_the_prior_is_the_answer() -> None:
    gtab, theta = table(6), tensors(8)
    mean = normal(8)
    precision = pack(positive_definite(8))
    result = join(scan(theta, gtab, 0.05), gtab, 1e4, Information(precision, multiply(precision, mean)))
    torch.testing.assert_close(result.mean, mean, rtol=0, atol=0.05)
    assert float(result.data_fraction().max()) < 0.02


def test_intervals_hold_what_they_promise() -> None:
    """With a prior that is true, the posterior's covariance is that of its errors."""
    count, sigma, gtab = 4000, 0.06, table(8)
    generator = torch.Generator().manual_seed(3)
    truth = 0.5 * torch.randn(P, count, generator=generator, dtype=torch.float64)
    signal = scan(COORDINATES.theta(truth).numpy(), gtab, sigma, seed=4)
    result = join(signal, gtab, sigma, unit_prior(count, 4.0))
    for k in range(P):
        direction = torch.eye(P, dtype=torch.float64)[k]
        z = (result.mean - truth)[k] / result.sd(direction)
        assert 0.9 < float(z.std()) < 1.1
        assert abs(float((z.abs() < 0.6745).double().mean()) - 0.5) < 0.05
    assert float(result.log_prob(truth).mean()) > float(result.log_prob(truth + 0.3).mean())


def test_noise_floor_does_not_bias_as_the_bare_logarithm_does() -> None:
    """At SNR 2 in the weighted volumes many repeats still find the truth: the Rician floor is in the form."""
    theta = np.repeat(tensors(1, seed=5), 200, axis=1)
    theta[6] = 0
    sigma, gtab = 0.12, table(240, n_b0=20, bval=2000.0)
    signal = scan(theta, gtab, sigma)
    md = theta[[0, 3, 5]].mean()
    result = join(signal, gtab, sigma, unit_prior(200, 0.01))
    found = COORDINATES.theta(result.mean)[[0, 3, 5]].mean()
    acquisition = Acquisition(signal.T.reshape(10, 10, 2, -1).float().numpy(), np.eye(4), gtab)
    bare = fit(acquisition, MODELS["dti"], FitSettings(reweightings=3), SilentReport()).maps["md"].data.mean() * 1e3
    assert abs(bare - md) > 0.02
    assert abs(float(found) - md) < 0.4 * abs(bare - md)


def test_three_directions_are_enough_for_the_form() -> None:
    gtab, theta = table(3), tensors(20)
    result = join(scan(theta, gtab, 0.03), gtab, 0.03, unit_prior(20))
    assert torch.isfinite(result.mean).all()
    assert 0.2 < float(result.data_fraction().mean()) < 0.7


def test_broken_voxels_stay_finite() -> None:
    gtab = table(6)
    signal = torch.zeros(7, 3, dtype=torch.float64)
    signal[:, 1] = 1e6
    signal[1:, 2] = 5.0
    result = join(signal, gtab, 0.05, unit_prior(3))
    assert torch.isfinite(result.mean).all()
    assert torch.isfinite(result.covariance()).all()


def test_models_without_a_prior_are_refused() -> None:
    with pytest.raises(SettingsError, match="no prior for"):
        coordinates_of(MODELS["noddi"])
