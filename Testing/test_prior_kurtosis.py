"""The prior for kurtosis, and NODDI that rests on it: against brute force, known tissue and Monte Carlo."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit as conventional_fit
from DiffusionFMLib.fitting.uncertainty import MAX_ERROR
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import with_prior_maps
from DiffusionFMLib.physics import DKI, DTI, MODELS, NODDI, support
from DiffusionFMLib.physics.dki import MAX_KURTOSIS
from DiffusionFMLib.physics.tensor_arrays import QUARTIC, quartic_form, spread_directions
from DiffusionFMLib.prior import estimate
from DiffusionFMLib.prior.coordinates import coordinates_of, quartic_harmonics, turning
from DiffusionFMLib.prior.estimate import PriorEstimate
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.prior.kurtosis import mean_apparent_kurtosis, mean_kurtosis
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.prior.neurites import Neurites, many_directions
from DiffusionFMLib.prior.readout import Readout
from DiffusionFMLib.prior.weights import save_weights
from DiffusionFMLib.settings import FitSettings

SHAPE = (12, 10, 9)


def table(*shells: float, directions: int = 20) -> GradientTable:
    g = spread_directions(directions)
    bvals = np.r_[0.0, np.repeat(shells, len(g))]
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *[g] * len(shells)]))


def neurites(count: int) -> NDArray[np.float32]:
    """NODDI's parameters of tissue, shape (7, V)."""
    rng = np.random.default_rng(0)
    mu = rng.normal(size=(3, count))
    rest = [
        rng.uniform(0.3, 0.8, count),
        rng.uniform(0.05, 0.6, count),
        rng.uniform(0, 0.4, count),
        np.full(count, 6.0),
    ]
    return np.concatenate([mu / np.linalg.norm(mu, axis=0), rest]).astype(np.float32)


def kurtosis_of(theta: NDArray[np.float32], gtab: GradientTable) -> NDArray[np.float32]:
    """The kurtosis fit of NODDI's signals without noise, shape (22, V)."""
    signal = NODDI().signal(torch.from_numpy(theta.T), many_directions(gtab)).numpy()
    scan = Acquisition(signal[:, None, None], np.eye(4), many_directions(gtab))
    return conventional_fit(scan, DKI(), FitSettings(model="dki"), SilentReport()).parameters.T


# --- coordinates -----------------------------------------------------------------------------------------------


def test_harmonics_are_orthonormal_over_the_sphere() -> None:
    cosine, weight = np.polynomial.legendre.leggauss(12)
    angle = np.arange(24) * 2 * np.pi / 24
    z, phi = (part.reshape(-1) for part in np.meshgrid(cosine, angle, indexing="ij"))
    root = np.sqrt(1 - z * z)
    forms = quartic_form(np.stack([root * np.cos(phi), root * np.sin(phi), z], -1)) @ quartic_harmonics()
    mean = np.repeat(weight / 2, 24) / 24
    np.testing.assert_allclose(forms.T @ (mean[:, None] * forms), np.eye(15), atol=1e-12)
    np.testing.assert_allclose(forms[:, 0], 1, atol=1e-12)


@pytest.mark.parametrize("mirror", [1, -1])
def test_turning_is_what_brute_force_does(mirror: int) -> None:
    rotation = mirror * Rotation.random(rng=1).as_matrix()
    rng = np.random.default_rng(0)
    full = rng.normal(size=(3, 3, 3, 3))
    full = np.mean([full.transpose(order) for order in product(range(4), repeat=4) if len(set(order)) == 4], axis=0)
    turned = np.einsum("ijkl,ai,bj,ck,dl->abcd", full, rotation, rotation, rotation, rotation)
    tensor = rng.normal(size=(3, 3))
    tensor = tensor + tensor.T
    places = [tuple("xyz".index(axis) for axis in name) for name in QUARTIC]
    upper = np.triu_indices(3)
    before = np.r_[tensor[upper], [full[place] for place in places], 0.7]
    after = np.r_[(rotation @ tensor @ rotation.T)[upper], [turned[place] for place in places], 0.7]
    np.testing.assert_allclose(turning(DKI(), rotation) @ before, after, atol=1e-10)


