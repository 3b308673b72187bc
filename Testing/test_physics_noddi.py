"""NODDI's signal against integrals over the sphere, its derivatives, its frame and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import NODDI
from DiffusionFMLib.physics.noddi import FREE, PARALLEL, kappa_of
from DiffusionFMLib.physics.watson import degree_for, stick_coefficients, watson_coefficients
from DiffusionFMLib.simulation.scanner import gradient_table

ODIS = [0.01, 0.05, 0.2, 0.5, 0.8, 0.95]
GTAB = gradient_table(((700.0, 8), (2000.0, 12)), 2)


def parameters(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=(count, 3))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    rest = rng.uniform([0.05, 0.02, 0.0, 3.0], [0.95, 0.95, 0.9, 6.0], (count, 4))
    return torch.as_tensor(np.column_stack([mu, rest]))


def fan(mu: np.ndarray, odi: float) -> tuple[np.ndarray, np.ndarray]:
    """Directions, shape (M, 3), and weights of a Watson distribution: a product rule over the whole sphere."""
    cosines, weights = np.polynomial.legendre.leggauss(300)
    angles = np.arange(240) * 2 * np.pi / 240
    across = np.cross(mu, [0.31, 0.52, 0.79])
    across /= np.linalg.norm(across)
    beside = np.cross(mu, across)
    ring = np.cos(angles)[:, None] * across + np.sin(angles)[:, None] * beside
    points = cosines[:, None, None] * mu + np.sqrt(1 - cosines**2)[:, None, None] * ring
    kappa = 1 / np.tan(odi * np.pi / 2)
    density = np.repeat(np.exp(kappa * (cosines**2 - 1)) * weights, len(angles))
    return points.reshape(-1, 3), density / density.sum()


def brute_force(theta: np.ndarray, gtab: GradientTable) -> np.ndarray:
    """The model's definition, integrated numerically."""
    mu, (ndi, odi, fwf, ln_s0) = theta[:3], theta[3:]
    sticks, weights = fan(mu, odi)
    b = gtab.bvals / 1000
    inside = np.exp(-b * PARALLEL * (sticks @ gtab.bvecs.T) ** 2).T @ weights
    tau = weights @ (sticks @ mu) ** 2
    parallel, radial = PARALLEL * (1 - ndi * (1 - tau)), PARALLEL * (1 - ndi * (1 + tau) / 2)
    outside = np.exp(-b * (radial + (parallel - radial) * (gtab.bvecs @ mu) ** 2))
    return np.exp(ln_s0) * ((1 - fwf) * (ndi * inside + (1 - ndi) * outside) + fwf * np.exp(-b * FREE))


@pytest.mark.parametrize("b", [0.3, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("odi", ODIS)
def test_sticks_are_the_integral_over_the_fan(b, odi):
    mu = np.array([0.0, 0.0, 1.0])
    cosines = np.linspace(0, 1, 21)
    gradients = np.column_stack([np.sqrt(1 - cosines**2), np.zeros(21), cosines])
    sticks, weights = fan(mu, odi)
    expected = np.exp(-b * PARALLEL * (sticks @ gradients.T) ** 2).T @ weights
    l_max = degree_for(b)
    watson = watson_coefficients(kappa_of(torch.tensor(odi).double()), l_max).numpy()
    signal = stick_coefficients(np.array([b * PARALLEL]), l_max)[0]
    polynomials = [np.polynomial.legendre.legval(cosines, np.eye(l_max + 1)[n]) for n in range(0, l_max + 1, 2)]
    np.testing.assert_allclose((watson * signal) @ polynomials, expected, atol=1e-5)


def test_signal_is_the_definition_integrated():
    theta = parameters(20)
    found = NODDI().signal(theta, GTAB).numpy()
    expected = np.stack([brute_force(row, GTAB) for row in theta.numpy()])
    np.testing.assert_allclose(found / expected, 1, atol=2e-5)


def test_derivatives():
    theta = parameters(4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: NODDI().signal(t, GTAB), theta)
    assert torch.autograd.gradcheck(lambda t: tuple(NODDI().maps(t).values()), theta)


def test_turning_brain_and_gradients_together_changes_nothing():
    turn = Rotation.from_rotvec([0.7, -1.1, 0.4]).as_matrix()
    theta = parameters(10)
    turned = theta.clone()
    turned[:, :3] = theta[:, :3] @ torch.as_tensor(turn).T
    gtab = GradientTable(GTAB.bvals, GTAB.bvecs @ turn.T)
    torch.testing.assert_close(NODDI().signal(turned, gtab), NODDI().signal(theta, GTAB), rtol=1e-10, atol=0)


def test_opposite_and_longer_directions_are_the_same():
    theta = parameters(10)
    other = theta.clone()
    other[:, :3] *= -2.5
    torch.testing.assert_close(NODDI().signal(other, GTAB), NODDI().signal(theta, GTAB))


def test_without_weighting_it_is_s0():
    theta = parameters(10)
    signal = NODDI().signal(theta, GTAB)[:, GTAB.b0_mask]
    torch.testing.assert_close(signal, theta[:, 6:].exp().expand(-1, 2))


def test_float32_is_close():
    theta = parameters(200)
    exact, found = NODDI().signal(theta, GTAB), NODDI().signal(theta.float(), GTAB)
    assert float((found / exact - 1).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("shells", "n_b0", "reason"),
    [
        (((1000.0, 30),), 1, "two b-values"),
        (((1000.0, 20), (1200.0, 20)), 1, "two b-values"),
        (((1000.0, 3), (2000.0, 2)), 1, "6"),
        (((1000.0, 30), (2000.0, 30)), 0, "a b0"),
    ],
)
def test_what_cannot_feed_it_is_refused_with_the_reason(shells, n_b0, reason):
    assert reason in NODDI().unsupported(gradient_table(shells, n_b0))


def test_sparse_two_shell_scan_will_do():
    assert NODDI().unsupported(gradient_table(((1000.0, 6), (2000.0, 6)), 1)) is None
