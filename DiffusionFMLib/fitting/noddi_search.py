"""Levenberg-Marquardt of NODDI, batched over voxels; `fused.noddi` takes the same steps one voxel at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import PackedSolver, diagonal_entries, packed_pairs
from DiffusionFMLib.fitting.noddi_signal import Protocol, signal_parts, with_floor
from DiffusionFMLib.physics.noddi import MAX_ODI, MIN_ODI

STARTS: Final = [(ndi, odi) for ndi in (0.3, 0.55, 0.8) for odi in (0.05, 0.2, 0.5, 0.8)]
"""NDI and ODI of the fans that a fit may start from."""

UNKNOWNS: Final = 6
"""NDI, ODI, FWF, S0 and two turns of the direction."""

LOW, HIGH = (0.0, MIN_ODI, 0.0), (1.0, MAX_ODI, 1.0)
"""Bounds of NDI, ODI and FWF."""

PRIOR: Final = ((1.0, 1.0), (2.0, 0.9), (0.0, 1.0))
"""Exponents of x and 1 - x in the prior density of NDI, ODI and FWF: neither none nor all, and little free water.

ODI's first is higher, because the direction is fitted, not averaged over: where a fan hardly shows, noise makes a sharp
one in some direction.
"""

MAX_ITERATIONS: Final = 100

TOLERANCE: Final = 1e-5
"""A step that lowers the cost by less than this fraction is the last."""

MAX_TURN: Final = 0.8
"""Largest turn of the direction in a step, radians: beyond, the tangent tells nothing."""


@dataclass(frozen=True, eq=False)
class Prior:
    """Minus twice sigma^2 times the log prior of NDI, ODI and FWF, and half of its derivatives, as in least squares.

    Parameters
    ----------
    cost : Tensor, shape (V,)
    pull : Tensor, shape (3, V)
        Downhill.
    curvature : Tensor, shape (3, V)
    """

    cost: Tensor
    pull: Tensor
    curvature: Tensor

    @classmethod
    def at(cls, x: Tensor, sigma: Tensor | float) -> Prior:
        """The prior at NDI, ODI and FWF, shape (3, V); none where sigma is 0."""
        near, far = x.clamp_min(1e-3), (1 - x).clamp_min(1e-3)
        below, above = (sigma**2 * x.new_tensor(column)[:, None] for column in zip(*PRIOR, strict=True))
        cost = -2 * (below * near.log() + above * far.log()).sum(0)
        return cls(cost, below / near - above / far, below / near**2 + above / far**2)


def linearised(
    protocol: Protocol, mu: Tensor, p: Tensor, sigma: Tensor | float
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Expected signal, shape (N, V), and its derivatives by the `UNKNOWNS`.

    Parameters
    ----------
    protocol : Protocol
    mu : Tensor, shape (3, V)
    p : Tensor, shape (4, V)
        NDI, ODI, FWF and S0.
    sigma : Tensor, shape (V,), or float
    """
    parts = signal_parts(protocol, mu, p[:3], derivatives=True)
    mean, slope = with_floor(parts.model * p[3], sigma)
    s0 = slope * p[3]
    along1, along2 = (protocol.bvecs @ axis for axis in across(mu))
    by_angle = parts.by_cosine * s0
    return mean, (
        parts.by_ndi * s0,
        parts.by_odi * s0,
        parts.by_fwf * s0,
        parts.model * slope,
        by_angle * along1,
        by_angle * along2,
    )


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
        mean, jacobian = linearised(self.protocol, self._trial_mu, self._trial, self.sigma)
        residual = self.signal - mean
        prior = Prior.at(self._trial[:3], self.sigma)
        cost = residual.square().sum(0) + prior.cost
        gain = self._best - cost
        better = gain > 0
        done = gain.abs() < TOLERANCE * self._best.abs()
        self._p = torch.where(better, self._trial, self._p)
        self._mu = torch.where(better, self._trial_mu, self._mu)
        gradient = torch.stack([(column * residual).sum(0) for column in jacobian])
        gradient[:3] += prior.pull
        gram = torch.stack([(jacobian[i] * jacobian[j]).sum(0) for i, j in packed_pairs(UNKNOWNS)])
        gram[diagonal_entries(UNKNOWNS)[:3]] += prior.curvature
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
        e1, e2 = across(self._mu)
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


def across(mu: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors, shape (3, V), across unit vectors (Duff et al., 2017)."""
    x, y, z = mu
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    b = x * y * a
    return torch.stack([1 + sign * x * x * a, sign * b, -sign * x]), torch.stack([b, sign + y * y * a, -y])


def unknowns_to_theta(theta: Tensor) -> Tensor:
    """Derivatives of NODDI's parameters (7, V) by the `UNKNOWNS`: NDI, ODI, FWF, S0 and two turns, shape (V, 7, 6)."""
    e1, e2 = across(theta[:3] / theta[:3].norm(dim=0).clamp_min(1e-12))
    result = theta.new_zeros(theta.shape[1], len(theta), UNKNOWNS)
    result[:, range(3, 6), range(3)] = 1
    result[:, 6, 3] = (-theta[6]).exp()
    result[:, :3, 4], result[:, :3, 5] = e1.T, e2.T
    return result
