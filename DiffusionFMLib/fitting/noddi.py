"""NODDI by Levenberg-Marquardt: started from the tensor's direction and a few fans, inside the parameters' bounds.

``nlls`` is least squares. ``map`` is the maximum a posteriori: it takes the noise level from the scan itself, fits what
Rician noise makes of the signal, and has weak priors, which decide only where the noise leaves the question open.

Two implementations of the same steps: batched torch for every device, and one compiled loop (`fused`) for the CPU.
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.polynomial import Polynomial, legendre
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor

from DiffusionFMLib import fused
from DiffusionFMLib.fitting.contract import (
    MAX_RESIDUAL,
    Estimator,
    FitOptions,
    Plan,
    Solution,
    Spread,
    covariance_of,
    maps_in_rows,
)
from DiffusionFMLib.fitting.least_squares import LeastSquares, Problem
from DiffusionFMLib.fitting.log_linear import FusedTensorEstimator
from DiffusionFMLib.fitting.noddi_search import (
    HIGH,
    LOW,
    MAX_ITERATIONS,
    PRIOR,
    STARTS,
    TOLERANCE,
    UNKNOWNS,
    Prior,
    Search,
    linearised,
    unknowns_to_theta,
)
from DiffusionFMLib.fitting.noddi_signal import FLOOR, Protocol, signal_parts, with_floor
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, NODDI
from DiffusionFMLib.physics.noddi import FREE, PARALLEL, hindered_diffusivities, kappa_of
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.tensor_algebra import principal_axis
from DiffusionFMLib.physics.watson import degree_for, watson_coefficients
from DiffusionFMLib.settings import FitSettings

SIGMA_STEPS: Final = 2
MIN_FREEDOM: Final = 3
MIN_SAMPLE: Final = 50
"""The noise level is found in so many steps, if so many volumes beyond the unknowns and so many voxels are there."""

COMPILED_DEGREE: Final = 18
"""The compiled loop holds no more terms of the Legendre series than to here."""


class NoddiPlan(Plan):
    """Levenberg-Marquardt of NODDI; see `estimators.plan`."""

    def __init__(
        self,
        gtab: GradientTable,
        settings: FitSettings,
        options: FitOptions,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._gtab, self._options, self._device, self._dtype = gtab, options, device, dtype
        self._is_map = settings.method == "map"
        self.sigma = 0.0
        self._is_fused = (
            fused.available()
            and device.type == "cpu"
            and dtype == torch.float32
            and degree_for(gtab.bvals.max() / 1000) <= COMPILED_DEGREE
        )

    @cached_property
    def _problem(self) -> Problem:
        return Problem.of(DTI(), self._gtab, self._device, self._dtype)

    @cached_property
    def _protocol(self) -> Protocol:
        return Protocol.of(self._gtab, self._device, self._dtype)

    @cached_property
    def _compiled(self) -> tuple[NDArray[Any], ...]:
        return compiled_protocol(self._protocol)

    @property
    def rows(self) -> int:
        """See `Plan`."""
        return (5 if self._is_fused else 24) * len(self._gtab) + 200

    def calibrate(self, sample: Tensor) -> None:
        """Find the noise level in what fits leave; see `Plan`."""
        freedom = len(self._gtab) - UNKNOWNS
        usable = (sample.amin(0) > 0) & torch.isfinite(sample.amax(0))
        if not self._is_map or freedom < MIN_FREEDOM or int(usable.sum()) < MIN_SAMPLE:
            return
        estimator = self.estimator(int(usable.sum()))
        estimator.signal.copy_(sample[:, usable])
        self.sigma = 0.0
        for _ in range(SIGMA_STEPS):
            estimator.sigma = self.sigma
            left, expected = estimator.scatter(estimator.solve().theta)
            # of a chi-squared distribution the median, because some voxels hold what no model explains
            typical = float((left / expected).median()) / chi2.median(freedom)
            self.sigma = math.sqrt(typical)

    def facts(self) -> dict[str, Any]:
        """See `Plan`."""
        given = {"max_iterations": MAX_ITERATIONS, "fixed_diffusivities_um2/ms": [PARALLEL, FREE]}
        if not self.sigma:
            return given
        names = ("ndi", "odi", "fwf")
        return {
            **given,
            "noise_sigma": float(f"{self.sigma:.4g}"),
            "prior_exponents": {name: list(exponents) for name, exponents in zip(names, PRIOR, strict=True)},
        }

    def estimator(self, voxels: int) -> NoddiEstimator:
        """See `Plan`."""
        known = LeastSquares(self._problem, voxels), self._protocol, self._options, self.sigma
        return FusedEstimator(*known, self._compiled) if self._is_fused else TorchEstimator(*known)


class NoddiEstimator(Estimator):
    """What both implementations share: the start, and the residual.

    Parameters
    ----------
    tensor : LeastSquares
    protocol : Protocol
    options : FitOptions
    sigma : float
        Standard deviation of the noise, in the scan's unit; 0 leaves the noise floor out.
    """

    def __init__(self, tensor: LeastSquares, protocol: Protocol, options: FitOptions, sigma: float) -> None:
        self.tensor, self.protocol, self.options, self.sigma = tensor, protocol, options, sigma
        self.signal = tensor.signal

    def directions(self) -> Tensor:
        """The tensor's main direction, shape (3, V)."""
        log_signal = torch.clamp(self.signal, min=self.options.min_signal, out=self.tensor.log_signal).log_()
        theta = self.tensor.weighted(log_signal, 1)
        _, v1 = principal_axis(theta[:6].T)
        return torch.stack(v1)

    def residual(self, theta: Tensor) -> Tensor:
        """See `Estimator`."""
        predicted, s0 = self._predicted(theta)
        mean, _ = with_floor(predicted, self.sigma)
        difference = (mean - self.signal) / s0
        return difference.square_().mean(0).sqrt_().clamp_(max=MAX_RESIDUAL).to(self.signal.dtype)

    def spread(self, theta: Tensor) -> Spread:
        """See `Estimator`; with the prior, where there is one."""
        protocol = self.protocol.to(torch.float64)
        theta = theta.double()
        mu = theta[:3] / theta[:3].norm(dim=0).clamp_min(1e-12)
        s0 = theta[6].exp()
        _, jacobian = linearised(protocol, mu, torch.cat([theta[3:6], s0[None]]), self.sigma)
        columns = torch.stack(jacobian, -1).movedim(1, 0)
        information = columns.mT @ columns
        information[:, range(3), range(3)] += Prior.at(theta[3:6], self.sigma).curvature.T
        to_theta = unknowns_to_theta(theta)
        left, expected = self.scatter(theta)
        freedom = torch.full_like(s0, float(len(self.signal) - UNKNOWNS))
        covariance = to_theta @ covariance_of(information) @ to_theta.mT
        return Spread(covariance, (left / expected).double(), freedom)

    def scatter(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squares that a fit leaves, and the variance of its noise over sigma^2, shape (V,) each."""
        predicted, _ = self._predicted(theta)
        mean, _ = with_floor(predicted, self.sigma)
        left = (mean - self.signal).square().sum(0)
        if not self.sigma:
            return left, torch.ones_like(left)
        sigma = torch.full_like(predicted, self.sigma)
        return left, (RicianNoise().variance(predicted, sigma) / sigma**2).mean(0)

    def _predicted(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Signal without noise, shape (N, V), and S0, shape (V,)."""
        theta = theta.to(self.protocol.b.dtype)
        mu = theta[:3] / theta[:3].norm(dim=0).clamp_min(1e-12)
        s0 = theta[6].exp()
        return signal_parts(self.protocol, mu, theta[3:6]).model * s0, s0


class FusedEstimator(NoddiEstimator):
    """One compiled loop; numba compiles it at first use and keeps the result on disk."""

    def __init__(
        self,
        tensor: LeastSquares,
        protocol: Protocol,
        options: FitOptions,
        sigma: float,
        protocol_arrays: tuple[NDArray[Any], ...],
    ) -> None:
        super().__init__(tensor, protocol, options, sigma)
        settings = FitSettings(model=DTI.name, method="wls")
        self._tensor_fit = FusedTensorEstimator(tensor, None, settings, options)
        self._protocol_arrays = protocol_arrays

    def directions(self) -> Tensor:
        """See `NoddiEstimator`."""
        return self._tensor_fit.theta_and_maps()[1]["v1"]

    def solve(self) -> Solution:
        """See `Estimator`."""
        from DiffusionFMLib.fused import noddi as kernel

        voxels = self.signal.shape[1]
        theta = np.empty((len(NODDI.parameters), voxels), np.float32)
        theta[:3] = self.directions().numpy()
        converged, residual = np.zeros(voxels, np.bool_), np.zeros(voxels, np.float32)
        constants = (np.array(part, np.float32) for part in (LOW, HIGH, PRIOR, FLOOR))
        known = (*self._protocol_arrays, PARALLEL, *constants, self.sigma, MAX_ITERATIONS, TOLERANCE)
        kernel.fit(*(self.signal.numpy(), *known, theta, converged, residual))
        found = torch.from_numpy(theta)
        maps = maps_in_rows(NODDI(), found)
        maps["residual"] = torch.from_numpy(residual).clamp_(max=MAX_RESIDUAL)
        return Solution(found, torch.from_numpy(converged), maps)


def compiled_protocol(protocol: Protocol) -> tuple[NDArray[Any], ...]:
    """What `fused.noddi.fit` needs to know of a protocol, in the order of its arguments."""
    from DiffusionFMLib.fused.noddi import TERMS

    order = torch.argsort(protocol.group, stable=True)
    series = shifted_legendre(protocol.l_max, TERMS) * protocol.sticks.double().numpy()[:, None, :]

    ndi, odi = torch.tensor(STARTS, dtype=torch.float64).T
    watson = watson_coefficients(kappa_of(odi), protocol.l_max).numpy()
    parallel, perpendicular = (part.numpy() for part in hindered_diffusivities(ndi, torch.as_tensor(watson[:, 1])))
    fans = np.stack([ndi.numpy(), odi.numpy(), perpendicular, parallel - perpendicular], 1)
    fan_series = np.einsum("gtk,sk->sgt", series, watson)
    return (
        order.numpy(),
        *(part[order].float().numpy() for part in (protocol.b, protocol.bvecs)),
        torch.bincount(protocol.group).cumsum(0).numpy(),
        protocol.free[order].float().numpy(),
        *(np.ascontiguousarray(part, np.float32) for part in (series, protocol.table.numpy(), fans, fan_series)),
    )


@lru_cache(maxsize=4)
def shifted_legendre(l_max: int, terms: int) -> NDArray[np.float64]:
    """Even Legendre polynomials of a cosine as polynomials of its square - 1/2, whose terms stay small.

    Returns
    -------
    ndarray, shape (terms, l_max / 2 + 1)
        Coefficients from the constant on, one column for each degree.
    """
    coefficients = np.zeros((terms, l_max // 2 + 1))
    for place, degree in enumerate(range(0, l_max + 1, 2)):
        of_square = Polynomial(legendre.leg2poly(np.eye(degree + 1)[degree])[::2])
        coefficients[: place + 1, place] = of_square(Polynomial([0.5, 1])).coef
    return coefficients


class TorchEstimator(NoddiEstimator):
    """Batched over the tile."""

    def solve(self) -> Solution:
        """See `Estimator`."""
        scale = self.signal.amax(0).clamp_min(self.options.min_signal)
        search = Search(self.protocol, self.signal / scale, self.directions(), self.sigma / scale)
        for _ in range(MAX_ITERATIONS):
            if not search.step():
                break
        theta, converged = search.result()
        theta[6] += scale.log()
        return Solution(theta, converged)
