"""NODDI by Levenberg-Marquardt: started from the tensor's direction and a few fans, inside the parameters' bounds.

``nlls`` is least squares. ``map`` is the maximum a posteriori: it takes the noise level from the scan itself, fits what
Rician noise makes of the signal, and has weak priors, which decide only where the noise leaves the question open.

Two implementations of the same steps: batched torch for every device, and one compiled loop (`fused`) for the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy.stats import chi2
from torch import Tensor

from DiffusionFMLib.fitting import fused
from DiffusionFMLib.fitting.cholesky import PackedSolver, diagonal_entries, packed_pairs
from DiffusionFMLib.fitting.estimators import MAX_RESIDUAL, Estimator, FitOptions, Plan, Solution
from DiffusionFMLib.fitting.least_squares import LeastSquares, Problem
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.noddi import FREE, MAX_ODI, MIN_ODI, PARALLEL, kappa_of
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.physics.tensor_algebra import principal_axis
from DiffusionFMLib.physics.watson import degree_for, even_legendre_and_slope, stick_coefficients, watson_coefficients
from DiffusionFMLib.settings import FitSettings

STARTS: Final = [(ndi, odi) for ndi in (0.3, 0.55, 0.8) for odi in (0.05, 0.2, 0.5, 0.8)]
"""NDI and ODI of the fans that a fit may start from."""

TABLE: Final = 512
"""Entries over ODI of the Watson coefficients; cubic interpolation between them is exact to 1e-9."""

UNKNOWNS: Final = 6
"""NDI, ODI, FWF, S0 and two turns of the direction."""

FLOOR_END, FLOOR_TABLE = 12.0, 512
"""Signal, in sigmas, up to which the noise floor is looked up in a table, and its entries; beyond, a series does."""

SIGMA_STEPS: Final = 3
MIN_FREEDOM: Final = 3
MIN_SAMPLE: Final = 50
"""The noise level is found in so many steps, if so many volumes beyond the unknowns and so many voxels are there."""

PRIOR: Final = ((1.0, 1.0), (4.0, 2.0), (0.0, 1.0))
"""Exponents of x and 1 - x in the prior density of NDI, ODI and FWF; what a few volumes' noise can outweigh.

