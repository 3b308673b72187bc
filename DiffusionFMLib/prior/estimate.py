"""The prior applied to a whole scan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import GradientTable, image_rotation
from DiffusionFMLib.physics import DKI
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.coordinates import WhitenedDesign, turning
from DiffusionFMLib.prior.disagreement import distance
from DiffusionFMLib.prior.information import SAYS_NOTHING, FrontEnd, Information, Look, Measurements, front_end
from DiffusionFMLib.prior.kurtosis import told_by_neighbours
from DiffusionFMLib.prior.neighbourhood import B0_ROWS, Lattice, Neighbourhood, Surroundings, rows_of
from DiffusionFMLib.prior.network import PriorNetwork, conditions
from DiffusionFMLib.prior.posterior import Posterior, posterior
from DiffusionFMLib.prior.systems import unpack
from DiffusionFMLib.prior.twicing import FIRMNESS, twiced
from DiffusionFMLib.prior.weights import TrainedPrior

CHUNK: Final = 1 << 15
"""Voxels that systems are solved for at once."""

TYPICAL_S0: Final = 1.1
"""Median S0 of a brain where that of white matter is 1."""

MARGIN: Final = 8
"""Voxels around the brain's box that the network sees."""

NETWORK_CHUNK: Final = 1 << 13
"""Voxels that neighbours are joined for at once: so few that memory is used again and not asked for anew."""


@dataclass(frozen=True, eq=False)
class PriorEstimate:
    """Posterior of a scan's V masked voxels, in C order of the mask.

    Parameters
    ----------
    theta : array, shape (P, V), float32
        Posterior mean of the model's parameters, twiced, and for kurtosis drawn to the neighbours' mean; in scanner
        RAS and physics' units, ln S0 in the scan's.
    ridge : array, shape (P, V), float32
        The same without neighbours: what the network starts from.
    covariance : array, shape (P, P, V), float32
        Of the whitened coordinates, which are in voxel axes: before twicing, but with the neighbours' mean kurtosis.
    data_fraction : array, shape (V,), float32
        How much of an estimate came from the voxel's own measurements; see `Posterior.data_fraction`. This and the
        next are of the posterior before twicing, and before the neighbours' mean kurtosis is known.
    distance : array, shape (V,), float32
        Of the N measurements from the prior; see `disagreement.distance`.
    slope : array, shape (P, P), float64
        Derivatives of theta by the whitened coordinates.
    """

    theta: NDArray[np.float32]
    ridge: NDArray[np.float32]
    covariance: NDArray[np.float32]
    data_fraction: NDArray[np.float32]
    distance: NDArray[np.float32]
    slope: NDArray[np.float64]


