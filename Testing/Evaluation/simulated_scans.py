"""Simulated scans that no training saw, with lesions, and with the truth of every voxel.

The brains are other individuals, of the one template that training's are of too; the phantoms owe nothing to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, LogLinearModel
from DiffusionFMLib.prior.coordinates import WhitenedDesign, coordinates_of
from DiffusionFMLib.simulation import anatomy as template
from DiffusionFMLib.simulation.anatomy import Architecture
from DiffusionFMLib.simulation.scanner import CENTRE, repelled_directions, smooth_texture
from DiffusionFMLib.training.anatomies import FIELDS, WEIGHTS, Anatomy, cached, random_phantom
from DiffusionFMLib.training.examples import DENSE_DIRECTIONS, add_noise, noise_free_fit
from DiffusionFMLib.training.protocols import Protocol
from DiffusionFMLib.training.rendering import Contents, Replacement, draw_contents

TENSOR = DTI()

POOL = Path(__file__).resolve().parents[2] / "build" / "evaluation"
"""Anatomies are kept here; they take seconds each."""

EDGE = 40
VOXEL = 2.0
"""Edges of the heads' boxes, voxels, and of their voxels, mm."""

OFF_CENTRE = ((-25, 25), (-35, 35), (0, 25))
"""Where the box lies in a head, mm from its middle: cortex and ventricles are both in it."""

FOLDING = 0.25
"""Of the heads, with which directions turn about as fast as in real scans; see `anatomy.py`."""

BVAL = 1000.0
TISSUES = ("WM", "GM", "fluid")

FLUID = 0.2
"""Voxels with more fluid than this are ``fluid``, whatever else is in them."""

GAP = 4.0
"""Between two lesions, and between a lesion and what is called healthy, mm."""

ATTEMPTS = 300
MIN_SOLID = 0.8
"""Least share of tissue, fluid aside, where a lesion is centred."""


@dataclass(frozen=True)
class Pathology:
    """What a lesion makes of the tissue in it; diffusivity in um2/ms, S0 relative to white matter.

    Parameters
    ----------
    water : float
        Share of the tissue that water or cells replace, which diffuse alike in all directions.
    diffusivity, s0 : float
        Theirs.
    slowed : float
        Factor of all diffusivities of the tissue that stays.
    packing : float
        Factor of the share inside axons and neurites.
    """

    water: float = 0.0
    diffusivity: float = 1.0
    s0: float = 1.0
    slowed: float = 1.0
    packing: float = 1.0

    def signal(self, healthy: Contents, bvals: NDArray, bvecs: NDArray) -> Tensor:
        """Signal, shape (N, V), of voxels that are all lesion; see `Contents.signal`."""
        ill = replace(
            healthy,
            packing=healthy.packing * self.packing,
            lesions=[Replacement(torch.full_like(healthy.density, self.water), self.diffusivity, self.s0)],
        )
        return ill.signal(bvals * self.slowed, bvecs)


PATHOLOGIES = {
    "oedema": Pathology(water=0.5, diffusivity=2.0, s0=2.3),
    "cellular core": Pathology(water=0.8, diffusivity=0.6, s0=1.3),
    "infarct": Pathology(slowed=0.5),
    "demyelination": Pathology(packing=0.5),
    "cavity": Pathology(water=1.0, diffusivity=3.0, s0=3.0),
}
"""Training has oedema, cores and cavities, as water of .35 to 2.6 um2/ms with soft borders; infarcts that keep their
anisotropy and loosened axons it has not."""