They are about those of "neither none nor all". ODI's first is higher by two for each angle that is fitted, not averaged
over: of a fan that hardly shows, noise makes a sharp one in some direction.
"""

MAX_ITERATIONS: Final = 100
TOLERANCE: Final = 3e-6
"""A step that lowers the cost by less than this fraction is the last."""

MAX_TURN: Final = 0.8
"""Largest turn of the direction in a step, radians: beyond, the tangent tells nothing."""

LOW, HIGH = (0.0, MIN_ODI, 0.0), (1.0, MAX_ODI, 1.0)
"""Bounds of NDI, ODI and FWF."""


@dataclass(frozen=True, eq=False)
class Protocol:
    """What a fit needs to know of the gradient table, on one device.

    Parameters
    ----------
    b : Tensor, shape (N,), ms/um2
    bvecs : Tensor, shape (N, 3)
    group : Tensor, shape (N,), int64
        Position of each volume's b-value among the distinct ones.
    free : Tensor, shape (N,)
        Signal of free water.
    sticks : Tensor, shape (G, K)
        See `stick_coefficients`; one row for each distinct b-value.
    l_max : int
    table : Tensor, shape (TABLE, K, 2)
        Watson coefficients at equal steps of ODI from 0 to 1, and their derivatives.
    floor : Tensor, shape (FLOOR_TABLE, 2)
        Mean of Rician noise around signals at equal steps from 0 to FLOOR_END, in sigmas, and its derivative.
    """

    b: Tensor
    bvecs: Tensor
    group: Tensor
    free: Tensor
    sticks: Tensor
    l_max: int
    table: Tensor
    floor: Tensor

    @classmethod
    def of(cls, gtab: GradientTable, device: torch.device, dtype: torch.dtype) -> Protocol:
        """Prepare a gradient table."""
        b = gtab.bvals / 1000
        distinct, group = np.unique(b, return_inverse=True)
        l_max = degree_for(float(b.max()))

        def moved(array: np.ndarray) -> Tensor:
            return torch.tensor(array).to(device, dtype)

        return cls(
            moved(b),
            moved(gtab.bvecs),
            torch.as_tensor(group).to(device),
            moved(np.exp(-b * FREE)),
            moved(stick_coefficients(distinct * PARALLEL, l_max)),
            l_max,
            _watson_table(l_max).to(device, dtype),
            _floor_table().to(device, dtype),
        )


def _watson_table(l_max: int) -> Tensor:
    """Watson coefficients and their derivatives by ODI, shape (TABLE, K, 2), float64."""
    # at ODI 0 the concentration is infinite; nothing below the bound is ever looked up
    odi = torch.linspace(0, 1, TABLE, dtype=torch.float64).clamp(MIN_ODI / 2, 1 - 1e-9).requires_grad_()
    values = watson_coefficients(kappa_of(odi), l_max)
    slopes = [torch.autograd.grad(column.sum(), odi, retain_graph=True)[0] for column in values.unbind(1)]
    return torch.stack([values.detach(), torch.stack(slopes, 1)], -1)


def _floor_table() -> Tensor:
    """Mean of Rician noise of sigma 1 and its derivative, shape (FLOOR_TABLE, 2), float64."""
    signal = torch.linspace(0, FLOOR_END, FLOOR_TABLE, dtype=torch.float64).requires_grad_()
    mean = RicianNoise().mean(signal, torch.ones_like(signal))
    (slope,) = torch.autograd.grad(mean.sum(), signal)
    return torch.stack([mean.detach(), slope], -1)


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
        self._is_fused = device.type == "cpu" and fused.available()
        self._ready: tuple[Problem, Protocol] | None = None

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

    def estimator(self, voxels: int) -> NoddiEstimator:
        """See `Plan`."""
        if self._ready is None:
            self._ready = (
                Problem.of(DTI(), self._gtab, self._device, self._dtype),
                Protocol.of(self._gtab, self._device, torch.float64 if self._is_fused else self._dtype),
            )
        problem, protocol = self._ready
        kind = FusedEstimator if self._is_fused else TorchEstimator
        return kind(LeastSquares(problem, voxels), protocol, self._options, self.sigma)


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
        mean, _ = with_floor(self.protocol.floor, predicted, self.sigma)
        difference = (mean - self.signal) / s0
        return difference.square_().mean(0).sqrt_().clamp_(max=MAX_RESIDUAL).to(self.signal.dtype)

    def scatter(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of squares that a fit leaves, and the variance of its noise over sigma^2, shape (V,) each."""
        predicted, _ = self._predicted(theta)
        mean, _ = with_floor(self.protocol.floor, predicted, self.sigma)
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
    """One compiled loop, in float64; numba compiles it at first use and keeps the result on disk."""

    def solve(self) -> Solution:
        """See `Estimator`."""
        from DiffusionFMLib.fitting.fused import noddi as kernel

        p, voxels = self.protocol, self.signal.shape[1]
        order = torch.argsort(p.group, stable=True)
        degrees = range(0, p.l_max + 1, 2)
        monomials = np.zeros((len(degrees), len(degrees)))
        for place, degree in enumerate(degrees):
            monomials[place, : place + 1] = legendre.leg2poly(np.eye(degree + 1)[degree])[::2]
        theta = np.zeros((7, voxels))
        theta[:3] = self.directions().numpy()
        converged = np.zeros(voxels, np.bool_)
        kernel.fit(
            self.signal.numpy(), order.numpy(), p.b[order].numpy(), p.bvecs[order].numpy(),
            torch.bincount(p.group).cumsum(0).numpy(), p.free[order].numpy(), PARALLEL, p.sticks.numpy(), monomials,
            p.table.numpy(), np.array(STARTS), np.array(LOW), np.array(HIGH), self.sigma, np.array(PRIOR),
            p.floor.numpy(), FLOOR_END, MAX_ITERATIONS, theta, converged,
        )  # fmt: skip
        return Solution(torch.from_numpy(theta).to(self.signal.dtype), torch.from_numpy(converged))


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


