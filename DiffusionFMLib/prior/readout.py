"""A model's parameters, and how sure its maps are, from a scan's posterior."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.contract import maps_in_rows
from DiffusionFMLib.fitting.uncertainty import MAX_ERROR, spread_to_maps
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import NODDI, SignalModel
from DiffusionFMLib.prior.estimate import PriorEstimate, ScanPosterior
from DiffusionFMLib.prior.neurites import Neurites
from DiffusionFMLib.prior.sampling import sample

CHUNK: Final = 1 << 13
"""Voxels that are read at once, by each thread."""

DRAWS: Final = 16
"""Of the parameters, that standard deviations of maps come from."""

SAMPLES: Final = 8
"""Of the posterior of the whole scan, when they are asked for."""

ROUNDING: Final = 1e-4
"""Of covariances in single precision, relative."""


class Readout:
    """Reads a model's maps from a posterior.

    Parameters
    ----------
    model : SignalModel
    gtab : GradientTable
    found : PriorEstimate
        Posterior of V voxels, in the parameters that the model's prior is of.
    report : Report
    """

    def __init__(self, model: SignalModel, gtab: GradientTable, found: PriorEstimate, report: Report) -> None:
        self.model, self._found, self._report = model, found, report
        self._slope = torch.from_numpy(found.slope)
        self._neurites = Neurites(gtab) if isinstance(model, NODDI) else None
        self._names = [spec.name for spec in model.map_specs if not spec.components]
        self._sampled: dict[str, Tensor] = {}

    def of(self, voxels: NDArray[np.intp] | slice) -> tuple[Tensor, dict[str, Tensor]]:
        """Parameters of some voxels, shape (P, V), and standard deviations of the model's scalar maps, (V,) each."""
        theta = torch.from_numpy(self._found.theta[:, voxels])
        covariance = torch.from_numpy(self._found.covariance[..., voxels]).permute(2, 0, 1).double()
        if self._neurites is None:
            sd = self._from_draws(theta, covariance)
        else:
            # NODDI's parameters have bounds, which draws would not keep to
            theta, spread = self._neurites.find(theta, self._carried(covariance), self._report)
            sd = spread_to_maps(self.model, theta, spread)
        return theta, sd | {name: values[voxels] for name, values in self._sampled.items()}

    def sample(self, scan: ScanPosterior, seed: int) -> None:
        """Take standard deviations from samples of the whole scan from here on: by how much these miss the estimate.

        Samples of kurtosis do not know the mean of their neighbours, so that they spread more than the estimate does.
        """
        parts = [slice(start, start + CHUNK) for start in range(0, len(scan), CHUNK)]
        estimates = [self._scalars(self._found.theta[:, part], part) for part in parts]
        squares = [np.zeros_like(estimate) for estimate in estimates]
        for k in range(SAMPLES):
            drawn = scan.in_ras(sample(scan, seed + k, self._report))
            for part, estimate, total in zip(parts, estimates, squares, strict=True):
                total += (self._scalars(drawn[:, part], part) - estimate) ** 2
        variance = torch.from_numpy(np.concatenate(squares, 1) / SAMPLES)
        self._sampled = dict(zip(self._names, _unless_held(variance).float(), strict=True))

    def _scalars(self, theta: NDArray[np.float32], voxels: slice) -> NDArray[np.float64]:
        """The model's scalar maps, in rows, of parameters, shape (P, V), that are as sure as the estimate there."""
        found = torch.from_numpy(theta)
        if self._neurites is not None:
            covariance = torch.from_numpy(self._found.covariance[..., voxels]).permute(2, 0, 1).double()
            found, _ = self._neurites.find(found, self._carried(covariance), self._report)
        maps = maps_in_rows(self.model, found)
        return np.stack([maps[name].numpy() for name in self._names]).astype(np.float64)

    def _carried(self, covariance: Tensor) -> Tensor:
        """Covariance of parameters, of that of the whitened coordinates, shape (V, P, P)."""
        return self._slope @ covariance @ self._slope.T

    def _from_draws(self, theta: Tensor, covariance: Tensor) -> dict[str, Tensor]:
        """Root mean square of what maps of drawn parameters differ by, because FA near 0 is not linear in the tensor.

        Drawn in whitened coordinates, whose covariance this is, so that a turned scan gets the same.
        """
        centre = maps_in_rows(self.model, theta)
        variances = torch.diag_embed(covariance.diagonal(dim1=1, dim2=2).clamp_min(0))
        factor, failed = torch.linalg.cholesky_ex(covariance + ROUNDING * variances)
        # where rounding left no Gaussian, its variances are used
        factor = torch.where((failed > 0)[:, None, None], variances.sqrt(), factor).float()
        generator, slope = torch.Generator().manual_seed(0), self._slope.float()
        squares = {name: torch.zeros(theta.shape[1]) for name in self._names}
        for _ in range(DRAWS):
            drawn = torch.einsum("vij,jv->iv", factor, torch.randn(theta.shape, generator=generator))
            maps = maps_in_rows(self.model, theta + slope @ drawn)
            for name, total in squares.items():
                total += (maps[name] - centre[name]).square()
        return {name: _unless_held(total / DRAWS) for name, total in squares.items()}


def _unless_held(variance: Tensor) -> Tensor:
    """Standard deviations, shape (V,), of maps with this variance over draws.

    A value that is brought back into its range in every draw does not vary, which is not to say that it is sure.
    """
    return torch.where(variance > 0, variance.sqrt(), MAX_ERROR)
