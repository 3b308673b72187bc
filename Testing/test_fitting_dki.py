"""Kurtosis fits: against DIPY, against exact constrained solutions, and on voxels that hold nothing to fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scan_files import write_scan

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.cli import main
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import FitOptions, fit, tiles
from DiffusionFMLib.fitting.constrained import TOLERANCE, Constraints
from DiffusionFMLib.fitting.least_squares import Problem
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import DKI, DTI, METHODS
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.settings import FitSettings

AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
S0 = 800.0
VOXELWISE = tuple(name for name in DKI.methods if METHODS[name].voxelwise)


def table(first: int = 30, second: int = 60, b0: int = 6, top: float = 2000) -> GradientTable:
    bvals = np.repeat([0, 1000, top], [b0, first, second])
    return GradientTable(
        bvals, np.concatenate([np.zeros((b0, 3)), spread_directions(first), spread_directions(second)])
    )


def scan(gtab: GradientTable, snr: float | None, shape: tuple[int, ...] = (10, 8, 5), seed: int = 0) -> Acquisition:
    """Sticks among water in all directions, beside water that is nearly free."""
    rng = np.random.default_rng(seed)
    b = gtab.bvals / 1000

    def squared_cosine() -> np.ndarray:
        axis = rng.normal(size=(*shape, 3))
        return (axis / np.linalg.norm(axis, axis=-1, keepdims=True) @ gtab.bvecs.T) ** 2

    fraction = rng.uniform(0.2, 0.6, (*shape, 1))
    stick = np.exp(-b * (0.1 + 1.6 * squared_cosine()))
    outside = np.exp(-b * (0.6 + 0.9 * squared_cosine()))
    signal = S0 * (fraction * stick + (0.9 - fraction) * outside + 0.1 * np.exp(-2.0 * b))
    if snr is not None:
        noise = rng.normal(scale=S0 / snr, size=(2, *signal.shape))
        signal = np.hypot(signal + noise[0], noise[1])
    return Acquisition(np.asfortranarray(signal, np.float32), AFFINE, gtab)


def run(acquisition, method="wls", model=None, **options):
    chosen = FitSettings(model="dki", method=method, device="cpu")
    return fit(acquisition, model or DKI(), chosen, SilentReport(), FitOptions(**options))


@pytest.mark.parametrize("method", ["ols", "wls"])
def test_maps_equal_dipys_on_noisy_data(method):
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import DiffusionKurtosisModel

    acquisition = scan(table(), snr=20)
    gtab = gradient_table(acquisition.gtab.bvals, bvecs=acquisition.gtab.bvecs)
    dipy = DiffusionKurtosisModel(gtab, fit_method=method.upper()).fit(acquisition.signal.astype(np.float64))
    found = run(acquisition, method).maps
    expected = {name: getattr(dipy, name)() for name in ("mk", "ak", "rk", "mkt")} | {"fa": dipy.fa, "kfa": dipy.kfa}
    for name, reference in expected.items():
        bound = 1e-4 if name == "fa" else 1e-3
        error = np.abs(found[name].data - reference)
        assert np.median(error) < bound, name
        assert np.percentile(error, 99) < 10 * bound, name
    np.testing.assert_allclose(found["md"].data, dipy.md, atol=1e-8)


@pytest.mark.parametrize("method", VOXELWISE)
def test_noiseless_parameters_are_recovered(method):
    gtab = table(b0=1)
    # the fit of a noiseless scan, with room to every constraint, is a truth that the model can tell exactly
    truth = run(scan(gtab, snr=None), "constrained", double=True).parameters.astype(np.float64)
    rows, bounds = DKI().constraints()
    truth = truth[((truth @ rows.T - bounds) > 0.02).all(1)]
    assert len(truth) > 100
    signal = np.exp(truth @ DKI().design(gtab).T)[:, None, None]
    fitted = run(Acquisition(np.asfortranarray(signal, np.float32), AFFINE, gtab), method)
    np.testing.assert_allclose(fitted.parameters, truth, atol=1e-3)
    assert (fitted.maps["residual"].data < 1e-4).all()
    assert (fitted.maps["status"].data == FitStatus.OK).all()


@pytest.mark.parametrize("method", VOXELWISE)
def test_single_precision_is_enough(method):
    acquisition = scan(table(), snr=15)
    shipped, exact = (run(acquisition, method, double=double).maps for double in (False, True))
    for name in ("mk", "ak", "kfa", "fa"):
        assert np.percentile(np.abs(shipped[name].data - exact[name].data), 99) < 1e-3, name


@pytest.mark.parametrize("method", VOXELWISE)
def test_voxels_without_signal_are_zero_and_say_so(method):
    acquisition = scan(table(), snr=20)
    signal = acquisition.signal.copy(order="F")
    signal[0, 0, 0], signal[1, 0, 0], signal[2, 0, 0] = 0, 700, 65535
    signal[3, 0, 0, :6] = 0
    signal[4, 0, 0] *= -1
    mask = np.ones(acquisition.shape, bool)
    mask[5, 0, 0] = False
    fitted = run(replace(acquisition, signal=signal, mask=mask), method)
    status = fitted.maps["status"].data
    assert (status[:5, 0, 0] == FitStatus.DEGENERATE).all()
    assert status[5, 0, 0] == FitStatus.OUTSIDE
    assert (status == FitStatus.DEGENERATE).sum() == 5
    for name, parameter_map in fitted.maps.items():
        assert np.isfinite(parameter_map.data).all(), name
        if name != "status":
            assert not parameter_map.data[:6, 0, 0].any(), name


def test_what_cannot_be_is_flagged():
    fitted = run(scan(table(), snr=5))
    clipped = fitted.maps["status"].data == FitStatus.CLIPPED
    assert 0.01 < clipped.mean() < 0.9
    tensors = fitted.maps["tensor"].data[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*clipped.shape, 3, 3)
    assert clipped[np.linalg.eigvalsh(tensors.astype(np.float64))[..., 0] < -1e-7].all()


@settings(max_examples=30, deadline=None)
@given(
    arrays(
        np.float32,
        (3, 2, 2, 28),
        elements=st.floats(-1e6, 1e9, width=32) | st.sampled_from([0.0, 1e-30, 1e-4, 4095.0, 65535.0]),
    ),
    st.sampled_from(VOXELWISE),
)
def test_finite_signals_give_finite_maps(signal, method):
    fitted = run(Acquisition(signal, AFFINE, table(10, 16, 2)), method)
    for name, parameter_map in fitted.maps.items():
        assert np.isfinite(parameter_map.data).all(), name
    assert np.isfinite(fitted.parameters).all()


@pytest.mark.parametrize("method", VOXELWISE)
def test_result_does_not_depend_on_memory_or_threads(method, monkeypatch):
    acquisition = scan(table(), snr=20, shape=(20, 20, 10))
    monkeypatch.setattr(tiles, "CPU_TILE", 2048)
    reference = run(acquisition, method)
    for tile, workers in ((1024, 1), (4096, 3)):
        monkeypatch.setattr(tiles, "CPU_TILE", tile)
        monkeypatch.setattr(tiles, "cpu_workers", lambda workers=workers: workers)
        other = run(acquisition, method)
        for name, parameter_map in reference.maps.items():
            np.testing.assert_allclose(other.maps[name].data, parameter_map.data, atol=2e-3, rtol=1e-4, err_msg=name)


# --- constraints ---------------------------------------------------------------------------------------------


def exactly_constrained(signal: np.ndarray, gtab: GradientTable) -> np.ndarray:
    """One voxel's solution as a least distance problem, solved by non-negative least squares (Lawson and Hanson)."""
    from scipy.optimize import nnls

    design = DKI().design(gtab)
    log_signal = np.log(signal)
    weights = np.exp(design @ np.linalg.lstsq(design, log_signal, rcond=None)[0])
    weights /= weights.max()
    q, r = np.linalg.qr(design * weights[:, None])
    free = np.linalg.solve(r, q.T @ (weights * log_signal))
    rows, bounds = DKI().constraints()
    rows = rows @ np.linalg.inv(r)
    target = np.zeros(len(free) + 1)
    target[-1] = 1
    multipliers, _ = nnls(np.vstack([rows.T, bounds - rows @ (r @ free)]), target, maxiter=10_000)
    residual = np.vstack([rows.T, bounds - rows @ (r @ free)]) @ multipliers - target
    return free + np.linalg.solve(r, -residual[:-1] / residual[-1])


