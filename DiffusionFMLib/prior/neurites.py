"""NODDI from the prior's kurtosis: the neurites whose signals have the kurtosis that data and neighbours agree on.

The kurtosis model's expansion is cut off, so that the fit of a NODDI signal is not that signal: what the fit leaves of
the NODDI solution is added to the target, and the solution sought again. Where that settles, NODDI's signals have the
kurtosis fit that was asked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.fitting.contract import covariance_of
from DiffusionFMLib.fitting.noddi_search import Prior, linearised, unknowns_to_theta
from DiffusionFMLib.fitting.noddi_signal import Protocol
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, NODDI, SignalModel
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.settings import FitSettings

DIRECTIONS: Final = 20
"""Per shell, that the kurtosis is looked at in."""

CORRECTIONS: Final = 1
"""More change NDI and FWF by less than 0.005, at b-values up to 3000."""

CHUNK: Final = 1 << 12
"""Voxels whose covariance is propagated at once."""

LOG_RANGE: Final = (-12.0, 0.0)
"""Of signals over S0."""


def noddi_of(theta: NDArray[np.float32], gtab: GradientTable, report: Report) -> NDArray[np.float32]:
    """NODDI's parameters of kurtosis parameters.

    Parameters
    ----------
    theta : array, shape (22, V)
        Of `DKI`, in scanner RAS.
    gtab : GradientTable
        The protocol that they were estimated at.
    report : Report

    Returns
    -------
    array, shape (7, V)
    """
    dense = many_directions(gtab)
    design = DKI().design(dense).astype(np.float32)
    wanted = np.clip(design[:, :-1] @ theta[:-1], *LOG_RANGE)
    found = _parameters(wanted, dense, NODDI(), report)
    for _ in range(CORRECTIONS):
        signal = _log_noddi(found, dense)
        kurtosis = _parameters(signal, dense, DKI(), report)
        found = _parameters(np.clip(wanted + signal - design @ kurtosis, *LOG_RANGE), dense, NODDI(), report)
    found[-1] += theta[-1]
    return found


def noddi_covariance(theta: Tensor, kurtosis: Tensor, covariance: Tensor, gtab: GradientTable) -> Tensor:
    """Covariance of NODDI's parameters, to first order, shape (V, 7, 7), float64.

    Parameters
    ----------
    theta : Tensor, shape (7, V)
        What `noddi_of` found.
    kurtosis : Tensor, shape (22, V)
        What it found it for.
    covariance : Tensor, shape (V, 22, 22)
        Of these.
    gtab : GradientTable
        As there.
    """
    dense = many_directions(gtab)
    protocol = Protocol.of(dense, theta.device, torch.float64)
    design = torch.as_tensor(DKI().design(dense), device=theta.device)
    parts = []
    for start in range(0, theta.shape[1], CHUNK):
        x, k = (t[:, start : start + CHUNK].double() for t in (theta, kurtosis))
        mu, s0 = x[:3] / x[:3].norm(dim=0).clamp_min(1e-12), x[6].exp()
        signal, slopes = linearised(protocol, mu, torch.cat([x[3:6], s0[None]]), 0.0)
        by_unknown = torch.stack([slope / signal for slope in slopes], -1).movedim(1, 0)
        # the kurtosis fit of a small change of the signal
        weighted = design * (design @ k).clamp(-30, 30).mul(2).exp().T[..., None]
        changed = torch.linalg.solve(weighted.mT @ design, weighted.mT @ by_unknown)
        given = covariance[start : start + CHUNK].double()
        information = changed.mT @ torch.linalg.solve(given, changed)
        information[:, range(3), range(3)] += Prior.at(x[3:6], 1.0).curvature.T
        to_theta = unknowns_to_theta(x)
        parts.append(to_theta @ covariance_of(information) @ to_theta.mT)
    return torch.cat(parts)


def many_directions(gtab: GradientTable) -> GradientTable:
    """A protocol with the same shells in many directions."""
    g = spread_directions(DIRECTIONS)
    bvals = np.r_[0.0, np.repeat([shell.bval for shell in gtab.shells], len(g))]
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *[g] * len(gtab.shells)]))


def _parameters(
    log_signal: NDArray[np.float32], gtab: GradientTable, model: SignalModel, report: Report
) -> NDArray[np.float32]:
    """A model's parameters of signals without noise, shape (P, V)."""
    signal = np.exp(log_signal.T)[:, None, None]
    scan = Acquisition(np.ascontiguousarray(signal, np.float32), np.eye(4), gtab)
    return fit(scan, model, FitSettings(model=model.name), report).parameters.T.astype(np.float32)


def _log_noddi(theta: NDArray[np.float32], gtab: GradientTable) -> NDArray[np.float32]:
    """Log signal over S0 of NODDI's parameters, shape (N, V)."""
    parts = torch.from_numpy(theta.T).split(1 << 14)
    signals = torch.cat([NODDI().signal(part, gtab) / part[:, -1:].exp() for part in parts])
    return signals.log().T.numpy()