@pytest.mark.parametrize("model", [DTI(), DKI()], ids=lambda m: m.name)
def test_turning_mixes_only_coordinates_of_one_harmonic(model) -> None:
    coordinates = coordinates_of(model)
    assert sum(coordinates.orders) == len(coordinates) == len(model.parameters)
    rotation = Rotation.random(rng=3).as_matrix()
    turned = np.linalg.inv(coordinates.basis) @ turning(model, rotation) @ coordinates.basis
    np.testing.assert_allclose(turned @ turned.T, np.eye(len(turned)), atol=1e-9)
    start = 0
    for count in coordinates.orders:
        turned[start : start + count, start : start + count] = 0
        start += count
    np.testing.assert_allclose(turned, 0, atol=1e-9)
    # what is the same in all directions stays as it is
    np.testing.assert_allclose(turning(model, rotation) @ coordinates.mean, coordinates.mean, atol=1e-9)


# --- neurites --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shells", "fwf_error"), [((1000.0, 2000.0), 0.005), ((700.0, 1200.0, 2800.0), 0.01)])
def test_neurites_are_found_in_their_kurtosis(shells: tuple[float, ...], fwf_error: float) -> None:
    theta = neurites(300)
    gtab = table(*shells)
    kurtosis = torch.from_numpy(kurtosis_of(theta, gtab))
    covariance = 1e-6 * torch.eye(22).repeat(300, 1, 1)
    found = Neurites(gtab).find(kurtosis, covariance, SilentReport())[0].numpy()
    ndi, odi, fwf = (np.sqrt(np.mean((found[k] - theta[k]) ** 2)) for k in (3, 4, 5))
    assert ndi < 0.015
    assert odi < 0.02
    assert fwf < fwf_error
    along = np.abs((found[:3] * theta[:3]).sum(0) / np.linalg.norm(found[:3], axis=0))
    assert np.median(along[theta[4] < 0.4]) > 0.999
    np.testing.assert_allclose(found[6], 6.0, atol=0.02)


def test_what_kurtosis_is_unsure_of_neurites_are() -> None:
    """First order, as of an efficient estimate, against the spread of solutions over draws, which is not below it."""
    gtab = table(1000.0, 2000.0)
    theta = neurites(12)
    kurtosis = kurtosis_of(theta, gtab)
    rng = np.random.default_rng(1)
    design = DKI().design(gtab)
    signal = np.exp(design @ kurtosis[:, 0])
    covariance = np.linalg.inv((design * (signal[:, None] / (0.02 * np.exp(6.0))) ** 2).T @ design)
    draws = rng.multivariate_normal(np.zeros(22), covariance, 200).astype(np.float32)
    many = (kurtosis[:, :, None] + draws.T[:, None]).reshape(22, -1)
    neurites_of, given = Neurites(gtab), torch.from_numpy(covariance).repeat(12, 1, 1)
    _, first_order = neurites_of.find(torch.from_numpy(kurtosis), given, SilentReport())
    found, _ = neurites_of.find(torch.from_numpy(many), given.repeat_interleave(200, 0), SilentReport())
    spread = found.numpy().reshape(7, 12, 200).std(-1)
    expected = first_order.diagonal(dim1=1, dim2=2).sqrt().numpy().T
    for parameter in (3, 4, 5, 6):
        assert 0.9 < np.median(spread[parameter] / expected[parameter]) < 2


# --- as a method -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Neighbours joined, nothing learnt."""
    torch.manual_seed(0)
    network = PriorNetwork(NetworkShape(22, 16, 1, 1))
    with torch.no_grad():
        for layer in (network.head, network.linear):
            layer.weight.zero_()
            layer.bias.zero_()
    path = tmp_path_factory.mktemp("weights") / "dki.safetensors"
    save_weights(path, network, DKI(), {"note": "nothing learnt"})
    return path


def sparse_scan() -> tuple[Acquisition, NDArray[np.float32]]:
    """Uniform tissue with two shells of 6 directions and noise, and its NODDI parameters."""
    g = np.concatenate([spread_directions(6), spread_directions(6) @ Rotation.from_rotvec([0.3, 0.5, 0.2]).as_matrix()])
    gtab = GradientTable(np.r_[0, np.repeat([1000.0, 2000.0], 6)], np.r_[np.zeros((1, 3)), g])
    theta = np.array([0.6, 0.0, 0.8, 0.6, 0.15, 0.1, 6.0], np.float32)
    clean = NODDI().signal(torch.from_numpy(theta), gtab).numpy()
    noise = 0.02 * np.exp(6.0) * np.random.default_rng(0).normal(size=(2, *SHAPE, len(gtab)))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    return Acquisition(signal, np.diag([2.0, 2, 2, 1]), gtab, np.ones(SHAPE, bool)), theta


