"""The robust fit: volumes that were spoilt are left out, and where none was hardly anything is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import FitOptions, fit
from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import DTI, MODELS
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.simulation.scanner import gradient_table

GTAB = gradient_table(((1000.0, 30),), 3)
SHAPE = (16, 16, 8)
S0, SNR = 500.0, 20.0


def tissue(seed: int = 0) -> torch.Tensor:
    """White-matter tensors in all directions, shape (voxels, 7)."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(int(np.prod(SHAPE)), 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    d = 0.4 * np.eye(3) + 1.2 * u[:, :, None] * u[:, None]
    theta = np.column_stack([d[:, 0, 0], d[:, 0, 1], d[:, 0, 2], d[:, 1, 1], d[:, 1, 2], d[:, 2, 2]])
    return torch.as_tensor(np.column_stack([theta, np.full(len(u), np.log(S0))]))


def scan(spoilt: float = 0.0, seed: int = 1) -> Acquisition:
    """A noisy scan; this share of the weighted measurements has lost most of its signal, or gained as much."""
    rng = np.random.default_rng(seed)
    clean = DTI().signal(tissue(), GTAB).numpy()
    hit = (rng.random(clean.shape) < spoilt) & ~GTAB.b0_mask
    clean = np.where(hit, clean * rng.choice([0.2, 2.5], clean.shape), clean)
    noise = rng.normal(0, S0 / SNR, (2, *clean.shape))
    return Acquisition(np.hypot(clean + noise[0], noise[1]).astype(np.float32).reshape(*SHAPE, -1), np.eye(4), GTAB)


def run(acquisition: Acquisition, method: str, **options: bool) -> dict[str, NDArray[np.float32]]:
    settings = FitSettings(method=method, device="cpu")
    found = fit(acquisition, MODELS["dti"], settings, SilentReport(), FitOptions(**options))
    return {name: map.data for name, map in found.maps.items()}


def error(maps: dict[str, NDArray[np.float32]], name: str) -> float:
    """Root mean square error."""
    true = DTI().maps(tissue())[name].numpy().reshape(SHAPE)
    return float(np.sqrt(np.mean((maps[name] - true) ** 2)))


@pytest.mark.parametrize("name", ["fa", "md"])
def test_spoilt_volumes_are_left_out(name):
    odd = scan(spoilt=0.1)
    robust, plain, unspoilt = (
        error(run(odd, "robust"), name),
        error(run(odd, "wls"), name),
        error(run(scan(), "wls"), name),
    )
    assert robust < 0.6 * plain
    assert robust < 1.6 * unspoilt


@pytest.mark.parametrize("name", ["fa", "md"])
def test_without_outliers_hardly_anything_is_lost(name):
    good = scan()
    assert error(run(good, "robust"), name) < 1.1 * error(run(good, "wls"), name)


def test_it_is_no_worse_than_restore():
    """DIPY's RESTORE, told the true noise."""
    from dipy.core.gradients import gradient_table as dipy_table
    from dipy.reconst.dti import TensorModel

    odd = scan(spoilt=0.1)
    table = dipy_table(GTAB.bvals, bvecs=GTAB.bvecs)
    part = odd.signal[:, :, :2]
    peer = TensorModel(table, fit_method="RESTORE", sigma=S0 / SNR).fit(part)
    true = DTI().maps(tissue())["fa"].numpy().reshape(SHAPE)[:, :, :2]
    ours = run(odd, "robust")["fa"][:, :, :2]
    assert np.sqrt(np.mean((ours - true) ** 2)) < 1.05 * np.sqrt(np.mean((peer.fa - true) ** 2))


def test_precisions_agree_and_perfect_signals_are_no_problem():
    odd = scan(spoilt=0.1)
    single, double = run(odd, "robust"), run(odd, "robust", double=True)
    assert np.percentile(np.abs(single["fa"] - double["fa"]), 99) < 1e-3
    clean = DTI().signal(tissue(), GTAB).numpy().astype(np.float32).reshape(*SHAPE, -1)
    maps = run(Acquisition(clean, np.eye(4), GTAB), "robust")
    assert error(maps, "fa") < 1e-3


def test_voxels_without_signal_are_told():
    signal = scan().signal.copy()
    signal[0, 0, 0], signal[1, 0, 0], signal[2, 0, 0] = 0, 700, -3
    maps = run(Acquisition(signal, np.eye(4), GTAB), "robust")
    assert (maps["status"][:3, 0, 0] == FitStatus.DEGENERATE).all()
    assert all(np.isfinite(values).all() for values in maps.values())