class ScanPosterior:
    """The posterior of a scan's V masked voxels, given the data and perhaps a noisy look at the answer.

    Parameters
    ----------
    acquisition : Acquisition
    mask : array, shape (X, Y, Z), bool
    noise : NoiseEstimate
        Of this scan, or of one of the same session that has more volumes.
    trained : TrainedPrior
        On that device.
    device : torch.device, optional

    Raises
    ------
    ProtocolError
        If the scan has no b0.
    InputError
        If most of its b0 signal is not above zero.
    """

    def __init__(
        self,
        acquisition: Acquisition,
        mask: NDArray[np.bool_],
        noise: NoiseEstimate,
        trained: TrainedPrior,
        device: torch.device | None = None,
    ) -> None:
        if not acquisition.gtab.b0_mask.any():
            msg = f"{acquisition.name} has no b0 volume, which the prior needs."
            raise ProtocolError(msg, "Choose another method, or a scan with a b0.")
        self.device = device or torch.device("cpu")
        self.mask, self.trained = mask, trained
        self._axes = image_rotation(acquisition.affine)
        gtab = acquisition.gtab.rotated(self._axes.T)
        self.weighted = np.flatnonzero(~gtab.b0_mask)
        self.design = WhitenedDesign.of(trained.model, gtab, trained.coordinates, self.device)
        self._signal = acquisition.signal[mask]
        self._to_ras = turning(trained.model, self._axes)
        self._scale = scale_of(self._signal, gtab)
        if not self._scale > 0:
            msg = f"The signal without weighting of {acquisition.name} is not above zero in most of the brain mask."
            raise InputError(msg, "Look at the b0 volumes, and draw a mask where they have signal.")
        self._sigma = np.maximum(noise.sigma_map[mask], 0.1 * noise.sigma) / self._scale
        self.voxel_sizes = acquisition.voxel_sizes
        self.noise_correlation = noise.correlation
        self._described = (self.voxel_sizes, noise.correlation, noise.sigma / self._scale)

    def __len__(self) -> int:
        return len(self._signal)

    def told_nothing(self, mask: NDArray[np.bool_]) -> ScanPosterior:
        """The posterior without the data, on another grid of the same space.

        Parameters
        ----------
        mask : array, shape (X', Y', Z'), bool
            On that grid, whose outermost voxels have the centres of this one's.
        """
        spans = (np.array(self.mask.shape) - 1) * self.voxel_sizes / np.maximum(np.array(mask.shape) - 1, 1)
        sizes = np.where(np.array(mask.shape) > 1, spans, self.voxel_sizes)
        nothing = copy(self)
        nothing.mask, nothing.voxel_sizes = mask, sizes
        nothing._signal = np.full((int(mask.sum()), self.volumes), TYPICAL_S0 * self._scale, np.float32)
        nothing._sigma = np.full(len(nothing), SAYS_NOTHING, np.float32)
        nothing._described = (sizes, *self._described[1:])
        return nothing

    def told(self, look: float = math.inf) -> Tensor:
        """What the network is told of the scan, and of the noise of a look at the answer; see `conditions`."""
        edges, correlation, sigma, level = (
            torch.tensor(part, dtype=torch.float32, device=self.device)[None] for part in (*self._described, look)
        )
        return conditions(edges, correlation, sigma, level)

    def chunks(self) -> list[slice]:
        """Voxels that systems are solved for at once."""
        return [slice(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK)]

    def given(self, look: Look | None, report: Report) -> Iterator[tuple[slice, FrontEnd, Posterior]]:
        """Posterior of one part of the voxels after another, with what the network was shown of them.

        Parameters
        ----------
        look : Look or None
            At all V voxels.
        report : Report
        """
        seen = torch.empty(rows_seen(len(self.trained.coordinates)), len(self), device=self.device)
        for chunk in self.chunks():
            report.check()
            part = None if look is None else look.part(chunk)
            front, data = front_end(self.measured(chunk), part)
            seen[:, chunk] = seen_of(front, data if part is None else data + part)
        mean, triangle = self._learned(seen, self.told() if look is None else self.told(look.level), report)
        for chunk in self.chunks():
            report.check()
            measurements, part = self.measured(chunk), None if look is None else look.part(chunk)
            front, data = front_end(measurements, part)
            with torch.no_grad():
                prior = self.trained.network.local_prior(mean[:, chunk], triangle[:, chunk]).information()
                yield chunk, front, posterior(prior if part is None else prior + part, [measurements], [data])

    def _learned(self, seen: Tensor, told: Tensor, report: Report) -> tuple[Tensor, Tensor]:
        """The prior's mean, shape (P, V), and the precision's raw form, from what is seen of the voxels."""
        network, p = self.trained.network, len(self.trained.coordinates)
        first, spread, own = seen.split([p, network.packed, network.packed + p + B0_ROWS])
        lattice = Lattice.within(self.mask, MARGIN, network.shape.multiple, self.device)
        surroundings, estimates = Surroundings.of(own, lattice)
        estimates = torch.cat([first, estimates])
        mean, triangle = torch.empty_like(first), torch.empty_like(spread)
        with torch.no_grad():
            hidden = network.hidden(estimates, spread, lattice, told)
            for start in range(0, len(self), NETWORK_CHUNK):
                report.check()
                voxels = slice(start, start + NETWORK_CHUNK)
                raw = network.raw(hidden, estimates, lattice, voxels)
                if self.trained.adjustment is not None:
                    raw = self.trained.adjustment(raw[..., None, None])[..., 0, 0]
                mean[:, voxels] = network.mean_of(raw, surroundings, voxels)
                triangle[:, voxels] = network.triangle(raw)
        return mean, triangle

    def in_ras(self, u: Tensor) -> NDArray[np.float32]:
        """Parameters theta of coordinates u, shape (P, V), in scanner RAS, S0 in the scan's unit."""
        theta = self._to_ras @ self.trained.coordinates.theta(u.double()).cpu().numpy()
        theta[-1] += np.log(self._scale)
        return theta.astype(np.float32)

    def slope(self) -> NDArray[np.float64]:
        """Derivatives of theta, in scanner RAS, by the whitened coordinates, shape (P, P)."""
        return self._to_ras @ self.trained.coordinates.basis

    @property
    def volumes(self) -> int:
        """N of the protocol."""
        return self._signal.shape[1]

    def signal(self, voxels: slice | Tensor) -> Tensor:
        """Signal of some of the voxels, shape (N, V), where typical tissue has S0 = 1."""
        rows = self._signal[voxels if isinstance(voxels, slice) else voxels.cpu().numpy()]
        return torch.from_numpy(np.ascontiguousarray(rows.T / self._scale)).to(self.device)

    def sigma(self, voxels: slice | Tensor) -> Tensor:
        """Noise level of some of the voxels, in the same unit, shape (V,)."""
        chosen = self._sigma[voxels if isinstance(voxels, slice) else voxels.cpu().numpy()]
        return torch.from_numpy(np.ascontiguousarray(chosen, np.float32)).to(self.device)

    def measured(self, voxels: slice | Tensor) -> Measurements:
        """Measurements of some of the voxels."""
        return Measurements(self.signal(voxels), self.design, self.sigma(voxels))


