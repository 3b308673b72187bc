"""The network: from what each voxel's data say to a local prior, by what the neighbours' data say.

A residual U-Net without normalisation, whose statistics would differ between crops and whole volumes. Voxel size, noise
level and the noise's correlation scale and shift its channels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffusionFMLib.fitting.cholesky import diagonal_entries, packed_pairs
from DiffusionFMLib.prior.information import LOOK_LEVELS, Information
from DiffusionFMLib.prior.neighbourhood import WEIGHTS, Lattice, Neighbourhood, Surroundings
from DiffusionFMLib.prior.systems import gram, multiply

CONDITIONS: Final = 8
"""Numbers that describe a scan: log voxel edges over 2 mm, noise correlation along each axis, log noise level; and how
clear a look at the answer there is."""

TYPICAL_LOG_SIGMA: Final = -2.7

START_LOG_PRECISION: Final = 3.5
"""Logarithm of the precision that training starts from: a prior sd of 0.17 in whitened coordinates."""

LINEAR_GAIN: Final = 3.0
"""Filters of the linear path reach weights near 1; this lets them do so at the other weights' learning rate."""

STIFFNESS: Final = 1e-3
"""Added to the precision's diagonal, relative to it, which keeps systems solvable in single precision."""

LOG_PRECISION_RANGE: Final = (-4.0, 10.0)


@dataclass(frozen=True)
class NetworkShape:
    """Size of a network.

    Parameters
    ----------
    unknowns : int
        P of the model.
    channels : int
        At full resolution; twice as many at each level below. Multiples of 16 are fast.
    levels : int
        Resolutions below the full one.
    blocks : int
        Residual blocks at each place of the U.
    """

    unknowns: int = 7
    channels: int = 16
    levels: int = 2
    blocks: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @property
    def multiple(self) -> int:
        """Volumes have edges of a multiple of this."""
        return 2**self.levels


@dataclass(frozen=True, eq=False)
class LocalPrior:
    """What the neighbourhood says about coordinates u: a Gaussian per voxel.

    Parameters
    ----------
    mean : Tensor, shape (P, V)
    precision : Tensor, shape (P (P + 1) / 2, V)
        Packed.
    """

    mean: Tensor
    precision: Tensor

    def information(self) -> Information:
        """The same as a factor to be multiplied with others."""
        return Information(self.precision, multiply(self.precision, self.mean))


