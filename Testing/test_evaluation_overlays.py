"""The gate of overlays: that it tells what is about the scan and the training from what is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_overlays import GTAB, SHAPE, scan

sys.path.insert(0, str(Path(__file__).parent / "Evaluation"))

import overlays

from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer


def untrained(seed: int = 0) -> TrainedEncoder:
    torch.manual_seed(seed)
    return TrainedEncoder(DiffusionTransformer(SHAPE).eval())


def test_halves_share_no_direction_and_all_b0s() -> None:
    acquisition = scan()
    first, second = overlays.halves(acquisition, 3)
    assert first.gtab.b0_mask.sum() == second.gtab.b0_mask.sum() == 2
    directions = [
        {tuple(bvec) for bvec, b0 in zip(part.gtab.bvecs, part.gtab.b0_mask, strict=True) if not b0}
        for part in (first, second)
    ]
    assert not directions[0] & directions[1]
    assert len(directions[0] | directions[1]) == (~GTAB.b0_mask).sum()


def test_whole_patches_have_no_voxel_outside() -> None:
    acquisition = scan()
    slabs = ScanSlabs(acquisition, SHAPE, (0, 0, 0), with_b0=False)
    whole = overlays._whole(slabs, acquisition.mask)
    blocks = acquisition.mask.reshape(6, 4, 5, 4, 6, 2).transpose(0, 2, 4, 1, 3, 5).reshape(6, 5, 6, -1)
    np.testing.assert_array_equal(whole, blocks.all(-1))
    assert 0 < whole.sum() < slabs.present.sum()


def test_values_of_patches_are_means_of_their_cells() -> None:
    slabs = ScanSlabs(scan(), SHAPE, (0, 0, 0), with_b0=False)
    values = np.random.default_rng(0).random(tuple(n * 2 for n in slabs.grid))
    expected = values.reshape(6, 2, 5, 2, 6, 2).mean((1, 3, 5))
    np.testing.assert_allclose(overlays._on_patches(values, slabs), expected)


def test_hiding_what_matters_is_told_from_hiding_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an overlay that knows where the readout looks, and one that knows where it does not."""
    monkeypatch.setattr(overlays, "MIN_TOKENS", 4)
    acquisition, trained = scan(), untrained()
    each, readout = overlays.encoded(acquisition, trained, with_influence=True)
    rank = overlays.hiding(each, trained, readout, "influence", [], 0)
    turned = overlays.EncodedScan(
        acquisition, each.features, each.surprise, each.attention, -np.asarray(each.influence)
    )
    assert rank > overlays.hiding(turned, trained, readout, "influence", [], 0) + 0.2


def test_maps_agree_with_themselves_and_not_with_noise() -> None:
    each, _ = overlays.encoded(scan(), untrained(), with_influence=False)
    points = [(12, 10, 6)]
    for name in each.names:
        assert overlays.alike(each, each, name, points) == pytest.approx(1)
    noise = np.random.default_rng(0).random(each.features.cells.grid).astype(np.float32)
    other = overlays.EncodedScan(each.acquisition, each.features, noise, each.attention)
    assert abs(overlays.alike(each, other, "surprise", points)) < 0.35


def test_what_passes() -> None:
    good = overlays.Scores({"surprise": 0.8}, {"surprise": -0.1}, {"surprise": 0.5})
    better = overlays.Scores({"surprise": 0.9}, {"surprise": 0.1}, {"surprise": 0.6})
    for scores, passes in (
        ([good, better, good], "yes"),
        # means decide, and the interval of what hiding does has to lie above 1
        ([good, good, overlays.Scores({"surprise": 0.3}, {"surprise": 0.0}, {"surprise": 0.5})], "no"),
        ([good, good, overlays.Scores({"surprise": 0.9}, {"surprise": 1.2}, {"surprise": 0.5})], "no"),
        ([good, good, overlays.Scores({"surprise": 0.9}, {"surprise": 0.0}, {"surprise": -0.4})], "no"),
    ):
        table = overlays.table_of("", scores)
        assert list(table.columns[-1].cells) == [passes]