class Search:
    """Levenberg-Marquardt of many voxels at once; those that are done leave.

    Parameters
    ----------
    protocol : Protocol
    signal : Tensor, shape (N, V)
        Scaled to about 1.
    mu : Tensor, shape (3, V)
        Directions to start from.
    sigma : Tensor, shape (V,)
        Noise, on the signal's scale.
    """

    def __init__(self, protocol: Protocol, signal: Tensor, mu: Tensor, sigma: Tensor) -> None:
        voxels = signal.shape[1]
        self.protocol, self.signal, self.sigma = protocol, signal, sigma
        self._low, self._high = (
            signal.new_tensor([*bounds, end])[:, None] for bounds, end in ((LOW, 1e-6), (HIGH, 1e6))
        )
        self._p = self._trial = self._start(mu)
        self._mu = self._trial_mu = mu
        self._best = torch.full_like(signal[0], torch.inf)
        self._damping = torch.full_like(self._best, 1e-2)
        pairs = packed_pairs(UNKNOWNS)
        self._gram = signal.new_zeros(len(pairs), voxels)
        self._gradient = signal.new_zeros(UNKNOWNS, voxels)
        self._places = torch.arange(voxels, device=signal.device)
        self._result = signal.new_zeros(7, voxels)
        self._converged = torch.zeros(voxels, dtype=torch.bool, device=signal.device)
        self._rounding = torch.finfo(signal.dtype).eps

    def _start(self, mu: Tensor) -> Tensor:
        """NDI, ODI, FWF and S0, shape (4, V), of the fan that together with free water explains most."""
        free, y = self.protocol.free[:, None], self.signal
        best = torch.full_like(y[0], torch.inf)
        start = y.new_zeros(4, y.shape[1])
        ii, iy, yy = free.square().sum(), (free * y).sum(0), y.square().sum(0)
        for ndi, odi in STARTS:
            p = y.new_tensor([ndi, odi, 0.0])[:, None].expand(3, y.shape[1])
            tissue = signal_parts(self.protocol, mu, p).tissue
            tt, ti, ty = tissue.square().sum(0), (tissue * free).sum(0), (tissue * y).sum(0)
            determinant = tt * ii - ti * ti
            a, c = (ty * ii - iy * ti) / determinant, (iy * tt - ty * ti) / determinant
            only_free, no_free = a <= 0, (a > 0) & (c <= 0)
            a = torch.where(only_free, 0.0, torch.where(no_free, ty / tt, a))
            c = torch.where(only_free, (iy / ii).clamp_min(0), torch.where(no_free, 0.0, c))
            cost = yy - 2 * (a * ty + c * iy) + a * a * tt + 2 * a * c * ti + c * c * ii
            better = (cost < best) & (a + c > 0)
            best = torch.where(better, cost, best)
            found = torch.stack([p[0], p[1], c / (a + c), a + c])
            start = torch.where(better, found, start)
        # off the bounds, where nothing pulls
        start[2].clamp_(1e-3, 1 - 1e-3)
        return start

    def step(self) -> bool:
        """One step of every voxel that is not done; False when all are."""
        parts = signal_parts(self.protocol, self._trial_mu, self._trial[:3], derivatives=True)
        mean, slope = with_floor(self.protocol.floor, parts.model * self._trial[3], self.sigma)
        residual = self.signal - mean
        s0 = slope * self._trial[3]
        noise = self.sigma**2
        x = self._trial[:3]
        near, far = x.clamp_min(1e-3), (1 - x).clamp_min(1e-3)
        below, above = (noise * x.new_tensor(column)[:, None] for column in zip(*PRIOR, strict=True))
        cost = residual.square().sum(0) - 2 * (below * near.log() + above * far.log()).sum(0)
        e1, e2 = _across(self._trial_mu)
        along1, along2 = self.protocol.bvecs @ e1, self.protocol.bvecs @ e2
        by_angle = parts.by_cosine * s0
        jacobian = [
            parts.by_ndi * s0,
            parts.by_odi * s0,
            parts.by_fwf * s0,
            parts.model,
            by_angle * along1,
            by_angle * along2,
        ]
        better = cost < self._best
        gain = self._best - cost
        done = better & (gain < TOLERANCE * self._best.abs())
        self._p = torch.where(better, self._trial, self._p)
        self._mu = torch.where(better, self._trial_mu, self._mu)
        gradient = torch.stack([(column * residual).sum(0) for column in jacobian])
        gradient[:3] += below / near - above / far
        gram = torch.stack([(jacobian[i] * jacobian[j]).sum(0) for i, j in packed_pairs(UNKNOWNS)])
        gram[diagonal_entries(UNKNOWNS)[:3]] += below / near**2 + above / far**2
        self._gradient = torch.where(better, gradient, self._gradient)
        self._gram = torch.where(better, gram, self._gram)
        self._best = torch.where(better, cost, self._best)
        self._damping = torch.where(better, (self._damping * 0.1).clamp_min(1e-8), self._damping * 10)
        done |= self._damping > 1e8
        moved = self._propose()
        done |= moved < 4 * self._rounding
        return self._leave(done)

    def _propose(self) -> Tensor:
        """The next trial; how far it is from the best so far, shape (V,)."""
        size = self._gram.shape[1]
        solver = PackedSolver(UNKNOWNS, self._gram.new_empty(PackedSolver.rows(UNKNOWNS), size))
        fixed = torch.zeros_like(self._gradient, dtype=torch.bool)
        fixed[:3] = (
            (self._p <= self._low) & (self._gradient[:4] < 0) | (self._p >= self._high) & (self._gradient[:4] > 0)
        )[:3]
        solver.matrix.copy_(self._gram)
        diagonal = diagonal_entries(UNKNOWNS)
        solver.matrix[diagonal] = solver.matrix[diagonal] * (1 + self._damping) + 1e-12
        for place, (i, j) in enumerate(packed_pairs(UNKNOWNS)):
            either = fixed[i] | fixed[j]
            solver.matrix[place] = torch.where(either, 1.0 if i == j else 0.0, solver.matrix[place])
        solver.rhs.copy_(torch.where(fixed, 0.0, self._gradient))
        step = solver.solve()
        self._trial = torch.minimum(torch.maximum(self._p + step[:4], self._low), self._high)
        e1, e2 = _across(self._mu)
        turn = step[4] * e1 + step[5] * e2
        angle = turn.norm(dim=0)
        turn = turn * (MAX_TURN / angle.clamp_min(MAX_TURN))
        ahead = self._mu + turn
        self._trial_mu = ahead / ahead.norm(dim=0)
        return torch.maximum((self._trial - self._p).abs().amax(0), angle)

    def _leave(self, done: Tensor) -> bool:
        """Write down the voxels that are done; forget them once they are many. False when none is left."""
        self._converged[self._places[done]] = True
        left = ~self._converged[self._places]
        if 2 * int(left.sum()) > len(left):
            return True
        self._write()
        for name in ("_p", "_mu", "_trial", "_trial_mu", "_best", "_damping", "_gram", "_gradient", "signal", "sigma"):
            setattr(self, name, getattr(self, name)[..., left])
        self._places = self._places[left]
        return bool(len(self._places))

    def _write(self) -> None:
        self._result[:3, self._places] = self._mu
        self._result[3:6, self._places] = self._p[:3]
        self._result[6, self._places] = self._p[3].log()

    def result(self) -> tuple[Tensor, Tensor]:
        """Parameters, shape (7, V), and whether they converged, shape (V,)."""
        self._write()
        return self._result, self._converged


