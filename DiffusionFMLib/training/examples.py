"""Examples to train on: a crop of an anatomy, scanned at a random protocol, with the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import LogLinearModel
from DiffusionFMLib.preprocessing.noise import neighbours_weight
from DiffusionFMLib.prior.coordinates import Coordinates, WhitenedDesign
from DiffusionFMLib.prior.information import (
    LOOK_LEVELS,
    SAYS_NOTHING,
    Information,
    Look,
    Measurements,
    front_end,
    look_at,
)
from DiffusionFMLib.prior.neighbourhood import Neighbourhood, network_input
from DiffusionFMLib.prior.network import conditions
from DiffusionFMLib.prior.systems import add_diagonal, solve
from DiffusionFMLib.training.anatomies import DIRECTIONS, WEIGHTS, Anatomy
from DiffusionFMLib.training.protocols import FAMILIES, Protocol
from DiffusionFMLib.training.rendering import Contents, draw_contents

DENSE_DIRECTIONS: Final = {"dti": 15, "dki": 30}
"""Directions per shell that the truth is fitted to, by the model's name."""

MIN_WEIGHT: Final = 1e-3
"""Of a noise-free signal in that fit, relative to S0 = 1: fluid's signal is gone at high b."""

MIN_SIGNAL: Final = 1e-6

MIN_BRAIN: Final = 0.4
"""Least share of a crop that is brain."""

SIGMA_ERROR, CORRELATION_ERROR = 0.1, 0.03
"""How far the noise level (relative) and its correlation are known when a scan is fitted."""

UNSTEADINESS: Final = 0.03
"""Pulsation, drift and movement scatter signals by up to this fraction of them."""

UNTOLD_PROBABILITY: Final = 2 / 3
"""Share of the examples with a look whose measurements say nothing: what the prior is to make up by itself."""

UNTOLD_LEVELS: Final = (0.5, LOOK_LEVELS[1])
"""Of these looks: below, they show by themselves what is there."""

ATTEMPTS: Final = 50

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Example:
    """A crop to train on, of whose voxels the V inner ones are judged: these see their neighbours, as in a whole scan.

    Parameters
    ----------
    measurements : Measurements
    data : Information
        What they say, at the ridge estimate.
    look : Look or None
        A noisy look at the truth: these make a denoiser.
    neighbourhood : Neighbourhood
        All that is known, the look included.
    features : Tensor, shape (C, X, Y, Z)
        The network's input, for the whole crop.
    brain : Tensor, shape (1, X, Y, Z)
        1 where there are data.
    margin : int
        Voxels at each face that are not judged.
    ridge : Tensor, shape (P, V)
        Estimate from the voxel's own data.
    truth : Tensor, shape (P, V)
        Noise-free fit at the protocol's own shells, whitened.
    mask : Tensor, shape (V,), bool
    conditions : Tensor, shape (8,)
    dense : WhitenedDesign
        b0 and some directions at the same shells.
    sigma : float
    directions : int
        Weighted volumes of the protocol.
    """

    measurements: Measurements
    data: Information
    look: Look | None
    neighbourhood: Neighbourhood
    features: Tensor
    brain: Tensor
    margin: int
    ridge: Tensor
    truth: Tensor
    mask: Tensor
    conditions: Tensor
    dense: WhitenedDesign
    sigma: float
    directions: int


