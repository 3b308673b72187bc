"""The tensor and ADC models: forward signal, eigen-decomposition, maps, and what a protocol must offer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import ADC, DTI, MODELS, tensor_arrays
from DiffusionFMLib.physics.tensor_algebra import fractional_anisotropy, positive_definite, principal_axis


def directions(count: int, seed: int = 0) -> np.ndarray:
    g = np.random.default_rng(seed).normal(size=(count, 3))
    return g / np.linalg.norm(g, axis=1, keepdims=True)


def table(bvals: list[float], counts: list[int], b0: int = 1, seed: int = 0) -> GradientTable:
    b = np.concatenate([np.zeros(b0), *(np.full(n, value) for value, n in zip(bvals, counts, strict=True))])
    return GradientTable(b, np.concatenate([np.zeros((b0, 3)), directions(sum(counts), seed)]))


def matrices(tensors: torch.Tensor) -> torch.Tensor:
    return tensors[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))


def components(full: torch.Tensor) -> torch.Tensor:
    return full.flatten(-2)[..., [0, 1, 2, 4, 5, 8]]


def random_tensors(count: int, eigenvalues: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]
    return components(axes @ torch.diag_embed(eigenvalues) @ axes.mT)


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("meeting", ["upper two", "lower two", "all"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1.5e-6), (torch.float64, 1e-14)])
def test_eigenvalues_and_axis_are_exact_to_rounding_even_where_eigenvalues_meet(gap, meeting, dtype, tolerance):
    values = torch.rand(20000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2.9 + 0.1
    if meeting in ("upper two", "all"):
        values[:, 1] = values[:, 0] * (1 - gap * values[:, 2] / 3)
    if meeting in ("lower two", "all"):
        values[:, 2] = values[:, 1] * (1 - gap * values[:, 0] / 3)
    tensors = random_tensors(len(values), values).to(dtype)
    expected = torch.linalg.eigvalsh(matrices(tensors.double())).flip(-1)
    found, axis = (torch.stack(part, -1).double() for part in principal_axis(tensors))
    assert (found - expected).abs().max() < tolerance
    # an eigenvector is judged by what it does: where eigenvalues meet, its direction is free
    image = (matrices(tensors.double()) @ axis[..., None])[..., 0]
    assert (image - expected[:, :1] * axis).norm(dim=-1).max() < 2 * tolerance
    assert (axis.norm(dim=-1) - 1).abs().max() < tolerance


def test_axis_sign_is_that_of_its_largest_component():
    tensors = random_tensors(1000, torch.tensor([1.7, 0.4, 0.2], dtype=torch.float64).expand(1000, 3))
    axis = torch.stack(principal_axis(tensors)[1], -1)
    assert (axis.gather(-1, axis.abs().argmax(-1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(
    "diagonal", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 2.0), (2.0, 2.0, 1.0), (1e-20, 0, 0)]
)
def test_isotropic_and_vanishing_tensors_give_finite_unit_axes(diagonal):
    tensor = torch.tensor([diagonal[0], 0, 0, diagonal[1], 0, diagonal[2]])
    values, axis = principal_axis(tensor)
    assert torch.stack(axis).norm() == pytest.approx(1, abs=1e-6)
    assert torch.stack(values).tolist() == pytest.approx(sorted(diagonal, reverse=True), abs=1e-6)


def test_positive_definite_agrees_with_eigenvalues():
    values = torch.randn(5000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    tensors = random_tensors(5000, values)
    assert torch.equal(positive_definite(tensors), (values > 0).all(-1))


def test_signal_follows_the_textbook_formula():
    gtab = table([1000, 2000], [12, 20])
    tensors = random_tensors(50, torch.tensor([1.7, 0.5, 0.3], dtype=torch.float64).expand(50, 3))
    theta = torch.cat([tensors, torch.full((50, 1), np.log(500.0), dtype=torch.float64)], -1)
    g = torch.as_tensor(np.array(gtab.bvecs))
    projected = torch.einsum("ni,vij,nj->vn", g, matrices(tensors), g)
    expected = 500 * torch.exp(-torch.as_tensor(np.array(gtab.bvals)) / 1000 * projected)
    torch.testing.assert_close(DTI().signal(theta, gtab), expected)
    torch.testing.assert_close(DTI().signal(theta, gtab)[:, 0], torch.full((50,), 500.0, dtype=torch.float64))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_signal_and_maps_are_differentiable(name):
    model = MODELS[name]
    tensor = [1.2, 0.1, -0.2, 0.8, 0.05, 0.5]
    quartic = [0.9, 0.6, 0.5, 0.05, -0.1, 0.02, 0.1, -0.05, 0.03, 0.25, 0.2, 0.15, 0.04, -0.02, 0.06]
    start = {
        "dti": [*tensor, 0.3],
        "adc": [0.9, 0.3],
        "dki": [*tensor, *quartic, 0.3],
        "noddi": [0.3, -0.5, 0.8, 0.5, 0.3, 0.2, 0.3],
    }[name]
    theta = torch.tensor([start, [1.1 * value for value in start]], dtype=torch.float64, requires_grad=True)
    gtab = table([1000, 2000], [6, 6])
    assert torch.autograd.gradcheck(lambda t: model.signal(t, gtab), theta)
    assert torch.autograd.gradcheck(lambda t: tuple(model.maps(t).values()), theta)


def test_gradients_stay_finite_for_isotropic_tensors():
    theta = torch.tensor([1.0, 0, 0, 1, 0, 1, 0], requires_grad=True)
    sum(values.sum() for values in DTI().maps(theta).values()).backward()
    assert torch.isfinite(theta.grad).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_maps_are_those_declared(name):
    model = MODELS[name]
    maps = model.maps(torch.rand(4, 5, len(model.parameters)))
    assert list(maps) == [spec.name for spec in model.map_specs]
    for spec in model.map_specs:
        assert maps[spec.name].shape == (4, 5, *([len(spec.components)] if spec.components else []))


def test_maps_of_a_known_tensor():
    theta = torch.tensor([0.3, 0, 0, 1.7, 0, 0.5, np.log(100)], dtype=torch.float64)
    maps = DTI().maps(theta)
    assert maps["md"].item() == pytest.approx(2.5e-3 / 3)
    assert maps["ad"].item() == pytest.approx(1.7e-3)
    assert maps["rd"].item() == pytest.approx(0.4e-3)
    assert maps["v1"].tolist() == pytest.approx([0, 1, 0])
    assert maps["s0"].item() == pytest.approx(100)
    spread = np.array([0.3, 1.7, 0.5]) - 2.5 / 3
    fa = np.sqrt(1.5 * (spread**2).sum() / (0.3**2 + 1.7**2 + 0.5**2))
    assert maps["fa"].item() == pytest.approx(fa)
    assert maps["colorfa"].tolist() == pytest.approx([0, fa, 0])
    assert maps["tensor"].tolist() == pytest.approx([0.3e-3, 0, 0, 1.7e-3, 0, 0.5e-3])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_rotating_the_tensor_rotates_the_axis_and_leaves_the_rest(seed):
    rng = np.random.default_rng(seed)
    rotation = torch.as_tensor(np.linalg.qr(rng.normal(size=(3, 3)))[0])
    values = torch.as_tensor(np.sort(rng.uniform(0.1, 2, 3))[::-1].copy())
    tensor = random_tensors(1, values[None], seed)[0]
    turned = components(rotation @ matrices(tensor) @ rotation.T)
    zero = torch.zeros(1, dtype=torch.float64)
    before, after = (DTI().maps(torch.cat([t, zero])) for t in (tensor, turned))
    for name in ("fa", "md", "ad", "rd", "s0"):
        torch.testing.assert_close(before[name], after[name])
    if values[0] - values[1] > 0.01:
        assert abs((rotation @ before["v1"]) @ after["v1"]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    "method_free_table", [table([1000], [6]), table([700, 1400], [6, 6], b0=0), table([1000], [30])]
)
def test_sound_protocols_are_accepted(method_free_table):
    assert DTI().unsupported(method_free_table) is None
    assert ADC().unsupported(method_free_table) is None


@pytest.mark.parametrize(
    ("gtab", "sentence"),
    [
        (table([1000], [5]), "6 non-collinear directions; this scan has 5"),
        (GradientTable(np.r_[0, np.full(12, 1000)], np.r_[np.zeros((1, 3)), np.tile(directions(3), (4, 1))]), "has 3"),
        (table([1000], [30], b0=0), "a b0 or a second b-value"),
        (table([], [], b0=4), "no diffusion weighting"),
        (GradientTable([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 0, 0]]), "no direction"),
    ],
)
def test_tensor_says_why_a_protocol_does_not_do(gtab, sentence):
    assert sentence in DTI().unsupported(gtab)


def test_tensor_rejects_directions_in_a_plane():
    angle = np.linspace(0, np.pi, 12, endpoint=False)
    g = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    gtab = GradientTable(np.r_[0, np.full(12, 1000)], np.r_[np.zeros((1, 3)), g])
    assert "determine only 3" in DTI().unsupported(gtab)
    assert "lie in one plane" in ADC().unsupported(gtab)


def test_adc_needs_three_directions():
    assert "needs 3 directions; this scan has 2" in ADC().unsupported(table([1000], [2]))
    assert "a b0 or a second b-value" in ADC().unsupported(table([1000], [3], b0=0))
    assert ADC().unsupported(GradientTable([0, 1000, 1000, 1000], np.r_[np.zeros((1, 3)), np.eye(3)])) is None


def test_declarations_load_without_torch(project_root):
    code = "import sys, DiffusionFMLib.physics, DiffusionFMLib.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=project_root, check=False).returncode == 0


def test_arrays_and_torch_agree_on_tensors():
    values = torch.rand(200, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2.9 + 0.1
    tensors = random_tensors(200, values)
    expected = fractional_anisotropy(*values.T).numpy()
    array = tensors.numpy()
    np.testing.assert_allclose(tensor_arrays.fractional_anisotropy(values.numpy()), expected, atol=1e-12)
    diagonal, off_diagonal = array[:, tensor_arrays.DIAGONAL], array[:, tensor_arrays.OFF_DIAGONAL]
    np.testing.assert_allclose(tensor_arrays.fractional_anisotropy(diagonal, off_diagonal), expected, atol=1e-12)
    assert tensor_arrays.fractional_anisotropy(np.zeros(3)) == 0
    full = array[:, tensor_arrays.AS_MATRIX]
    np.testing.assert_array_equal(full, matrices(tensors).numpy())
    g = directions(200)
    np.testing.assert_allclose(
        (tensor_arrays.quadratic_form(g) * array).sum(axis=1), np.einsum("ni,nij,nj->n", g, full, g), atol=1e-12
    )