class Lesion(NamedTuple):
    """One ball: what it is, its diameter in mm, and the voxels that are more than half in it, flat."""

    pathology: str
    diameter: float
    voxels: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Head:
    """What is in each of V voxels of a box.

    Parameters
    ----------
    contents : Contents
        Healthy.
    shape : tuple of int
    voxel_sizes : array, shape (3,), mm
    lesions : tuple of Lesion
    ill : dict of str to Tensor, shape (V,)
        By pathology, how much of a voxel is in such a lesion.
    """

    contents: Contents
    shape: tuple[int, int, int]
    voxel_sizes: NDArray
    lesions: tuple[Lesion, ...] = ()
    ill: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, anatomy: Anatomy, seed: int, edge: int = EDGE) -> Head:
        """A healthy head of an anatomy's first voxels, its tissue properties drawn as training draws them."""
        fields = torch.from_numpy(anatomy.fields[:, :edge, :edge, :edge].astype(np.float32))
        nx, ny, nz = fields.shape[1:]
        contents = draw_contents(fields, anatomy.voxel_sizes, np.random.default_rng([seed, 10]))
        contents = replace(contents, lesions=[])
        return cls(contents, (nx, ny, nz), anatomy.voxel_sizes)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where there is more brain than not, shape (X, Y, Z)."""
        return (self.contents.fields[WEIGHTS].sum(0) > 0.5).numpy().reshape(self.shape)

    @property
    def tissue(self) -> NDArray[np.intp]:
        """Index in `TISSUES` of each voxel, shape (V,)."""
        fields = self.contents.fields.numpy()
        return np.where(fields[3] > FLUID, 2, np.where(fields[2] > fields[0] + fields[1], 1, 0))

    @property
    def healthy(self) -> NDArray[np.bool_]:
        """Voxels in the mask far from any lesion, shape (V,)."""
        from scipy.ndimage import distance_transform_edt

        if not self.ill:
            return self.mask.ravel()
        clear = torch.stack(list(self.ill.values())).sum(0) == 0
        far = distance_transform_edt(clear.numpy().reshape(self.shape), sampling=self.voxel_sizes) > GAP
        return (self.mask & far).ravel()

    def signal(self, bvals: NDArray, bvecs: NDArray) -> Tensor:
        """Noise-free signal, shape (N, V), `bvals` in ms/um2 and `bvecs` in voxel axes."""
        signal = self.contents.signal(bvals, bvecs)
        for name, share in self.ill.items():
            here = share.nonzero()[:, 0]
            part = replace(
                self.contents,
                fields=self.contents.fields[:, here],
                packing=self.contents.packing[here],
                density=self.contents.density[here],
            )
            changed = PATHOLOGIES[name].signal(part, bvals, bvecs)
            signal[:, here] += share[here] * (changed - signal[:, here])
        return signal

    def with_lesions(self, wanted: Sequence[tuple[str, float]], seed: int) -> Head:
        """The same head with balls of these pathologies and diameters, mm, where there is room; the largest first."""
        rng = np.random.default_rng([seed, 11])
        grid = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1) * self.voxel_sizes
        fields = self.contents.fields.numpy()
        places = {name: np.flatnonzero(fields[:3].sum(0) > MIN_SOLID) for name in PATHOLOGIES}
        # only white matter can lose its myelin
        places["demyelination"] = np.flatnonzero(fields[:2].sum(0) > MIN_SOLID)
        ill = {name: np.zeros(self.shape, np.float32) for name in PATHOLOGIES}
        room = np.full(self.shape, np.inf)
        lesions = []
        for name, diameter in sorted(wanted, key=lambda lesion: -lesion[1]):
            for _ in range(ATTEMPTS):
                centre = np.unravel_index(rng.choice(places[name]), self.shape) * self.voxel_sizes
                nearest = room[tuple(np.rint(centre / self.voxel_sizes).astype(int))]
                if nearest < diameter / 2 + GAP:
                    continue
                away = np.linalg.norm(grid - centre, axis=-1) - diameter / 2
                # the border is sharp: as wide as a voxel is
                inside = np.clip(0.5 - away / self.voxel_sizes.mean(), 0, 1) * self.mask
                ill[name] = np.maximum(ill[name], inside.astype(np.float32))
                room = np.minimum(room, away)
                lesions.append(Lesion(name, diameter, np.flatnonzero(inside > 0.5)))
                break
        flat = {name: torch.from_numpy(share.ravel()) for name, share in ill.items() if share.any()}
        return replace(self, lesions=tuple(lesions), ill=flat)


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan of V masked voxels, and their truth.

    Parameters
    ----------
    acquisition : Acquisition
    sigma : array, shape (V,)
        True noise.
    theta : array, shape (P, V)
        A model's parameters, of the noise-free signal of many directions at the scan's b-values.
    """

    acquisition: Acquisition
    sigma: NDArray
    theta: NDArray

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.acquisition.mask

    @classmethod
    def of(cls, head: Head, protocol: Protocol, seed: int, model: LogLinearModel = TENSOR) -> Scan:
        """Scan a head; the same seed gives the same noise, whatever is in the head."""
        rng = np.random.default_rng([seed, 12])
        clean = head.signal(protocol.bvals / 1000, protocol.bvecs).reshape(-1, *head.shape)
        signal = add_noise(clean, protocol, rng).permute(1, 2, 3, 0).contiguous().numpy()
        affine = np.diag([*head.voxel_sizes, 1.0])
        mask = head.mask
        gtab = GradientTable(protocol.bvals, protocol.bvecs)
        return cls(
            Acquisition(signal, affine, gtab, mask),
            np.full(int(mask.sum()), protocol.sigma),
            truth(head, protocol, model),
        )