class ExampleMaker:
    """Draws examples from anatomies; the same seed gives the same examples.

    Parameters
    ----------
    anatomies : list of lists of Anatomy
        Groups that are drawn from equally often.
    model : LogLinearModel
    coordinates : Coordinates
    crop : int
        Edge, voxels.
    margin : int
        Voxels at each face that are only there as neighbours.
    look_probability : float
        Share of examples with a noisy look at the truth.
    device : torch.device
        Where signals are rendered.
    """

    def __init__(
        self,
        anatomies: list[list[Anatomy]],
        model: LogLinearModel,
        coordinates: Coordinates,
        crop: int,
        margin: int,
        look_probability: float,
        device: torch.device,
    ) -> None:
        self.anatomies, self.model, self.coordinates = anatomies, model, coordinates
        self.crop, self.margin, self.look_probability, self.device = crop, margin, look_probability, device

    def draw(self, rng: np.random.Generator) -> Example:
        """A random example."""
        fields, voxel_sizes = draw_crop(self.anatomies, self.crop, rng)
        return self.scan(fields.to(self.device), voxel_sizes, Protocol.draw(FAMILIES[self.model.name], rng), rng)

    def scan(
        self, fields: Tensor, voxel_sizes: NDArray[np.float64], protocol: Protocol, rng: np.random.Generator
    ) -> Example:
        """An example of a crop, shape (13, X, Y, Z), at a protocol."""
        shape: tuple[int, int, int] = tuple(fields.shape[1:])  # type: ignore[assignment]
        contents = draw_contents(fields, voxel_sizes, rng)
        design = self._design(protocol.bvals, protocol.bvecs)
        noisy = measured(contents, shape, protocol, rng).flatten(1)
        dense_bvals, dense_bvecs, counts = protocol.dense(DENSE_DIRECTIONS[self.model.name])
        dense = self._design(dense_bvals, dense_bvecs)
        without_noise = noise_free_signal(contents, shape, protocol, dense_bvals, dense_bvecs).flatten(1)
        truth = noise_free_fit(without_noise, dense, counts)

        known_sigma = fields.new_tensor(protocol.sigma * np.exp(rng.normal(0, SIGMA_ERROR)))
        known_correlation = protocol.correlation + rng.normal(0, CORRELATION_ERROR, 3)
        looked = rng.random() < self.look_probability
        untold = looked and rng.random() < UNTOLD_PROBABILITY
        look = draw_look(truth, UNTOLD_LEVELS if untold else LOOK_LEVELS, rng) if looked else None
        measurements = Measurements(
            noisy, design, torch.full_like(known_sigma, SAYS_NOTHING) if untold else known_sigma
        )
        front, data = front_end(measurements, look)
        told = conditions(
            fields.new_tensor(voxel_sizes[None]),
            fields.new_tensor(known_correlation[None]),
            known_sigma[None],
            fields.new_tensor([math.inf if look is None else look.level]),
        )[0]
        brain = contents.fields[WEIGHTS].sum(0) > 0.5
        neighbourhood = Neighbourhood.of(data if look is None else data + look, front.b0, shape, brain)
        features = network_input(front, neighbourhood, brain)
        nx, ny, nz = (slice(self.margin, n - self.margin) for n in shape)
        box = nx, ny, nz
        inner = torch.arange(brain.numel(), device=self.device).reshape(shape)[box].reshape(-1)
        return Example(
            measurements.part(inner), data.part(inner), None if look is None else look.part(inner),
            neighbourhood.part(box), features, brain.float().reshape(1, *shape), self.margin,
            front.mean[:, inner], truth[:, inner], brain[inner], told, dense, protocol.sigma,
            int((protocol.bvals > 0).sum()),
        )  # fmt: skip

    def _design(self, bvals: NDArray[np.float64], bvecs: NDArray[np.float64]) -> WhitenedDesign:
        return WhitenedDesign.of(self.model, GradientTable(bvals, bvecs), self.coordinates, self.device)


def measured(contents: Contents, shape: tuple[int, int, int], protocol: Protocol, rng: np.random.Generator) -> Tensor:
    """Noisy signal of a crop, shape (N, X, Y, Z)."""
    signal = noise_free_signal(contents, shape, protocol, protocol.bvals, protocol.bvecs)
    unsteady = signal * (1 + rng.uniform(0, UNSTEADINESS) * normal(tuple(signal.shape), signal.device, rng))
    return add_noise(unsteady, protocol, rng)


def noise_free_signal(
    contents: Contents,
    shape: tuple[int, int, int],
    protocol: Protocol,
    bvals: NDArray[np.float64],
    bvecs: NDArray[np.float64],
) -> Tensor:
    """Noise-free signal of a crop in some volumes, shape (N, X, Y, Z), as blurred as the protocol's images are."""
    signal = contents.signal(bvals / 1000, bvecs).reshape(-1, *shape)
    for axis, value in enumerate(protocol.correlation if protocol.interpolated else (), 1):
        if value > 0:
            weight, rest = neighbours_weight(value), signal.shape[axis] - 1
            first, last = signal.narrow(axis, 0, 1), signal.narrow(axis, rest, 1)
            before = torch.cat([first, signal.narrow(axis, 0, rest)], axis)
            behind = torch.cat([signal.narrow(axis, 1, rest), last], axis)
            signal = (signal + weight * (before + behind)) / (1 + 2 * weight)
    return signal


def noise_free_fit(signal: Tensor, design: WhitenedDesign, counts: NDArray[np.float64]) -> Tensor:
    """Weighted fit of noise-free signals, shape (N, V), whitened, shape (P, V); `counts` multiply the weights."""
    weight = (signal.square() + MIN_WEIGHT) * signal.new_tensor(counts)[:, None]
    target = signal.clamp_min(MIN_SIGNAL).log() - design.offset
    # a trace of ridge keeps what a degenerate voxel leaves open finite
    return solve(add_diagonal(design.products @ weight, 1e-6), design.matrix.T @ (weight * target))


