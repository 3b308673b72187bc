"""How near our fits are to what the machine allows: the floor is what they must move and compute, at its peak rates.

Per voxel, with N volumes, P unknowns and S = P (P + 1) / 2 entries of a symmetric matrix:

bytes
    4 N to read the signal, 4 for each number of the maps and the parameters to write. What lies between can stay in
    the cache.
operations of OLS
    `FUNCTION` N for logarithms; 2 N P for the solution; for the residual map 2 N P, `FUNCTION` N for exponentials and
    3 N for squares.
operations of WLS
    those of OLS, and per reweighting 2 N P for the prediction, (`FUNCTION` + 3) N for weights and weighed residuals,
    2 N S for the matrices, 2 N P for the right-hand sides, P^3 / 3 + 2 P^2 for the solution.
operations of NODDI
    `EVALUATIONS` steps of Levenberg-Marquardt. Each evaluates the signal and its derivatives by the six unknowns: three
    polynomials of `TERMS` terms (6 N `TERMS`), an exponential (`FUNCTION` N) and about 60 N for the rest; 54 N for the
    products of derivatives (21, and 6 with the residual), 150 for the solution.

Maps are left out of the operations: they cost little for the tensor, but MK, AK, RK and KFA are a good part of
kurtosis. So this is a floor that no kernel reaches; products of matrices come near the peak, logarithms do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import dki
import machine
from phantom import phantom
from scaling import METHODS, noddi_scan
from timing import ours, typical_seconds

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.fitting.device import cpu_workers
from DiffusionFMLib.maps import RESIDUAL, STATUS
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.settings import FitSettings

FUNCTION = 10
"""Operations that a logarithm or an exponential takes at least, as a polynomial."""

TERMS = 8
"""Of NODDI's stick signal: even degrees up to 14, which are needed for 1e-5 at b = 2000."""

EVALUATIONS = 8
"""Fewer steps hardly reach the minimum from a good start."""

NODDI_UNKNOWNS = 6


@dataclass(frozen=True)
class RooflineRow:
    """Floor of a fit and how much of its time that explains; rates are those of as many threads as it uses."""

    kernel: str
    voxels: int
    bytes_per_voxel: int
    flops_per_voxel: int
    memory_s: float
    compute_s: float
    ours_s: float
    fraction: float


def traffic(model: str, volumes: int) -> int:
    """Bytes per voxel that must be moved."""
    specs = (*MODELS[model].map_specs, RESIDUAL, STATUS)
    written = sum(max(1, len(spec.components)) for spec in specs) + len(MODELS[model].parameters)
    return 4 * (volumes + written)


def log_linear_flops(volumes: int, unknowns: int, reweightings: int) -> int:
    """Operations per voxel of a log-linear fit; none reweighted is OLS."""
    entries = unknowns * (unknowns + 1) // 2
    once = volumes * (2 * unknowns + FUNCTION) + volumes * (2 * unknowns + FUNCTION + 3)
    step = volumes * (4 * unknowns + FUNCTION + 3 + 2 * entries) + unknowns**3 // 3 + 2 * unknowns**2
    return once + reweightings * step


def noddi_flops(volumes: int) -> int:
    """Operations per voxel of NODDI."""
    products = 2 * (NODDI_UNKNOWNS * (NODDI_UNKNOWNS + 1) // 2 + NODDI_UNKNOWNS)
    return EVALUATIONS * (volumes * (6 * TERMS + FUNCTION + 60 + products) + 150)


def rows() -> list[RooflineRow]:
    """Lines of the table."""
    head, kurtosis, tissue = phantom(), dki.phantom(), noddi_scan()
    found = []
    for model, acquisition in (("dti", head), ("dki", kurtosis)):
        for method, reweightings in (("ols", 0), ("wls", FitSettings().reweightings)):
            flops = log_linear_flops(len(acquisition.gtab), len(MODELS[model].parameters), reweightings)
            found.append(_row(model, method, acquisition, flops))
    return [*found, _row("noddi", METHODS["noddi"], tissue, noddi_flops(len(tissue.gtab)))]


def _row(model: str, method: str, acquisition: Acquisition, flops: int) -> RooflineRow:
    peak = machine.measured(cpu_workers())
    voxels, moved = int(acquisition.mask.sum()), traffic(model, len(acquisition.gtab))
    memory_s, compute_s = voxels * moved / peak.bytes_per_s, voxels * flops / peak.flops_per_s
    ours(acquisition, model, method)
    taken = typical_seconds(acquisition, model, method)
    fraction = max(memory_s, compute_s) / taken
    return RooflineRow(f"{model.upper()} {method}", voxels, moved, flops, memory_s, compute_s, taken, fraction)


def show(table: list[RooflineRow]) -> None:
    print(
        f"{'Roofline':<12}{'bytes':>8}{'flops':>9}{'memory ms':>11}{'compute ms':>12}{'ours ms':>10}{'floor/ours':>12}"
    )
    for row in table:
        times = f"{1e3 * row.memory_s:11.2f}{1e3 * row.compute_s:12.2f}{1e3 * row.ours_s:10.1f}"
        print(f"{row.kernel:<12}{row.bytes_per_voxel:8d}{row.flops_per_voxel:9d}{times}{row.fraction:12.1%}")
