"""The compiled loop of the tensor's fit does what the batched one does, on every kind of voxel."""

from __future__ import annotations

import numpy as np
import pytest

from DiffusionFMLib import fused
from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import Fit, FitOptions, fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.settings import FitSettings

pytestmark = pytest.mark.skipif(not fused.available(), reason="no numba")


def table(*shells: tuple[float, int]) -> GradientTable:
    bvals = np.concatenate([[0], *(np.full(count, bval) for bval, count in shells)])
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *(spread_directions(count) for _, count in shells)]))


PROTOCOLS = [table((1000, 6)), table((1000, 31)), table((700, 12), (1000, 20), (2500, 45))]


def scan(gtab: GradientTable, shape: tuple[int, int, int] = (13, 11, 9), scale: float = 900.0) -> Acquisition:
    """Tensors of every shape and orientation at SNR 15, and voxels with nothing or nonsense in them."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(*shape, 3, 3)))[0]
    values = rng.uniform(0.1, 3, (*shape, 3))
    values[0] = values[0, ..., :1]
    values[1, ..., 1] = values[1, ..., 0]
    values[2, ..., 1] = values[2, ..., 2]
    tensors = np.einsum("...ij,...j,...kj->...ik", axes, values, axes)
    decay = np.einsum("...ij,ni,nj->...n", tensors, gtab.bvecs, gtab.bvecs) * gtab.bvals / 1000
    noise = rng.normal(scale=1 / 15, size=(2, *decay.shape))
    signal = scale * np.hypot(np.exp(-decay) + noise[0], noise[1])
    signal[3, 0] = 0
    signal[3, 1] = 77
    signal[3, 2, :, 1:] = 0
    signal[3, 3, :, 0] = 0
    signal[3, 4] = 4095
    signal[3, 5, :, ::2] = 0
    signal[3, 6] *= 1e-6
    return Acquisition(np.asfortranarray(signal, np.float32), np.diag([-2.0, 2, 2, 1]), gtab)


def run(acquisition: Acquisition, method: str = "wls", reweightings: int = 1, double: bool = False) -> Fit:
    settings = FitSettings(method=method, reweightings=reweightings, device="cpu")
    return fit(acquisition, DTI(), settings, SilentReport(), FitOptions(double=double))


@pytest.fixture
def without_numba(monkeypatch):
    return lambda: monkeypatch.setattr(fused, "available", lambda: False)


@pytest.mark.parametrize("gtab", PROTOCOLS, ids=str)
@pytest.mark.parametrize(("method", "reweightings"), [("ols", 1), ("wls", 1), ("wls", 3)])
def test_maps_are_those_of_the_batched_fit(gtab, method, reweightings, without_numba):
    acquisition = scan(gtab)
    compiled = run(acquisition, method, reweightings)
    without_numba()
    batched = run(acquisition, method, reweightings)
    np.testing.assert_array_equal(compiled.maps["status"].data, batched.maps["status"].data)
    assert set(compiled.maps) == set(batched.maps)
    for name, batched_map in batched.maps.items():
        ours, theirs = compiled.maps[name].data, batched_map.data
        assert np.isfinite(ours).all(), name
        # where eigenvalues meet, an axis is what rounding makes it
        clear = batched.maps["fa"].data > 0.05
        if name in ("v1", "colorfa"):
            ours, theirs = ours[clear], theirs[clear]
        scale = np.abs(theirs).max()
        difference = np.abs(ours - theirs) / scale
        assert np.median(difference) < 2e-6, name
        assert np.percentile(difference, 99) < 2e-4, name


@pytest.mark.parametrize("gtab", PROTOCOLS, ids=str)
def test_rounding_is_no_larger_than_that_of_the_batched_fit(gtab, without_numba):
    acquisition = scan(gtab)
    compiled = run(acquisition)
    without_numba()
    exact, batched = run(acquisition, double=True), run(acquisition)
    usable = exact.maps["status"].data == FitStatus.OK
    for name in ("fa", "md", "s0", "residual"):
        true = exact.maps[name].data[usable].astype(np.float64)
        ours, theirs = (np.abs(one.maps[name].data[usable] - true).mean() for one in (compiled, batched))
        assert ours < 2 * theirs + 1e-7 * np.abs(true).mean(), name


def test_a_voxel_comes_out_the_same_wherever_it_lies_in_a_tile():
    gtab = PROTOCOLS[1]
    whole = scan(gtab)
    maps = run(whole).maps
    for voxels in (slice(0, 1), slice(5, 6), slice(2, 9)):
        part = Acquisition(whole.signal[voxels, 3:, 1:4].copy(), whole.affine, gtab)
        for name, map_ in run(part).maps.items():
            np.testing.assert_array_equal(map_.data, maps[name].data[voxels, 3:, 1:4], err_msg=name)
