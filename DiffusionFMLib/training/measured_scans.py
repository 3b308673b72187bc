"""Real scans whose truth nobody knows: volumes left out judge what the others make of them.

Simulated scans are never quite like real ones; with these the prior learns what real tissue, movement and noise are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.gradients import GradientTable, image_rotation
from DiffusionFMLib.physics import METHODS, LogLinearModel
from DiffusionFMLib.prior.coordinates import Coordinates, WhitenedDesign
from DiffusionFMLib.prior.estimate import scale_of
from DiffusionFMLib.prior.left_out import Box, LeftOut, leave_out
from DiffusionFMLib.prior.network import conditions
from DiffusionFMLib.training.examples import CORRELATION_ERROR, SIGMA_ERROR, draw_box, part_of, turned_volumes
from DiffusionFMLib.training.kept_scans import save_signal

FEWEST: Final = 5
FEW: Final = 8
"""Half of the examples have FEWEST to FEW weighted volumes, as sparse scans have; the others any number."""

MOST_LEFT_OUT: Final = 6
"""Volumes that judge an example."""

ATTEMPTS: Final = 20


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """A scan with its noise, in its own axes.

    Parameters
    ----------
    signal : array, shape (N, X, Y, Z), float16
        Where typical tissue has S0 = 1; zero outside the brain.
    sigma : array, shape (1, X, Y, Z), float32
        Noise level, in the same unit; zero outside the brain.
    gtab : GradientTable
        Directions in voxel axes.
    voxel_sizes : array, shape (3,), mm
    correlation : array, shape (3,)
        Of the noise of neighbours along each axis.
    noise : float
        The noise level of the scan as a whole.
    """

    version: ClassVar[int] = 1
    """See `kept_scans.Kept`."""

    signal: NDArray[np.float16]
    sigma: NDArray[np.float32]
    gtab: GradientTable
    voxel_sizes: NDArray[np.float64]
    correlation: NDArray[np.float64]
    noise: float

    @classmethod
    def of(cls, acquisition: Acquisition) -> MeasuredScan:
        """From a scan with a mask.

        Raises
        ------
        ProtocolError
            If it has no b0, or its noise cannot be told, or there is none.
        """
        from DiffusionFMLib.preprocessing.noise import estimate_noise

        mask = np.ones(acquisition.shape, bool) if acquisition.mask is None else acquisition.mask
        noise = estimate_noise(acquisition, mask)
        if noise is None or not noise.sigma > 0 or not acquisition.gtab.b0_mask.any():
            msg = f"{acquisition.name} has no b0, no noise, or too few volumes to tell its noise."
            raise ProtocolError(msg, "Choose measured scans with more volumes.")
        gtab = acquisition.gtab.rotated(image_rotation(acquisition.affine).T)
        inside = np.argwhere(mask)
        box = tuple(slice(int(a), int(b)) for a, b in zip(inside.min(0), inside.max(0) + 1, strict=True))
        scale = scale_of(acquisition.signal[mask], gtab)
        signal = np.moveaxis(acquisition.signal[box] * mask[box][..., None] / scale, -1, 0)
        sigma = (np.maximum(noise.sigma_map, 0.1 * noise.sigma) * mask)[box][None] / scale
        return cls(
            np.ascontiguousarray(signal, np.float16), sigma.astype(np.float32), gtab, acquisition.voxel_sizes,
            np.array(noise.correlation), noise.sigma / scale,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Write it; see `kept_scans`."""
        save_signal(
            path, self.signal, self.version, sigma=self.sigma, bvals=self.gtab.bvals, bvecs=self.gtab.bvecs,
            voxel_sizes=self.voxel_sizes, correlation=self.correlation, noise=self.noise,
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> MeasuredScan:
        """What `save` wrote; the signal stays on disk until it is used."""
        with np.load(path.with_suffix(".npz")) as rest:
            gtab = GradientTable(rest["bvals"], rest["bvecs"])
            return cls(
                np.load(path, mmap_mode="r"), rest["sigma"], gtab, rest["voxel_sizes"], rest["correlation"],
                float(rest["noise"]),
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class MeasuredExample:
    """A crop of a real scan of which some volumes were left out.

    Parameters
    ----------
    features, brain, conditions : Tensor
        What the network sees; as those of `Example`.
    left_out : LeftOut
    """

    features: Tensor
    brain: Tensor
    conditions: Tensor
    left_out: LeftOut


class MeasuredMaker:
    """Draws crops of real scans; the same seed gives the same.

    Parameters
    ----------
    scans : list of MeasuredScan
        Each can spare volumes; see `can_spare`.
    model : LogLinearModel
    coordinates : Coordinates
    crop, margin : int
        See `ExampleMaker`.
    device : torch.device
    """

    def __init__(
        self,
        scans: list[MeasuredScan],
        model: LogLinearModel,
        coordinates: Coordinates,
        crop: int,
        margin: int,
        device: torch.device,
    ) -> None:
        self.scans, self.model, self.coordinates = scans, model, coordinates
        self.crop, self.margin, self.device = crop, margin, device

    def draw(self, rng: np.random.Generator) -> MeasuredExample:
        """A random example."""
        scan = self.scans[int(rng.integers(len(self.scans)))]
        given, held = self._split(scan.gtab, rng)
        edges = (self.crop,) * 3
        low = draw_box(scan.sigma > 0, edges, rng)
        order, signs = rng.permutation(3), rng.choice([-1, 1], 3)
        signal, sigma = (
            torch.from_numpy(turned_volumes(part_of(values, low, edges), order, signs).astype(np.float32)).flatten(1)
            for values in (scan.signal, scan.sigma)
        )
        place = (sigma[0] > 0).nonzero()[:, 0]
        signal, level, place = (part.to(self.device) for part in (signal[:, place], sigma[0, place], place))
        box = Box(signal, level, place, self.crop)
        turned = GradientTable(scan.gtab.bvals, scan.gtab.bvecs[:, order] * signs)
        design = WhitenedDesign.of(self.model, turned, self.coordinates, self.device)
        error = float(np.exp(rng.normal(0, SIGMA_ERROR)))
        view, left_out = leave_out(box, design, given, held, self.margin, box.sigma * error)
        known = scan.correlation[order] + rng.normal(0, CORRELATION_ERROR, 3)
        told = (torch.tensor(value, dtype=torch.float32)[None] for value in (
            scan.voxel_sizes[order], known, scan.noise * error, np.inf
        ))  # fmt: skip
        return MeasuredExample(view.features[0], view.brain[0], conditions(*told)[0].to(self.device), left_out)

    def _split(self, gtab: GradientTable, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """A b0 and weighted volumes that determine enough, and others that judge."""
        weighted = np.flatnonzero(~gtab.b0_mask & ~gtab.trace_mask)
        for _ in range(ATTEMPTS):
            most = len(weighted) if rng.random() < 0.5 else min(FEW + 1, len(weighted))
            count = int(rng.integers(FEWEST, most))
            order = rng.permutation(weighted)
            given = np.sort(np.r_[rng.choice(np.flatnonzero(gtab.b0_mask), 1), order[:count]])
            if _supported(self.model, gtab.subset(given)):
                break
        return given, np.sort(order[count:][:MOST_LEFT_OUT])


def can_spare(scan: MeasuredScan, model: LogLinearModel) -> bool:
    """Whether a scan has volumes enough for a model, and some to leave out."""
    gtab = scan.gtab
    weighted = int((~gtab.b0_mask & ~gtab.trace_mask).sum())
    return weighted > FEWEST and _supported(model, gtab)


def _supported(model: LogLinearModel, gtab: GradientTable) -> bool:
    return METHODS["prior"].unsupported(model, gtab) is None
