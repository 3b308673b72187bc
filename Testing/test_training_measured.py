"""Real scans to train on without a truth: how they are kept and drawn, and what is learnt from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, ProtocolError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import write_acquisition
from DiffusionFMLib.physics import DKI, DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.prior.left_out import judged_channels
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.training.command import train
from DiffusionFMLib.training.kept_scans import kept_scans
from DiffusionFMLib.training.losses import MEASURED_WEIGHT, add_measured, batch_input
from DiffusionFMLib.training.measured_scans import FEWEST, MOST_LEFT_OUT, MeasuredMaker, MeasuredScan, can_spare
from DiffusionFMLib.training.prior import PriorTask
from DiffusionFMLib.training.settings import TrainSettings
from DiffusionFMLib.training.task import Losses

COORDINATES = coordinates_of(DTI())
CPU = torch.device("cpu")
SHAPE = (22, 20, 18)
S0 = 700.0
AFFINES = {
    "straight": np.diag([2.0, 2, 2, 1]),
    "left-handed": np.diag([-2.0, 2, 2, 1]),
    "turned": np.array([[0, -2.0, 0, 40], [0, 0, 2, 0], [-2, 0, 0, 20], [0, 0, 0, 1]]),
}


def scan(affine: np.ndarray = AFFINES["straight"], directions: int = 14, shells: int = 1) -> Acquisition:
    """Fibres along the first voxel axis, along which S0 rises; a margin of air, and a little noise."""
    bvals = np.r_[0.0, 0.0, np.tile(1000.0 * (1 + np.arange(shells)), directions)[:directions]]
    voxel_bvecs = np.r_[np.zeros((2, 3)), spread_directions(directions)]
    signal = S0 * np.exp(-bvals / 1000 * (0.4 + 1.2 * voxel_bvecs[:, 0] ** 2)) * np.ones((*SHAPE, 1))
    signal *= (0.7 + 0.6 * np.arange(SHAPE[0]) / SHAPE[0])[:, None, None, None]
    signal += np.random.default_rng(0).normal(0, 10, signal.shape)
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    gtab = GradientTable(bvals, voxel_bvecs @ axes.T)
    return Acquisition(np.clip(signal, 1, None).astype(np.float32), affine, gtab, mask)


def maker(one: MeasuredScan) -> MeasuredMaker:
    return MeasuredMaker([one], DTI(), COORDINATES, 16, 2, CPU)


@pytest.mark.parametrize("name", AFFINES)
def test_scans_are_kept_in_their_own_axes(name: str, tmp_path: Path) -> None:
    one = MeasuredScan.of(scan(AFFINES[name]))
    one.save(tmp_path / "one.npy")
    again = MeasuredScan.load(tmp_path / "one.npy")
    np.testing.assert_array_equal(again.signal, one.signal)
    assert again.noise == pytest.approx(10 / S0, rel=0.3)
    # cut to the brain; the fibres' signal is lowest where the gradient is along the first axis of the voxels
    assert again.signal.shape[1:] == tuple(n - 2 for n in SHAPE)
    weighted = again.gtab.bvals > 0
    lowest = again.signal[weighted].mean((1, 2, 3)).argmin()
    assert np.abs(again.gtab.bvecs[weighted][lowest]).argmax() == 0
    np.testing.assert_allclose(again.signal[0].astype(float).mean(), 1.1, rtol=0.05)


def test_examples_are_drawn_by_seed_with_volumes_left_out() -> None:
    one = maker(MeasuredScan.of(scan()))
    first, again, other = (one.draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    assert first.features.shape == (49, 16, 16, 16)
    rng = np.random.default_rng(3)
    counts = []
    for _ in range(60):
        given, held = one._split(one.scans[0].gtab, rng)
        assert not set(given) & set(held)
        assert 1 <= len(held) <= MOST_LEFT_OUT
        # a single b0, either one
        assert (one.scans[0].gtab.bvals[given] == 0).sum() == 1
        assert (one.scans[0].gtab.bvals[held] > 0).all()
        counts.append(len(given) - 1)
    assert min(counts) == FEWEST
    assert max(counts) == 13


def test_gradients_are_turned_with_the_crop() -> None:
    one = maker(MeasuredScan.of(scan()))
    axes = set()
    for seed in range(12):
        left_out = one.draw(np.random.default_rng(seed)).left_out
        shape = left_out.neighbourhood.near.shape[1:]
        theta = COORDINATES.theta(left_out.ridge)
        along = int(theta[[0, 3, 5]].mean(1).argmax())
        # S0 rises, or falls in a mirrored crop, along the axis that the fibres lie along
        places = torch.stack(torch.unravel_index(left_out.judged, shape)).float()
        related = [abs(float(torch.corrcoef(torch.stack([theta[6], place]))[0, 1])) for place in places]
        assert int(np.argmax(related)) == along
        axes.add(along)
    assert axes == {0, 1, 2}


def test_what_the_others_make_of_a_volume_is_near_it() -> None:
    one = maker(MeasuredScan.of(scan()))
    drawn = [one.draw(np.random.default_rng(seed)).left_out for seed in range(4)]
    residuals = torch.cat([each.residuals(each.ridge).flatten() for each in drawn])
    assert float(residuals.square().median()) < 3


def test_learning_is_by_what_can_be_judged() -> None:
    one = maker(MeasuredScan.of(scan()))
    examples = [one.draw(np.random.default_rng(seed)) for seed in range(2)]
    torch.manual_seed(0)
    network = PriorNetwork(NetworkShape(7, 16, 1, 1))
    raw = network(*batch_input(examples)).detach().requires_grad_(True)
    judged = judged_channels(COORDINATES.orders)
    before = Losses(torch.tensor(2.0), {"parameters": 1.0}, {"snr5_wm": (1.0, 2.0, 3)})
    result = add_measured(before, network, raw, examples, judged)
    each = (e.left_out.misfit(network, e.left_out.inside(part)) for e, part in zip(examples, raw, strict=True))
    misfit = torch.stack(list(each)).mean()
    assert float(result.total.detach()) == pytest.approx(2 + MEASURED_WEIGHT * float(misfit.detach()), rel=1e-5)
    assert result.parts["measured"] == pytest.approx(float(misfit.detach()), rel=1e-5)
    assert set(result.squares) == {"snr5_wm", "measured_tissue"}
    assert result.squares["measured_tissue"][2] == sum(e.left_out.signal.numel() for e in examples)
    (slope,) = torch.autograd.grad(result.total, raw)
    learnt = slope.abs().amax((0, 2, 3, 4)) > 0
    assert not learnt[~judged].any()
    assert learnt[1:6].all()


def test_scans_that_cannot_spare_volumes_are_told() -> None:
    assert can_spare(MeasuredScan.of(scan()), DTI())
    assert not can_spare(MeasuredScan.of(scan()), DKI())
    assert can_spare(MeasuredScan.of(scan(directions=30, shells=2)), DKI())
    few = scan(directions=4)
    with pytest.raises(ProtocolError, match="too few volumes to tell its noise"):
        MeasuredScan.of(few)


def test_scans_are_kept_between_runs_and_made_again_by_another_version(tmp_path: Path, monkeypatch) -> None:
    write_acquisition(scan(), tmp_path / "scans" / "dwi.nii.gz")

    def kept() -> tuple[int, MeasuredScan]:
        (one,) = kept_scans(MeasuredScan, "measured", tmp_path / "scans", tmp_path / "pool", SilentReport())
        (file,) = (tmp_path / "pool").glob("*.npy")
        return file.stat().st_mtime_ns, one

    first, again = kept(), kept()
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1].signal, again[1].signal)
    monkeypatch.setattr(MeasuredScan, "version", MeasuredScan.version + 1)
    assert kept()[0] > first[0]
    assert kept()[0] == kept()[0]


def test_a_run_learns_from_scans(tmp_path: Path) -> None:
    write_acquisition(scan(), tmp_path / "scans" / "dwi.nii.gz")
    settings = TrainSettings(
        out=str(tmp_path / "run"), preset="tiny", device="cpu", scans=str(tmp_path / "scans"), measured=True, steps=2
    )
    task = PriorTask(settings)
    task.prepare(tmp_path / "pool", CPU, SilentReport())
    assert task.losses(task.network, 0, 1, np.random.default_rng(0)).parts["measured"] > 0
    assert train(settings, SilentReport()).is_file()


def test_choices_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    for wrong in ({}, {"scans": str(tmp_path), "sampler": True}):
        with pytest.raises(SettingsError, match="--measured needs scans"):
            PriorTask(TrainSettings(preset="tiny", measured=True, **wrong))
    write_acquisition(scan(), tmp_path / "dwi.nii.gz")
    settings = TrainSettings(preset="tiny", model="dki", measured=True, scans=str(tmp_path), device="cpu")
    with pytest.raises(InputError, match="has enough volumes for .*, and some to spare"):
        PriorTask(settings).prepare(tmp_path / "pool", CPU, SilentReport())