@dataclass(frozen=True, eq=False)
class SignalParts:
    """Signal of many voxels over S0, shape (N, V) each: of all, of the tissue alone, and derivatives if asked for."""

    model: Tensor
    tissue: Tensor
    by_ndi: Tensor
    by_odi: Tensor
    by_fwf: Tensor
    by_cosine: Tensor


def signal_parts(protocol: Protocol, mu: Tensor, p: Tensor, derivatives: bool = False) -> SignalParts:
    """NODDI's signal and derivatives.

    Parameters
    ----------
    protocol : Protocol
    mu : Tensor, shape (3, V)
        Unit vectors.
    p : Tensor, shape (3, V)
        NDI, ODI and FWF.
    derivatives : bool
    """
    v, odi, f = p
    b, free = protocol.b[:, None], protocol.free[:, None]
    cosine = protocol.bvecs @ mu
    square = cosine * cosine
    watson, slopes = _interpolate(protocol.table, odi)
    sticks = protocol.sticks[protocol.group]
    inside, by_odi, by_square = torch.zeros_like(cosine), torch.zeros_like(cosine), torch.zeros_like(cosine)
    for k, (value, slope) in enumerate(even_legendre_and_slope(square, protocol.l_max)):
        stick = sticks[:, k, None]
        inside.addcmul_(value * stick, watson[k])
        if derivatives:
            by_odi.addcmul_(value * stick, slopes[k])
            by_square.addcmul_(slope * stick, watson[k])
    tau = (1 + 2 * watson[1]) / 3
    radial = PARALLEL * (1 - v * (1 + tau) / 2)
    excess = PARALLEL * (1 - v * (1 - tau)) - radial
    outside = torch.exp(-b * (radial + excess * square))
    tissue = v * inside + (1 - v) * outside
    model = tissue + f * (free - tissue)
    if not derivatives:
        return SignalParts(model, tissue, *[model.new_empty(0)] * 4)
    # of the exponent of what is outside
    slope = -b * outside * (1 - v)
    share = 1 - f
    return SignalParts(
        model,
        tissue,
        share * (inside - outside + slope * PARALLEL * ((1.5 * tau - 0.5) * square - (1 + tau) / 2)),
        share * (v * by_odi + slope * (PARALLEL * v * (2 / 3) * slopes[1]) * (1.5 * square - 0.5)),
        free - tissue,
        2 * share * cosine * (v * by_square + slope * excess),
    )


