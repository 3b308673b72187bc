"""Least-squares fits: against DIPY, against known truth, and on voxels that hold nothing to fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import DeviceError, InputError, JobCancelled, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import FitOptions, fit, tiles
from DiffusionFMLib.fitting.cholesky import PackedSolver, packed_pairs
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import ADC, DTI, MODELS
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.settings import FitSettings

SHAPE = (24, 20, 12)
S0 = 800.0
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])


def directions(count: int, seed: int = 3) -> np.ndarray:
    g = np.random.default_rng(seed).normal(size=(count, 3))
    return g / np.linalg.norm(g, axis=1, keepdims=True)


def table(bvals: tuple[float, ...] = (1000,), count: int = 30, b0: int = 1) -> GradientTable:
    b = np.concatenate([np.zeros(b0), *(np.full(count, value) for value in bvals)])
    return GradientTable(b, np.concatenate([np.zeros((b0, 3)), directions(count * len(bvals))]))


def truth(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    """Tensors of healthy tissue in all orientations, with S0, shape (..., 7)."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))[0]
    values = np.stack([rng.uniform(0.9, 1.8, shape), rng.uniform(0.4, 0.8, shape), rng.uniform(0.2, 0.4, shape)], -1)
    full = (axes * values[..., None, :]) @ axes.swapaxes(-1, -2)
    lower = full[..., [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    return torch.as_tensor(np.concatenate([lower, np.full((*shape, 1), np.log(S0))], -1))


def scan(gtab: GradientTable, snr: float | None = 20, seed: int = 0, affine: np.ndarray = AFFINE) -> Acquisition:
    signal = DTI().signal(truth(seed=seed), gtab).numpy()
    if snr is not None:
        rng = np.random.default_rng(seed + 1)
        noise = rng.normal(scale=S0 / snr, size=(2, *signal.shape))
        signal = np.hypot(signal + noise[0], noise[1])
    return Acquisition(np.asfortranarray(signal, np.float32), affine, gtab)


def dipy_fit(acquisition: Acquisition, method: str):
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    gtab = gradient_table(acquisition.gtab.bvals, bvecs=acquisition.gtab.bvecs)
    return TensorModel(gtab, fit_method=method, return_S0_hat=True).fit(acquisition.signal.astype(np.float64))


def run(acquisition, model="dti", method="wls", options=None, report=None, **more):
    chosen = FitSettings(model=model, method=method, device="cpu", **more)
    return fit(acquisition, MODELS[model], chosen, report or SilentReport(), options or FitOptions())


@pytest.mark.parametrize(("method", "dipy_method"), [("ols", "OLS"), ("wls", "WLS"), ("nlls", "NLLS")])
def test_tensor_maps_equal_dipys(method, dipy_method):
    acquisition = scan(table(), snr=15)
    if method == "nlls":
        acquisition = replace(acquisition, signal=acquisition.signal[:8, :8, :4])
    reference = dipy_fit(acquisition, dipy_method)
    exact = run(acquisition, method=method, options=FitOptions(double=True)).maps
    shipped = run(acquisition, method=method).maps
    error = np.abs(exact["fa"].data - reference.fa)
    assert np.percentile(error, 99.9) < 1e-4
    assert np.median(np.abs(shipped["fa"].data - reference.fa)) < 1e-5
    for name in ("md", "ad", "rd"):
        assert np.percentile(np.abs(exact[name].data - getattr(reference, name)), 99.9) < 1e-7
    assert np.percentile(np.abs(exact["s0"].data / reference.S0_hat - 1), 99.9) < 1e-4
    cosine = np.abs((exact["v1"].data * reference.evecs[..., 0]).sum(-1))
    assert np.percentile(cosine[reference.fa > 0.3], 0.1) > 1 - 1e-4


@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
@pytest.mark.parametrize("gtab", [table(), table(count=6), table((700, 2000), 12), table((700, 1400), 12, b0=0)])
def test_noiseless_tensors_are_recovered(method, gtab):
    fitted = run(scan(gtab, snr=None), method=method)
    np.testing.assert_allclose(fitted.parameters.reshape(*SHAPE, 7), truth(), atol=3e-4)
    assert (fitted.maps["residual"].data < 1e-4).all()
    assert (fitted.maps["status"].data == FitStatus.OK).all()


@pytest.mark.parametrize("method", ["wls", "nlls"])
def test_weights_from_the_prediction_do_not_bias_md(method):
    fitted = run(scan(table(count=30), snr=30), method=method)
    expected = truth()[..., [0, 3, 5]].mean(-1) * 1e-3
    assert abs((fitted.maps["md"].data - expected.numpy()).mean()) < 0.01e-3


def test_nonlinear_fit_has_the_smallest_residual():
    acquisition = scan(table(), snr=10)
    size = {method: run(acquisition, method=method).maps for method in ("ols", "wls", "nlls")}
    ssd = {method: (maps["residual"].data * maps["s0"].data) ** 2 for method, maps in size.items()}
    assert (ssd["nlls"] <= ssd["wls"] * (1 + 1e-4)).all()
    assert (ssd["nlls"] <= ssd["ols"] * (1 + 1e-4)).all()
    assert ssd["wls"].mean() < ssd["ols"].mean()


@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
def test_adc_of_orthogonal_directions_is_a_third_of_the_trace_however_anisotropic(method):
    for bvals in ((1000,), (500, 1000)):
        gtab = GradientTable(
            np.r_[0, 0, np.repeat(bvals, 3)], np.concatenate([np.zeros((2, 3)), *(np.eye(3) for _ in bvals)])
        )
        fitted = run(scan(gtab, snr=None), model="adc", method=method)
        expected = truth()[..., [0, 3, 5]].mean(-1).numpy() * 1e-3
        np.testing.assert_allclose(fitted.maps["adc"].data, expected, rtol=2e-4)
        np.testing.assert_allclose(fitted.maps["s0"].data, S0, rtol=1e-3)


def test_adc_of_one_shell_equals_the_definition():
    acquisition = scan(table(count=12, b0=2), snr=20)
    gtab, signal = acquisition.gtab, acquisition.signal.astype(np.float64)
    expected = (np.log(signal[..., gtab.b0_mask]).mean(-1) - np.log(signal[..., ~gtab.b0_mask]).mean(-1)) / 1000
    for method in ("ols", "wls", "nlls"):
        found = run(acquisition, model="adc", method=method, options=FitOptions(double=True)).maps["adc"].data
        np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("model", ["adc", "dti"])
@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
def test_voxels_without_signal_are_zero_and_say_so(model, method):
    acquisition = scan(table())
    signal = acquisition.signal.copy(order="F")
    signal[0, 0, 0] = 0
    signal[1, 0, 0] = 700
    signal[2, 0, 0] = 65535
    signal[3, 0, 0, 0] = 0
    signal[4, 0, 0] *= -1
    mask = np.ones(SHAPE, bool)
    mask[5, 0, 0] = False
    fitted = run(replace(acquisition, signal=signal, mask=mask), model=model, method=method)
    status = fitted.maps["status"].data
    assert (status[:5, 0, 0] == FitStatus.DEGENERATE).all()
    assert status[5, 0, 0] == FitStatus.OUTSIDE
    for name, parameter_map in fitted.maps.items():
        if name != "status":
            assert not parameter_map.data[:6, 0, 0].any(), name
    assert np.count_nonzero(status == FitStatus.DEGENERATE) == 5


def test_negative_eigenvalues_are_clipped_and_flagged():
    acquisition = scan(table(count=6), snr=4)
    fitted = run(acquisition)
    tensors = fitted.maps["tensor"].data.astype(np.float64)
    lowest = np.linalg.eigvalsh(tensors[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*SHAPE, 3, 3))[..., 0]
    clear = np.abs(lowest) > 1e-7
    clipped = fitted.maps["status"].data == FitStatus.CLIPPED
    assert clipped.any()
    np.testing.assert_array_equal(clipped[clear], (lowest < 0)[clear])
    assert fitted.maps["fa"].data.max() <= 1
    assert fitted.maps["rd"].data.min() > 0


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float32,
        (3, 2, 2, 8),
        elements=st.floats(-1e6, 1e9, width=32) | st.sampled_from([0.0, 1e-30, 1e-4, 4095.0, 65535.0]),
    ),
    st.sampled_from(["ols", "wls", "nlls"]),
    st.sampled_from(["adc", "dti"]),
)
def test_finite_signals_give_finite_maps(signal, method, model):
    fitted = run(Acquisition(signal, AFFINE, table(count=7)), model=model, method=method)
    for name, parameter_map in fitted.maps.items():
        assert np.isfinite(parameter_map.data).all(), name
    assert np.isfinite(fitted.parameters).all()
    fa = fitted.maps["fa"].data if model == "dti" else np.zeros(1)
    assert ((fa >= 0) & (fa <= 1)).all()


