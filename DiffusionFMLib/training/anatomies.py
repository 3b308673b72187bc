"""Anatomies to train on: maps of what is in each voxel, cached, for signals to be rendered from at any protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import Report, SilentReport

if TYPE_CHECKING:
    from DiffusionFMLib.simulation.anatomy import Architecture

FIELDS: Final = (
    "fibre1", "fibre2", "grey", "fluid", "x1", "y1", "z1", "x2", "y2", "z2", "spread1", "spread2", "texture",
)  # fmt: skip
"""What is kept of a voxel: fractions of two fibre populations, grey matter and fluid; each population's direction in
voxel axes and its spread (mean square sine of the axons' angle to it); and how tightly tissue is packed, around 0."""

WEIGHTS: Final = slice(0, 4)
DIRECTIONS: Final = (slice(4, 7), slice(7, 10))

VERSION: Final = 2
"""Of how anatomies are made: one more whenever the same seed would give another, so that kept ones are made again."""

VOXEL_RANGE: Final = (1.2, 3.2)
"""Edges of simulated voxels, mm."""

THICKEST: Final = 2.0
"""Slices are up to this many times thicker than wide, in some scans."""

SHIFT_RANGE: Final = (1.0, 3.5)
"""Root mean square shift of a head from the template, mm: a network is not to learn one head by heart."""

FOLDING_RANGE: Final = (0.15, 0.35)
"""Root mean square of the folds' derivatives; see `simulation.anatomy.Warp`."""

MAX_TILT: Final = 15.0
"""Standard deviation of a head's rotation about each axis, degrees."""

RANDOM_SHAPE: Final = 72
"""Edge of anatomies without any anatomy in them, voxels."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is in each voxel of a grid.

    Parameters
    ----------
    fields : array, shape (13, X, Y, Z), float16
        See `FIELDS`; all zero outside the brain.
    voxel_sizes : array, shape (3,), mm
    """

    fields: NDArray[np.float16]
    voxel_sizes: NDArray[np.float64]

    def save(self, path: Path) -> None:
        """Write it, under a temporary name first."""
        temporary = path.with_name(f".{path.name}.part.npz")
        np.savez(temporary, fields=self.fields, voxel_sizes=self.voxel_sizes, version=VERSION)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Anatomy:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If it is of another kind.
        """
        with np.load(path) as stored:
            if "fields" not in stored or stored["fields"].shape[:1] != (len(FIELDS),):
                msg = f"{path} holds no anatomy with {len(FIELDS)} fields."
                raise InputError(msg, "Remove it; it is then made again.")
            return cls(stored["fields"], stored["voxel_sizes"])


def cached(folder: Path, name: str, make: Callable[[], Anatomy]) -> Anatomy:
    """The anatomy in `folder` of that name, made and kept there when there is none of this version."""
    path = folder / f"{name}.npz"
    if not path.is_file() or version_of(path) != VERSION:
        folder.mkdir(parents=True, exist_ok=True)
        make().save(path)
    return Anatomy.load(path)


def version_of(path: Path) -> int:
    """Version that a file of arrays was made by."""
    with np.load(path) as stored:
        # the first wrote none
        return int(stored["version"]) if "version" in stored else 1


def simulated_brains(folder: Path, count: int, report: Report) -> Iterator[Anatomy]:
    """Simulated heads, from the folder or new."""
    from DiffusionFMLib.simulation.anatomy import Architecture

    architecture: list[Architecture] = []

    def brain(seed: int) -> Anatomy:
        if not architecture:
            architecture.append(Architecture(report))
        return simulated_brain(architecture[0], seed)

    for seed in range(count):
        report.progress(seed, count, "Brains")
        yield cached(folder, f"brain{seed:03d}", partial(brain, seed))


def random_phantoms(folder: Path, count: int, report: Report) -> Iterator[Anatomy]:
    """Random anatomies, from the folder or new."""
    for seed in range(count):
        report.progress(seed, count, "Phantoms")
        yield cached(folder, f"random{seed:03d}", partial(random_phantom, seed))


def simulated_brain(architecture: Architecture, seed: int) -> Anatomy:
    """A head as `simulation` makes it, tilted, in voxels of any size and shape.

    Parameters
    ----------
    architecture : Architecture
    seed : int
    """
    from scipy.spatial.transform import Rotation

    from DiffusionFMLib.simulation import anatomy
    from DiffusionFMLib.simulation.scanner import CENTRE, FIELD_OF_VIEW, smooth_texture

    rng = np.random.default_rng([seed, 1])
    edge = float(np.exp(rng.uniform(*np.log(VOXEL_RANGE))))
    sizes = np.array([edge, edge, edge * (rng.uniform(1, THICKEST) if rng.random() < 0.4 else 1)])
    scale = rng.normal(1, 0.05, 3)
    axes = Rotation.from_euler("xyz", rng.normal(0, MAX_TILT, 3), degrees=True).as_matrix()
    nx, ny, nz = (int(np.ceil(extent / size)) for extent, size in zip(FIELD_OF_VIEW, sizes, strict=True))
    shape = (nx, ny, nz)
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), axis=-1)
    world = (grid * sizes) @ axes.T / scale + CENTRE
    warp = anatomy.Warp.draw(rng, rng.uniform(*SHIFT_RANGE), rng.uniform(*FOLDING_RANGE))
    points = warp.points(world)
    # partial volume over the voxel's mean extent
    tissue = anatomy.tissue(points, float(np.cbrt(sizes.prod())), SilentReport())
    head = tissue.brain
    fibres = warp.fibres(world[head], architecture.fibres(points[head]))
    fields = np.zeros((len(FIELDS), *shape), np.float16)
    wm = tissue.wm[head]
    directions = fibres.directions @ axes
    fields[0:2, head] = (wm[:, None] * fibres.fractions).T
    fields[2, head], fields[3, head] = tissue.gm[head], tissue.csf[head]
    fields[4:10, head] = directions.reshape(-1, 6).T
    fields[10:12, head] = fibres.dispersion.T
    fields[12, head] = smooth_texture(shape, edge, rng)[head]
    return Anatomy(trimmed(fields), sizes)


def random_phantom(seed: int) -> Anatomy:
    """Tissue of random shapes with sharp and soft borders, so that nothing is learnt to lie where it lies in brains."""
    rng = np.random.default_rng([seed, 2])
    shape = (RANDOM_SHAPE,) * 3
    edge = float(np.exp(rng.uniform(*np.log(VOXEL_RANGE))))

    def noise(width: float, count: int) -> NDArray[np.float64]:
        return np.stack([_smooth_noise(shape, width, rng) for _ in range(count)])

    def uniform_in_log(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    size = uniform_in_log(1.2, 6)
    # white matter, grey matter, fluid: the one whose random field is highest, with a border of random softness
    level = (noise(size, 3) + np.array([rng.uniform(-0.3, 0.5), 0.2, -0.9])[:, None, None, None]) * rng.uniform(2, 12)
    wm, gm, fluid = np.exp(level - level.max(0)) / np.exp(level - level.max(0)).sum(0)
    # bundles: the two that are densest at a place
    density = np.exp(rng.uniform(1, 5) * noise(uniform_in_log(1.2, 6), 4))
    order = np.argsort(-density, axis=0)[:2]
    share = np.take_along_axis(density, order, axis=0)
    second = np.clip((share[1] / share.sum(0) - 0.2) / 0.3, 0, 1) * 0.5
    directions = noise(uniform_in_log(1.5, 12), 12).reshape(4, 3, *shape)
    directions += rng.normal(0, 1.5, (4, 3, 1, 1, 1))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    spread = np.clip(0.1 + 0.1 * noise(uniform_in_log(1.2, 6), 4), 0.005, 0.5)
    fields = np.empty((len(FIELDS), *shape))
    fields[0:4] = wm * (1 - second), wm * second, gm, fluid
    for k in range(2):
        fields[DIRECTIONS[k]] = np.take_along_axis(directions, order[k][None, None], axis=0)[0]
        fields[10 + k] = np.take_along_axis(spread, order[k][None], axis=0)[0]
    fields[12] = 0.2 * noise(uniform_in_log(1.2, 5), 1)[0]
    return Anatomy(fields.astype(np.float16), np.full(3, edge))


def _smooth_noise(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth random field of zero mean and unit variance."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(rng.normal(size=shape), width, mode="wrap")
    return (field - field.mean()) / field.std()


def trimmed(fields: NDArray[np.float16]) -> NDArray[np.float16]:
    """Fields, shape (13, X, Y, Z), without the empty margin."""
    inside = fields[WEIGHTS].sum(0) > 0
    box = tuple(
        slice(int(np.flatnonzero(inside.any(other))[0]), int(np.flatnonzero(inside.any(other))[-1]) + 1)
        for other in ((1, 2), (0, 2), (0, 1))
    )
    return np.ascontiguousarray(fields[(slice(None), *box)])
