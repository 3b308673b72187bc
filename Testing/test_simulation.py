"""The simulated brain looks like one, and its truth is true."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from DiffusionFMLib.errors import DiffusionFMError, JobCancelled, SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.preprocessing.noise import estimate_noise
from DiffusionFMLib.settings import FitSettings, SimulateSettings, TrackSettings
from DiffusionFMLib.simulation import Simulated, simulate
from DiffusionFMLib.simulation.anatomy import Fibres, Warp
from DiffusionFMLib.simulation.bundles import BUNDLES, GROUPS, curves
from DiffusionFMLib.simulation.scanner import gradient_table, grid, repelled_directions
from DiffusionFMLib.simulation.tissue import GM_S0, WM_S0
from DiffusionFMLib.tractography import track

VOXEL = 3.0


def run(**settings: object) -> Simulated:
    return simulate(SimulateSettings(**{"voxel_size": VOXEL, "shells": "1000:12", **settings}), SilentReport())


@pytest.fixture(scope="module")
def noisy() -> Simulated:
    return run(snr=20.0)


@pytest.fixture(scope="module")
def clean() -> Simulated:
    return run(snr=1000.0, seed=1, shells="1000:30", n_b0=1)


def around(simulated: Simulated, name: str, place: tuple[float, float, float]) -> NDArray[np.float32]:
    """Values of a truth map within 5 mm of a place in the template, where that is white matter; RAS mm."""
    truth = simulated.truth[name]
    i, j, k = np.indices(truth.data.shape[:3])
    world = np.stack([i, j, k], axis=-1) @ truth.affine[:3, :3].T + truth.affine[:3, 3]
    near = np.linalg.norm(world - place, axis=-1) < 5
    return truth.data[near & (simulated.truth["tissue"].data[..., 0] > 0.6)]


@pytest.mark.parametrize("folding", [0.0, 0.3])
def test_fibres_follow_the_folds_of_a_head(folding):
    rng = np.random.default_rng(2)
    warp = Warp.draw(rng, folding=folding)
    points, directions = rng.uniform(-60, 60, (500, 3)), rng.normal(size=(500, 2, 3)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    nothing = np.zeros((500, 2), np.float32)
    found = warp.fibres(points, Fibres(directions, nothing, nothing)).directions
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
    # a step along a fibre of the head is a step along it in the template
    step = warp.points(points[:, None] + 1e-4 * found) - warp.points(points)[:, None]
    along = (step * directions).sum(-1) / np.linalg.norm(step, axis=-1)
    np.testing.assert_allclose(along, 1, atol=1e-4)
    turned = np.degrees(np.arccos(np.clip((found * directions).sum(-1), -1, 1)))
    assert (10 < np.median(turned) < 30) if folding else (np.median(turned) < 10)


@pytest.mark.parametrize(
    ("place", "axis"),
    [
        pytest.param((0, 26, 8), 0, id="genu of the callosum: left-right"),
        pytest.param((0, -6, 25), 0, id="body of the callosum: left-right"),
        pytest.param((0, -38, 14), 0, id="splenium of the callosum: left-right"),
        pytest.param((25, -15, 10), 2, id="right internal capsule: up-down"),
        pytest.param((-25, -15, 10), 2, id="left internal capsule: up-down"),
        pytest.param((9, 0, 36), 1, id="right cingulum: front-back"),
        pytest.param((-9, 0, 36), 1, id="left cingulum: front-back"),
        pytest.param((36, -10, 30), 1, id="right superior longitudinal fasciculus: front-back"),
        pytest.param((-36, -10, 30), 1, id="left superior longitudinal fasciculus: front-back"),
        pytest.param((34, -60, 2), 1, id="right optic radiation: front-back"),
    ],
)
@pytest.mark.parametrize("seed", ["noisy", "clean"])
def test_fibres_run_as_in_anatomy(request, seed: str, place: tuple[float, float, float], axis: int) -> None:
    simulated = request.getfixturevalue(seed)
    directions = np.abs(around(simulated, "v1", place))
    assert len(directions) >= 3
    assert np.median(directions[:, axis]) > 0.8


def test_values_are_those_of_a_healthy_brain(clean: Simulated) -> None:
    fa, md = clean.truth["fa"].data, clean.truth["md"].data
    wm, gm, csf = np.moveaxis(clean.truth["tissue"].data, -1, 0)
    well = clean.truth["lesion"].data == 0
    assert 0.3 < np.median(fa[(wm > 0.95) & well]) < 0.6
    assert 0.65e-3 < np.median(md[(fa > 0.3) & well]) < 0.85e-3
    assert np.median(fa[gm > 0.95]) < 0.05
    assert np.median(md[csf > 0.98]) == pytest.approx(3e-3, rel=0.02)
    assert 0.6 < np.median(around(clean, "fa", (0, -38, 14))) < 0.85


def test_tissue_fills_the_brain(clean: Simulated) -> None:
    total = clean.truth["tissue"].data.sum(axis=-1)
    brain = clean.truth["brain"].data > 0
    assert total.max() < 1 + 1e-5
    assert np.percentile(total[brain], 5) > 0.6
    assert 1300 < brain.sum() * VOXEL**3 / 1000 < 2100
    np.testing.assert_array_equal(brain, clean.acquisition.mask)
    # the box holds the whole head
    for axis in range(3):
        ends = brain.take([0, -1], axis)
        assert not ends.any()


def side_of_oedema(md: NDArray[np.float32], affine: NDArray[np.float64], wm: NDArray[np.bool_]) -> float:
    """How much higher MD is in the right frontal white matter than in the left, mm2/s."""
    world = np.argwhere(wm) @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = world.T
    frontal = (np.abs(np.abs(x) - 28) < 6) & (np.abs(y - 34) < 9) & (np.abs(z - 22) < 7)
    values = md[wm]
    return float(values[frontal & (x > 0)].mean() - values[frontal & (x < 0)].mean())


def test_lesion_is_on_the_patients_right_and_a_mirrored_picture_shows(noisy: Simulated) -> None:
    scan = noisy.acquisition
    wm = noisy.truth["tissue"].data[..., 0] > 0.7
    md = fit(scan, MODELS["dti"], FitSettings(), SilentReport()).maps["md"].data
    assert side_of_oedema(md, scan.affine, wm) > 0.4e-3
    assert side_of_oedema(md[::-1], scan.affine, wm[::-1]) < -0.4e-3

    label = np.argwhere(noisy.truth["lesion"].data > 0) @ scan.affine[:3, :3].T + scan.affine[:3, 3]
    assert len(label) * VOXEL**3 > 3000
    assert label[:, 0].min() > 5


def test_oedema_raises_md_and_b0_and_lowers_fa(clean: Simulated) -> None:
    sick = clean.truth["lesion"].data > 0
    well = (clean.truth["tissue"].data[..., 0] > 0.7) & ~sick
    b0 = clean.acquisition.signal[..., clean.acquisition.gtab.b0_mask].mean(axis=3)
    assert np.median(clean.truth["md"].data[sick]) > 1.5 * np.median(clean.truth["md"].data[well])
    assert np.median(clean.truth["fa"].data[sick]) < 0.6 * np.median(clean.truth["fa"].data[well])
    assert np.median(b0[sick]) > 1.3 * np.median(b0[well])


def test_a_brain_without_lesion_has_none(clean: Simulated) -> None:
    healthy = run(lesion=False, snr=1000.0, seed=1, shells="1000:6")
    assert not healthy.truth["lesion"].data.any()
    wm = clean.truth["tissue"].data[..., 0] > 0.7
    assert abs(side_of_oedema(healthy.truth["md"].data, healthy.acquisition.affine, wm)) < 0.1e-3


def test_same_seed_same_scan_other_seed_another_head(noisy: Simulated, clean: Simulated) -> None:
    again = run(snr=20.0)
    np.testing.assert_array_equal(again.acquisition.signal, noisy.acquisition.signal)
    for name, truth in noisy.truth.items():
        np.testing.assert_array_equal(again.truth[name].data, truth.data)
    assert (clean.truth["brain"].data != noisy.truth["brain"].data).sum() > 100


def test_a_fit_of_the_scan_finds_the_truth(clean: Simulated) -> None:
    maps = fit(clean.acquisition, MODELS["dti"], FitSettings(method="ols"), SilentReport()).maps
    wm = (clean.truth["tissue"].data[..., 0] > 0.8) & clean.acquisition.mask
    np.testing.assert_allclose(maps["fa"].data[wm], clean.truth["fa"].data[wm], atol=0.02)
    np.testing.assert_allclose(maps["md"].data[wm], clean.truth["md"].data[wm], atol=0.02e-3)
    aligned = np.abs((maps["v1"].data[wm] * clean.truth["v1"].data[wm]).sum(axis=-1))
    anisotropic = clean.truth["fa"].data[wm] > 0.3
    assert np.degrees(np.arccos(np.clip(np.percentile(aligned[anisotropic], 1), 0, 1))) < 2


def test_two_shells_have_a_truth_of_kurtosis_that_a_fit_finds() -> None:
    dense, sparse = (run(snr=1000.0, seed=1, shells=shells, n_b0=1) for shells in ("1000:30,2000:30", "1000:6,2000:6"))
    for simulated in (dense, sparse):
        assert set(simulated.kurtosis) == {"mk", "ak", "rk", "mkt", "fa", "md"}
    for name, truth in dense.kurtosis.items():
        np.testing.assert_array_equal(truth.data, sparse.kurtosis[name].data)
    settings = FitSettings(model="dki", method="ols", device="cpu")
    maps = fit(dense.acquisition, MODELS["dki"], settings, SilentReport()).maps
    wm = (dense.truth["tissue"].data[..., 0] > 0.8) & dense.acquisition.mask
    for name in ("mk", "fa"):
        np.testing.assert_allclose(maps[name].data[wm], dense.kurtosis[name].data[wm], atol=0.05)
    assert 0.6 < np.median(dense.kurtosis["mk"].data[wm]) < 1.4


def test_truth_tells_what_makes_the_scan_again(noisy: Simulated) -> None:
    for name in ("fa", "lesion"):
        told = noisy.truth[name].provenance["settings"]
        assert (told["snr"], told["shells"], told["voxel_size"], told["seed"]) == (20.0, "1000:12", VOXEL, 0)
        assert "out" not in told


def test_one_shell_has_no_truth_of_kurtosis(clean: Simulated) -> None:
    assert clean.kurtosis == {}


def test_noise_is_rician_with_the_snr_asked_for(noisy: Simulated) -> None:
    scan = noisy.acquisition
    sigma = WM_S0 / 20
    first, second = scan.signal[..., 0], scan.signal[..., 1]
    wm = noisy.truth["tissue"].data[..., 0] > 0.9
    assert np.std(first[wm] - second[wm]) / np.sqrt(2) == pytest.approx(sigma, rel=0.03)
    air = scan.signal[:4, :4]
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert WM_S0 * 0.85 < np.median(first[wm]) < GM_S0


def test_noise_is_correlated_as_asked_for() -> None:
    scan = run(snr=20.0, noise_correlation=0.3).acquisition
    found = estimate_noise(scan, scan.mask)
    assert found.correlation == pytest.approx((0.3, 0.3, 0.3), abs=0.03)
    assert found.sigma == pytest.approx(WM_S0 / 20, rel=0.05)


def test_signals_of_high_b_values_are_not_those_of_a_tensor() -> None:
    scan = run(snr=1000.0, seed=1, shells="1000:20,2000:20", n_b0=1)
    gtab, wm = scan.acquisition.gtab, scan.truth["tissue"].data[..., 0] > 0.95
    assert gtab.summary() == "b 0 1000 2000: 1+20+20"
    first, second = (gtab.bvecs[list(shell.indices)] for shell in gtab.shells)
    assert np.abs(first @ second.T).max(axis=1).mean() < 0.99
    mean = [scan.acquisition.signal[..., list(shell.indices)][wm].mean(axis=-1) for shell in gtab.shells]
    b0 = scan.acquisition.signal[..., 0][wm]
    # kurtosis holds the second shell above what the first foretells
    assert np.median(mean[1] / b0 / (mean[0] / b0) ** 2) > 1.15


@pytest.mark.parametrize("shells", ["1000", "1000:x", "50:30", "1000:0", "1000:30,", ""])
def test_shells_that_make_no_sense_are_refused(shells: str) -> None:
    with pytest.raises(SettingsError, match="shells is .* like 1000:30") as caught:
        SimulateSettings(shells=shells)
    assert "directions" in caught.value.hint


def test_grid_is_left_handed_and_oblique() -> None:
    for voxel in (1.0, 2.0, 3.3):
        shape, affine = grid(voxel)
        assert np.linalg.det(affine[:3, :3]) == pytest.approx(-(voxel**3))
        assert np.abs(affine[:3, :3] / voxel).max(axis=0).max() < 0.9999
        np.testing.assert_allclose(np.array(shape) * voxel, (184, 216, 176), atol=2 * voxel)


@pytest.mark.parametrize(("count", "apart"), [(6, 60.0), (30, 24.0), (64, 16.0)])
def test_directions_are_even(count: int, apart: float) -> None:
    u = repelled_directions(count)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1)
    cosine = np.abs(u @ u.T) - 2 * np.eye(count)
    assert np.degrees(np.arccos(cosine.max())) > apart
    np.testing.assert_allclose(u.T @ u / count, np.eye(3) / 3, atol=0.01)
    gtab = gradient_table(((700.0, count),), 3)
    assert gtab.summary() == f"b 0 700: 3+{count}"


def test_bundles_are_smooth_and_mirrored() -> None:
    for bundle in BUNDLES:
        assert bundle.group in GROUPS
        assert {len(section) for section in bundle.sections} == {len(bundle.fan)}, bundle.name
        points, tangents = curves(bundle)
        turns = (tangents[:, 1:] * tangents[:, :-1]).sum(axis=-1)
        assert np.degrees(np.arccos(np.clip(turns.min(), -1, 1))) < 25, bundle.name
        assert np.abs(points[..., 0].mean()) < 0.5, bundle.name
        if bundle.commissure:
            middle = np.abs(points[..., 0]).argmin(axis=1)
            assert np.abs(tangents[np.arange(len(points)), middle, 0]).min() > 0.95, bundle.name


def test_tracking_the_simulation_gives_the_big_bundles(noisy: Simulated) -> None:
    scan = noisy.acquisition
    tensor = fit(scan, MODELS["dti"], FitSettings(), SilentReport()).maps["tensor"].data
    tracts = track(tensor, scan.mask, scan.affine, TrackSettings(max_count=4000), SilentReport())
    lines = tracts.streamlines
    callosal = [p for p in lines if p[:, 0].min() < -12 and p[:, 0].max() > 12]
    rising = [p for p in lines if p[:, 2].min() < -20 and p[:, 2].max() > 40]
    running = [p for p in lines if np.ptp(p[:, 1]) > 60 and np.ptp(p[:, 2]) < 40]
    assert len(callosal) > 200
    assert len(rising) > 50
    assert len(running) > 200
    # they cross in the callosum, above the ventricles and in front of the cerebellum
    crossings = np.array([p[np.abs(p[:, 0]).argmin()] for p in callosal])
    in_callosum = (np.abs(crossings[:, 1] + 5) < 40) & (crossings[:, 2] > -12) & (crossings[:, 2] < 34)
    assert in_callosum.mean() > 0.9


def test_simulation_asks_often_whether_to_stop() -> None:
    class Clock(SilentReport):
        def __init__(self) -> None:
            super().__init__()
            self.asked = [time.process_time()]

        def check(self) -> None:
            self.asked.append(time.process_time())
            if len(self.asked) > 12:
                raise JobCancelled

        def progress(self, done: float, total: float, stage: str) -> None:
            self.check()

    report = Clock()
    with pytest.raises(JobCancelled):
        simulate(SimulateSettings(voxel_size=2.0, shells="1000:6"), report)
    # a cancelled job must end within four seconds
    assert np.diff(report.asked).max() < 3


def test_without_nilearn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(DiffusionFMError, match="nilearn") as caught:
        run()
    assert "pip install" in caught.value.hint
