"""Kurtosis beside DIPY: fit and MK, AK, RK and KFA of a two-shell scan."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from phantom import BRAIN_RADII, S0, SHAPE, SNR, VOXEL_SIZE

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.tensor_arrays import spread_directions

B0_VOLUMES, SHELLS = 6, ((1000.0, 30), (2000.0, 60))

PEER_VOXELS = 8000
"""DIPY takes minutes for a whole brain: it gets so many voxels of it, and its seconds are scaled up."""


def phantom(seed: int = 0) -> Acquisition:
    """A noisy two-shell scan: sticks in water, in arching white matter, grey matter and CSF."""
    bvals = np.concatenate([np.zeros(B0_VOLUMES), *(np.full(count, bval) for bval, count in SHELLS)])
    bvecs = np.concatenate([np.zeros((B0_VOLUMES, 3)), *(spread_directions(count) for _, count in SHELLS)])
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij"), -1)
    radius = np.linalg.norm(grid / BRAIN_RADII, axis=-1)
    mask = radius < 1
    position, radius = (grid[mask] / BRAIN_RADII).astype(np.float32), radius[mask]
    axis = np.stack([position[:, 2] + 0.3, 0.2 + 0 * position[:, 0], -position[:, 0]], axis=1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    white, grey = radius < 0.8, (radius >= 0.8) & (radius < 0.95)
    sticks = np.select([white, grey], [0.55, 0.35], 0.0)
    along, across = np.select([white, grey], [1.7, 1.0], 3.0), np.select([white, grey], [0.6, 0.8], 3.0)

    rng = np.random.default_rng(seed)
    signal = np.empty((*SHAPE, len(bvals)), np.float32, order="F")
    for volume, (b, g) in enumerate(zip(bvals / 1000, bvecs, strict=True)):
        cosine = (axis @ g) ** 2
        clean = sticks * np.exp(-b * 1.7 * cosine)
        clean += (1 - sticks) * np.exp(-b * (across + (along - across) * cosine))
        real, imaginary = rng.normal(scale=S0 / SNR, size=(2, *SHAPE)).astype(np.float32)
        real[mask] += (S0 * clean).astype(np.float32)
        signal[..., volume] = np.hypot(real, imaginary)
    affine = np.diag([-VOXEL_SIZE, VOXEL_SIZE, VOXEL_SIZE, 1.0])
    return Acquisition(signal, affine, GradientTable(bvals, bvecs), mask, name="two-shell phantom")


def dipy(signal: np.ndarray, gtab: GradientTable, method: str) -> None:
    """Fit and the same maps as ours, of voxels in rows."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import DiffusionKurtosisModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DiffusionKurtosisModel(gradient_table(gtab.bvals, bvecs=gtab.bvecs), fit_method=method)
        fitted = model.fit(signal)
        _ = fitted.mk(), fitted.ak(), fitted.rk(), fitted.mkt(), fitted.kfa
        _ = fitted.fa, fitted.md, fitted.ad, fitted.rd, fitted.directions, fitted.color_fa


def rows(compare: Callable[..., list[Any]], rounds: int) -> list[Any]:
    """Lines of the table.

    Parameters
    ----------
    compare : callable
        Times ours and the peers: name, model, method, acquisition, peers, rounds; gives a list of rows.
    rounds : int
    """
    acquisition = phantom()
    voxels = acquisition.signal[acquisition.mask]
    scale = len(voxels) / PEER_VOXELS
    # evenly spread, so that all tissues are among them
    some = np.ascontiguousarray(voxels[:: len(voxels) // PEER_VOXELS][:PEER_VOXELS])
    del voxels
    found = []
    for method in ("ols", "wls"):
        peer = f"DIPY {method.upper()} (1/{scale:.0f})"
        peers = {peer: lambda method=method: dipy(some, acquisition.gtab, method.upper())}
        for row in compare(f"DKI {method.upper()} + maps", "dki", method, acquisition, peers, rounds):
            found.append(replace(row, peer_s=row.peer_s * scale, ratio=row.ratio * scale))
    return found + compare("DKI constrained", "dki", "constrained", acquisition, {}, 1)
