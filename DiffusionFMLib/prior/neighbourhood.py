"""What a voxel and its neighbours say together: the network's input, and the mean that its prior starts from.

Information adds up, whatever was measured where, so neighbours are joined by adding theirs, each with a weight of its
own: that does not shrink estimates as averaging them would. Some weights are fixed, for the network to look at; others
it chooses, voxel by voxel, so that tissue is joined with its like. What b0 volumes say has weights of its own: there
are few of them, and ln S0 is alike over more neighbours than diffusion is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from DiffusionFMLib.prior.information import FrontEnd, Information
from DiffusionFMLib.prior.systems import add_diagonal, solve

PASSES: Final = (1, 3)
"""How often a binomial filter is applied for the near and the wide neighbourhood: a Gaussian of 0.7 and 1.2 voxels."""

VOXELS: Final = (8.0, 30.0)
"""How many voxels' worth of information these estimates are given: the filters average 19 and 82 in white noise, and
fewer where noise is correlated."""

SHIFTS: Final = tuple(product((-1, 0, 1), repeat=3))
"""Neighbours that the network weighs, itself among them."""

START_WEIGHTS: Final = (*(VOXELS[0] * 0.25 ** sum(map(abs, s)) * 0.5 ** (3 - sum(map(abs, s))) for s in SHIFTS), 1.0)
"""Weights of them, and of the wide neighbourhood as a whole, that training starts from: the near one."""

CHUNK: Final = 1 << 15
"""Voxels that are solved for at once."""

LOG_WEIGHT_RANGE: Final = (-8.0, 4.0)
"""Of a weight over that which it starts from."""

WEIGHTS: Final = 2 * len(START_WEIGHTS)
"""That the network chooses: each, and that of the b0 volumes over it."""

B0_ROWS: Final = 2
"""Of `FrontEnd.b0`."""


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Information of the voxels of a volume, none outside the brain: C rows, of A, r and the part of b0 volumes.

    Parameters
    ----------
    own : Tensor, shape (C, X + 2, Y + 2, Z + 2)
        Each voxel's own, with those around the volume.
    near : Tensor, shape (C, X, Y, Z)
        Averaged over the near neighbourhood.
    wide : Tensor, shape (C, X, Y, Z)
        Over the wide one.
    """

    own: Tensor
    near: Tensor
    wide: Tensor

    @classmethod
    def of(cls, information: Information, b0: Tensor, shape: tuple[int, int, int], mask: Tensor) -> Neighbourhood:
        """That of all V voxels of a volume; mask, shape (V,), is where there are data; see `FrontEnd.b0`."""
        return cls.within((rows_of(information, b0) * mask).reshape(-1, *shape))

    @classmethod
    def within(cls, own: Tensor) -> Neighbourhood:
        """That of a volume with each voxel's own, shape (C, X, Y, Z); see `rows_of`."""
        near = filtered(own, PASSES[0])
        return cls(functional.pad(own, (1,) * 6), near, filtered(near, PASSES[1] - PASSES[0]))

    def part(self, box: tuple[slice, slice, slice]) -> Neighbourhood:
        """That of a box of the volume, whose neighbours are still there; slices with both ends."""
        with_border = tuple(slice(part.start, part.stop + 2) for part in box)
        return Neighbourhood(*(volume[(slice(None), *cut)] for volume, cut in (
            (self.own, with_border), (self.near, box), (self.wide, box)
        )))  # fmt: skip

    def estimates(self, at: Tensor | None = None) -> Tensor:
        """Ridge estimates from the near and from the wide neighbourhood, shape (2 P, V).

        Parameters
        ----------
        at : Tensor, shape (V,), optional
            Positions of the voxels that are asked for, in C order; all when not given.
        """
        sums = (self.near[:-B0_ROWS], self.wide[:-B0_ROWS])
        return torch.cat([_ridge(each, n, at) for n, each in zip(VOXELS, sums, strict=True)])

    def weighed(self, log_weights: Tensor, at: Tensor | None = None) -> Tensor:
        """Ridge estimate with weights that the network chose, shape (P, V).

        Parameters
        ----------
        log_weights : Tensor, shape (`WEIGHTS`, X, Y, Z)
            Over `START_WEIGHTS`, and those of the b0 volumes' part over these.
        at : Tensor, shape (V,), optional
            See `estimates`.
        """
        weights, of_b0 = _weights(log_weights)
        sums = _WeighedSum.apply(self.own[:-B0_ROWS], self.wide[:-B0_ROWS], weights)
        more = _WeighedSum.apply(self.own[-B0_ROWS:], self.wide[-B0_ROWS:], of_b0)
        return _ridge(_with_b0(sums, more), 1.0, at)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Information of V voxels of a brain and of those around them, without the volume that they lie in.

    The same as a `Neighbourhood`, where nobody asks for derivatives: it takes as much memory as there are voxels.

    Parameters
    ----------
    own : Tensor, shape (C, V)
        Each voxel's own.
    wide : Tensor, shape (C, V)
        Averaged over the wide neighbourhood.
    lattice : Lattice
        Where they lie.
    """

    own: Tensor
    wide: Tensor
    lattice: Lattice

    @classmethod
    def of(cls, own: Tensor, lattice: Lattice) -> tuple[Surroundings, Tensor]:
        """With it the ridge estimates from the near and from the wide neighbourhood, shape (2 P, V)."""
        estimates = []
        for passes, voxels in zip(PASSES, VOXELS, strict=True):
            averaged = filtered_at(own, lattice.place, lattice.shape, passes)
            estimates.append(_ridge(averaged[:-B0_ROWS], voxels, None))
        return cls(own, averaged, lattice), torch.cat(estimates)

    def weighed(self, log_weights: Tensor, voxels: slice) -> Tensor:
        """Ridge estimate of some voxels, shape (P, V'), with their log weights, shape (`WEIGHTS`, V')."""
        weights, of_b0 = _weights(log_weights)
        rows = self.wide[:, voxels].clone()
        sums, more = rows[:-B0_ROWS] * weights[-1], rows[-B0_ROWS:] * of_b0[-1]
        for (beside, there), weight, b0 in zip(self.lattice.beside(voxels), weights, of_b0, strict=False):
            torch.index_select(self.own, 1, beside, out=rows)
            sums.addcmul_(rows[:-B0_ROWS], weight * there)
            more.addcmul_(rows[-B0_ROWS:], b0 * there)
        return _ridge(_with_b0(sums, more), 1.0, None)


@dataclass(frozen=True, eq=False)
class Lattice:
    """Where V voxels lie in a box that leaves at least one voxel around them.

    Parameters
    ----------
    place : Tensor, shape (V,)
        In C order.
    shape : tuple of int
        Edges of the box, voxels.
    number : Tensor, shape (X Y Z,)
        Which of them lies at each place of the box; -1 where none does.
    """

    place: Tensor
    shape: tuple[int, int, int]
    number: Tensor

    @classmethod
    def within(cls, mask: NDArray[np.bool_], margin: int, multiple: int, device: torch.device) -> Lattice:
        """That of a mask's voxels, shape (X, Y, Z), in C order, in a box with edges of a multiple of some number.

        Parameters
        ----------
        mask : array, shape (X, Y, Z), bool
        margin : int
            Voxels, at least, between them and the box's faces.
        multiple : int
        device : torch.device
        """
        inside = np.argwhere(mask)
        low, high = inside.min(0) - margin, inside.max(0) + 1 + margin
        nx, ny, nz = (int(edge) for edge in -(-(high - low) // multiple) * multiple)
        place = torch.from_numpy(np.ravel_multi_index(tuple((inside - low).T), (nx, ny, nz))).to(device)
        number = torch.full((nx * ny * nz,), -1, device=device)
        number[place] = torch.arange(len(place), device=device)
        return cls(place, (nx, ny, nz), number)

    def beside(self, voxels: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Which voxel lies at each of `SHIFTS` from some voxels, and whether one does, shape (V',); else themselves."""
        place, _, ny, nz = self.place[voxels], *self.shape
        themselves = self.number[place]
        for i, j, k in SHIFTS:
            other = self.number[place + (i * ny + j) * nz + k]
            yield torch.where(other < 0, themselves, other), other >= 0