@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
def test_result_does_not_depend_on_memory_or_threads(method, monkeypatch):
    acquisition = scan(table())
    monkeypatch.setattr(tiles, "CPU_TILE", 4096)
    reference = run(acquisition, method=method)
    for tile, workers in ((1024, 1), (2048, 3), (8192, 2)):
        monkeypatch.setattr(tiles, "CPU_TILE", tile)
        monkeypatch.setattr(tiles, "cpu_workers", lambda workers=workers: workers)
        other = run(acquisition, method=method)
        for name, parameter_map in reference.maps.items():
            np.testing.assert_array_equal(other.maps[name].data, parameter_map.data)


def test_result_does_not_depend_on_memory_layout_or_affine():
    acquisition = scan(table())
    mask = np.random.default_rng(0).random(SHAPE) > 0.3
    reference = run(acquisition.with_mask(mask))
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    oblique = np.eye(4)
    oblique[:3, :3] = turn * 2
    exported = np.ascontiguousarray(acquisition.signal.transpose(2, 1, 0, 3)).transpose(2, 1, 0, 3)
    layouts = {
        "C": np.ascontiguousarray(acquisition.signal),
        "exported": exported,
        "gaps": np.repeat(acquisition.signal, 2, axis=1)[:, ::2],
        "read-only": acquisition.signal.copy(order="F"),
    }
    layouts["read-only"].flags.writeable = False
    for layout, signal in layouts.items():
        other = run(Acquisition(signal, oblique, acquisition.gtab, mask))
        for name, parameter_map in reference.maps.items():
            np.testing.assert_array_equal(other.maps[name].data, parameter_map.data, err_msg=f"{layout} {name}")
        np.testing.assert_array_equal(other.parameters, reference.parameters)
    volume = np.zeros((*SHAPE, 7), np.float32)
    volume[mask] = reference.parameters
    np.testing.assert_allclose(volume[..., :6] * 1e-3, reference.maps["tensor"].data, rtol=1e-6)