def draw_look(truth: Tensor, levels: tuple[float, float], rng: np.random.Generator) -> Look:
    """A noisy look at coordinates, shape (P, V), at a random noise level in a range: what a denoiser is given."""
    level = float(np.exp(rng.uniform(*np.log(levels))))
    return look_at(truth + level * normal(tuple(truth.shape), truth.device, rng), level)


def add_noise(signal: Tensor, protocol: Protocol, rng: np.random.Generator) -> Tensor:
    """Magnitude of signals, shape (N, X, Y, Z), with correlated Gaussian noise in both channels."""
    real, imaginary = (
        protocol.sigma * correlated_noise(tuple(signal.shape), protocol.correlation, signal.device, rng)
        for _ in range(2)
    )
    return torch.hypot(signal + real, imaginary)


def correlated_noise(
    shape: tuple[int, ...], correlation: NDArray[np.float64], device: torch.device, rng: np.random.Generator
) -> Tensor:
    """Standard normal noise, shape (N, X, Y, Z), correlated between neighbours along each axis."""
    noise = normal(shape, device, rng)
    for axis, value in enumerate(correlation):
        if value > 0:
            weight = neighbours_weight(value)
            beside = noise.roll(1, axis + 1) + noise.roll(-1, axis + 1)
            noise = torch.add(noise, beside, alpha=weight).div_((1 + 2 * weight**2) ** 0.5)
    return noise


def normal(shape: tuple[int, ...], device: torch.device, rng: np.random.Generator) -> Tensor:
    """Standard normal numbers, drawn on the device."""
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    return torch.randn(shape, generator=generator, device=device)


def draw_crop(
    anatomies: list[list[Anatomy]], edge: int, rng: np.random.Generator
) -> tuple[Tensor, NDArray[np.float64]]:
    """A random crop, its axes exchanged and mirrored at random, shape (13, edge, edge, edge), and its voxel sizes.

    Parameters
    ----------
    anatomies : list of lists of Anatomy
        Groups that are drawn from equally often.
    edge : int, voxels
    rng : Generator
    """
    group = anatomies[int(rng.integers(len(anatomies)))]
    anatomy = group[int(rng.integers(len(group)))]
    low = draw_box(anatomy.fields[WEIGHTS], (edge,) * 3, rng)
    fields = part_of(anatomy.fields, low, (edge,) * 3).astype(np.float32)
    return turned(fields, anatomy.voxel_sizes, rng.permutation(3), rng.choice([-1, 1], 3))


def draw_box(brain: NDArray[np.generic], edges: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.intp]:
    """First voxel of a random box with brain in it, shape (3,): up to a quarter of an edge lies beyond the volume.

    Parameters
    ----------
    brain : array, shape (C, X, Y, Z)
        Shares of a voxel that are brain.
    edges : tuple of int, voxels
    rng : Generator
    """
    sizes = brain.shape[1:]
    for _ in range(ATTEMPTS):
        spans = zip(sizes, edges, strict=True)
        low = np.array([rng.integers(-(edge // 4), max(n - edge * 3 // 4, 0) + 1) for n, edge in spans], np.intp)
        first, last = np.maximum(low, 0), np.minimum(low + edges, sizes)
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        if (brain[(slice(None), *box)].sum(0) > 0.5).sum() >= MIN_BRAIN * np.prod(edges):
            break
    return low


def part_of(values: NDArray[Scalar], low: NDArray[np.intp], edges: tuple[int, int, int]) -> NDArray[Scalar]:
    """A box of an array, shape (C, X, Y, Z); zero beyond it."""
    sizes = values.shape[1:]
    first, last = np.maximum(low, 0), np.minimum(low + edges, sizes)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    return np.pad(values[(slice(None), *box)], [(0, 0), *zip(first - low, low + edges - last, strict=True)])


def turned(
    fields: NDArray[np.float32], voxel_sizes: NDArray[np.float64], order: NDArray[np.int_], signs: NDArray[np.int_]
) -> tuple[Tensor, NDArray[np.float64]]:
    """An anatomy, shape (13, X, Y, Z), with its axes in another order, some of them mirrored; and its voxel sizes."""
    result = turned_volumes(fields, order, signs)
    for place in DIRECTIONS:
        result[place] = result[place][order] * signs[:, None, None, None]
    return torch.from_numpy(result), voxel_sizes[order]


def turned_volumes(volumes: NDArray[Scalar], order: NDArray[np.int_], signs: NDArray[np.int_]) -> NDArray[Scalar]:
    """Volumes, shape (C, X, Y, Z), with their axes in another order, some of them mirrored; a copy."""
    mirrored = tuple(slice(None, None, int(sign)) for sign in signs)
    return volumes.transpose(0, *(1 + order))[(slice(None), *mirrored)].copy()
