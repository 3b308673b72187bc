"""Standard errors: how far estimates really vary when the noise is drawn again, and how often truth lies inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import METHODS, MODELS
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.simulation.scanner import gradient_table

ONE_SHELL = gradient_table(((1000.0, 30),), 3)
TWO_SHELLS = gradient_table(((1000.0, 30), (2000.0, 60)), 6)
S0 = 1000.0
REPEATS = 4096

KURTOSIS = [0.6, 0.9, 0.7, 0.05, 0, 0, 0.05, 0, 0, 0.15, 0.2, 0.25, 0, 0, 0.03]
LN_S0 = float(np.log(S0))
TENSOR = [1.5, 0.1, -0.1, 0.5, 0.05, 0.3]
THETA = {
    "adc": [0.8, LN_S0],
    "dti": [*TENSOR, LN_S0],
    "dki": [*TENSOR, *KURTOSIS, LN_S0],
    "noddi": [0.6, 0.64, 0.48, 0.6, 0.2, 0.15, LN_S0],
}


def noisy(model: str, theta: torch.Tensor, gtab: GradientTable, snr: float, seed: int = 0) -> Acquisition:
    """Voxels in rows of 64, Gaussian noise: first-order theory knows of no other."""
    clean = MODELS[model].signal(theta, gtab).numpy()
    signal = clean + np.random.default_rng(seed).normal(scale=S0 / snr, size=clean.shape)
    signal = signal.reshape(64, -1, 1, len(gtab)).clip(0)
    return Acquisition(np.asfortranarray(signal, np.float32), np.diag([-2.0, 2, 2, 1]), gtab)


def run(acquisition: Acquisition, model: str, method: str) -> dict[str, np.ndarray]:
    settings = FitSettings(model=model, method=method, device="cpu", standard_errors=True)
    return {
        name: map_.data.astype(float)
        for name, map_ in fit(acquisition, MODELS[model], settings, SilentReport()).maps.items()
    }


CASES = [
    *((model, method) for model in ("adc", "dti") for method in MODELS[model].methods if METHODS[method].voxelwise),
    ("dki", "wls"),
    ("dki", "ols"),
    ("noddi", "nlls"),
]


@pytest.mark.parametrize(("model", "method"), CASES)
def test_errors_are_the_scatter_of_repeated_scans(model, method):
    gtab = ONE_SHELL if model in ("adc", "dti") else TWO_SHELLS
    theta = torch.tensor(THETA[model], dtype=torch.float64).expand(REPEATS, -1)
    maps = run(noisy(model, theta, gtab, snr=200), model, method)
    for name in [spec.name for spec in MODELS[model].map_specs if not spec.components]:
        # of the middle two thirds, because a few voxels far off say little of the others
        scatter = np.diff(np.percentile(maps[name], [15.9, 84.1]))[0] / 2
        told = np.median(maps[f"{name}_se"])
        assert told == pytest.approx(scatter, rel=0.07), name


@pytest.mark.parametrize(("model", "method"), [("dti", "wls"), ("dti", "robust"), ("noddi", "map"), ("noddi", "nlls")])
def test_nine_in_ten_intervals_hold_the_truth(model, method):
    rng = np.random.default_rng(1)
    if model == "dti":
        axes = np.linalg.qr(rng.normal(size=(REPEATS, 3, 3)))[0]
        values = rng.uniform([0.9, 0.5, 0.2], [1.8, 0.8, 0.5], (REPEATS, 3))
        full = np.einsum("vij,vj,vkj->vik", axes, values, axes)[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
        theta, gtab, names = np.column_stack([full, np.full(REPEATS, LN_S0)]), ONE_SHELL, ("fa", "md", "ad", "rd")
    else:
        mu = rng.normal(size=(REPEATS, 3))
        fractions = rng.uniform([0.35, 0.1, 0.05], [0.75, 0.6, 0.4], (REPEATS, 3))
        theta, gtab = np.column_stack([mu, fractions, np.full(REPEATS, LN_S0)]), TWO_SHELLS
        names = ("ndi", "odi", "fwf")
    theta = torch.as_tensor(theta)
    maps = run(noisy(model, theta, gtab, snr=30), model, method)
    truth = MODELS[model].maps(theta)
    for name in names:
        true = truth[name].numpy().reshape(64, -1, 1)
        for share, times in ((0.5, 0.6745), (0.9, 1.645)):
            inside = np.abs(maps[name] - true) < times * maps[f"{name}_se"]
            assert inside.mean() == pytest.approx(share, abs=0.05), (name, share)


def test_errors_shrink_as_directions_grow():
    told = []
    for times in (1, 4):
        gtab = gradient_table(((1000.0, 15 * times),), 2 * times)
        theta = torch.tensor(THETA["dti"], dtype=torch.float64).expand(640, -1)
        told.append(np.median(run(noisy("dti", theta, gtab, snr=30), "dti", "wls")["md_se"]))
    assert told[0] / told[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_nothing_is_nan_where_there_is_nothing_to_fit(model):
    acquisition = noisy(model, torch.tensor(THETA[model], dtype=torch.float64).expand(640, -1), TWO_SHELLS, snr=20)
    acquisition.signal[0] = 0
    acquisition.signal[1] = 55
    acquisition.signal[2, ..., 1::2] = 0
    maps = run(acquisition, model, MODELS[model].methods[0])
    for name, values in maps.items():
        assert np.isfinite(values).all(), name
    nothing = maps["status"] == FitStatus.DEGENERATE
    assert nothing[:2].all()
    assert all((maps[name][nothing] == 0).all() for name in maps if name.endswith("_se"))


def test_a_value_at_the_end_of_its_range_is_not_told_as_sure():
    """Half of the voxels of no diffusion come out negative, are raised to zero, and no longer follow the data."""
    theta = torch.tensor([0.0, LN_S0], dtype=torch.float64).expand(640, -1)
    maps = run(noisy("adc", theta, ONE_SHELL, snr=20), "adc", "wls")
    held = maps["adc"] == 0
    assert 0.3 < held.mean() < 0.7
    assert (maps["adc_se"][held] == 1000).all()
    assert (maps["adc_se"][~held] < 1e-3).all()


@pytest.mark.parametrize("model", ["dti", "noddi"])
def test_the_scans_unit_does_not_matter(model):
    gtab = gradient_table([(1000.0, 30), (2000.0, 30)] if model == "noddi" else [(1000.0, 30)], 4)
    one = noisy(model, torch.tensor(THETA[model]).expand(64, -1).double(), gtab, 20)
    thousand = Acquisition(one.signal * 1e4, one.affine, gtab)
    small, large = (
        run(each, model, MODELS[model].methods[0] if model == "dti" else "nlls") for each in (one, thousand)
    )
    np.testing.assert_allclose(large["s0_se"], 1e4 * small["s0_se"], rtol=1e-2)


def test_too_few_volumes_are_refused():
    gtab = gradient_table(((1000.0, 6),), 1)
    theta = torch.tensor(THETA["dti"], dtype=torch.float64).expand(640, -1)
    with pytest.raises(ProtocolError, match="3 volumes more than unknowns; this scan has 0"):
        run(noisy("dti", theta, gtab, snr=30), "dti", "wls")


def test_maps_are_the_same_with_and_without():
    theta = torch.tensor(THETA["dti"], dtype=torch.float64).expand(640, -1)
    acquisition = noisy("dti", theta, ONE_SHELL, snr=20)
    plain = fit(acquisition, MODELS["dti"], FitSettings(device="cpu"), SilentReport()).maps
    told = run(acquisition, "dti", "wls")
    assert [name for name in told if not name.endswith("_se")] == list(plain)
    for name, map_ in plain.items():
        np.testing.assert_array_equal(map_.data, told[name], err_msg=name)