def test_rotated_gradients_rotate_the_directions_and_leave_the_rest():
    acquisition = scan(table(), snr=25)
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    turned = replace(acquisition, gtab=acquisition.gtab.rotated(turn))
    options = FitOptions(double=True)
    before, after = run(acquisition, options=options).maps, run(turned, options=options).maps
    for name in ("fa", "md", "ad", "rd", "s0", "residual"):
        np.testing.assert_allclose(after[name].data, before[name].data, rtol=1e-5, atol=1e-9)
    clear = before["fa"].data > 0.2
    cosine = ((before["v1"].data @ turn.T) * after["v1"].data).sum(-1)
    assert np.abs(cosine[clear]).min() > 1 - 1e-5


def test_maps_are_declared_ordered_and_float32_in_the_viewers_order():
    fitted = run(scan(table()))
    assert list(fitted.maps) == [*(spec.name for spec in DTI().map_specs), "residual", "status"]
    for name, parameter_map in fitted.maps.items():
        components = parameter_map.spec.components
        assert parameter_map.data.shape == (*SHAPE, *([len(components)] if components else [])), name
        assert parameter_map.data.dtype == np.float32
        assert parameter_map.data.flags.f_contiguous
    assert fitted.provenance["shells"] == [{"bval": 1000.0, "volumes": 30}]


