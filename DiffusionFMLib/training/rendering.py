"""Signals of an anatomy at any protocol, in torch, with tissue properties drawn anew each time.

The same compartments as `simulation.tissue`: sticks that fan out, hindered water beside them, grey matter, fluid; and a
lesion. It is richer than any model that is fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from DiffusionFMLib.training.anatomies import DIRECTIONS

STICKS: Final = 5
"""Sticks of a fibre population, evenly around its direction."""

LESION_PROBABILITY: Final = 0.35
MAX_LESIONS: Final = 3
"""Per crop that has any."""

GRAIN: Final = 0.05
GRAIN_FREEDOM: Final = 3.0
GRAIN_LIMIT: Final = 6.0
"""Vessels, iron and partial volume vary S0 from voxel to voxel: largest scale of ln S0, freedom of its Student's t
distribution, and where that is cut off. A real scan's ln S0 scatters by 0.10 about the mean of six neighbours, of half
its voxels by less than 0.035."""

FREE_WATER: Final = (0.1, 0.2)
"""Most, on average over a crop, of the signal of white and of grey matter without diffusion weighting that is from free
water: around vessels, and in folds too thin for the anatomy."""

MIN_FIBRES: Final = 0.02
"""A thinner population is not rendered."""


@dataclass(frozen=True)
class TissueProperties:
    """What tissue is like in one head; diffusivities in um2/ms, S0 relative to white matter.

    Parameters
    ----------
    inside_axons, inside_neurites : float
        Share of the signal from inside axons in white matter, and neurites in grey.
    along, beside_along, beside_across : float
        Diffusivity inside axons, and of the water between them along and across.
    grey, fluid : float
        Diffusivity of the rest of grey matter, and of fluid.
    grey_s0, fluid_s0 : float
    """

    inside_axons: float
    inside_neurites: float
    along: float
    beside_along: float
    beside_across: float
    grey: float
    fluid: float
    grey_s0: float
    fluid_s0: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> TissueProperties:
        """Those of a random head."""
        across = rng.uniform(0.35, 0.95)
        return cls(
            inside_axons=rng.uniform(0.4, 0.8),
            inside_neurites=rng.uniform(0.15, 0.6),
            along=rng.uniform(1.5, 2.6),
            beside_along=across + rng.uniform(0.2, 1.0),
            beside_across=across,
            grey=rng.uniform(0.75, 1.25),
            fluid=rng.uniform(2.8, 3.1),
            grey_s0=rng.uniform(1.0, 1.5),
            fluid_s0=rng.uniform(1.5, 4.0),
        )


@dataclass(frozen=True, eq=False)
class Replacement:
    """What took the place of tissue in a lesion: infarct or dense cells, to oedema.

    Parameters
    ----------
    fraction : Tensor, shape (V,)
        Of the tissue.
    diffusivity : float, um2/ms
    s0 : float
        Relative to white matter.
    """

    fraction: Tensor
    diffusivity: float
    s0: float

    @classmethod
    def draw(cls, fields: Tensor, voxel_sizes: NDArray[np.float64], rng: np.random.Generator) -> Replacement:
        """A random one in a crop, shape (13, X, Y, Z)."""
        fraction = draw_lesion(tuple(fields.shape[1:]), voxel_sizes, rng).to(fields)
        return cls(fraction.reshape(-1), rng.uniform(0.35, 2.6), rng.uniform(0.9, 2.5))


@dataclass(frozen=True, eq=False)
class Contents:
    """What is in each voxel of a crop, ready to be rendered; V voxels.

    Parameters
    ----------
    properties : TissueProperties
    fields : Tensor, shape (13, V)
        See `anatomies.FIELDS`.
    packing : Tensor, shape (V,)
        Factor of the share inside axons and neurites.
    density : Tensor, shape (V,)
        Signal without diffusion weighting of a voxel full of white matter: the coil's profile, and grain.
    lesions : list of Replacement
        One after another: each replaces what is left of the tissue.
    """

    properties: TissueProperties
    fields: Tensor
    packing: Tensor
    density: Tensor
    lesions: list[Replacement]

    def signal(self, bvals: NDArray[np.float64], bvecs: NDArray[np.float64]) -> Tensor:
        """Noise-free signal, shape (N, V).

        Parameters
        ----------
        bvals : array, shape (N,), ms/um2
        bvecs : array, shape (N, 3), unit vectors in voxel axes
        """
        p, fields = self.properties, self.fields
        b = fields.new_tensor(bvals)[:, None]
        g = fields.new_tensor(bvecs)
        share = (p.inside_neurites * self.packing).clamp(0.05, 0.9)
        root = (b * p.along).sqrt().clamp_min(1e-3)
        neurites = math.sqrt(math.pi) / 2 * torch.erf(root) / root
        tissue, solid = torch.ones_like(fields[0]), fields[0] + fields[1] + fields[2]
        signal = (fields[3] * p.fluid_s0) * (-b * p.fluid).exp()
        for lesion in self.lesions:
            signal += (solid * tissue * lesion.fraction * lesion.s0) * (-b * lesion.diffusivity).exp()
            tissue = tissue * (1 - lesion.fraction)
        signal += (fields[2] * tissue * p.grey_s0) * (share * neurites + (1 - share) * (-b * p.grey).exp())
        for k in range(2):
            here = (fields[k] > MIN_FIBRES).nonzero()[:, 0]
            weight = (fields[k] * tissue)[here]
            share = (p.inside_axons * self.packing[here]).clamp(0.05, 0.9)
            bundle = _fibres(fields[DIRECTIONS[k]][:, here], fields[10 + k][here], share, p, b, g)
            signal.index_add_(1, here, bundle.mul_(weight))
        return signal * self.density


def _fibres(axis: Tensor, spread: Tensor, share: Tensor, p: TissueProperties, b: Tensor, g: Tensor) -> Tensor:
    """Signal of a fibre population, shape (N, V), of directions (3, V) and spreads (V,)."""
    x, y, z = axis
    sign = torch.copysign(torch.ones_like(z), z)
    a = -1 / (sign + z)
    across = torch.stack([1 + sign * x * x * a, sign * x * y * a, -sign * x])
    beside = torch.stack([x * y * a, sign + y * y * a, -y])
    root = (b * p.along).sqrt()
    radial, axial = spread.sqrt(), (1 - spread).sqrt()
    along = g @ axis
    main, u, v = (root * g) @ (axial * axis), (root * g) @ (radial * across), (root * g) @ (radial * beside)
    inside = torch.zeros_like(main)
    for angle in np.arange(STICKS) * (2 * np.pi / STICKS):
        cosine = torch.add(main, u, alpha=math.cos(angle)).add_(v, alpha=math.sin(angle))
        inside += cosine.square_().neg_().exp_()
    anisotropy = (p.beside_along - p.beside_across) * (1 - 1.5 * spread)
    mean = (p.beside_along + 2 * p.beside_across) / 3
    outside = along.square_().sub_(1 / 3).mul_(anisotropy).add_(mean).mul_(-b).exp_()
    return inside.mul_(share / STICKS).add_(outside.mul_(1 - share))


def draw_contents(fields: Tensor, voxel_sizes: NDArray[np.float64], rng: np.random.Generator) -> Contents:
    """Tissue properties, coil profile and perhaps lesions for a crop, shape (13, X, Y, Z)."""
    shape: tuple[int, int, int] = tuple(fields.shape[1:])  # type: ignore[assignment]
    count = int(rng.integers(1, MAX_LESIONS + 1)) if rng.random() < LESION_PROBABILITY else 0
    lesions = [Replacement.draw(fields, voxel_sizes, rng) for _ in range(count)]
    fine, coarse, coil = fields[12], coarse_field(shape, 4, rng).to(fields), coarse_field(shape, 3, rng).to(fields)
    packing = (1 + 1.5 * rng.uniform(0.3, 1.5) * fine + 0.1 * coarse).clamp(0.5, 1.5)
    grain = torch.as_tensor(rng.standard_t(GRAIN_FREEDOM, tuple(shape)), dtype=fields.dtype).to(fields)
    grain = rng.uniform(0, GRAIN) * grain.clamp(-GRAIN_LIMIT, GRAIN_LIMIT)
    density = (0.1 * coil + grain + rng.normal(0, 0.1)).exp()
    properties = TissueProperties.draw(rng)
    return Contents(
        properties,
        _with_free_water(fields, properties, rng).reshape(len(fields), -1),
        packing.reshape(-1),
        density.reshape(-1),
        lesions,
    )


def _with_free_water(fields: Tensor, properties: TissueProperties, rng: np.random.Generator) -> Tensor:
    """A crop, shape (13, X, Y, Z), with some of its tissue replaced by fluid."""
    white, grey = rng.uniform(0, FREE_WATER) / properties.fluid_s0
    most = fields.new_tensor([white, white, grey])[:, None, None, None]
    lost = most * (1 + 0.4 * coarse_field(fields.shape[1:], 4, rng).to(fields)).clamp_min(0)
    result = fields.clone()
    result[:3] *= 1 - lost
    result[3] += (lost * fields[:3]).sum(0)
    return result


def draw_lesion(shape: tuple[int, ...], voxel_sizes: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
    """Fraction of the tissue that an irregular lesion of 3 to 30 mm replaced, shape (X, Y, Z)."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) * voxel_sizes
    centre = rng.uniform(0.1, 0.9, 3) * np.array(shape) * voxel_sizes
    radii = np.exp(rng.uniform(np.log(1.5), np.log(15))) * rng.uniform(0.7, 1.4, 3)
    distance = np.linalg.norm((grid - centre) / radii, axis=-1)
    for wavelength in (1.5, 0.8):
        wave = rng.normal(size=3) / radii
        distance += 0.15 * wavelength * np.sin(grid @ wave * 2 * np.pi / (2 * wavelength) + rng.uniform(0, 6.28))
    depth = np.clip((1 - distance) / rng.uniform(0.05, 0.5), 0, 1)
    return torch.as_tensor(depth * rng.uniform(0.25, 1.0), dtype=torch.float32)


def coarse_field(shape: torch.Size | tuple[int, ...], points: int, rng: np.random.Generator) -> Tensor:
    """Smooth random field of zero mean and about unit variance, shape (X, Y, Z)."""
    knots = torch.as_tensor(rng.normal(size=(1, 1, points, points, points)), dtype=torch.float32)
    return functional.interpolate(knots, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0] * 1.4