class PriorNetwork(nn.Module):
    """Local prior mean and precision of every voxel of a volume.

    Parameters
    ----------
    shape : NetworkShape
    """

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        p = shape.unknowns
        self.packed = p * (p + 1) // 2
        widths = [shape.channels * 2**level for level in range(shape.levels + 1)]
        # the mask tells voxels without data from typical ones
        self.stem = nn.Conv3d(3 * p + self.packed + 1, widths[0], 1)
        self.linear = nn.Conv3d(3 * p, p, 3, padding=1)
        self.condition = nn.Sequential(nn.Linear(CONDITIONS, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU())
        self.down = nn.ModuleList(_Stage(w, shape.blocks) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(_Stage(w, shape.blocks) for w in widths[:-1])
        self.widen = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.head = nn.Conv3d(widths[0], p + self.packed + WEIGHTS, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self._diagonal = diagonal_entries(p)
        self._rows = [row for row, _ in packed_pairs(p)]

    def forward(self, features: Tensor, mask: Tensor, conditions: Tensor) -> Tensor:
        """Raw output, shape (B, P + P (P + 1) / 2 + 56, X, Y, Z), for `local_prior`.

        Parameters
        ----------
        features : Tensor, shape (B, 3 P + P (P + 1) / 2, X, Y, Z)
            See `neighbourhood.network_input`; zero where there are no data.
        mask : Tensor, shape (B, 1, X, Y, Z)
            1 where there are data.
        conditions : Tensor, shape (B, `CONDITIONS`)
        """
        # as if the mask were one more feature, without a copy of them all
        weight, bias = self.stem.weight, self.stem.bias
        h = functional.conv3d(features, weight[:, :-1], bias) + functional.conv3d(mask, weight[:, -1:])
        raw = self.head(functional.silu(self._trunk(h, conditions)))
        p = self.shape.unknowns
        change = LINEAR_GAIN * self.linear(features[:, : 3 * p]) + raw[:, :p]
        return torch.cat([change, raw[:, p:]], 1)

    def _trunk(self, h: Tensor, conditions: Tensor) -> Tensor:
        """All that is between stem and head, shape (B, C, X, Y, Z)."""
        told, kept = self.condition(conditions), []
        for level, stage in enumerate(self.down):
            h = stage(h, told)
            if level < self.shape.levels:
                kept.append(h)
                h = self.narrow[level](functional.avg_pool3d(h, 2))
        for level in reversed(range(self.shape.levels)):
            h = functional.interpolate(self.widen[level](h), scale_factor=2.0, mode="trilinear", align_corners=False)
            h = self.up[level](h + kept[level], told)
        return h

    def hidden(self, estimates: Tensor, spread: Tensor, lattice: Lattice, conditions: Tensor) -> Tensor:
        """Of V voxels of one volume what the head makes raw output of, shape (C, V).

        With `raw` it is the same as `forward`, for which only the narrow volumes between stem and head are made.

        Parameters
        ----------
        estimates : Tensor, shape (3 P, V)
            The first of the features of these voxels.
        spread : Tensor, shape (P (P + 1) / 2, V)
            The others.
        lattice : Lattice
            Where they lie; the box has edges of `NetworkShape.multiple`.
        conditions : Tensor, shape (1, `CONDITIONS`)
        """
        weight, bias = self.stem.weight.flatten(1), self.stem.bias
        of_estimates, of_spread, of_mask = weight.split([len(estimates), len(spread), 1], 1)
        # channels last, as convolutions are fastest
        h = bias.repeat(len(lattice.number), 1)  # type: ignore[union-attr]
        h[lattice.place] += (of_estimates @ estimates + of_spread @ spread + of_mask).T
        h = self._trunk(h.reshape(1, *lattice.shape, -1).permute(0, 4, 1, 2, 3), conditions)
        return functional.silu(h.permute(0, 2, 3, 4, 1).reshape(len(lattice.number), -1)[lattice.place].T)

    def raw(self, hidden: Tensor, estimates: Tensor, lattice: Lattice, voxels: slice) -> Tensor:
        """Raw output of some of the V voxels, shape (P + P (P + 1) / 2 + 56, V'); see `hidden` and `forward`."""
        p = self.shape.unknowns
        raw = torch.addmm(self.head.bias[:, None], self.head.weight.flatten(1), hidden[:, voxels])  # type: ignore[index]
        raw[:p] += LINEAR_GAIN * self.linear.bias[:, None]  # type: ignore[index]
        filters = self.linear.weight.flatten(2).unbind(2)
        for (beside, there), weight in zip(lattice.beside(voxels), filters, strict=True):
            raw[:p].addmm_(weight, estimates[:, beside] * there, alpha=LINEAR_GAIN)
        return raw

    def mean(self, raw: Tensor, neighbourhood: Neighbourhood, at: Tensor | None = None) -> Tensor:
        """Mean of the prior, shape (P, V), from raw output of one volume, shape (C, X, Y, Z).

        What the neighbours say together is a good start, which the network only has to mend. `at`, shape (V,), are the
        voxels that are asked for, as in `Neighbourhood.estimates`.
        """
        p = self.shape.unknowns
        return neighbourhood.weighed(raw[p + self.packed :], at) + _some(raw[:p], at)

    def mean_of(self, raw: Tensor, surroundings: Surroundings, voxels: slice) -> Tensor:
        """The same, shape (P, V'), of some voxels' raw output, shape (C, V')."""
        p = self.shape.unknowns
        return surroundings.weighed(raw[p + self.packed :], voxels) + raw[:p]

    def triangle(self, raw: Tensor, at: Tensor | None = None) -> Tensor:
        """The part of raw output, shape (C, ...), that the prior's precision is in: shape (P (P + 1) / 2, V)."""
        p = self.shape.unknowns
        return _some(raw[p : p + self.packed], at)

    def local_prior(self, mean: Tensor, triangle: Tensor) -> LocalPrior:
        """The prior of a mean, shape (P, V), and the raw output, shape (P (P + 1) / 2, V), that its precision is in.

        The precision is D L L' D with a unit triangular L, so that it is positive definite whatever the output.
        """
        log_precision = (triangle[self._diagonal] + START_LOG_PRECISION).clamp(*LOG_PRECISION_RANGE)
        scale = (0.5 * log_precision).exp()
        on_diagonal = triangle.new_zeros(self.packed, 1, dtype=torch.bool)
        on_diagonal[self._diagonal] = True
        rows = torch.tensor(self._rows, device=triangle.device)
        # selecting by index is differentiated row by row, where a list would be scattered
        precision = gram(torch.where(on_diagonal, 1.0, triangle) * scale.index_select(0, rows))
        # where the triangle is nearly singular, rounding would make the solution anything
        stiffer = torch.ones_like(precision[:, :1])
        stiffer[self._diagonal] += STIFFNESS
        return LocalPrior(mean, precision * stiffer)


def _some(volume: Tensor, at: Tensor | None) -> Tensor:
    """Voxels of a volume, shape (C, X, Y, Z), in rows."""
    rows = volume.reshape(len(volume), -1)
    return rows if at is None else rows[:, at]


class _Block(nn.Module):
    """Two convolutions beside a shortcut; conditions scale and shift what lies between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, 3, padding=1)
        self.second = nn.Conv3d(width, width, 3, padding=1)
        self.modulate = nn.Linear(32, 2 * width)
        for conv in (self.first, self.second):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.second.weight *= 0.3
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.modulate(told)[:, :, None, None, None].chunk(2, 1)
        return h + self.second(functional.silu(self.first(h) * (1 + scale) + shift))


class _Stage(nn.Module):
    """Blocks of one width, one after another."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width) for _ in range(count))

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, told)
        return h


def conditions(voxel_sizes: Tensor, correlation: Tensor, sigma: Tensor, look: Tensor) -> Tensor:
    """What the network is told of a scan, each of order 1.

    Parameters
    ----------
    voxel_sizes : Tensor, shape (B, 3), mm
    correlation : Tensor, shape (B, 3)
        Of the noise of neighbours along each axis.
    sigma : Tensor, shape (B,)
        Noise level, where typical tissue has S0 = 1.
    look : Tensor, shape (B,)
        Noise level of a look at the answer; infinite where there is none.
    """
    level = sigma.log() - TYPICAL_LOG_SIGMA
    # none is as good as one with the most noise
    clear = 0.5 * (LOOK_LEVELS[1] / look).log().clamp_min(0)
    return torch.cat([2 * (voxel_sizes / 2).log(), 4 * correlation, level[:, None], clear[:, None]], 1)
