"""Overlays: that they lie where the scan does, and say what they claim to."""

from __future__ import annotations

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from encoder_oracle import protocol
from nibabel.orientations import apply_orientation, inv_ornt_aff

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import DeviceError, InputError, ProtocolError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.overlays import memory
from DiffusionFMLib.overlays import surprise as surprises
from DiffusionFMLib.overlays.attention import Attention, watch
from DiffusionFMLib.overlays.cells import Cells
from DiffusionFMLib.overlays.encoded import EncodedScan
from DiffusionFMLib.overlays.features import Features, features_of
from DiffusionFMLib.overlays.influence import Readout, influence
from DiffusionFMLib.overlays.kinds import OVERLAYS
from DiffusionFMLib.overlays.memory import thinned

SHAPE = EncoderShape(
    24, 2, 2, 48, 1, 48, (4, 4, 2), directions="even", position_divisor=4.0, axes="scanner", brain_only=True
)
GTAB = protocol({0.0: 2, 1000.0: 6, 2000.0: 5})
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
SIZE = (24, 20, 12)
INNER = 0.55
"""Radius of the tissue in the middle, of the head's."""

WEIGHTED = np.flatnonzero(~GTAB.b0_mask)


@pytest.fixture(scope="module")
def trained() -> TrainedEncoder:
    torch.manual_seed(0)
    network = DiffusionTransformer(SHAPE).eval()
    return TrainedEncoder(network)


def scan(gtab: GradientTable = GTAB, size: tuple[int, int, int] = SIZE) -> Acquisition:
    """An ellipsoid, with another tissue in its middle."""
    rng = np.random.default_rng(0)
    centre = (np.array(size) - 1) / 2
    radius = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - centre) / (centre * 0.9), axis=-1)
    weighted = ~gtab.b0_mask
    signal = np.broadcast_to(np.where(weighted, 300.0, 900.0), (*size, len(gtab))).copy()
    signal[..., weighted] *= np.where(radius[..., None] < INNER, 1.5 + gtab.bvecs[weighted, 0] ** 2, 1)
    signal += rng.normal(0, 20, signal.shape)
    return Acquisition(signal.astype(np.float32), AFFINE, gtab, radius < 1)


@pytest.fixture(scope="module")
def features(trained: TrainedEncoder) -> Features:
    return features_of(scan(), trained, SilentReport())


@pytest.fixture(scope="module")
def attention(trained: TrainedEncoder) -> Attention:
    return watch(scan(), trained, SilentReport(), 256)


# --- where they lie --------------------------------------------------------------------------------------


def test_cells_lie_where_the_scan_does(features: Features) -> None:
    cells = features.cells
    index = np.stack(np.meshgrid(*map(np.arange, cells.grid), indexing="ij"), -1).astype(np.float32)
    where = cells.on_scan(index @ cells.affine[:3, :3].T.astype(np.float32) + cells.affine[:3, 3].astype(np.float32))
    voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    # half a cell of 2 x 2 x 1 voxels
    assert (np.abs(where - voxels) <= np.array([2, 2, 3]) / 2 + 1e-4).all()