class CancelAfter(SilentReport):
    """Cancels at the third sign of progress."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[float, float]] = []

    def progress(self, done: float, total: float, stage: str) -> None:
        self.calls.append((done, total))
        if len(self.calls) == 3:
            raise JobCancelled


def test_cancel_stops_between_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE", 1024)
    report, threads = CancelAfter(), torch.get_num_threads()
    with pytest.raises(JobCancelled):
        run(scan(table()), method="nlls", report=report)
    assert report.calls[-1][0] < np.prod(SHAPE)
    assert torch.get_num_threads() == threads


def test_progress_reaches_the_end():
    class Progress(SilentReport):
        done: list[tuple[float, float]] = []

        def progress(self, done: float, total: float, stage: str) -> None:
            self.done.append((done, total))

    run(scan(table()), report=Progress())
    assert Progress.done[0] == (0, np.prod(SHAPE))
    assert Progress.done[-1] == (np.prod(SHAPE), np.prod(SHAPE))


def test_unfit_input_is_refused():
    with pytest.raises(ProtocolError, match="6 non-collinear"):
        run(scan(table(count=4)))
    with pytest.raises(InputError, match="mask of dwi is empty"):
        run(scan(table()).with_mask(np.zeros(SHAPE, bool)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu_is_named():
    with pytest.raises(DeviceError, match="The device is set to cuda"):
        fit(scan(table()), ADC(), FitSettings(model="adc", device="cuda"), SilentReport())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["ols", "wls", "nlls"])
def test_gpu_agrees_with_cpu(method):
    acquisition = scan(table())
    gpu = fit(acquisition, DTI(), FitSettings(method=method, device="cuda"), SilentReport()).maps
    cpu = run(acquisition, method=method).maps
    assert np.percentile(np.abs(gpu["fa"].data - cpu["fa"].data), 99.9) < 1e-4


def test_full_gpu_memory_falls_back_to_smaller_tiles_and_then_the_cpu(monkeypatch):
    from DiffusionFMLib.fitting import estimate

    real, asked = estimate.TileFit.all_tiles, []

    def full(self, device, size, report):
        asked.append((device.type, size))
        if device.type == "cuda":
            raise torch.cuda.OutOfMemoryError
        real(self, device, size, report)

    monkeypatch.setattr(estimate.TileFit, "all_tiles", full)
    monkeypatch.setattr(estimate, "choose_device", lambda name: torch.device("cuda"))
    report = SilentReport()
    acquisition = scan(table())
    fitted = fit(acquisition, DTI(), FitSettings(), report)
    sizes = [size for device, size in asked if device == "cuda"]
    assert len(sizes) > 1
    assert sizes == sorted(sizes, reverse=True)
    assert asked[-1][0] == "cpu"
    assert {code for code, _ in report.warnings} == {"gpu-memory"}
    np.testing.assert_array_equal(fitted.maps["fa"].data, run(acquisition).maps["fa"].data)


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-10)])
def test_packed_solver_equals_lapack(size, dtype, tolerance):
    factor = torch.randn(500, size, size + 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, rhs = factor @ factor.mT, torch.randn(500, size, generator=torch.Generator().manual_seed(1)).double()
    solver = PackedSolver(size, torch.empty(PackedSolver.rows(size), 500, dtype=dtype))
    for _ in range(2):
        for entry, (row, column) in enumerate(packed_pairs(size)):
            solver.matrix[entry] = matrix[:, row, column]
        solver.rhs.copy_(rhs.T)
        found = solver.solve().T.double()
        torch.testing.assert_close(found, torch.linalg.solve(matrix, rhs), rtol=tolerance, atol=tolerance)


def test_packed_solver_stays_finite_where_an_unknown_is_not_determined():
    solver = PackedSolver(2, torch.empty(PackedSolver.rows(2), 3))
    solver.matrix.copy_(torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 0, 0]]))
    solver.rhs.copy_(torch.tensor([[1.0, 1, 0], [1, 0, 0]]))
    assert torch.isfinite(solver.solve()).all()


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, "Testing")
from test_fitting import Acquisition, FitSettings, MODELS, SilentReport, fit, scan, table

small = scan(table())
signal = np.asfortranarray(np.tile(small.signal, (4, 4, 4, 1)))
fit(small, MODELS["dti"], FitSettings(method=sys.argv[1]), SilentReport())
mask = np.zeros(signal.shape[:3], bool)
mask[16:80, 12:68, 8:40] = True
acquisition = Acquisition(signal, small.affine, small.gtab, mask)

def size(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = size("VmRSS")
fit(acquisition, MODELS["dti"], FitSettings(method=sys.argv[1]), SilentReport())
print((size("VmHWM") - before) / signal.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("method", ["wls", "nlls"])
def test_a_fit_takes_no_more_memory_than_the_signal_itself(method, project_root):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, method], cwd=project_root, check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 1


def test_real_scan_has_the_diffusivity_of_living_white_matter(scans):
    nibabel = pytest.importorskip("nibabel")
    folder = scans / "test" / "philips_bangalore_32dir"
    image = nibabel.load(folder / "dwi.nii.gz")
    bvals, bvecs = np.loadtxt(folder / "dwi.bval"), np.loadtxt(folder / "dwi.bvec").T
    acquisition = Acquisition(
        image.get_fdata(dtype=np.float32), image.affine, GradientTable.from_fsl(bvals, bvecs, image.affine)
    )
    acquisition = acquisition.with_mask(brain_mask(acquisition))
    maps = run(acquisition).maps
    white = maps["fa"].data > 0.3
    assert 0.65e-3 < np.median(maps["md"].data[white]) < 0.85e-3