@pytest.mark.parametrize("snr", [8, 25])
def test_constrained_fit_is_the_best_of_all_that_are_physical(snr):
    acquisition = scan(table(), snr, shape=(12, 5, 1))
    fitted = run(acquisition, "constrained")
    assert (fitted.maps["status"].data == FitStatus.OK).all()
    expected = [exactly_constrained(s.astype(np.float64), acquisition.gtab) for s in acquisition.signal.reshape(-1, 96)]
    error = np.abs(fitted.parameters - np.stack(expected)).max(1)
    assert np.median(error) < 2e-3
    assert error.max() < 0.02
    free = run(acquisition, "wls").parameters
    assert np.median(np.abs(free - np.stack(expected)).max(1)) > 0.05


def test_constraints_hold_in_every_voxel():
    acquisition = scan(table(), snr=6, shape=(12, 10, 10))
    fitted = run(acquisition, "constrained")
    rows, bounds = DKI().constraints()
    slack = fitted.parameters.astype(np.float64) @ rows.T - bounds
    assert slack.min() > -0.01
    assert np.median(slack.min(1)) > -2e-3
    assert (fitted.maps["status"].data == FitStatus.OK).all()
    assert fitted.maps["mk"].data.min() > 0
    # what the data do not support is what the free fit gets wrong
    truth = run(scan(acquisition.gtab, None, acquisition.shape)).maps["mk"].data
    free = run(acquisition).maps["mk"].data
    error = {
        name: np.sqrt(((mk - truth) ** 2).mean()) for name, mk in (("free", free), ("ours", fitted.maps["mk"].data))
    }
    assert error["ours"] < 0.7 * error["free"]