def truth(head: Head, protocol: Protocol, model: LogLinearModel = TENSOR) -> NDArray:
    """Parameters of the noise-free signal of masked voxels, shape (P, V), at a protocol's b-values."""
    bvals, bvecs, counts = protocol.dense(DENSE_DIRECTIONS[model.name])
    coordinates = coordinates_of(model)
    design = WhitenedDesign.of(model, GradientTable(bvals, bvecs), coordinates)
    clean = head.signal(bvals / 1000, bvecs)[:, torch.from_numpy(head.mask.ravel())]
    return coordinates.theta(noise_free_fit(clean, design, counts)).double().numpy()


@lru_cache
def protocol(
    directions: int, snr: float, correlation: tuple[float, float, float] = (0.0, 0.0, 0.0), bval: float = BVAL
) -> Protocol:
    """One b0, and so many directions spread evenly."""
    bvecs = np.vstack([np.zeros((1, 3)), repelled_directions(directions)])
    return Protocol(np.r_[0, np.full(directions, bval)], bvecs, 1 / snr, np.array(correlation))


@lru_cache(maxsize=1)
def _architecture() -> Architecture:
    return Architecture(SilentReport())


def brain(seed: int, turn: NDArray | None = None, folding: float = FOLDING) -> Anatomy:
    """Part of a simulated head, from the pool or new.

    Parameters
    ----------
    seed : int
        1000 and above: training took 0 and the next ones.
    turn : array, shape (3, 3), optional
        Rotation of the grid about the middle of the part.
    folding : float
        See `Warp.draw`.
    """
    # rotations are told apart by their angle in the name
    angle = 0 if turn is None else round(float(np.degrees(np.arccos((np.trace(turn) - 1) / 2))))
    name = f"brain{seed}-{angle}-{round(100 * folding)}"
    return cached(POOL, name, partial(_brain, seed, np.eye(3) if turn is None else turn, folding))


def _brain(seed: int, turn: NDArray, folding: float) -> Anatomy:
    rng = np.random.default_rng([seed, 1])
    centre = np.array([rng.uniform(low, high) for low, high in OFF_CENTRE]) + CENTRE
    shape = (EDGE,) * 3
    grid = np.stack(np.meshgrid(*(np.arange(EDGE) - (EDGE - 1) / 2 for _ in shape), indexing="ij"), axis=-1)
    world = grid * VOXEL @ turn.T + centre
    warp = template.Warp.draw(rng, folding=folding)
    points = warp.points(world)
    tissue = template.tissue(points, VOXEL, SilentReport())
    fibres = warp.fibres(world.reshape(-1, 3), _architecture().fibres(points.reshape(-1, 3)))
    fields = np.empty((len(FIELDS), *shape), np.float16)
    fields[0:2] = tissue.wm * fibres.fractions.T.reshape(2, *shape)
    fields[2], fields[3] = tissue.gm, tissue.csf
    fields[4:10] = (fibres.directions @ turn).reshape(-1, 6).T.reshape(6, *shape)
    fields[10:12] = fibres.dispersion.T.reshape(2, *shape)
    fields[12] = smooth_texture((EDGE, EDGE, EDGE), VOXEL, rng)
    fields[:, ~tissue.brain] = 0
    return Anatomy(fields, np.full(3, VOXEL))


def phantom(seed: int) -> Anatomy:
    """Tissue of random shapes without anatomy, from the pool or new; seeds as in `brain`."""
    return cached(POOL, f"random{seed}", partial(random_phantom, seed))
