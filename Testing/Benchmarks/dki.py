"""Kurtosis beside DIPY: fit and MK, AK, RK and KFA of a two-shell scan."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
from phantom import PARENCHYMA, S0, SNR, brain, noisy
from timing import SpeedRow, compare

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics.tensor_arrays import spread_directions

B0_VOLUMES, SHELLS = 6, ((1000.0, 30), (2000.0, 60))

STICK_DIFFUSIVITY = 1.7
"""Along the sticks, um2/ms."""

PEER_VOXELS = 8000
"""DIPY takes minutes for a whole brain: it gets so many voxels of it, and its seconds are scaled up."""


def phantom(seed: int = 0, snr: float = SNR) -> Acquisition:
    """A noisy two-shell scan: sticks in water, in arching white matter, grey matter and CSF."""
    bvals = np.concatenate([np.zeros(B0_VOLUMES), *(np.full(count, bval) for bval, count in SHELLS)])
    bvecs = np.concatenate([np.zeros((B0_VOLUMES, 3)), *(spread_directions(count) for _, count in SHELLS)])
    mask, position, radius = brain()
    axis = np.stack([position[:, 2] + 0.3, 0.2 + 0 * position[:, 0], -position[:, 0]], axis=1)
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    sticks, along, across = _tissue(radius)

    def clean(b: float, g: np.ndarray) -> np.ndarray:
        square = (axis @ g) ** 2
        water = np.exp(-b * (across + (along - across) * square))
        return S0 * (sticks * np.exp(-b * STICK_DIFFUSIVITY * square) + (1 - sticks) * water)

    volumes = (clean(b, g) for b, g in zip(bvals / 1000, bvecs, strict=True))
    return noisy(volumes, GradientTable(bvals, bvecs), mask, snr, seed)


def _tissue(radius: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of sticks, and diffusivity of water along and across them, um2/ms; shape (V,) each."""
    where = [radius < 0.8, (radius >= 0.8) & (radius < PARENCHYMA)]
    return np.select(where, [0.55, 0.35], 0.0), np.select(where, [1.7, 1.0], 3.0), np.select(where, [0.6, 0.8], 3.0)


def mean_kurtosis() -> np.ndarray:
    """MK of the phantom's voxels, shape (V,): that of its two compartments at b towards 0.

    Fits at b = 1000 and 2000 see higher terms of the signal too, so that all of them are biased.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)
    sticks, along, across = (part[:, None] for part in _tissue(brain()[2]))
    stick, water = STICK_DIFFUSIVITY * nodes**2, across + (along - across) * nodes**2
    mean = sticks * stick + (1 - sticks) * water
    kurtosis = 3 * (sticks * (stick - mean) ** 2 + (1 - sticks) * (water - mean) ** 2) / mean**2
    return kurtosis @ weights / 2


def sample(acquisition: Acquisition) -> np.ndarray:
    """Signal of `PEER_VOXELS` voxels, evenly spread, so that all tissues are among them; shape (V, N)."""
    voxels = acquisition.signal[acquisition.mask]
    return np.ascontiguousarray(voxels[:: len(voxels) // PEER_VOXELS][:PEER_VOXELS])


def dipy(signal: np.ndarray, gtab: GradientTable, method: str) -> np.ndarray:
    """Fit and the same maps as ours, of voxels in rows; returns MK."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dki import DiffusionKurtosisModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = DiffusionKurtosisModel(gradient_table(gtab.bvals, bvecs=gtab.bvecs), fit_method=method)
        fitted = model.fit(signal)
        _ = fitted.ak(), fitted.rk(), fitted.mkt(), fitted.kfa
        _ = fitted.fa, fitted.md, fitted.ad, fitted.rd, fitted.directions, fitted.color_fa
        return fitted.mk()


def rows(rounds: int) -> list[SpeedRow]:
    """Lines of the table of speed."""
    acquisition = phantom()
    some = sample(acquisition)
    scale = int(acquisition.mask.sum()) / PEER_VOXELS
    found = []
    for method in ("ols", "wls"):
        peer = f"DIPY {method.upper()} (1/{scale:.0f})"
        peers = {peer: lambda method=method: dipy(some, acquisition.gtab, method.upper())}
        for row in compare(f"DKI {method.upper()} + maps", "dki", method, acquisition, peers, rounds):
            found.append(replace(row, peer_s=row.peer_s * scale, ratio=row.ratio * scale))
    return found + compare("DKI constrained", "dki", "constrained", acquisition, {}, 1)