def test_voxels_within_the_constraints_keep_the_weighted_fit():
    acquisition = scan(table(), snr=400, shape=(16, 10, 5))
    free, constrained = run(acquisition), run(acquisition, "constrained")
    rows, bounds = DKI().constraints()
    inside = ((free.parameters.astype(np.float64) @ rows.T - bounds) > 0.01).all(1)
    assert 20 < inside.sum() < len(inside)
    np.testing.assert_array_equal(free.parameters[inside], constrained.parameters[inside])


def test_constraints_are_unit_rows_of_the_designs_unknowns():
    import torch

    problem = Problem.of(DKI(), table(), torch.device("cpu"), torch.float64)
    constraints = Constraints.of(DKI(), problem.design)
    theta = torch.as_tensor(run(scan(table(), 20), double=True).parameters.T.astype(np.float64))
    z = torch.linalg.solve(problem.design.to_theta, theta)
    rows, bounds = DKI().constraints()
    slack = rows @ theta.numpy() - bounds[:, None]
    ours = (constraints.rows @ z - constraints.bounds).numpy()
    np.testing.assert_allclose(ours / slack, np.broadcast_to((ours / slack)[:, :1], ours.shape), rtol=1e-6)
    np.testing.assert_allclose(constraints.rows.norm(dim=1), 1)
    assert TOLERANCE < 0.01 * np.abs(ours).mean()


def test_model_without_constraints_cannot_be_fitted_with_them():
    with pytest.raises(SettingsError, match="constrained"):
        run(scan(table(), 20), "constrained", model=DTI())


# --- files ---------------------------------------------------------------------------------------------------


def written(folder: Path, acquisition: Acquisition) -> Path:
    gtab = acquisition.gtab
    return write_scan(folder, data=acquisition.signal, affine=AFFINE, bvals=gtab.bvals, bvecs=gtab.to_fsl(AFFINE))


def test_high_b_values_are_warned_of(tmp_path, capsys):
    path = written(tmp_path, scan(table(16, 20, 2, top=3000), snr=30, shape=(8, 8, 8)))
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    command = [
        "fit",
        str(path),
        "--mask",
        str(tmp_path / "mask.nii.gz"),
        "--model",
        "dki",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    assert "b-values reach 3000 s/mm2" in " ".join(capsys.readouterr().err.split())
    mk = tmp_path / "out" / "sub-01_dwi_model-dki_param-mk_desc-wls_dwimap.nii.gz"
    assert np.median(nibabel.load(mk).get_fdata()) > 0.3


def test_streamlines_follow_the_tensor_of_a_kurtosis_fit(tmp_path, capsys):
    gtab = table()
    b, cosine = gtab.bvals / 1000, gtab.bvecs[:, 1] ** 2
    signal = S0 * (0.5 * np.exp(-1.7 * b * cosine) + 0.5 * np.exp(-b * (0.5 + cosine)))
    uniform = np.broadcast_to(signal, (6, 30, 6, len(b)))
    path = written(tmp_path, Acquisition(np.asfortranarray(uniform, np.float32), AFFINE, gtab))
    nibabel.save(nibabel.Nifti1Image(np.ones((6, 30, 6), np.uint8), AFFINE), tmp_path / "mask.nii.gz")
    command = ["track", str(path), "--mask", str(tmp_path / "mask.nii.gz"), "--model", "dki", "--tract-format", "tck"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    lines = nibabel.streamlines.load(
        tmp_path / "out" / "sub-01_dwi_model-dki_desc-deterministic_tractography.tck"
    ).streamlines
    assert len(lines) > 100
    along = np.ptp(np.asarray(lines[0]), axis=0)
    assert along[1] > 40
    assert along[[0, 2]].max() < 2
