"""NODDI beside AMICO: error against truth, and voxels per second, on one phantom in one run.

``python Testing/Benchmarks/noddi.py`` prints a table, of some schemes and noise levels if told so. Without AMICO its
columns are the published figures of the same schemes and noise levels, and say so. AMICO's time is that of its fit,
without the set-up of its kernels.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from amico_peer import timed_amico_noddi

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import METHODS, MODELS
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.simulation.scanner import gradient_table

SHAPE, S0 = (40, 44, 24), 1000.0
SCHEMES = {"c": (6, ((1000.0, 30), (2000.0, 60))), "d": (1, ((1000.0, 6), (2000.0, 6)))}
SNRS = (10, 20, 30)
MAPS = ("ndi", "odi", "fwf")
MAX_CSF = 0.3
"""Errors are taken where less of a voxel is CSF: elsewhere NDI and ODI mean nothing."""

MIN_SHARE = 0.18
"""Fibre populations that are smaller are left out of a voxel."""

PUBLISHED_AMICO = {
    "c": {"ndi": (0.149, 0.061, 0.039)},
    "d": {"ndi": (0.259, 0.153, 0.102), "odi": (0.245, 0.161, 0.119), "fwf": (0.163, 0.117, 0.089)},
}
"""RMSE of AMICO 2.1.1 at `SNRS` on another phantom of this kind, for where it is not installed."""


@dataclass(frozen=True)
class Row:
    """One line of the table: a map of a scheme at a noise level, by one of our methods."""

    scheme: str
    snr: int
    method: str
    name: str
    rmse: float
    bias: float
    peer_rmse: float | None
    peer_bias: float | None
    voxels_per_s: float
    peer_voxels_per_s: float | None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the peer."""
        return self.voxels_per_s / self.peer_voxels_per_s if self.peer_voxels_per_s else None


@dataclass(frozen=True, eq=False)
class Truth:
    """Tissue of the voxels in `mask`: arrays of shape (V,), fibres (V, 3 populations, 3) and their shares (V, 3)."""

    mask: np.ndarray
    csf: np.ndarray
    ndi: np.ndarray
    fwf: np.ndarray
    fan: np.ndarray
    fibres: np.ndarray
    shares: np.ndarray
    s0: np.ndarray

    @property
    def odi(self) -> np.ndarray:
        """ODI of the Watson distribution whose mean squared cosine is that of all populations together."""
        grid = np.linspace(0.01, 0.999, 2000)
        tau = mean_squared_cosine(grid)
        own = np.interp(self.fan, grid, tau)[:, None, None]
        outer = np.einsum("vk,vki,vkj->vij", self.shares, self.fibres, self.fibres)
        total = (1 - own) / 2 * np.eye(3) + (3 * own - 1) / 2 * outer
        return np.interp(-np.linalg.eigvalsh(total)[:, 2], -tau, grid)


def mean_squared_cosine(odi: np.ndarray) -> np.ndarray:
    """Mean squared cosine of Watson distributions to their axis, shape (V,)."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    density = np.exp((1 / np.tan(odi * np.pi / 2))[:, None] * (nodes**2 - 1)) * weights
    return density @ nodes**2 / density.sum(1)


def smooth(rng: np.random.Generator, width: float) -> np.ndarray:
    """A Gaussian random field of unit variance, shape `SHAPE`."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=SHAPE), width, mode="wrap")
    return (field - field.mean()) / field.std()


def tissue(seed: int = 0) -> Truth:
    """White matter with one to three fibre populations, grey matter and CSF, all varying smoothly."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"), -1)
    radius = np.linalg.norm(grid, axis=-1) + 0.05 * smooth(rng, 2.5)
    mask = np.linalg.norm(grid, axis=-1) < 1
    csf = 1 / (1 + np.exp(-(radius - 0.955) / 0.015))
    white = 1 / (1 + np.exp((radius - 0.8) / 0.025))
    ndi = white * (0.62 + 0.07 * smooth(rng, 4)) + (1 - white) * (0.42 + 0.06 * smooth(rng, 4))
    water = white * (0.04 + 0.04 * smooth(rng, 4)) + (1 - white) * (0.10 + 0.05 * smooth(rng, 4))
    narrow = np.clip(0.12 + 0.06 * smooth(rng, 4), 0.03, 0.4)
    wide = np.clip(0.55 + 0.12 * smooth(rng, 4), 0.25, 0.95)
    fan = white**2 * narrow + (1 - white**2) * wide
    fibres = np.stack([smooth(rng, 6) for _ in range(9)], -1).reshape(*SHAPE, 3, 3)
    fibres /= np.linalg.norm(fibres, axis=-1, keepdims=True)
    shares = np.exp(1.5 * np.stack([smooth(rng, 4) for _ in range(3)], -1))
    shares /= shares.sum(-1, keepdims=True)
    shares = np.where(shares < MIN_SHARE, 0, shares)
    shares /= shares.sum(-1, keepdims=True)
    s0 = S0 * np.exp(0.1 * smooth(rng, 15)) * (white + 1.15 * (1 - white) * (1 - csf) + 1.9 * csf)
    fwf = np.clip(csf + (1 - csf) * np.clip(water, 0, 0.6), 0, 1)
    ndi = np.clip(ndi, 0.15, 0.92)
    return Truth(mask, *(part[mask] for part in (csf, ndi, fwf, fan, fibres, shares, s0)))


def noiseless(truth: Truth, gtab: GradientTable) -> np.ndarray:
    """Signal of the tissue, shape (V, N)."""
    import torch

    clean = np.zeros((len(truth.ndi), len(gtab)), np.float32)
    for population in range(3):
        some = truth.shares[:, population] > 0
        others = (truth.ndi, truth.fan, truth.fwf, np.log(truth.s0))
        theta = np.column_stack([truth.fibres[some, population], *(part[some] for part in others)])
        signal = MODELS["noddi"].signal(torch.as_tensor(theta, dtype=torch.float32), gtab).numpy()
        clean[some] += truth.shares[some, population, None] * signal
    return clean


def scan(truth: Truth, clean: np.ndarray, gtab: GradientTable, snr: float) -> Acquisition:
    """A scan with Rician noise; `snr` is that of white matter at b0, and the noise's seed."""
    rng = np.random.default_rng(int(snr))
    real, imaginary = S0 / snr * rng.standard_normal((2, *SHAPE, len(gtab)), dtype=np.float32)
    real[truth.mask] += clean
    return Acquisition(np.hypot(real, imaginary), np.diag([-2.0, 2.0, 2.0, 1.0]), gtab, truth.mask)