def with_floor(table: Tensor, signal: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean of the measured signal, and its derivative by the signal, shape (N, V) each; sigma of 0 is no noise."""
    if isinstance(sigma, float) and not sigma or isinstance(sigma, Tensor) and not bool(sigma.any()):
        return signal, torch.ones_like(signal)
    step = FLOOR_END / (len(table) - 1)
    ratio = signal / sigma
    place = (ratio / step).clamp(0, len(table) - 1.001)
    index = place.long()
    t = place - index
    (f0, g0), (f1, g1) = table[index].movedim(-1, 0), table[index + 1].movedim(-1, 0)
    near = f0 + t * t * (3 - 2 * t) * (f1 - f0) + step * t * (1 - t) * ((1 - t) * g0 - t * g1)
    near_slope = 6 * t * (1 - t) / step * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    far = ratio > FLOOR_END
    inverse = 1 / torch.where(far, ratio, 1.0)
    mean = torch.where(far, ratio + inverse / 2 + inverse**3 / 8, near)
    return mean * sigma, torch.where(far, 1 - inverse**2 / 2 - 3 * inverse**4 / 8, near_slope)


def _interpolate(table: Tensor, odi: Tensor) -> tuple[Tensor, Tensor]:
    """Watson coefficients and their derivatives, shape (K, V) each, by cubic Hermite interpolation."""
    last = len(table) - 1
    place = odi.clamp(0, 1) * last
    index = place.long().clamp_max(last - 1)
    t, h = place - index, 1 / last
    f0, g0 = table[index].permute(2, 1, 0)
    f1, g1 = table[index + 1].permute(2, 1, 0)
    values = f0 + t * t * (3 - 2 * t) * (f1 - f0) + h * t * (1 - t) * ((1 - t) * g0 - t * g1)
    slopes = 6 * t * (1 - t) / h * (f1 - f0) + (1 - t) * (1 - 3 * t) * g0 + t * (3 * t - 2) * g1
    return values, slopes


def _across(mu: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors, shape (3, V), across unit vectors (Duff et al., 2017)."""
    x, y, z = mu
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    b = x * y * a
    return torch.stack([1 + sign * x * x * a, sign * b, -sign * x]), torch.stack([b, sign + y * y * a, -y])
