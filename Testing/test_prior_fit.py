"""The prior as a method: right maps from few directions, in any orientation, with what tells how far to trust them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from numpy.typing import NDArray
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, JobCancelled, ProtocolError, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import Fit
from DiffusionFMLib.fitting import fit as conventional_fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus, ParameterMap, with_prior_maps
from DiffusionFMLib.physics import DTI, METHODS, MODELS, support
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.settings import FitSettings, SimulateSettings
from DiffusionFMLib.simulation import simulate

PRIOR = FitSettings(method="prior", device="cpu", adaptation="none")
MODEL = MODELS["dti"]
SCALARS = ("fa", "md", "ad", "rd", "s0")
SPECS = with_prior_maps(DTI.map_specs)


@pytest.fixture(scope="module")
def brain() -> tuple[Acquisition, dict[str, ParameterMap]]:
    """A whole brain with 6 directions at SNR 10, and its truth."""
    settings = SimulateSettings(shells="1000:6", n_b0=1, snr=10, voxel_size=3.0, seed=3)
    simulated = simulate(settings, SilentReport())
    return simulated.acquisition, simulated.truth


@pytest.fixture(scope="module")
def six(brain) -> Fit:
    return fit(brain[0], MODEL, PRIOR, SilentReport())


def block(
    count: int = 12, n_b0: int = 2, affine: NDArray[np.float64] | None = None, axes: NDArray[np.float64] | None = None
) -> Acquisition:
    """A small volume of two tissues with noise; `axes` turns it in the scanner, gradients and all."""
    rng = np.random.default_rng(0)
    directions = spread_directions(count)
    bvals, bvecs = np.r_[np.zeros(n_b0), np.full(count, 1000.0)], np.r_[np.zeros((n_b0, 3)), directions]
    theta = np.zeros((10, 12, 9, 7))
    theta[..., [0, 3, 5, 6]] = [1.6, 0.4, 0.3, np.log(500.0)]
    theta[:4, ..., [0, 3, 5]] = 0.8
    clean = np.exp(theta @ DTI().design(GradientTable(bvals, bvecs)).T)
    noise = 25 * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    axes = np.eye(3) if axes is None else axes
    return Acquisition(
        signal,
        np.diag([2.0, 2, 2, 1]) if affine is None else affine,
        GradientTable(bvals, bvecs @ axes.T),
        np.ones(signal.shape[:3], bool),
        "block",
    )


def errors(
    maps: dict[str, ParameterMap], truth: dict[str, ParameterMap], inside: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Root mean square error of FA and MD (um2/ms), and the median angle of V1 in degrees where FA > 0.35."""
    fa, md = (np.sqrt(np.mean((maps[n].data - truth[n].data)[inside] ** 2)) for n in ("fa", "md"))
    fibres = inside & (truth["fa"].data > 0.35)
    along = np.abs((maps["v1"].data * truth["v1"].data).sum(-1))[fibres]
    return float(fa), float(md) * 1e3, float(np.degrees(np.median(np.arccos(along.clip(0, 1)))))


def tissue_of(brain: tuple[Acquisition, dict[str, ParameterMap]]) -> NDArray[np.bool_]:
    assert brain[0].mask is not None
    return brain[0].mask & (brain[1]["md"].data < 1.5e-3)


# --- maps ------------------------------------------------------------------------------------------------------


def test_six_noisy_directions_are_enough(brain, six):
    acquisition, truth = brain
    inside = tissue_of(brain)
    found = errors(six.maps, truth, inside)
    wls = errors(conventional_fit(acquisition, MODEL, FitSettings(device="cpu"), SilentReport()).maps, truth, inside)
    assert found[0] < 0.5 * wls[0]
    assert found[1] < 0.8 * wls[1]
    assert found[2] < 0.7 * wls[2]
    assert found[0] < 0.11