def estimate(scan: ScanPosterior, report: Report) -> PriorEstimate:
    """Posterior of every voxel of a scan's mask, its mean twiced."""
    size = len(scan.trained.coordinates)
    mean, vector = (torch.empty(size, len(scan), device=scan.device) for _ in range(2))
    precision = torch.empty(scan.trained.network.packed, len(scan), device=scan.device)
    ridge = np.empty((size, len(scan)), np.float32)
    covariance = np.empty((size, size, len(scan)), np.float32)
    data_fraction, far = (np.empty(len(scan), np.float32) for _ in range(2))
    for chunk, front, result in scan.given(None, report):
        report.progress(chunk.stop, len(scan), "Prior")
        measurements = scan.measured(chunk)
        known = measurements.around(result.mean)
        mean[:, chunk], precision[:, chunk], vector[:, chunk] = result.mean, known.precision, known.vector
        ridge[:, chunk] = scan.in_ras(front.mean)
        covariance[..., chunk] = unpack(result.covariance()).cpu().numpy()
        data_fraction[chunk] = result.data_fraction().cpu().numpy()
        far[chunk] = distance(result, measurements).cpu().numpy()
    report.check()
    model, orders = scan.trained.model, scan.trained.coordinates.orders
    firmness = np.repeat(FIRMNESS[model.name], orders)
    mean = twiced(mean, Information(precision, vector), firmness, scan.mask, scan.noise_correlation).cpu()
    if isinstance(model, DKI):
        mean = told_by_neighbours(mean, torch.from_numpy(covariance), torch.from_numpy(scan.mask))
    return PriorEstimate(scan.in_ras(mean), ridge, covariance, data_fraction, far, scan.slope())


def scale_of(signal: NDArray[np.floating], gtab: GradientTable) -> float:
    """Unit of a brain's signal, shape (V, N), in which typical tissue has S0 = 1."""
    return float(np.median(signal[:, gtab.b0_mask].mean(axis=1))) / TYPICAL_S0


def rows_seen(size: int) -> int:
    """Rows of `seen_of` for a model of so many unknowns."""
    return 2 * size + size * (size + 1) + B0_ROWS


def seen_of(front: FrontEnd, known: Information) -> Tensor:
    """What the network sees of V voxels: first estimate, its spread, and the information of all that is known."""
    return torch.cat([front.mean, front.spread(), rows_of(known, front.b0)])


@dataclass(frozen=True, eq=False)
class BoxView:
    """What the network is shown of a box of voxels, and what the neighbours know there.

    Parameters
    ----------
    features : Tensor, shape (1, C, X, Y, Z)
        See `neighbourhood.network_input`.
    brain : Tensor, shape (1, 1, X, Y, Z)
        1 where there are data.
    neighbourhood : Neighbourhood
    """

    features: Tensor
    brain: Tensor
    neighbourhood: Neighbourhood

    @classmethod
    def of(cls, seen: Tensor, place: Tensor, shape: tuple[int, int, int], unknowns: int) -> BoxView:
        """From what is seen of the voxels in it that have data.

        Parameters
        ----------
        seen : Tensor, shape (C, V)
            See `seen_of`.
        place : Tensor, shape (V,)
            Where they lie, in C order.
        shape : tuple of int
            Edges of the box, multiples of `NetworkShape.multiple`.
        unknowns : int
            P of the model.
        """
        voxels, shown_alone = shape[0] * shape[1] * shape[2], unknowns + unknowns * (unknowns + 1) // 2
        own = seen[shown_alone:]
        volume = seen.new_zeros(len(own), voxels)
        volume[:, place] = own
        neighbourhood = Neighbourhood.within(volume.reshape(-1, *shape))
        brain = seen.new_zeros(voxels)
        brain[place] = 1
        with torch.no_grad():
            # channels last, as convolutions are fastest
            features = seen.new_zeros(voxels, 2 * unknowns + shown_alone)
            shown = [seen[:unknowns], neighbourhood.estimates(place), seen[unknowns:shown_alone]]
            features[place] = torch.cat(shown).T
            features = features.reshape(1, *shape, -1).permute(0, 4, 1, 2, 3)
        return cls(features, brain.reshape(1, 1, *shape), neighbourhood)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Edges of the box, voxels."""
        return tuple(self.brain.shape[2:])  # type: ignore[return-value]

    def outlook(self, network: PriorNetwork, told: Tensor) -> Tensor:
        """The network's raw output, shape (C, X, Y, Z), without derivatives; `told` as in `conditions`."""
        with torch.no_grad():
            return network(self.features, self.brain, told)[0].float().contiguous()
