"""Volumes that were left out of a box of a scan judge its posterior: without bias, whatever the noise is in space.

Noise is independent between volumes. What no left-out weighted volume can judge is whether ln S0 or mean diffusivity is
wrong: they can change together without a change of any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.fitting.cholesky import diagonal_entries
from DiffusionFMLib.physics.noise import RicianNoise
from DiffusionFMLib.prior.coordinates import MD_SD, TYPICAL_MD, WhitenedDesign
from DiffusionFMLib.prior.estimate import BoxView, seen_of
from DiffusionFMLib.prior.information import Information, Measurements, front_end
from DiffusionFMLib.prior.neighbourhood import START_WEIGHTS, Neighbourhood
from DiffusionFMLib.prior.network import PriorNetwork
from DiffusionFMLib.prior.posterior import posterior

FREEDOM: Final = 3.0
"""Of Student's t distribution for what is left over: a few volumes that moved are not to decide."""

TISSUE_MD: Final = 1.2
"""Fluid pulsates, so it is not judged by, um2/ms."""

LOG_RANGE: Final = (-8.0, 4.0)


@dataclass(frozen=True, eq=False)
class Box:
    """A cube of a scan with all its volumes.

    Parameters
    ----------
    signal : Tensor, shape (N, V)
        Of the voxels in it that have data, where typical tissue has S0 = 1.
    sigma : Tensor, shape (V,)
        Their noise level.
    place : Tensor, shape (V,)
        Where they lie, in C order.
    edge : int
        Voxels.
    """

    signal: Tensor
    sigma: Tensor
    place: Tensor
    edge: int


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Volumes left out of a box, in the V tissue voxels of its inside.

    Parameters
    ----------
    neighbourhood : Neighbourhood
        Of the box's inside, from the volumes that are given.
    margin : int
        Voxels at each face of the box that are only there as neighbours.
    judged : Tensor, shape (V,)
        Positions within the inside, in C order.
    measurements : Measurements
        Of the volumes given, in these voxels.
    data : Information
        What they say.
    ridge : Tensor, shape (P, V)
        Estimate from them alone.
    design : WhitenedDesign
        Of the volumes left out.
    signal : Tensor, shape (M, V)
        In the volumes left out.
    sigma : Tensor, shape (V,)
    """

    neighbourhood: Neighbourhood
    margin: int
    judged: Tensor
    measurements: Measurements
    data: Information
    ridge: Tensor
    design: WhitenedDesign
    signal: Tensor
    sigma: Tensor

    def inside(self, raw: Tensor) -> Tensor:
        """Inside of raw output for the whole box, shape (C, X, Y, Z)."""
        inner = slice(self.margin, -self.margin or None)
        return raw[:, inner, inner, inner]

    def misfit(self, network: PriorNetwork, raw: Tensor) -> Tensor:
        """How badly the posterior predicts these volumes, shape (): the mean over them and over voxels; see `student`.

        Parameters
        ----------
        network : PriorNetwork
        raw : Tensor, shape (C, X, Y, Z)
            Its output for the inside, perhaps adjusted.
        """
        if not len(self.judged):
            return 0 * raw.sum()
        return student(self.residuals(self.posterior_mean(network, raw))).mean()

    def posterior_mean(self, network: PriorNetwork, raw: Tensor) -> Tensor:
        """Of the voxels judged, shape (P, V); see `misfit`."""
        mean = network.mean(raw, self.neighbourhood, self.judged)
        prior = network.local_prior(mean, network.triangle(raw, self.judged)).information()
        return posterior(prior, [self.measurements], [self.data]).mean

    def residuals(self, u: Tensor) -> Tensor:
        """What coordinates u, shape (P, V), leave of the volumes left out, over the noise: shape (M, V)."""
        predicted = self.design.log_signal(u).clamp(*LOG_RANGE).exp()
        return (self.signal - RicianNoise().mean(predicted, self.sigma[None])) / self.sigma


def student(residuals: Tensor) -> Tensor:
    """Residuals as Student's t distribution counts them: small ones by their squares, large ones by the logarithm."""
    return (residuals.square() / FREEDOM).log1p() * FREEDOM


def leave_out(
    box: Box, design: WhitenedDesign, given: NDArray[np.intp], held: NDArray[np.intp], margin: int,
    known_sigma: Tensor | None = None,
) -> tuple[BoxView, LeftOut]:  # fmt: skip
    """What the network sees of a box without some volumes, and these.

    Parameters
    ----------
    box : Box
    design : WhitenedDesign
        Of all volumes.
    given, held : array of int
        Volumes that the posterior is given, and that it is judged by.
    margin : int
        See `LeftOut`.
    known_sigma : Tensor, shape (V,), optional
        Noise level that the posterior goes by; the box's when not given.
    """
    volumes, left = torch.from_numpy(given), torch.from_numpy(held)
    measurements = Measurements(
        box.signal[volumes], design.part(volumes), box.sigma if known_sigma is None else known_sigma
    )
    front, data = front_end(measurements)
    view = BoxView.of(seen_of(front, data), box.place, (box.edge,) * 3, len(front.mean))

    inner = slice(margin, box.edge - margin)
    neighbourhood = view.neighbourhood.part((inner,) * 3)
    # of the inner voxels those that have data, counted there and among the box's voxels
    number = torch.full((box.edge**3,), -1, device=box.place.device)
    number[box.place] = torch.arange(len(box.place), device=box.place.device)
    number = number.reshape(view.shape)[inner, inner, inner].reshape(-1)
    # by the near neighbours' estimate, which comes after each voxel's own
    md = TYPICAL_MD + MD_SD * view.features[0, len(front.mean)][inner, inner, inner].reshape(-1)
    judged = ((number >= 0) & (md < TISSUE_MD)).nonzero()[:, 0]
    among = number[judged]
    return view, LeftOut(
        neighbourhood, margin, judged, measurements.part(among), data.part(among), front.mean[:, among],
        design.part(left), box.signal[left][:, among], box.sigma[among],
    )  # fmt: skip


def judged_channels(orders: tuple[int, ...]) -> Tensor:
    """Which channels of a network's raw output volumes left out can judge: bool, shape (C,).

    Not means over directions and ln S0, what they have to do with others, and the weights of b0 volumes.

    Parameters
    ----------
    orders : tuple of int
        See `Coordinates.orders`.
    """
    directed = torch.tensor([count > 1 for count in orders for _ in range(count)])
    size = len(directed)
    triangle = torch.zeros(size * (size + 1) // 2, dtype=torch.bool)
    triangle[diagonal_entries(size)] = directed
    weights = torch.ones(len(START_WEIGHTS), dtype=torch.bool)
    return torch.cat([directed, triangle, weights, ~weights])