def test_three_directions_give_maps_too(brain):
    """MD is better than what the three say alone, and FA and directions than nothing, which is what they say."""
    acquisition, truth = brain
    b0, weighted = acquisition.gtab.b0_mask.argmax(), np.flatnonzero(~acquisition.gtab.b0_mask)
    bvecs = acquisition.gtab.bvecs
    triples = [(i, j, k) for i in weighted for j in weighted if j > i for k in weighted if k > j]
    keep = [b0, *max(triples, key=lambda t: abs(np.linalg.det(bvecs[list(t)])))]
    few = replace(acquisition, signal=acquisition.signal[..., keep], gtab=acquisition.gtab.subset(keep))
    maps = fit(few, MODEL, PRIOR, SilentReport()).maps
    inside = tissue_of(brain)
    _, md, angle = errors(maps, truth, inside)
    assert np.corrcoef(maps["fa"].data[inside], truth["fa"].data[inside])[0, 1] > 0.6
    log_ratio = np.log(few.signal[..., :1].clip(1) / few.signal[..., 1:].clip(1)).mean(-1)
    assert md < 0.8 * float(np.sqrt(np.mean((log_ratio - truth["md"].data * 1e3)[inside] ** 2)))
    # chance is 60 degrees
    assert angle < 40


def test_standard_deviations_tell_the_error(brain, six):
    inside = tissue_of(brain)
    # of FA, less in simulations of another kind than that which they were calibrated on
    for name, wrong in (("fa", 0.2), ("md", 0.08)):
        error = np.abs(six.maps[name].data - brain[1][name].data)[inside]
        sd = six.maps[f"{name}_sd"].data[inside]
        assert np.isfinite(sd).all()
        assert sd.min() > 0
        assert np.mean(error < 0.674 * sd) == pytest.approx(0.5, abs=wrong)
        assert np.mean(error < 1.645 * sd) == pytest.approx(0.9, abs=0.08)
        unsure = sd > np.median(sd)
        # where it says that errors are so many times larger, they are about that many times larger
        found, claimed = (values[unsure].mean() / values[~unsure].mean() for values in (error, sd))
        assert found == pytest.approx(claimed, rel=0.25)


def test_maps_are_those_declared(brain, six):
    assert list(six.maps) == [spec.name for spec in SPECS]
    for spec in SPECS:
        map = six.maps[spec.name]
        assert map.spec == spec
        assert map.data.shape == (*brain[0].shape, *((len(spec.components),) if spec.components else ()))
        assert np.isfinite(map.data).all()
        assert not map.data[~brain[0].mask].any()
    fraction = six.maps["datafraction"].data[brain[0].mask]
    assert 0 < fraction.min() <= fraction.max() <= 1
    np.testing.assert_allclose(six.parameters[:, 0] * 1e-3, six.maps["tensor"].data[brain[0].mask][:, 0], rtol=1e-5)


# --- geometry --------------------------------------------------------------------------------------------------


def test_an_oblique_grid_turns_directions_and_nothing_else():
    axes = Rotation.from_rotvec([0.3, -0.2, 0.35]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = 2 * axes
    straight = fit(block(), MODEL, PRIOR, SilentReport()).maps
    turned = fit(block(affine=affine, axes=axes), MODEL, PRIOR, SilentReport()).maps
    for name in [spec.name for spec in SPECS if not spec.components and spec.name != "status"]:
        atol = 2e-3 if name == "disagreement" else 1e-6
        np.testing.assert_allclose(turned[name].data, straight[name].data, rtol=2e-3, atol=atol, err_msg=name)
    along = np.abs(((straight["v1"].data @ axes.T) * turned["v1"].data).sum(-1))
    assert along[straight["fa"].data > 0.3].min() > 0.999
    assert np.abs(straight["v1"].data[6:, ..., 0]).mean() > 0.98


@pytest.mark.parametrize(
    ("stored", "adaptation"), [("LPS", "none"), ("SAR", "none"), ("PSR", "none"), ("AIL", "adapt")]
)
def test_how_a_scan_is_stored_changes_nothing(stored, adaptation):
    """Axes in any order and sense, of either hand: the same values in the same places of the patient."""
    settings = replace(PRIOR, adaptation=adaptation)
    plain = block(count=6)
    # noise that is correlated along one axis
    plain = replace(plain, signal=gaussian_filter1d(plain.signal, 0.5, axis=0))
    image = nib.Nifti1Image(plain.signal, plain.affine)
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(stored))
    other = image.as_reoriented(turn)
    mask = np.ones(other.shape[:3], bool)
    found = fit(
        replace(plain, signal=other.get_fdata(), affine=other.affine, mask=mask), MODEL, settings, SilentReport()
    )
    straight = fit(plain, MODEL, settings, SilentReport())
    correlation = [straight.provenance["noise"]["correlation"][axis] for axis in turn[:, 0].argsort()]
    assert found.provenance["noise"]["correlation"] == pytest.approx(correlation, abs=2e-3)
    assert max(correlation) > sorted(correlation)[1] + 0.1
    for name, expected in straight.maps.items():
        assert found.maps[name].affine == pytest.approx(other.affine)
        turned = apply_orientation(expected.data, turn)
        np.testing.assert_allclose(found.maps[name].data, turned, rtol=1e-4, atol=1e-5, err_msg=name)
    tensors = found.maps["tensor"].data[mask]
    np.testing.assert_allclose(found.parameters[:, :6] * 1e-3, tensors, rtol=1e-4, atol=1e-9)


