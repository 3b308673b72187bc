"""The transformer beside one written out plainly, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_oracle import plain_decoder, plain_encoder, protocol

from DiffusionFMLib.encoder.embedding import (
    EncoderProtocol,
    direction_features,
    from_patch_rows,
    patch_centres,
    patch_rows,
)
from DiffusionFMLib.encoder.shape import PRESETS, EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer, Encoded
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.gradients import GradientTable

GRID, PATCH = (3, 2, 1), (2, 4, 2)
SHAPE = EncoderShape(48, 2, 2, 96, 1, 64, PATCH, layout="official", last_relu=True)
EVEN = replace(SHAPE, directions="even", layout="paper", position_divisor=4.0)
GTAB = protocol({0.0: 1, 1000.0: 3, 2500.0: 3})
PLACES = int(np.prod(GRID))

shapes = pytest.mark.parametrize(
    "shape", [SHAPE, replace(SHAPE, rotary=False), EVEN], ids=["official", "plain", "even"]
)


def network(shape: EncoderShape, seed: int = 0) -> DiffusionTransformer:
    """With weights large enough that everything matters."""
    torch.manual_seed(seed)
    made = DiffusionTransformer(shape).double().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.normal_(std=0.3 if parameter.ndim < 3 else 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return made


def slab(volumes: int, samples: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches, shape (B, T, S, V), and places, shape (B, S, 3)."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.rand(samples, volumes, 6, 8, 2, generator=generator, dtype=torch.float64)
    places = patch_centres(GRID, PATCH, np.array([10, 0, 4])).double()
    return patch_rows(signal, PATCH), places.expand(samples, -1, -1)


def protocols(shape: EncoderShape, *tables: GradientTable) -> list[EncoderProtocol]:
    return [EncoderProtocol.of(gtab, shape, torch.float64) for gtab in tables]


def test_patches_run_with_z_fastest_and_come_back() -> None:
    signal = torch.arange(2 * 6 * 8 * 2).reshape(1, 2, 6, 8, 2)
    rows = patch_rows(signal, PATCH)
    assert rows.shape == (1, 2, PLACES, 16)
    assert (rows[0, 1, 1].reshape(PATCH) == signal[0, 1, :2, 4:, :]).all()
    assert (from_patch_rows(rows, GRID, PATCH) == signal).all()
    centres = patch_centres(GRID, PATCH, np.array([10, 0, 4]))
    assert centres[1].tolist() == [10.5, 5.5, 4.5]
    assert centres[-1].tolist() == [14.5, 5.5, 4.5]


@shapes
def test_the_encoder_equals_one_written_out(shape: EncoderShape) -> None:
    made = network(shape)
    patches, places = slab(len(GTAB))
    tokens, cls = plain_encoder(made.state_dict(), patches[0], places[0], GTAB, shape)
    with torch.no_grad():
        found = made(patches, places, protocols(shape, GTAB))
    torch.testing.assert_close(found.tokens[0], tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.cls[0], cls, rtol=0, atol=1e-6)
    # the comparison would see it if directions were left out
    other = plain_encoder(made.state_dict(), patches[0], places[0], protocol({1000.0: 7}), shape)[0]
    assert float((other - tokens).abs().max()) > 0.1


@shapes
def test_the_decoder_equals_one_written_out(shape: EncoderShape) -> None:
    made = network(shape)
    _, places = slab(len(GTAB))
    tokens = torch.randn(len(GTAB), PLACES, 48, dtype=torch.float64)
    cls = torch.randn(48, dtype=torch.float64)
    expected = plain_decoder(made.state_dict(), tokens, cls, places[0], GTAB, shape, GRID)
    with torch.no_grad():
        found = made.decode(Encoded(tokens[None], cls[None]), places, protocols(shape, GTAB), GRID)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
    assert (float(found.min()) == 0) == shape.last_relu


def test_masked_tokens_are_made_up_for() -> None:
    made = network(SHAPE)
    _, places = slab(len(GTAB))
    tokens = torch.randn(1, len(GTAB), PLACES, 48, dtype=torch.float64)
    masked = torch.rand(1, len(GTAB), PLACES) < 0.5
    cls = torch.randn(1, 48, dtype=torch.float64)

    def decoded(values: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return made.decode(Encoded(values, cls), places, protocols(SHAPE, GTAB), GRID, masked)

    assert torch.equal(decoded(tokens), decoded(tokens + 5 * masked[..., None]))
    assert not torch.equal(decoded(tokens), decoded(tokens + 5 * ~masked[..., None]))


@shapes
def test_pieces_change_nothing(shape: EncoderShape) -> None:
    made = network(shape)
    patches, places = slab(len(GTAB))
    (told,) = protocols(shape, GTAB)
    with torch.no_grad():
        whole = made(patches, places, [told])
    for tokens_at_once in (1, 2 * len(GTAB), 1000):
        found = made.encode(patches[0], places[0], told, tokens_at_once)
        torch.testing.assert_close(found.tokens, whole.tokens, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.cls, whole.cls, rtol=0, atol=1e-12)


@shapes
def test_samples_of_a_batch_have_protocols_of_their_own(shape: EncoderShape) -> None:
    made = network(shape)
    patches, places = slab(len(GTAB), samples=2)
    told = protocols(shape, GTAB, protocol({1000.0: 7}, seed=5))
    with torch.no_grad():
        together = made(patches, places, told)
        for sample in range(2):
            alone = made(patches[sample][None], places[:1], [told[sample]])
            torch.testing.assert_close(together.tokens[sample], alone.tokens[0])
            torch.testing.assert_close(together.cls[sample], alone.cls[0])


@shapes
def test_the_order_of_directions_does_not_matter(shape: EncoderShape) -> None:
    made = network(shape)
    patches, places = slab(len(GTAB))
    order = np.random.default_rng(0).permutation(len(GTAB))
    with torch.no_grad():
        straight = made(patches, places, protocols(shape, GTAB))
        permuted = made(patches[:, order], places, protocols(shape, GTAB.subset(order)))
    torch.testing.assert_close(permuted.tokens, straight.tokens[:, order], rtol=0, atol=1e-10)
    torch.testing.assert_close(permuted.cls, straight.cls, rtol=0, atol=1e-10)


def test_with_even_features_the_sign_of_directions_does_not_matter() -> None:
    patches, places = slab(len(GTAB))
    signs = np.where(np.arange(len(GTAB)) % 2, -1.0, 1.0)[:, None]
    flipped = GradientTable(GTAB.bvals, GTAB.bvecs * signs)
    with torch.no_grad():
        even, other = (network(EVEN)(patches, places, protocols(EVEN, gtab)) for gtab in (GTAB, flipped))
        polar, changed = (network(SHAPE)(patches, places, protocols(SHAPE, gtab)) for gtab in (GTAB, flipped))
    assert torch.equal(even.tokens, other.tokens)
    assert torch.equal(even.cls, other.cls)
    assert float((polar.tokens - changed.tokens).abs().max()) > 1e-3


def test_b0_volumes_have_no_direction() -> None:
    assert (direction_features(GTAB, "polar")[0] == 0).all()
    assert (direction_features(GTAB, "even")[0] == 0).all()
    x = GradientTable([1000], [[0, 1, 0]])
    np.testing.assert_allclose(direction_features(x, "polar")[0], [1, np.pi / 2, np.pi / 2])


@pytest.mark.parametrize("uneven", [False, True], ids=["as many of each direction", "uneven"])
@shapes
def test_hidden_tokens_are_as_if_they_were_not_there(shape: EncoderShape, uneven: bool) -> None:
    made = network(shape)
    patches, places = slab(len(GTAB))
    drawn = torch.rand(len(GTAB), PLACES, generator=torch.Generator().manual_seed(2))
    hidden = drawn < 0.6 if uneven else drawn.argsort(-1) < PLACES // 2
    tokens, cls = plain_encoder(made.state_dict(), patches[0], places[0], GTAB, shape, hidden)
    with torch.no_grad():
        found = made(patches, places, protocols(shape, GTAB), hidden[None])
    torch.testing.assert_close(found.tokens[0][~hidden], tokens[~hidden], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.cls[0], cls, rtol=0, atol=1e-6)


def test_gradients_reach_all_weights() -> None:
    made = network(SHAPE)
    patches, places = slab(len(GTAB), samples=2)
    told = protocols(SHAPE, GTAB, GTAB)
    masked = torch.rand(2, len(GTAB), PLACES) < 0.5
    found = made(patches, places, told, masked)
    signal = made.decode(found, places, told, GRID, masked)
    (signal.square().mean() + found.cls.sum()).backward()
    without = [name for name, parameter in made.named_parameters() if not float(parameter.grad.abs().sum())]
    assert without == []


def test_half_precision_stays_near() -> None:
    torch.manual_seed(0)
    made = DiffusionTransformer(PRESETS["small"]).eval()
    signal = torch.rand(1, len(GTAB), 8, 8, 4)
    patches, places = patch_rows(signal, (4, 4, 4)), patch_centres((2, 2, 1), (4, 4, 4), np.zeros(3, int))[None]
    told = [EncoderProtocol.of(GTAB, made.shape, dtype) for dtype in (torch.float32, torch.bfloat16)]
    with torch.no_grad():
        single = made(patches, places, told[:1])
        with torch.autocast("cpu", torch.bfloat16):
            half = made(patches, places, told[1:])
    assert half.tokens.dtype == torch.float32
    error = (half.tokens - single.tokens).norm() / single.tokens.norm()
    assert 1e-6 < float(error) < 0.03


def test_presets_have_the_size_that_they_claim() -> None:
    count = {
        name: sum(parameter.numel() for parameter in DiffusionTransformer(shape).parameters())
        for name, shape in PRESETS.items()
    }
    # the paper's 41.8 million count its tables of places
    assert 41.0e6 < count["paper"] < 41.8e6
    assert 1.0e6 < count["small"] < 1.5e6


def test_shapes_are_plain_json_and_checked() -> None:
    assert EncoderShape.from_dict(PRESETS["small"].to_dict()) == PRESETS["small"]
    with pytest.raises(SettingsError, match="cannot have 5 heads"):
        replace(SHAPE, heads=5)
    with pytest.raises(SettingsError, match="layout is 'tiled'"):
        replace(SHAPE, layout="tiled")