def test_both_passes_fill_each_cell(trained: TrainedEncoder) -> None:
    whole = scan().with_mask(np.ones(SIZE, bool))
    passes = [ScanSlabs(whole, SHAPE, shift, with_b0=False) for shift in ((0, 0, 0), (2, 2, 1))]
    cells = Cells(passes[0])
    maps = []
    for slabs in passes:
        # the voxel at which a patch begins, along the first axis
        begin = slabs.start[0] + 4 * np.arange(slabs.grid[0], dtype=np.float32)
        maps.append((slabs, np.broadcast_to(begin[:, None, None], slabs.grid)))
    found = cells.mean(maps)[:, 0, 0]
    # cells of two voxels: of patches from 0 and -2, then 0 and 2, 4 and 2 ...
    np.testing.assert_allclose(found, np.arange(-1, 23, 2))


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_how_a_scan_is_stored_does_not_matter(
    trained: TrainedEncoder, features: Features, axes: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    turn = np.array(list(zip(axes, flips, strict=True)))
    straight = scan()
    affine = straight.affine @ inv_ornt_aff(turn, SIZE)
    assert straight.mask is not None
    stored = Acquisition(apply_orientation(straight.signal, turn), affine, GTAB, apply_orientation(straight.mask, turn))
    other = features_of(stored, trained, SilentReport())
    point = (12, 10, 6)
    there = np.linalg.inv(affine) @ AFFINE @ np.r_[point, 1]
    moved = tuple(int(v) for v in there[:3].round())
    expected = features.cells.on_scan(features.similarity(point))
    found = other.cells.on_scan(other.similarity(moved))  # type: ignore[arg-type]
    np.testing.assert_allclose(found, apply_orientation(expected, turn), atol=1e-3)


# --- features --------------------------------------------------------------------------------------------


def test_a_place_is_like_itself_and_its_own_tissue(features: Features) -> None:
    point = (12, 10, 6)
    found = features.cells.on_scan(features.similarity(point))
    inside = scan().mask
    assert inside is not None
    assert found[point] > 0.9
    assert np.abs(found).max() <= 1 + 1e-5
    centre = (np.array(SIZE) - 1) / 2
    radius = np.linalg.norm((np.moveaxis(np.indices(SIZE), 0, -1) - centre) / (centre * 0.9), axis=-1)
    assert found[radius < INNER].mean() > found[(radius > INNER) & inside].mean() + 0.3


def test_place_alone_explains_nothing_of_what_is_left(features: Features) -> None:
    for each, tokens in zip(features.passes, features.of_tissue, strict=True):
        present = each.slabs.present
        assert not tokens[~present].any()
    tokens = np.concatenate([t[e.slabs.present] for e, t in zip(features.passes, features.of_tissue, strict=True)])
    whole = np.concatenate([e.tokens[e.slabs.present] for e in features.passes])
    np.testing.assert_allclose(tokens.mean(0), 0, atol=1e-4)
    assert 0.05 < tokens.var(0).sum() / whole.var(0).sum() < 0.95


def test_components_are_those_of_the_features(features: Features) -> None:
    colors = features.components()
    assert colors.shape == (*features.cells.grid, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    tokens = np.concatenate([t[e.slabs.present] for e, t in zip(features.passes, features.of_tissue, strict=True)])
    # an independent way: singular vectors
    main = np.linalg.svd(tokens.astype(float), full_matrices=False)[2][0]
    projected = features.cells.mean(
        (e.slabs, (t @ main).astype(np.float32)) for e, t in zip(features.passes, features.of_tissue, strict=True)
    )
    between = (colors[..., 0] > 0.05) & (colors[..., 0] < 0.95)
    assert between.sum() > 50
    assert abs(np.corrcoef(colors[between][:, 0], projected[between])[0, 1]) > 0.98


def test_there_is_nothing_to_say_outside_the_brain(features: Features) -> None:
    with pytest.raises(InputError, match="outside the brain"):
        features.similarity((0, 0, 0))


class Told(SilentReport):
    """Keeps how far the work was."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[float] = []

    def progress(self, done: float, total: float, stage: str) -> None:
        self.shares.append(done / total)


def test_two_passes_are_halves_of_the_work(trained: TrainedEncoder) -> None:
    for work in (features_of, surprises.surprise):
        told = Told()
        work(scan(), trained, told)
        assert told.shares == sorted(told.shares)
        assert told.shares[0] == 0
        assert 0.5 in told.shares
        assert told.shares[-1] == 1


# --- surprise --------------------------------------------------------------------------------------------


def test_surprise_is_the_error_over_the_noise(trained: TrainedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reconstruction that is off by three times the noise in one half of the head and perfect in the other."""
    acquisition = scan()

    def off(network, sample, masked):
        high = (sample.positions[:, 0] > SIZE[0] / 2).float()[:, None]
        b0 = 900.0
        return torch.where(masked[..., None], sample.patches + 3 * 20.0 / b0 * high, torch.nan)

    monkeypatch.setattr(surprises, "reconstruct", off)
    noise = np.where(acquisition.mask, np.float32(20 / 900), np.float32(0))
    monkeypatch.setattr(surprises, "noise_over_b0", lambda _: noise)
    cells = surprises.surprise(acquisition, trained, SilentReport())
    found = Cells(ScanSlabs(acquisition, SHAPE, (0, 0, 0), with_b0=False)).on_scan(cells)
    assert acquisition.mask is not None
    inside = acquisition.mask & (found > 0)
    np.testing.assert_allclose(found[14:20][inside[14:20]], 3, rtol=1e-4)
    assert not found[4:10].any()
    assert inside[14:20].sum() > 100


def test_halves_share_out_each_shell() -> None:
    slabs = ScanSlabs(scan(), SHAPE, (0, 0, 0), with_b0=False)
    for seed in range(6):
        hidden = surprises._half(slabs, np.random.default_rng(seed)).numpy()
        counts = [int(hidden[list(shell.indices)].sum()) for shell in slabs.gtab.shells]
        assert counts[0] == 3
        assert counts[1] in (2, 3)


def test_surprise_stays_within_its_memory(trained: TrainedEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    # so much of a small network that 1 MiB does not hold eleven volumes
    monkeypatch.setattr(memory, "HELD", 6)
    monkeypatch.setattr(memory, "RESERVED", 0)
    told = SilentReport()
    surprises.surprise(scan(), trained, told, memory_mib=1)
    assert [code for code, _ in told.warnings] == ["surprise"]
    assert "of 11 directions" in told.warnings[0][1]
    with pytest.raises(DeviceError, match="0 are allowed"):
        surprises.surprise(scan(), trained, SilentReport(), memory_mib=0)


def test_thinned_scans_keep_b0s_and_spread_directions() -> None:
    some = thinned(scan(), 4, "Some.")
    assert len(some.gtab) == 6
    assert some.gtab.b0_mask.sum() == 2
    np.testing.assert_allclose(some.gtab.bvecs[~some.gtab.b0_mask], GTAB.bvecs[WEIGHTED[[0, 3, 7, 10]]])
    assert thinned(scan(), 11, "Some.").gtab is GTAB


def test_surprise_needs_directions(trained: TrainedEncoder) -> None:
    few = scan(protocol({0.0: 1, 1000.0: 3}))
    with pytest.raises(ProtocolError, match="has 3 directions; expected 4"):
        surprises.surprise(few, trained, SilentReport())


# --- attention -------------------------------------------------------------------------------------------


def test_attention_is_what_the_network_computes(trained: TrainedEncoder, attention: Attention) -> None:
    """Against hooks on the projections of the network itself, in the first block."""
    slabs = attention.slabs
    caught: dict[str, torch.Tensor] = {}
    block = trained.network.blocks[0]
    hooks = [
        module.qkv.register_forward_hook(lambda _m, _i, out, name=name: caught.update({name: out}))
        for name, module in (("directions", block.attn_diffusion), ("places", block.attn_space))
    ]
    slab = slabs.slab(1)
    with torch.no_grad():
        trained.network(slab.patches[None], slab.positions[None], [EncoderProtocol.of(slabs.gtab, SHAPE)])
    for hook in hooks:
        hook.remove()
    q, k, _ = caught["places"][0].unflatten(-1, (3, 2, 12)).unbind(-3)
    scores = torch.einsum("tshd,tkhd->thsk", q, k) / 12**0.5
    np.testing.assert_allclose(attention.places[1][0], scores.softmax(-1).mean(0), atol=1e-3)
    weights = torch.from_numpy(attention.places[1].astype(np.float32))
    np.testing.assert_allclose(weights.sum(-1), 1, atol=2e-2)
    here = attention.directions.reshape(2, 2, len(WEIGHTED), -1)[..., slab.where]
    np.testing.assert_allclose(here.sum(2), 1, atol=1e-5)


def test_geometry_alone_leaves_nothing_where_signal_has_no_directions(trained: TrainedEncoder) -> None:
    plain = scan()
    same = plain.signal.copy()
    for shell in GTAB.shells:
        same[..., list(shell.indices)] = same[..., list(shell.indices)].mean(-1, keepdims=True)
    found = watch(replace(plain, signal=same), trained, SilentReport(), 256).apart_from_geometry(None, None)
    assert np.abs(found).max() < 1e-5
    with_directions = watch(plain, trained, SilentReport(), 256).apart_from_geometry(None, None)
    assert with_directions.max() > 1e-3


def test_a_point_attends_within_its_slab(attention: Attention) -> None:
    patch = (3, 1, 2)
    found = attention.of_point(patch, 1, 0)
    assert not found[:, :, [0, 1, 3, 4, 5]].any()
    present = attention.slabs.present[:, :, 2]
    np.testing.assert_allclose(found[:, :, 2][present].mean(), 1, atol=1e-3)
    row = attention._row(patch, 2)
    expected = attention.places[2][1, 0, 1 + row, 1:].astype(float)
    np.testing.assert_allclose(found[:, :, 2][present], expected / expected.mean(), rtol=1e-3)
    # the mean over blocks and heads is that of the weights
    mean = attention.places[2][:, :, 1 + row, 1:].astype(float).mean((0, 1))
    np.testing.assert_allclose(attention.of_point(patch, None, None)[:, :, 2][present], mean / mean.mean(), rtol=1e-3)
    with pytest.raises(InputError, match="outside the brain"):
        attention.of_point((0, 0, 0), None, None)


def test_rollout_follows_attention_through_the_blocks(attention: Attention) -> None:
    places = attention.places[2].astype(float).mean(1)
    flow = np.eye(places.shape[-1])
    for weights in places:
        flow = 0.5 * (weights + np.eye(len(flow))) @ flow
    drawn = flow[0, 1:]
    present = attention.slabs.present[:, :, 2]
    np.testing.assert_allclose(attention.rollout()[:, :, 2][present], drawn / drawn.mean(), rtol=1e-3)


def test_attention_that_does_not_fit_is_refused(trained: TrainedEncoder) -> None:
    with pytest.raises(DeviceError, match="at least; 0 are allowed"):
        watch(scan(), trained, SilentReport(), 0)


def test_attention_within_its_memory_is_that_of_some_directions(
    trained: TrainedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "HELD", 6)
    monkeypatch.setattr(memory, "RESERVED", 0)
    told = SilentReport()
    found = watch(scan(), trained, told, 1)
    assert [code for code, _ in told.warnings] == ["attention"]
    count = len(found.slabs.volumes)
    assert 2 <= count < 11
    assert found.directions.shape[2] == count
    np.testing.assert_allclose(found.gtab.bvecs, GTAB.bvecs[WEIGHTED[np.linspace(0, 10, count).round().astype(int)]])
    assert f"{count} of 11 directions" in told.warnings[0][1]


# --- influence -------------------------------------------------------------------------------------------


def test_the_readout_finds_what_features_carry(features: Features) -> None:
    first = features.passes[0]
    rng = np.random.default_rng(1)
    weights = rng.normal(size=first.tokens.shape[-1]).astype(np.float32)
    fa = first.on_scan(0.3 + 0.01 * first.tokens @ weights)
    mask = scan().mask
    assert mask is not None
    readout = Readout.of(first, fa, mask)
    present = first.slabs.present
    found = readout(torch.from_numpy(first.tokens[present])).numpy()
    expected = 0.3 + 0.01 * first.tokens[present] @ weights
    assert np.corrcoef(found, expected)[0, 1] > 0.95


def test_influence_is_what_hiding_changes(trained: TrainedEncoder, features: Features) -> None:
    acquisition = scan()
    readout = Readout(np.linspace(-1, 1, 24).astype(np.float32), 0.1)
    found = influence(acquisition, trained, readout, SilentReport())
    slabs = ScanSlabs(acquisition, SHAPE, (0, 0, 0), with_b0=False)
    number, kept = 1, slabs.kept(1).numpy()
    x, y, _ = np.unravel_index(kept, slabs.grid_of(number))
    hidden = (x // 2 == 1) & (y // 2 == 0)
    assert hidden.any()
    assert not hidden.all()
    slab, tables = slabs.slab(number), [EncoderProtocol.of(slabs.gtab, SHAPE)]
    masked = torch.from_numpy(hidden).expand(1, len(slabs.volumes), -1)
    with torch.no_grad():
        before, after = (
            trained.network(slab.patches[None], slab.positions[None], tables, mask).tokens[0].mean(0)
            for mask in (None, masked)
        )
    change = np.abs((after - before).numpy() @ readout.weights)[~hidden].mean()
    np.testing.assert_allclose(found.reshape(-1)[slab.where][hidden], change, rtol=1e-3)


# --- answers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(features: Features, attention: Attention) -> EncodedScan:
    return EncodedScan(scan(), features, np.ones(features.cells.grid, np.float32), attention)


def test_answers_hold_the_overlay(encoded: EncodedScan) -> None:
    answer = encoded.overlay({"overlay": "similarity", "ijk": [12, 10, 6]})
    values = np.frombuffer(base64.b64decode(answer["values"]), "<f4").reshape(answer["shape"][::-1])
    # patches reach beyond the brain, overlays do not
    brain = np.zeros(encoded.features.cells.grid, bool)
    for i, j, k in np.argwhere(encoded.acquisition.mask):
        brain[i // 2, j // 2, k] = True
    whole = encoded.features.similarity((12, 10, 6))
    assert whole[~brain].any()
    np.testing.assert_array_equal(values.T, whole * brain)
    assert answer["affine"] == encoded.features.cells.affine.tolist()
    raw = encoded.overlay({"overlay": "raw", "ijk": [12, 10, 6], "block": 1, "head": 0})
    assert raw["values"] != encoded.overlay({"overlay": "raw", "ijk": [12, 10, 6]})["values"]


def test_directions_are_those_of_the_scan(encoded: EncodedScan) -> None:
    answer = encoded.directions({"ijk": [12, 10, 6], "block": 0})
    np.testing.assert_allclose(answer["bvecs"], GTAB.bvecs[WEIGHTED])
    np.testing.assert_allclose(answer["bvals"], GTAB.bvals[WEIGHTED])
    np.testing.assert_allclose([sum(answer["attention"]), sum(answer["geometry"])], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"overlay": "magic"}, "no overlay 'magic'"),
        ({"overlay": "influence"}, "no overlay 'influence'"),
        ({"overlay": "similarity", "ijk": [99, 0, 0]}, "expected three whole numbers inside"),
        ({"overlay": "similarity"}, "those about a place need one"),
        ({"overlay": "raw", "ijk": [12, 10, 6], "block": 7}, "block is 7"),
        ({"overlay": "raw", "ijk": [12, 10, 6], "head": True}, "head is True"),
    ],
)
def test_wrong_questions_are_told(encoded: EncodedScan, body: dict, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        encoded.overlay(body)
    assert message in f"{caught.value.message} {caught.value.hint}"


def test_without_attention_there_is_none_to_ask_for(encoded: EncodedScan) -> None:
    plain = replace(encoded, attention=None, surprise=None)
    assert plain.names == ["similarity", "pca"]
    assert plain.about() == {"encoded": True, "blocks": 0, "heads": 0, "overlays": ["similarity"]}
    with pytest.raises(SettingsError, match="not kept"):
        plain.directions({"ijk": [12, 10, 6]})


def test_without_geometry_there_is_nothing_to_compare_with(trained: TrainedEncoder, encoded: EncodedScan) -> None:
    watched = watch(scan(), trained, SilentReport(), 256, geometry=False)
    assert encoded.attention is not None
    np.testing.assert_array_equal(watched.directions, encoded.attention.directions)
    plain = replace(encoded, attention=watched)
    assert "directions" not in plain.names
    assert "raw" in plain.names
    with pytest.raises(SettingsError, match="not kept"):
        plain.directions({"ijk": [12, 10, 6]})


def test_maps_are_the_scans_own_grid(encoded: EncodedScan) -> None:
    maps = {map.spec.name: map for map in encoded.maps({"key": "k"})}
    assert list(maps) == ["rollout", "pca", "surprise", "directions"]
    mask = encoded.acquisition.mask
    assert mask is not None
    for name, map in maps.items():
        assert map.data.shape[:3] == SIZE
        assert map.spec is OVERLAYS[name].spec
        np.testing.assert_array_equal(map.affine, AFFINE)
        assert not map.data[~mask].any()
    np.testing.assert_array_equal(maps["surprise"].data, mask)


def test_every_overlay_says_what_it_shows() -> None:
    for name, overlay in OVERLAYS.items():
        assert name == overlay.spec.name
        assert overlay.spec.description.endswith(".")
        assert "because" not in overlay.spec.description
