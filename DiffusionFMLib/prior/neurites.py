"""NODDI from the prior's kurtosis: the neurites whose signals have the kurtosis that data and neighbours agree on.

The kurtosis model's expansion is cut off, so that the kurtosis fit of a NODDI signal is not that signal. Neurites are
therefore compared by the kurtosis fit of their signals with the posterior of the kurtosis, and NODDI's own weak priors
keep them off their bounds. Differences count as they do in the signal. To weigh them by the posterior's covariance
would be efficient if that were exact, but takes on the bias of what the prior is wrongly sure of (measured: an error of
ODI of .077 instead of .063); it only tells how sure the result is, as if it were efficient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report, SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.fitting.contract import covariance_of
from DiffusionFMLib.fitting.noddi_search import HIGH, LOW, Prior, across, unknowns_to_theta
from DiffusionFMLib.fitting.noddi_signal import Protocol, signal_parts
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, NODDI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.settings import FitSettings

DIRECTIONS: Final = 20
"""Per shell, that the kurtosis is looked at in."""

STEPS: Final = 8
DAMPING: Final = (0.01, 0.2, 10.0)
"""Of Levenberg-Marquardt: at first, and its factors after a good and a bad step."""

LOG_RANGE: Final = (-12.0, 0.0)
"""Of signals over S0."""

CHUNK: Final = 1 << 12
"""Voxels that are solved for at once."""


def many_directions(gtab: GradientTable) -> GradientTable:
    """A protocol with the same shells in many directions."""
    g = spread_directions(DIRECTIONS)
    bvals = np.r_[0.0, np.repeat([shell.bval for shell in gtab.shells], len(g))]
    return GradientTable(bvals, np.concatenate([np.zeros((1, 3)), *[g] * len(gtab.shells)]))


class Neurites:
    """Finds NODDI's parameters of posteriors of the kurtosis at one protocol.

    Parameters
    ----------
    gtab : GradientTable
        The protocol that the kurtosis was estimated at.
    """

    def __init__(self, gtab: GradientTable) -> None:
        self._gtab = many_directions(gtab)
        self._protocol = Protocol.of(self._gtab, torch.device("cpu"), torch.float64)
        self._design = torch.as_tensor(DKI().design(self._gtab))

    def find(self, kurtosis: Tensor, covariance: Tensor, report: Report) -> tuple[Tensor, Tensor]:
        """Parameters of NODDI, shape (7, V), and their covariance, shape (V, 7, 7).

        Parameters
        ----------
        kurtosis : Tensor, shape (22, V)
            Posterior mean of the parameters of `DKI`, in scanner RAS.
        covariance : Tensor, shape (V, 22, 22)
        report : Report
        """
        start = self._start(kurtosis)
        theta, spread = torch.empty_like(start), start.new_empty(start.shape[1], len(start), len(start))
        for first in range(0, start.shape[1], CHUNK):
            report.check()
            part = slice(first, first + CHUNK)
            given, spread_of = kurtosis[:, part].double(), covariance[part].double()
            found = self._search(start[:, part].double(), _Target.by_signal(self._design, given, spread_of))
            _, information, _ = self._linearised(found, _Target.of(self._design, given, spread_of))
            # of ln S0 and not of S0, as where S0 is 1
            turned = unknowns_to_theta(torch.cat([found[:6], torch.zeros_like(found[6:])]))
            theta[:, part] = found.float()
            spread[part] = (turned @ covariance_of(information) @ turned.mT).float()
        return theta, spread

    def _start(self, kurtosis: Tensor) -> Tensor:
        """NODDI's fit to the signals that the kurtosis gives, shape (7, V)."""
        design = self._design.float()
        signal = (design[:, :-1] @ kurtosis[:-1]).clamp(*LOG_RANGE).exp()
        scan = Acquisition(np.ascontiguousarray(signal.T.numpy()[:, None, None]), np.eye(4), self._gtab)
        found = fit(scan, NODDI(), FitSettings(model=NODDI.name, device="cpu"), SilentReport()).parameters.T
        theta = torch.from_numpy(np.ascontiguousarray(found))
        theta[-1] += kurtosis[-1]
        return theta

    def _search(self, theta: Tensor, target: _Target) -> Tensor:
        """Levenberg-Marquardt in all voxels of a chunk at once."""
        low, high = (theta.new_tensor(part)[:3, None] for part in (LOW, HIGH))
        theta = torch.cat([theta[:3] / theta[:3].norm(dim=0).clamp_min(1e-12), theta[3:6].clamp(low, high), theta[6:]])
        damping = torch.full_like(theta[0], DAMPING[0])
        cost, information, downhill = self._linearised(theta, target)
        for _ in range(STEPS):
            damped = information + torch.diag_embed(information.diagonal(dim1=1, dim2=2) * damping[:, None] + 1e-9)
            step = torch.linalg.solve(damped, downhill).T
            e1, e2 = across(theta[:3])
            mu = theta[:3] + step[4] * e1 + step[5] * e2
            proposed = torch.cat(
                [mu / mu.norm(dim=0).clamp_min(1e-12), (theta[3:6] + step[:3]).clamp(low, high), theta[6:] + step[3]]
            )
            other, other_information, other_downhill = self._linearised(proposed, target)
            better = other < cost
            theta = torch.where(better, proposed, theta)
            cost = torch.where(better, other, cost)
            information = torch.where(better[:, None, None], other_information, information)
            downhill = torch.where(better[:, None], other_downhill, downhill)
            damping = damping * torch.where(better, DAMPING[1], DAMPING[2])
        return theta

    def _linearised(self, theta: Tensor, target: _Target) -> tuple[Tensor, Tensor, Tensor]:
        """Cost, shape (V,), and by the `UNKNOWNS`, ln S0 for S0, information (V, 6, 6) and the way downhill (V, 6)."""
        parts = signal_parts(self._protocol, theta[:3], theta[3:6], derivatives=True)
        signal = parts.model
        e1, e2 = (self._protocol.bvecs @ axis for axis in across(theta[:3]))
        by_unknown = (parts.by_ndi, parts.by_odi, parts.by_fwf, signal, parts.by_cosine * e1, parts.by_cosine * e2)
        slopes = target.reach @ torch.stack([slope / signal for slope in by_unknown], -1).movedim(1, 0)
        left = (target.reach @ (signal.log() + theta[6] - target.log_signal).T[..., None])[..., 0]
        prior = Prior.at(theta[3:6], 1.0)
        information = slopes.mT @ slopes
        information[:, range(3), range(3)] += prior.curvature.T
        downhill = -(slopes.mT @ left[..., None])[..., 0]
        downhill[:, :3] += prior.pull.T
        return left.square().sum(1) + prior.cost, information, downhill