# --- what goes in ----------------------------------------------------------------------------------------------


def test_voxels_without_a_signal_are_told_and_tell_the_others_nothing():
    acquisition = block()
    signal = acquisition.signal.copy()
    signal[6, 6, 4], signal[2, 2, 2] = 0, 700
    maps = fit(replace(acquisition, signal=signal), MODEL, PRIOR, SilentReport()).maps
    status = maps["status"].data
    assert status[6, 6, 4] == status[2, 2, 2] == FitStatus.DEGENERATE
    assert (status == FitStatus.DEGENERATE).sum() == 2
    assert all(not maps[name].data[6, 6, 4].any() for name in maps if name != "status")
    assert 0.5 < maps["fa"].data[6, 6, 5] < 0.95


@pytest.mark.parametrize("times", [100.0, 1e3])
def test_a_voxel_that_is_far_too_bright_is_what_it_is(times):
    acquisition = block()
    signal = acquisition.signal.copy()
    signal[6, 6, 4] *= times
    maps = fit(replace(acquisition, signal=signal), MODEL, PRIOR, SilentReport()).maps
    clean = fit(acquisition, MODEL, PRIOR, SilentReport()).maps
    assert maps["s0"].data[6, 6, 4] == pytest.approx(500 * times, rel=0.2)
    assert np.abs(maps["fa"].data - clean["fa"].data).max() < 0.2


def test_what_no_scanner_measures_is_told_and_not_mapped():
    acquisition = block()
    signal = acquisition.signal.copy()
    signal[6, 6, 4] *= 1e20
    maps = fit(replace(acquisition, signal=signal), MODEL, PRIOR, SilentReport()).maps
    bad = maps["status"].data == FitStatus.DEGENERATE
    assert bad[6, 6, 4]
    for name, map in maps.items():
        assert np.isfinite(map.data).all(), name
        assert name == "status" or not map.data[bad].any(), name
    signal = acquisition.signal.copy()
    signal[..., 0] = -1e4
    with pytest.raises(InputError, match="not above zero"):
        fit(replace(acquisition, signal=signal), MODEL, PRIOR, SilentReport())


def test_a_scan_of_nothing_sound_is_told(monkeypatch):
    monkeypatch.setattr("DiffusionFMLib.fitting.estimate.MAX_PARAMETER", 0.0)
    with pytest.raises(InputError, match="No voxel"):
        fit(block(), MODEL, PRIOR, SilentReport())


