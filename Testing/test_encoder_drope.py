"""D-RoPE: distances, the rotary expansion with its proven bound, and the exact attention beside the plain formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from encoder_oracle import plain_attention, plain_distances, plain_frequencies, protocol

from DiffusionFMLib import fused
from DiffusionFMLib.encoder import attention
from DiffusionFMLib.encoder.attention import rotary_attention, rotary_weights
from DiffusionFMLib.encoder.drope import (
    LAYOUTS,
    TOLERANCES,
    RotaryTables,
    frequencies,
    rotary_expansion,
    volume_distances,
)
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.gradients import GradientTable

PROTOCOLS = {
    "one shell": {1000.0: 12},
    "with b0": {0.0: 3, 1000.0: 8, 3000.0: 9},
    "without b0": {1000.0: 8, 2000.0: 6, 3000.0: 6},
    "very high b": {0.0: 1, 10000.0: 7},
}

protocols = pytest.mark.parametrize("counts", PROTOCOLS.values(), ids=PROTOCOLS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def heads(count: int, dim: int = 32, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(5, 3, count, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


COMPILED = pytest.param("compiled", marks=pytest.mark.skipif(not fused.available(), reason="no numba"))


@pytest.fixture(params=["products", COMPILED])
def implementation(request, monkeypatch) -> None:
    """Attention in single precision by either; in double precision there is one."""
    monkeypatch.setattr(fused, "available", lambda: request.param == "compiled")


by_either = pytest.mark.usefixtures("implementation")


# --- distances -----------------------------------------------------------------------------------------------


@protocols
def test_distances_follow_the_formula(counts: dict[float, int]) -> None:
    gtab = protocol(counts)
    distances = volume_distances(gtab)
    np.testing.assert_allclose(distances, plain_distances(gtab), rtol=0, atol=2e-8)
    assert (distances == distances.T).all()
    assert (np.diag(distances) == 0).all()


def test_known_distances() -> None:
    g = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 0, 0]]) / np.array([1, 1, 1, np.sqrt(2), 1])[:, None]
    distances = volume_distances(GradientTable([5, 1000, 1000, 1000, 3000], g))
    np.testing.assert_allclose(distances[1, 2:], [np.pi / 2, np.pi / 4, np.sqrt(2)], rtol=1e-15)
    np.testing.assert_allclose(distances[0], np.array([0, 1, 1, 1, 3]) / np.sqrt(2), rtol=1e-15)


def test_distances_do_not_know_the_sign_of_directions_nor_the_frame() -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    signs = np.where(np.arange(len(gtab)) % 2, -1.0, 1.0)[:, None]
    flipped = GradientTable(gtab.bvals, gtab.bvecs * signs)
    assert (volume_distances(flipped) == volume_distances(gtab)).all()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    np.testing.assert_allclose(volume_distances(gtab.rotated(rotation)), volume_distances(gtab), atol=1e-14)


def test_repeated_and_opposite_directions_are_at_no_distance() -> None:
    g = protocol({1000.0: 1}).bvecs[0]
    assert (volume_distances(GradientTable([1000] * 3, [g, g, -g])) == 0).all()
    close = np.array([np.cos(1e-9), np.sin(1e-9), 0])
    # the arccos of a product that rounds to 1 would be 0
    assert volume_distances(GradientTable([1000, 1000], [[1, 0, 0], close]))[0, 1] == pytest.approx(1e-9, rel=1e-6)


def test_trace_volumes_have_no_distance() -> None:
    with pytest.raises(ProtocolError, match=r"Volume\(s\) 1 have b > 0 and no gradient direction"):
        volume_distances(GradientTable([0, 1000], np.zeros((2, 3))))


# --- the expansion -------------------------------------------------------------------------------------------


@layouts
def test_frequencies_of_both_layouts(layout: str) -> None:
    np.testing.assert_allclose(frequencies(128, layout), plain_frequencies(128, layout).numpy(), rtol=1e-14)
    assert frequencies(128, "paper")[1] == 1
    assert frequencies(128, "official")[64] == 1


@layouts
@pytest.mark.parametrize("tolerance", [1e-3, 1e-7, 1e-13])
@pytest.mark.parametrize("reach", [0.25, 2.25, 2.75, 7.25])
def test_the_bound_holds_between_the_nodes(layout: str, reach: float, tolerance: float) -> None:
    expansion = rotary_expansion(128, layout, reach, tolerance)
    distances = np.random.default_rng(0).uniform(0, reach, 4000)
    distances[:2] = 0, reach
    functions = expansion.functions(distances)
    angles = np.multiply.outer(frequencies(128, layout), distances)
    rounding = 2e-14
    error = max(
        np.abs(expansion.cos.T @ functions - np.cos(angles)).max(),
        np.abs(expansion.sin.T @ functions - np.sin(angles)).max(),
    )
    assert error <= expansion.max_error + rounding
    assert expansion.max_error <= tolerance
    # and it is no idle bound
    assert error >= 0.3 * expansion.max_error - rounding


def test_fewer_terms_would_not_do() -> None:
    terms = [len(rotary_expansion(128, "paper", 2.75, tolerance).cos) for tolerance in (1e-3, 1e-7, 1e-13)]
    assert terms == sorted(set(terms))
    assert terms[1] <= 13
    assert len(rotary_expansion(128, "paper", 1.0, 1e-7).cos) < terms[1]


# --- attention -----------------------------------------------------------------------------------------------


@by_either
@layouts
@protocols
@pytest.mark.parametrize("dim", [32, 128])
def test_attention_equals_the_plain_formula(counts: dict[float, int], layout: str, dim: int) -> None:
    gtab = protocol(counts)
    distances = volume_distances(gtab)
    expected = plain_attention(*heads(len(gtab), dim), distances, layout)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        tables = RotaryTables.of(distances, dim, layout, dtype)
        found = rotary_attention(*heads(len(gtab), dim, dtype), tables)
        assert found.dtype == dtype
        assert float((found - expected).abs().max()) <= bound


@by_either
@layouts
@protocols
def test_gradients_equal_those_of_the_plain_formula(counts: dict[float, int], layout: str) -> None:
    gtab = protocol(counts)
    distances = volume_distances(gtab)
    weight = heads(len(gtab) + 1)[0][:, :, : len(gtab)]

    def gradients(dtype: torch.dtype, plain: bool) -> list[torch.Tensor]:
        given = [x.requires_grad_() for x in heads(len(gtab), dtype=dtype)]
        tables = RotaryTables.of(distances, 32, layout, dtype)
        out = plain_attention(*given, distances, layout) if plain else rotary_attention(*given, tables)
        (out * weight.to(dtype)).sum().backward()
        return [x.grad for x in given]

    expected = gradients(torch.float64, plain=True)
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        for found, wanted in zip(gradients(dtype, plain=False), expected, strict=True):
            assert float((found - wanted).norm() / wanted.norm()) <= bound


def test_gradcheck() -> None:
    gtab = protocol({0.0: 1, 1000.0: 3})
    tables = RotaryTables.of(volume_distances(gtab), 4, "paper", torch.float64)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    hidden = torch.tensor([[False, True, False, False], [True] * 4])
    for mask in (None, hidden):
        assert torch.autograd.gradcheck(lambda q, k, v, mask=mask: rotary_attention(q, k, v, tables, mask), given)


@by_either
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    tables = RotaryTables.of(volume_distances(gtab), 32, "paper")
    given = heads(len(gtab), dtype=torch.float32)
    whole = rotary_attention(*given, tables)
    for budget in ("CPU_BYTES", "LOOP_BYTES"):
        monkeypatch.setattr(attention, budget, 1)
    torch.testing.assert_close(rotary_attention(*given, tables), whole, rtol=0, atol=1e-7)


@layouts
def test_permuted_volumes_give_permuted_attention(layout: str) -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    order = torch.randperm(len(gtab), generator=torch.Generator().manual_seed(1))
    given = heads(len(gtab))
    straight = rotary_attention(*given, RotaryTables.of(volume_distances(gtab), 32, layout, torch.float64))
    permuted = RotaryTables.of(volume_distances(gtab.subset(order.numpy())), 32, layout, torch.float64)
    found = rotary_attention(*(x[:, :, order] for x in given), permuted)
    torch.testing.assert_close(found, straight[:, :, order], rtol=0, atol=1e-13)


def test_a_subset_has_the_tables_of_its_own_protocol() -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    volumes = torch.tensor([0, 5, 9, 19])
    given = [x[:, :, :4] for x in heads(len(gtab))]
    tables = RotaryTables.of(volume_distances(gtab), 32, "paper", torch.float64).subset(volumes)
    own = volume_distances(gtab.subset(volumes.numpy()))
    assert len(tables) == 4
    torch.testing.assert_close(
        rotary_attention(*given, tables), plain_attention(*given, own, "paper"), rtol=0, atol=1e-12
    )


@by_either
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_hidden_volumes_are_as_if_not_there(dtype: torch.dtype, bound: float) -> None:
    gtab = protocol({1000.0: 6})
    given = heads(6, dtype=dtype)
    tables = RotaryTables.of(volume_distances(gtab), 32, "paper", dtype)
    hidden = torch.zeros(5, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    hidden[3] = True
    found = rotary_attention(*given, tables, hidden)
    without = rotary_attention(*(x[:, :, :4] for x in given), tables.subset(torch.arange(4)))
    seen = torch.tensor([0, 1, 2, 4])
    torch.testing.assert_close(found[seen, :, :4], without[seen], rtol=0, atol=bound)
    # where nothing is seen, everything is alike
    mean = given[2][3].mean(1, keepdim=True).expand(-1, 6, -1)
    torch.testing.assert_close(found[3], mean, rtol=0, atol=bound)


@by_either
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_weights_are_those_that_attention_uses(dtype: torch.dtype, bound: float) -> None:
    gtab = protocol(PROTOCOLS["without b0"])
    q, k, v = heads(len(gtab), dtype=dtype)
    tables = RotaryTables.of(volume_distances(gtab), 32, "paper", dtype)
    weights = rotary_weights(q, k, tables)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    torch.testing.assert_close(weights @ v, rotary_attention(q, k, v, tables), rtol=0, atol=bound)


@by_either
def test_large_scores_overflow_nowhere() -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    q, k, v = heads(len(gtab), dtype=torch.float32)
    distances = volume_distances(gtab)
    found = rotary_attention(100 * q, 100 * k, v, RotaryTables.of(distances, 32, "paper"))
    expected = plain_attention(*(x.double() for x in (100 * q, 100 * k, v)), distances, "paper")
    # scores of 1e4 are known to 1e-3 in single precision
    assert float((found - expected).abs().max()) < 0.02


def test_the_compiled_loop_is_for_tables_that_fit_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "available", lambda: True)
    distances = volume_distances(protocol(PROTOCOLS["with b0"]))
    single, double = (RotaryTables.of(distances, 32, "paper", dtype) for dtype in (torch.float32, torch.float64))
    assert single.plain_bytes == single.plain.nbytes
    cpu = torch.device("cpu")
    assert attention.is_compiled(single, cpu)
    assert not attention.is_compiled(double, cpu)
    assert not attention.is_compiled(single, torch.device("cuda"))
    monkeypatch.setattr(attention, "PLAIN_BYTES", single.plain_bytes - 1)
    assert not attention.is_compiled(single, cpu)


@by_either
def test_half_precision_is_computed_in_single() -> None:
    gtab = protocol(PROTOCOLS["with b0"])
    distances = volume_distances(gtab)
    given = heads(len(gtab), dtype=torch.bfloat16)
    tables = RotaryTables.of(distances, 32, "paper", torch.bfloat16)
    assert tables.terms.dtype == torch.float32
    assert tables.max_error <= TOLERANCES[torch.bfloat16]
    found = rotary_attention(*given, tables)
    expected = plain_attention(*(x.double() for x in given), distances, "paper")
    assert found.dtype == torch.bfloat16
    # one rounding of the result
    assert float((found - expected).abs().max()) < 0.01 * float(expected.abs().max())