@pytest.mark.parametrize("name", ["dki", "noddi"])
def test_thirteen_volumes_give_all_maps(name: str, weights: Path) -> None:
    scan, theta = sparse_scan()
    settings = FitSettings(model=name, method="prior", weights=str(weights), adaptation="none", device="cpu")
    maps = fit(scan, MODELS[name], settings, SilentReport()).maps
    assert list(maps) == [spec.name for spec in with_prior_maps(MODELS[name].map_specs)]
    assert all(np.isfinite(image.data).all() for image in maps.values())
    inner = (slice(2, -2),) * 3
    if name == "noddi":
        for parameter, index, bound in (("ndi", 3, 0.08), ("odi", 4, 0.06), ("fwf", 5, 0.08)):
            error = maps[parameter].data[inner] - theta[index]
            assert np.sqrt(np.mean(error**2)) < bound
    else:
        truth = DKI().maps(torch.from_numpy(kurtosis_of(theta[:, None], scan.gtab).T))
        assert np.median(maps["mk"].data[inner]) == pytest.approx(float(truth["mk"]), abs=0.15)
        assert np.median(maps["fa"].data[inner]) == pytest.approx(float(truth["fa"]), abs=0.05)
    along = np.abs(maps["v1"].data[inner] @ theta[:3])
    assert np.median(along) > 0.99


def test_kurtosis_of_neighbours_is_told(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = sparse_scan()
    settings = FitSettings(model="dki", method="prior", weights=str(weights), adaptation="none", device="cpu")

    def scatter() -> tuple[float, float]:
        maps = fit(scan, DKI(), settings, SilentReport()).maps
        return float(maps["mk"].data.std()), float(np.median(maps["mk_sd"].data))

    told = scatter()
    monkeypatch.setattr(estimate, "told_by_neighbours", lambda mean, covariance, mask: mean)
    untold = scatter()
    assert told[0] < 0.8 * untold[0]
    assert told[1] < 0.9 * untold[1]


def test_mean_apparent_kurtosis_is_that_of_the_map() -> None:
    u = 0.25 * torch.randn(22, 300, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    u[0], u[1:6] = 0, 2 * u[1:6]
    exact = DKI().maps(coordinates_of(DKI()).theta(u).T)
    assert float(exact["fa"].max()) > 0.4
    torch.testing.assert_close(mean_apparent_kurtosis(u), exact["mk"], rtol=0.02, atol=0.01)
    torch.testing.assert_close(mean_kurtosis(u), exact["mkt"], rtol=1e-9, atol=1e-9)


def test_values_at_the_end_of_their_range_are_not_called_sure() -> None:
    """Kurtosis far above what maps hold: clipped in every draw."""
    scan, _ = sparse_scan()
    theta = np.zeros((22, 4), np.float32)
    theta[[0, 3, 5]], theta[[6, 7, 8]], theta[[15, 16, 17]] = 0.5, 6.0, 2.0
    covariance = np.repeat(1e-6 * np.eye(22, dtype=np.float32)[..., None], 4, 2)
    rest = np.zeros(4, np.float32)
    slope = coordinates_of(DKI()).basis
    readout = Readout(DKI(), scan.gtab, PriorEstimate(theta, theta, covariance, rest, rest, slope), SilentReport())
    found, sd = readout.of(slice(None))
    assert float(DKI().maps(found.T)["mk"][0]) == MAX_KURTOSIS
    assert (sd["mk"] == MAX_ERROR).all()
    assert (sd["md"] < 1e-5).all()


def test_one_shell_tells_no_kurtosis_however_many_directions() -> None:
    able = support(table(1000.0, directions=60))
    for name in ("dki", "noddi"):
        assert "one" in str(able[name]["prior"])
    few = GradientTable([0, 1000, 1000, 2000, 2000], [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8]])
    assert "needs 6 directions" in str(support(few)["dki"]["prior"])
    assert support(table(1000.0, 2000.0, directions=6))["dki"]["prior"] is None
