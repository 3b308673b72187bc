"""Examples that the prior is trained on: anatomies, signals, protocols, noise, and the truth."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import write_acquisition
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX, spread_directions
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.simulation import tissue
from DiffusionFMLib.simulation.anatomy import Fibres
from DiffusionFMLib.training import anatomies
from DiffusionFMLib.training.anatomies import DIRECTIONS, FIELDS, WEIGHTS, Anatomy, cached, random_phantom
from DiffusionFMLib.training.cleaning import denoised, noise_of
from DiffusionFMLib.training.examples import (
    ExampleMaker,
    correlated_noise,
    measured,
    noise_free_fit,
    noise_free_signal,
    turned,
)
from DiffusionFMLib.training.protocols import BVAL_RANGE, FAMILIES, SNR_RANGE, Protocol
from DiffusionFMLib.training.rendering import Contents, Replacement, TissueProperties, draw_contents
from DiffusionFMLib.training.scan_anatomies import scan_anatomies, tissue_of

COORDINATES = coordinates_of(DTI())
CPU = torch.device("cpu")

TYPICAL = TissueProperties(
    tissue.INSIDE_AXONS, tissue.INSIDE_NEURITES, tissue.INTRA_DIFFUSIVITY, tissue.EXTRA_AXIAL, tissue.EXTRA_RADIAL,
    tissue.GM_EXTRA_DIFFUSIVITY, tissue.CSF_DIFFUSIVITY, tissue.GM_S0 / tissue.WM_S0, tissue.CSF_S0 / tissue.WM_S0,
)  # fmt: skip


@pytest.fixture(scope="module")
def phantom() -> Anatomy:
    return random_phantom(3)


def contents(fields: torch.Tensor) -> Contents:
    voxels = fields.shape[1]
    return Contents(TYPICAL, fields, torch.ones(voxels), torch.ones(voxels), [])


def some_fields(voxels: int = 40, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    fields = np.zeros((len(FIELDS), voxels), np.float32)
    fields[WEIGHTS] = rng.dirichlet(np.ones(4), voxels).T
    for place in DIRECTIONS:
        fields[place] = Rotation.random(voxels, rng=rng).as_matrix()[:, 0].T
    fields[10:12] = rng.uniform(0.01, 0.4, (2, voxels))
    return torch.from_numpy(fields)


def test_a_random_anatomy_is_filled_with_tissue_and_fibres(phantom: Anatomy) -> None:
    fields = phantom.fields.astype(np.float32)
    np.testing.assert_allclose(fields[WEIGHTS].sum(0), 1, atol=5e-3)
    for place in DIRECTIONS:
        np.testing.assert_allclose(np.linalg.norm(fields[place], axis=0), 1, atol=5e-3)
    for weight in (fields[0] + fields[1], fields[2], fields[3]):
        assert (weight > 0.8).mean() > 0.03
    again = random_phantom(3)
    np.testing.assert_array_equal(again.fields, phantom.fields)
    assert (random_phantom(4).fields != phantom.fields).mean() > 0.5


def test_anatomies_are_kept_and_foreign_files_refused(
    tmp_path: Path, phantom: Anatomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make() -> Anatomy:
        made.append(1)
        return phantom

    for _ in range(2):
        found = cached(tmp_path / "pool", "one", make)
        np.testing.assert_array_equal(found.fields, phantom.fields)
        np.testing.assert_array_equal(found.voxel_sizes, phantom.voxel_sizes)
    assert len(made) == 1
    with monkeypatch.context() as later:
        later.setattr(anatomies, "VERSION", anatomies.VERSION + 1)
        for _ in range(2):
            cached(tmp_path / "pool", "one", make)
    assert len(made) == 2
    np.savez(tmp_path / "pool" / "other.npz", fields=np.zeros((2, 3, 3, 3)), version=anatomies.VERSION)
    with pytest.raises(InputError, match="no anatomy with 13 fields"):
        cached(tmp_path / "pool", "other", make)


@pytest.mark.parametrize("bval", [0, 700, 1500, 3000])
def test_signals_are_those_of_the_simulation(bval: float) -> None:
    """Against the numpy renderer, whose sticks are one more per fan."""
    fields = some_fields()
    wm = (fields[0] + fields[1]).numpy()
    fibres = Fibres(
        np.stack([fields[place].numpy().T for place in DIRECTIONS], axis=1),
        (fields[:2].numpy() / wm).T,
        fields[10:12].numpy().T,
    )
    nothing = np.zeros(fields.shape[1], np.float32)
    voxels = np.stack([wm, fields[2], fields[3]], axis=1)
    scanned = tissue.fill(voxels, fibres, nothing, nothing)
    g = np.array([0.36, -0.48, 0.8])
    found = contents(fields).signal(np.array([bval / 1000]), g[None])[0] * tissue.WM_S0
    np.testing.assert_allclose(found, scanned.signal(bval, g), rtol=0.03, atol=8)


def test_a_lesion_takes_the_place_of_tissue_and_not_of_fluid() -> None:
    fields = some_fields()
    b, g = np.array([0.0, 1.0]), np.array([[0.0, 0, 0], [0.6, 0, 0.8]])
    whole, half = (
        Replacement(torch.full((fields.shape[1],), share), diffusivity, s0)
        for share, diffusivity, s0 in ((1.0, 0.5, 1.2), (0.5, 2.0, 2.0))
    )
    healthy = contents(fields)
    fluid = fields[3] * TYPICAL.fluid_s0 * torch.tensor([[1.0], [math.exp(-TYPICAL.fluid)]])
    dense = (1 - fields[3]) * 1.2 * torch.tensor([[1.0], [math.exp(-0.5)]])
    swollen = (1 - fields[3]) * 2.0 * torch.tensor([[1.0], [math.exp(-2.0)]])
    left = healthy.signal(b, g) - fluid
    torch.testing.assert_close(replace(healthy, lesions=[whole]).signal(b, g), fluid + dense)
    torch.testing.assert_close(replace(healthy, lesions=[half]).signal(b, g), fluid + (left + swollen) / 2)
    # the second has what the first left
    torch.testing.assert_close(replace(healthy, lesions=[half, whole]).signal(b, g), fluid + (swollen + dense) / 2)


def test_turning_an_anatomy_turns_its_signals() -> None:
    rng = np.random.default_rng(1)
    fields = some_fields(4 * 5 * 6).reshape(-1, 4, 5, 6)
    sizes = np.array([1.0, 2.0, 3.0])
    order, signs = np.array([2, 0, 1]), np.array([-1, 1, -1])
    other, other_sizes = turned(fields.numpy(), sizes, order, signs)
    assert tuple(other.shape[1:]) == (6, 4, 5)
    np.testing.assert_array_equal(other_sizes, [3, 1, 2])
    g = Rotation.random(8, rng=rng).as_matrix()[:, 0]
    bvals = np.full(8, 1.5)
    straight = contents(fields.reshape(len(FIELDS), -1)).signal(bvals, g).reshape(-1, 4, 5, 6)
    expected = straight.permute(0, 3, 1, 2).flip([1, 3])
    found = contents(other.reshape(len(FIELDS), -1)).signal(bvals, g[:, order] * signs)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=0.02, atol=2e-3)


def test_protocols_are_random_but_sound() -> None:
    rng = np.random.default_rng(0)
    fewest, most = FAMILIES["dti"].directions
    drawn = [Protocol.draw(FAMILIES["dti"], rng) for _ in range(300)]
    for protocol in drawn:
        gtab = GradientTable(protocol.bvals, protocol.bvecs)
        assert gtab.b0_mask.any()
        assert not gtab.trace_mask.any()
        assert fewest <= (~gtab.b0_mask).sum() <= most
        assert BVAL_RANGE[0] <= gtab.bvals[~gtab.b0_mask].min()
        assert gtab.bvals.max() <= BVAL_RANGE[1]
        assert SNR_RANGE[0] <= 1 / protocol.sigma <= SNR_RANGE[1]
        bvals, bvecs, counts = protocol.dense(12)
        assert counts.sum() == pytest.approx(len(protocol.bvals))
        assert set(bvals) == set(protocol.bvals)
        np.testing.assert_allclose(np.linalg.norm(bvecs[bvals > 0], axis=1), 1)
    directions = [int((p.bvals > 0).sum()) for p in drawn]
    assert np.mean(np.array(directions) <= 12) > 0.3
    assert np.mean([len(p.shells) > 2 for p in drawn]) > 0.15
    assert 0.3 < np.mean([p.correlation.max() == 0 for p in drawn]) < 0.5
    assert 0.6 < np.mean([p.interpolated for p in drawn]) < 0.9


def test_noise_has_the_correlation_asked_for() -> None:
    wanted = np.array([0.6, 0.2, 0.0])
    noise = correlated_noise((3, 40, 40, 40), wanted, CPU, np.random.default_rng(0))
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    for axis, value in enumerate(wanted):
        product = (noise * noise.roll(1, axis + 1)).mean()
        assert float(product) == pytest.approx(value, abs=0.02)


def test_interpolated_images_are_as_blurred_as_their_noise() -> None:
    shape, correlation = (12, 11, 10), np.array([0.6, 0.3, 0.0])
    there = contents(some_fields(int(np.prod(shape))))
    bvals, bvecs = np.r_[0.0, 1000.0], np.array([[0, 0, 0], [0, 0.6, 0.8]])
    sharp = Protocol(bvals, bvecs, 1e-9, correlation)
    blurred = replace(sharp, interpolated=True)
    found, expected = (noise_free_signal(there, shape, p, bvals, bvecs).numpy() for p in (blurred, sharp))
    for axis, value in enumerate(correlation[:2], 1):
        # w : 1 : w makes white noise so
        weight = (1 - np.sqrt(1 - 2 * value**2)) / (2 * value)
        expected = convolve1d(expected, np.array([weight, 1, weight]) / (1 + 2 * weight), axis, mode="nearest")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    noisy = measured(there, shape, blurred, np.random.default_rng(0))
    # unsteady by some hundredths
    np.testing.assert_allclose(noisy, found, rtol=0.2, atol=0.01)


def test_truth_of_a_tensor_is_that_tensor() -> None:
    theta = torch.tensor([[1.6, 0.2, 0.0, 0.4, -0.1, 0.5, 0.3], [3.0, 0, 0, 3.0, 0, 3.0, 0.6]]).T
    protocol = Protocol(np.r_[0, np.full(20, 3000.0)], np.r_[np.zeros((1, 3)), spread_directions(20)], 0.1, np.zeros(3))
    bvals, bvecs, counts = protocol.dense(15)
    gtab = GradientTable(bvals, bvecs)
    design = WhitenedDesign.of(DTI(), gtab, COORDINATES)
    found = noise_free_fit(DTI().signal(theta.T, gtab).T, design, counts)
    torch.testing.assert_close(COORDINATES.theta(found), theta, rtol=0, atol=0.02)


def test_the_same_seed_gives_the_same_example(phantom: Anatomy) -> None:
    maker = ExampleMaker([[phantom]], DTI(), COORDINATES, 12, 0, 0.5, CPU)
    one, same, other = (maker.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(one.features, same.features)
    torch.testing.assert_close(one.truth, same.truth)
    assert not torch.allclose(one.truth, other.truth)


def test_some_examples_say_nothing_but_a_look(phantom: Anatomy) -> None:
    maker = ExampleMaker([[phantom]], DTI(), COORDINATES, 16, 2, 1.0, CPU)
    rng = np.random.default_rng(0)
    drawn = [maker.draw(rng) for _ in range(24)]
    untold = [example for example in drawn if float(example.data.precision.abs().max()) < 1e-6]
    assert 8 <= len(untold) <= 22
    for example in untold:
        assert example.look is not None
        # the look and the unit Gaussian, and nothing else but what bounds of the signal leave
        level = example.look.precision[0, 0]
        torch.testing.assert_close(example.ridge, example.look.vector / (1 + level), rtol=1e-3, atol=2e-3)


def test_the_ridge_estimate_finds_the_truth_of_a_good_scan(phantom: Anatomy) -> None:
    maker = ExampleMaker([[phantom]], DTI(), COORDINATES, 12, 0, 0.0, CPU)
    fields = torch.from_numpy(phantom.fields[:, 20:32, 20:32, 20:32].astype(np.float32))
    errors = []
    for sigma in (0.1, 0.01):
        directions = spread_directions(60)
        bvals = np.r_[np.zeros(6), np.full(60, 1000.0)]
        protocol = Protocol(bvals, np.r_[np.zeros((6, 3)), directions], sigma, np.zeros(3))
        example = maker.scan(fields, phantom.voxel_sizes, protocol, np.random.default_rng(0))
        errors.append(float((example.ridge - example.truth)[:, example.mask].square().mean().sqrt()))
    assert errors[1] < 0.05
    assert errors[0] > 3 * errors[1]


def test_cleaning_takes_noise_out_and_leaves_edges() -> None:
    rng = np.random.default_rng(0)
    clean = np.zeros((6, 24, 24, 24), np.float32)
    clean[:, 12:] = rng.normal(size=(6, 1, 1, 1))
    noisy = torch.as_tensor(clean + rng.normal(0, 0.2, clean.shape).astype(np.float32))
    inside = torch.ones(24, 24, 24, dtype=torch.bool)
    inside[:, :2] = False
    assert noise_of(noisy, inside) == pytest.approx(0.2, rel=0.1)
    found = denoised(noisy, inside, 0.3).numpy()
    at = inside.numpy()
    assert np.std((found - clean)[:, at]) < 0.3 * 0.2
    # total variation takes some of a step's height, but none of its sharpness
    step, whole = ((found[:, 12, 4:] - found[:, before, 4:]).mean(axis=(1, 2)) for before in (11, 6))
    true = clean[:, 12, 4, 4]
    assert step @ true > 0.8 * (whole @ true)
    assert step @ true > 0.65 * (true @ true)
    # outside the mask nothing comes in
    np.testing.assert_array_equal(found[:, ~at], noisy.numpy()[:, ~at])


@pytest.mark.parametrize(("evals", "fa", "md"), [((0.3, 0.4, 1.6), 0.7, 0.77), ((0.7, 0.8, 0.9), 0.13, 0.8)])
def test_tissue_read_from_a_tensor_has_about_that_tensor(evals, fa: float, md: float) -> None:
    axes = Rotation.from_rotvec([0.3, -0.8, 0.2]).as_matrix()
    tensor = axes @ np.diag(evals) @ axes.T
    fields = torch.as_tensor(tissue_of(tensor[None]), dtype=torch.float32)
    assert float(fields[WEIGHTS].sum()) == pytest.approx(1, abs=1e-4)
    gtab = GradientTable(np.r_[0, np.full(30, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(30)])
    signal = contents(fields).signal(gtab.bvals / 1000, gtab.bvecs)
    theta = np.linalg.pinv(DTI().design(gtab)) @ np.log(signal.numpy())
    found = DTI().maps(torch.as_tensor(theta.T))
    assert float(found["fa"]) == pytest.approx(fa, abs=0.25)
    assert float(found["md"]) * 1e3 == pytest.approx(md, abs=0.15)
    if fa > 0.5:
        assert abs(float(found["v1"][0] @ torch.as_tensor(axes[:, 2]))) > 0.98


def test_scans_become_anatomies_in_voxel_axes(tmp_path: Path) -> None:
    """A bundle along x of the scanner, in an image whose first axis is -y: it runs along the second axis."""
    affine = np.array([[0, 2.0, 0, 0], [-2.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    gtab = GradientTable(np.r_[0, np.full(20, 1000.0)], np.r_[np.zeros((1, 3)), spread_directions(20)])
    theta = np.zeros((20, 20, 20, 7))
    theta[..., [0, 3, 5]] = (1.5, 0.4, 0.4)
    theta[:, :, 10:, [0, 3, 5]] = 3.0
    theta[..., 6] = np.log(500)
    rng = np.random.default_rng(0)
    signal = np.exp(theta @ DTI().design(gtab).T) + rng.normal(0, 10, (20, 20, 20, 21))
    scan = Acquisition(np.maximum(signal, 1).astype(np.float32), affine, gtab)
    (tmp_path / "scans" / "a").mkdir(parents=True)
    write_acquisition(scan, tmp_path / "scans" / "a" / "dwi.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "scans" / "broken.bval").write_text("0")
    report = SilentReport()
    (anatomy,) = scan_anatomies(tmp_path / "scans", tmp_path / "pool", report)
    assert any("broken" in message for _, message in report.warnings)
    fields = anatomy.fields.astype(np.float32)
    middle = fields[:, 5:15, 5:15, 3:7].reshape(len(FIELDS), -1)
    assert np.abs(middle[DIRECTIONS[0]][1]).min() > 0.97
    assert middle[0].min() > 0.7
    assert fields[3, 5:15, 5:15, 13:17].min() > 0.9
    with pytest.raises(InputError, match="no scan to train on"):
        list(scan_anatomies(tmp_path / "pool", tmp_path / "pool", report))


def test_tensor_order_is_the_models() -> None:
    assert [DTI.parameters[k].name for k in np.array(AS_MATRIX).diagonal()] == ["Dxx", "Dyy", "Dzz"]


def test_s0_has_a_grain_of_its_own() -> None:
    """Where all voxels are alike, nothing else varies from one to the next; some heads have hardly any."""
    fields = torch.zeros(len(FIELDS), 16, 16, 16)
    fields[2] = 1
    found = []
    for seed in range(30):
        density = draw_contents(fields, np.full(3, 2.0), np.random.default_rng(seed)).density.reshape(16, 16, 16)
        found.append(float(density.log().diff(dim=0).abs().median()))
    # between two voxels: sqrt(2) of each, and 0.7 of the scale is the median of Student's t
    assert min(found) < 0.25 * max(found)
    assert 0.02 < max(found) < 0.08