class _WeighedSum(torch.autograd.Function):
    """Sum of the neighbours' rows, differentiable by their weights: without a copy of the volume per neighbour."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, wide: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(own, wide)
        total = wide * weights[-1]
        for part, weight in zip(_shifted(own), weights, strict=False):
            total.addcmul_(part, weight)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        own, wide = ctx.saved_tensors
        product = torch.empty_like(gradient)
        by_weight = [torch.mul(gradient, part, out=product).sum(0) for part in (*_shifted(own), wide)]
        return None, None, torch.stack(by_weight)


def _shifted(own: Tensor) -> list[Tensor]:
    """Views of a volume, shape (C, X + 2, Y + 2, Z + 2), without its border, moved by each of `SHIFTS`."""
    nx, ny, nz = (n - 2 for n in own.shape[1:])
    return [own[:, 1 + i : 1 + i + nx, 1 + j : 1 + j + ny, 1 + k : 1 + k + nz] for i, j, k in SHIFTS]


def _weights(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of all that is joined, and of b0 volumes over these: the logarithms that a network chose, in halves."""
    weights, b0 = log_weights.clamp(*LOG_WEIGHT_RANGE).exp().chunk(2)
    weights = weights * weights.new_tensor(START_WEIGHTS).reshape(-1, *[1] * (weights.ndim - 1))
    # what b0 volumes say is in the sums already, with the others' weights
    return weights, weights * (b0 - 1)