@dataclass(frozen=True, eq=False)
class _Target:
    """What neurites are compared with.

    Parameters
    ----------
    log_signal : Tensor, shape (M, V)
        Of the kurtosis' mean.
    reach : Tensor, shape (V, 22, M)
        Takes a change of the log signal to that of its kurtosis fit, whitened by the posterior.
    """

    log_signal: Tensor
    reach: Tensor

    @classmethod
    def of(cls, design: Tensor, kurtosis: Tensor, covariance: Tensor) -> _Target:
        log_signal, weighted = _weighted(design, kurtosis)
        fitted = torch.linalg.solve(weighted.mT @ design, weighted.mT)
        variances = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2))
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # where rounding left no Gaussian, its variances are used
        factor = torch.where((failed > 0)[:, None, None], variances.sqrt(), factor)
        return cls(log_signal, torch.linalg.solve_triangular(factor, fitted, upper=False))

    @classmethod
    def by_signal(cls, design: Tensor, kurtosis: Tensor, covariance: Tensor) -> _Target:
        """With a covariance as large, but that of a fit to signals of equal noise."""
        _, weighted = _weighted(design, kurtosis)
        information = weighted.mT @ design
        variance = (information * covariance).sum((1, 2)) / len(kurtosis)
        return cls.of(design, kurtosis, variance[:, None, None] * torch.linalg.inv(information))


def _weighted(design: Tensor, kurtosis: Tensor) -> tuple[Tensor, Tensor]:
    """Log signal of the kurtosis, shape (M, V), and the design times its squared signal over S0, shape (V, M, 22)."""
    log_signal = design @ kurtosis
    return log_signal, (log_signal - kurtosis[-1]).clamp(*LOG_RANGE).mul(2).exp().T[..., None] * design