def test_voxels_without_a_signal_leave_the_standard_deviations_of_others_alone():
    acquisition = block()
    signal, brain = acquisition.signal.copy(), acquisition.mask.copy()
    signal[:2], brain[:2] = 0, False
    scan = replace(acquisition, signal=signal)
    within, without = (fit(replace(scan, mask=mask), MODEL, PRIOR, SilentReport()).maps for mask in (scan.mask, brain))
    for name in ("fa", "fa_sd", "md_sd"):
        np.testing.assert_allclose(within[name].data[2:], without[name].data[2:], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model", ["dti", "noddi"])
def test_a_mask_with_much_air_in_it_will_do(model, monkeypatch):
    """Whole chunks of voxels without a signal."""
    monkeypatch.setattr("DiffusionFMLib.prior.fitting.CHUNK", 100)
    acquisition = block()
    bvals = acquisition.gtab.bvals.copy()
    bvals[8:] = 2000
    signal = acquisition.signal.copy()
    signal[:3] = 0
    scan = replace(acquisition, signal=signal, gtab=GradientTable(bvals, acquisition.gtab.bvecs))
    settings = replace(PRIOR, model=model)
    maps = fit(scan, MODELS[model], settings, SilentReport()).maps
    status = maps["status"].data
    assert (status[:3] == FitStatus.DEGENERATE).all()
    assert (status[3:] != FitStatus.DEGENERATE).all()
    assert not maps["s0"].data[:3].any()
    assert (maps["s0"].data[3:] > 100).all()


def test_a_scan_without_noise_is_told():
    acquisition = block(count=6, n_b0=1)
    constant = np.broadcast_to(acquisition.signal[6, 6, 4], acquisition.signal.shape).copy()
    with pytest.raises(InputError, match="block has no noise"):
        fit(replace(acquisition, signal=constant), MODEL, PRIOR, SilentReport())


def test_a_scan_without_a_signal_and_a_mask_of_nothing_are_told_apart():
    acquisition = block()
    with pytest.raises(InputError, match="block has no usable signal in the brain mask"):
        fit(replace(acquisition, signal=np.full_like(acquisition.signal, 700)), MODEL, PRIOR, SilentReport())
    with pytest.raises(InputError, match="brain mask of block is empty"):
        fit(acquisition.with_mask(np.zeros(acquisition.shape, bool)), MODEL, PRIOR, SilentReport())


def test_a_single_slice_will_do():
    acquisition = block(count=6, n_b0=1)
    thin = replace(acquisition, signal=acquisition.signal[:, :, 4:5], mask=np.ones((10, 12, 1), bool))
    maps = fit(thin, MODEL, PRIOR, SilentReport()).maps
    assert 0.5 < np.median(maps["fa"].data[6:]) < 0.9


def table(count: int, n_b0: int = 1, plane: bool = False) -> GradientTable:
    directions = spread_directions(max(count, 1))[:count] * ([1, 1, 0] if plane else [1, 1, 1])
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return GradientTable(np.r_[np.zeros(n_b0), np.full(count, 1000.0)], np.r_[np.zeros((n_b0, 3)), directions])


@pytest.mark.parametrize(
    ("gtab", "sentence"),
    [
        (GradientTable(np.r_[np.full(6, 700.0), np.full(6, 1500.0)], np.tile(spread_directions(6), (2, 1))), "b0"),
        (table(2), "needs 3 directions; this scan has 2"),
        (table(6, plane=True), "lie in one plane"),
        (table(0, n_b0=3), "no diffusion weighting"),
    ],
)
def test_protocols_that_are_too_little_are_told(gtab, sentence):
    assert sentence in support(gtab)["dti"]["prior"]
    acquisition = Acquisition(np.ones((4, 4, 4, len(gtab)), np.float32), np.eye(4), gtab)
    with pytest.raises(ProtocolError, match=sentence):
        fit(acquisition, MODEL, PRIOR, SilentReport())


def test_support_is_by_method():
    three, six_directions = support(table(3))["dti"], support(table(6))["dti"]
    assert three["prior"] is None
    assert all("needs 6 non-collinear" in three[name] for name in DTI.methods if name != "prior")
    assert set(six_directions.values()) == {None}
    assert METHODS["prior"].beside(MODEL, table(3)) is None
    assert METHODS["prior"].beside(MODEL, table(6)) == "wls"
    assert METHODS["wls"].beside(MODEL, table(6)) is None


def test_only_voxelwise_methods_fit_tile_by_tile():
    with pytest.raises(SettingsError, match="voxel by voxel with wls, ols, nlls, robust"):
        conventional_fit(block(), MODEL, PRIOR, SilentReport())


def test_weights_that_are_not_there_or_something_else_are_told(tmp_path):
    def fit_with(path: Path) -> None:
        fit(block(), MODEL, replace(PRIOR, weights=str(path)), SilentReport())

    with pytest.raises(InputError, match=r"no weights of a prior at .*mine\.safetensors; expected"):
        fit_with(tmp_path / "mine.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(InputError, match=r"text\.safetensors cannot be read"):
        fit_with(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="holds no weights of DiffusionFM; expected diffusionfm-prior"):
        fit_with(tmp_path / "other.safetensors")


class Stopped(SilentReport):
    """Is cancelled at the so-manieth question."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise JobCancelled

    def progress(self, done: float, total: float, stage: str) -> None:
        self.check()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_cancel_ends_it(after):
    with pytest.raises(JobCancelled):
        fit(block(), MODEL, PRIOR, Stopped(after))


# --- files -----------------------------------------------------------------------------------------------------