def ours(acquisition: Acquisition, method: str) -> tuple[dict[str, np.ndarray], float]:
    """Maps, and the seconds of the fit."""
    start = time.perf_counter()
    found = fit(acquisition, MODELS["noddi"], FitSettings(model="noddi", method=method, device="cpu"), SilentReport())
    seconds = time.perf_counter() - start
    return {name: found.maps[name].data for name in MAPS}, seconds


def rows(schemes: tuple[str, ...] = tuple(SCHEMES), snrs: tuple[int, ...] = SNRS) -> list[Row]:
    """Lines of the table; AMICO's part is None where it is not installed."""
    truth = tissue()
    expected = {"ndi": truth.ndi, "odi": truth.odi, "fwf": truth.fwf}
    inside = truth.csf < MAX_CSF
    found = []
    for scheme in schemes:
        n_b0, shells = SCHEMES[scheme]
        gtab = gradient_table(shells, n_b0)
        clean = noiseless(truth, gtab)
        for snr in snrs:
            acquisition = scan(truth, clean, gtab, snr)
            peer_maps, peer_seconds = amico(acquisition)
            for method in filter(lambda name: METHODS[name].voxelwise, MODELS["noddi"].methods):
                # what is compiled or loaded at first use is not the fit's
                ours(acquisition, method)
                maps, seconds = ours(acquisition, method)
                for name in MAPS:
                    error = (maps[name][truth.mask] - expected[name])[inside]
                    peer = None if peer_maps is None else (peer_maps[name][truth.mask] - expected[name])[inside]
                    found.append(
                        Row(
                            scheme,
                            snr,
                            method,
                            name,
                            rms(error),
                            float(error.mean()),
                            published(scheme, snr, name) if peer is None else rms(peer),
                            None if peer is None else float(peer.mean()),
                            len(inside) / seconds,
                            None if peer_seconds is None else len(inside) / peer_seconds,
                        )
                    )
    return found


def amico(acquisition: Acquisition) -> tuple[dict[str, np.ndarray] | None, float | None]:
    """Maps and seconds of AMICO, None and None where it is not installed."""
    if find_spec("amico") is None:
        return None, None
    import amico as peer

    with tempfile.TemporaryDirectory() as folder:
        return timed_amico_noddi(peer, acquisition, Path(folder))


def published(scheme: str, snr: int, name: str) -> float | None:
    """AMICO's RMSE of `PUBLISHED_AMICO`, None where none is known."""
    figures = PUBLISHED_AMICO[scheme].get(name)
    return figures[SNRS.index(snr)] if figures and snr in SNRS else None


def rms(error: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(error**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scheme", nargs="+", choices=tuple(SCHEMES), default=tuple(SCHEMES))
    parser.add_argument("--snr", nargs="+", type=int, default=SNRS)
    options = parser.parse_args()
    show(rows(tuple(options.scheme), tuple(options.snr)))


def show(table: list[Row]) -> None:
    if find_spec("amico") is None:
        print("AMICO is not installed: its RMSE are published figures of another phantom, its speed is not known.")
    print(f"{'':<19}{'RMSE':>8}{'bias':>8}  {'AMICO':>8}{'bias':>8}  {'voxels/s':>9}{'AMICO':>8}{'ratio':>7}")
    for row in table:
        peer = "".join(f"{'-' if value is None else format(value, spec):>8}" for value, spec in (
            (row.peer_rmse, ".3f"), (row.peer_bias, "+.3f")))  # fmt: skip
        speed = "" if row.ratio is None else f"{row.peer_voxels_per_s:8.0f}{row.ratio:7.1f}"
        label = f"{row.scheme} SNR {row.snr} {row.method} {row.name}"
        print(f"{label:<19}{row.rmse:8.3f}{row.bias:+8.3f}  {peer}  {row.voxels_per_s:9.0f}{speed}")


if __name__ == "__main__":
    main()