def _with_b0(sums: Tensor, more: Tensor) -> Tensor:
    """Sums of the rows of A and r, and what is added to their parts that b0 volumes tell of."""
    place = torch.tensor([len(sums) - _size_of(len(sums)) - 1, len(sums) - 1], device=sums.device)
    return sums.index_add(0, place, more)


def rows_of(information: Information, b0: Tensor) -> Tensor:
    """Rows of V voxels as a neighbourhood has them, shape (C, V); see `FrontEnd.b0`."""
    return torch.cat([information.precision, information.vector, b0])


def _size_of(rows: int) -> int:
    """Unknowns P of P (P + 3) / 2 rows of A and r."""
    return round(((8 * rows + 9) ** 0.5 - 3) / 2)


def _ridge(sums: Tensor, times: float, at: Tensor | None) -> Tensor:
    """Estimates from so many times the information, shape (P (P + 1) / 2 + P, X, Y, Z), and the unit Gaussian."""
    rows = sums.reshape(len(sums), -1)
    size = _size_of(len(rows))
    places = torch.arange(rows.shape[1], device=rows.device) if at is None else at
    # solved in parts, which their working memory need not be larger than
    parts = [times * (rows if at is None and len(places) <= CHUNK else rows[:, some]) for some in places.split(CHUNK)]
    return torch.cat([solve(add_diagonal(part[:-size], 1.0), part[-size:]) for part in parts], 1)


def filtered(volume: Tensor, passes: int) -> Tensor:
    """Volumes, shape (..., X, Y, Z), filtered with 1/4, 1/2, 1/4 along their axes, so many times; zero beyond them."""
    for axis in (-3, -2, -1) * passes:
        size = volume.shape[axis]
        result = 0.5 * volume
        ahead, behind = volume.narrow(axis, 1, size - 1), volume.narrow(axis, 0, size - 1)
        result.narrow(axis, 0, size - 1).add_(ahead, alpha=0.25)
        result.narrow(axis, 1, size - 1).add_(behind, alpha=0.25)
        volume = result
    return volume


def filtered_at(rows: Tensor, place: Tensor, shape: tuple[int, ...], passes: int) -> Tensor:
    """What `filtered` makes of rows, shape (C, V), of voxels at these places of a volume, in C order; else it is 0."""
    result, volume = torch.empty_like(rows), rows.new_zeros(math.prod(shape))
    # one volume after another, which the processor's caches hold
    for row, found in zip(rows, result, strict=True):
        volume[place] = row
        found.copy_(filtered(volume.reshape(shape), passes).reshape(-1)[place])
    return result


def network_input(front: FrontEnd, neighbourhood: Neighbourhood, mask: Tensor) -> Tensor:
    """Features of a volume for the network, shape (3 P + P (P + 1) / 2, X, Y, Z).

    Parameters
    ----------
    front : FrontEnd
        Of all V voxels.
    neighbourhood : Neighbourhood
        Theirs.
    mask : Tensor, shape (V,), bool
        Where there are data.
    """
    features = torch.cat([front.mean, neighbourhood.estimates(), front.spread()])
    return (features * mask).reshape(-1, *neighbourhood.near.shape[1:])
