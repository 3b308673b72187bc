"""D-RoPE: how far diffusion volumes are apart, and the rotation that attention takes from it.

Source: "Diffusion MRI Transformer with a Diffusion Space Rotary Positional Embedding", arXiv 2603.25977. The score of
volumes i and j turns each pair of k's entries by the angle theta d_ij before the product with q. That rotation cannot
be split into a factor for i and one for j, as in RoPE for sequences, since d is no difference of positions. But theta
and d can be split: the frequencies lie in a narrow band, so that few products of a function of theta and one of d make
all cosines and sines, as exactly as is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, cos, log, pi, sqrt
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln
from torch import Tensor

from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.gradients import GradientTable, listed

BASE: Final = 0.3
"""Frequencies are powers of it; the band is 1 to 1 / 0.3."""

LAYOUTS: Final = ("paper", "official")
"""Entry e of a head turns by frequency e // 2, as pairs do; or, as in the public code, by that of e modulo d / 2."""

TOLERANCES: Final = {torch.float64: 1e-13, torch.float32: 1e-7, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""Largest error of a cosine or sine that is below what rounding does anyway."""

REACH_STEP: Final = 0.25
"""Expansions are made for distances up to a multiple of it, so that similar protocols share one."""

OVERSAMPLING: Final = 8
"""Nodes per degree of the polynomial that stands for the error."""

LOG_REMAINDER: Final = log(1e-20)
"""What that polynomial leaves out is smaller, far below rounding."""


def volume_distances(gtab: GradientTable) -> NDArray[np.float64]:
    """Distance between all pairs of volumes, shape (N, N).

    d_ij = sqrt((rho_i - rho_j)^2 / 2 + alpha_ij^2), rho in ms/um2, alpha = arccos |g_i . g_j|. A b0 has no direction:
    alpha is 0 where either is one, since anything else would depend on the frame.

    Parameters
    ----------
    gtab : GradientTable

    Raises
    ------
    ProtocolError
        If a volume above b0 has no direction.
    """
    if gtab.trace_mask.any():
        msg = f"Volume(s) {listed(np.flatnonzero(gtab.trace_mask))} have b > 0 and no gradient direction."
        raise ProtocolError(msg, "Leave trace and ADC volumes out before encoding.")
    g, rho = gtab.bvecs, np.where(gtab.b0_mask, 0.0, gtab.bvals / 1000)
    x, y, z = g.T
    # sums of products, not a matrix product: exactly symmetric, and exactly 0 between parallel directions
    dot = np.abs(np.multiply.outer(x, x) + np.multiply.outer(y, y) + np.multiply.outer(z, z))
    cross = [np.multiply.outer(a, b) - np.multiply.outer(b, a) for a, b in ((y, z), (z, x), (x, y))]
    # arccos would lose half of all digits where directions are nearly parallel
    alpha = np.arctan2(np.sqrt(sum(part**2 for part in cross)), dot)
    weighted = ~gtab.b0_mask
    alpha *= np.multiply.outer(weighted, weighted)
    distances = np.sqrt(0.5 * np.subtract.outer(rho, rho) ** 2 + alpha**2)
    np.fill_diagonal(distances, 0.0)
    return distances


def frequencies(dim: int, layout: str) -> NDArray[np.float64]:
    """Frequency of each entry of a head, shape (dim,): theta_n = 0.3^(-2 n / dim), ordered by layout."""
    theta = BASE ** (-2 * np.arange(dim // 2) / dim)
    return np.repeat(theta, 2) if layout == "paper" else np.tile(theta, 2)


@dataclass(frozen=True, eq=False)
class RotaryExpansion:
    """cos(theta_e d) = sum_p cos[p, e] T_p(d), and sin alike with the same T, for d up to `reach`.

    Cosine and sine share the functions of d, so that one product of matrices per term gives scores; with functions of
    their own they would need a quarter more terms, and two.

    Parameters
    ----------
    cos, sin : array, shape (P, dim)
    basis : array, shape (P, 2 m)
        Makes T_p(d) from cosines, then sines, of the m `theta` times d.
    theta : array, shape (m,)
    reach : float
        Largest distance.
    max_error : float
        Bound of the error of every cosine and sine at any distance up to `reach`; see `rotary_expansion`. Scores
        change by `max_error` times sum_e |q_e| (|k_e| + |k~_e|) / sqrt(dim) at most.
    """

    cos: NDArray[np.float64]
    sin: NDArray[np.float64]
    basis: NDArray[np.float64]
    theta: NDArray[np.float64]
    reach: float
    max_error: float

    def functions(self, distances: NDArray[np.float64]) -> NDArray[np.float64]:
        """T_p(d), shape (P, ...)."""
        angles = np.multiply.outer(self.theta, distances)
        return np.tensordot(self.basis, np.concatenate([np.cos(angles), np.sin(angles)]), 1)


@lru_cache(maxsize=64)
def rotary_expansion(dim: int, layout: str, reach: float, tolerance: float) -> RotaryExpansion:
    """The expansion with the fewest terms whose error is proven to be within a tolerance.

    Rows of cosines and sines over a grid of distances have singular vectors U; T = U' f projects on the first P.

    The bound. What a projection leaves is r_e(d) = sum_f c_ef f(theta_f d), f of cosine and sine, with c = 1 - U U', so
    that sum_f |c_ef| <= sqrt(2 m). With d = reach (1 + x) / 2 the Chebyshev coefficients of cos(theta d) and
    sin(theta d) in x are 2 |J_k(b)| <= 2 (b / 2)^k / k! at most, b = theta reach / 2. Cut off after degree n >= b, r is
    a polynomial p and a remainder below eps = 4 sqrt(2 m) (b / 2)^(n + 1) / (n + 1)!. A polynomial that reaches its
    maximum M at x = cos(t0) is at least M cos(n (t - t0)) at cos(t) near it (M. Riesz), and one of N Chebyshev nodes
    has |t - t0| <= pi / (2 N): so max |p| <= max over nodes / cos(pi n / (2 N)). Altogether
    max |r| <= (max over nodes |r| + eps) / cos(pi n / (2 N)) + eps everywhere, not only on the grid.

    Parameters
    ----------
    dim : int
        Entries of a head.
    layout : {"paper", "official"}
    reach : float
        Largest distance.
    tolerance : float
    """
    theta, place = np.unique(frequencies(dim, layout), return_inverse=True)
    m, half = len(theta), theta.max() * reach / 4
    degree = ceil(2 * half) + 1
    while log(4 * sqrt(2 * m)) + (degree + 1) * log(max(half, 1e-9)) - gammaln(degree + 2) > LOG_REMAINDER:
        degree += 1
    count = OVERSAMPLING * degree
    nodes = reach * (1 + np.cos(pi * (np.arange(count) + 0.5) / count)) / 2
    angles = np.multiply.outer(theta, nodes)
    rows = np.concatenate([np.cos(angles), np.sin(angles)])
    vectors = np.linalg.svd(rows, full_matrices=False)[0]
    eps = np.exp(LOG_REMAINDER)
    terms, bound = 0, np.inf
    # with all vectors nothing is left but rounding
    while bound > tolerance and terms < vectors.shape[1]:
        terms += 1
        u = vectors[:, :terms]
        bound = (np.abs(rows - u @ (u.T @ rows)).max() + eps) / cos(pi * degree / (2 * count)) + eps
    return RotaryExpansion(u[:m][place].T, u[m:][place].T, u.T, theta, reach, float(bound))


@dataclass(frozen=True, eq=False)
class RotaryTables:
    """What attention over the directions of one protocol needs, in its precision and on its device.

    Parameters
    ----------
    cos, sin : Tensor, shape (P, dim)
        The scores' factor 1 / sqrt(dim) is in them.
    terms : Tensor, shape (N, P, N)
        T_p of volumes i and j at [i, p, j], as products lie in memory.
    max_error : float
        See `RotaryExpansion`.
    distances : array, shape (N, N)
    layout : {"paper", "official"}
    attention : {"auto", "products", "torch-compile", "triton"}
        What attention is computed by; see `encoder.attention`. "auto" is the fastest that needs no choice: the compiled
        loop on a CPU, else products of matrices.
    """

    cos: Tensor
    sin: Tensor
    terms: Tensor
    max_error: float
    distances: NDArray[np.float64]
    layout: str
    attention: str = "auto"

    @classmethod
    def of(
        cls,
        distances: NDArray[np.float64],
        dim: int,
        layout: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        tolerance: float | None = None,
        attention: str = "auto",
    ) -> RotaryTables:
        """Tables of distances, shape (N, N).

        Parameters
        ----------
        distances : array, shape (N, N)
            See `volume_distances`.
        dim : int
            Entries of a head.
        layout : {"paper", "official"}
        dtype : torch.dtype
            In what attention is asked for; below single precision, it has fewer terms, in single precision.
        device : torch.device, optional
        tolerance : float, optional
            Largest error of a cosine or sine; by default what `dtype` can tell.
        attention : {"auto", "products", "torch-compile", "triton"}
        """
        reach = REACH_STEP * max(1, ceil(distances.max() / REACH_STEP))
        expansion = rotary_expansion(dim, layout, reach, tolerance or TOLERANCES[dtype])
        kept = dtype if dtype in (torch.float64, torch.float32) else torch.float32

        def table(values: NDArray[np.float64]) -> Tensor:
            return torch.as_tensor(values, dtype=kept, device=device).contiguous()

        scale = 1 / sqrt(dim)
        terms = table(expansion.functions(distances).transpose(1, 0, 2))
        pair = table(expansion.cos * scale), table(expansion.sin * scale)
        return cls(*pair, terms, expansion.max_error, distances, layout, attention)

    def __len__(self) -> int:
        return len(self.terms)

    @property
    def plain_bytes(self) -> int:
        """Size of `plain`."""
        return 2 * self.distances.size * self.cos.shape[1] * np.dtype(np.float32).itemsize

    @cached_property
    def plain(self) -> NDArray[np.float32]:
        """What the formula as it stands needs, shape (N, N, 4, dim / 2): cosines, then sines, of each pair's halves.

        They do not come from the expansion. The scores' factor is in them.
        """
        n, dim = len(self), self.cos.shape[1]
        theta = frequencies(dim, self.layout).reshape(-1, 2).T
        tables = np.empty((n, n, 4, dim // 2), np.float32)
        for distances, table in zip(self.distances, tables, strict=True):
            angles = np.multiply.outer(distances, theta)
            table[:, :2], table[:, 2:] = np.cos(angles) / sqrt(dim), np.sin(angles) / sqrt(dim)
        return tables

    @cached_property
    def plain_pairs(self) -> Tensor:
        """The same on the tables' device, shape (N, N, 2, dim): cosines, then sines, halves side by side again."""
        halves = torch.from_numpy(self.plain).unflatten(2, (2, 2))
        return halves.transpose(3, 4).flatten(3).contiguous().to(self.terms.device)

    def subset(self, volumes: Tensor) -> RotaryTables:
        """Tables of some of the volumes."""
        chosen = volumes.cpu().numpy()
        terms = self.terms[volumes][:, :, volumes].contiguous()
        return replace(self, terms=terms, distances=self.distances[np.ix_(chosen, chosen)])
