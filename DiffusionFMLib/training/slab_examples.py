"""Slabs to pretrain the encoder on: of simulated anatomies at random protocols, and of real scans."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.mae import Sample
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.slabs import MAX_RATIO
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.training.anatomies import WEIGHTS, Anatomy
from DiffusionFMLib.training.examples import draw_box, measured, part_of, turned
from DiffusionFMLib.training.protocols import FAMILIES, Protocol
from DiffusionFMLib.training.rendering import draw_contents
from DiffusionFMLib.training.signal_scans import SignalScan

FAMILY: Final = FAMILIES["encoder"]

MARGIN: Final = 24
"""Brains begin up to so many voxels from the volume's first, along each axis: anatomies are cut close, scans not."""

MIN_TOKENS: Final = 4
"""Least brain in a slab, in patches."""

ATTEMPTS: Final = 50


class SlabMaker:
    """Draws slabs; the same seed gives the same.

    Parameters
    ----------
    anatomies : list of lists of Anatomy
        Groups that are drawn from equally often.
    scans : list of SignalScan
        One group more, if there are any.
    shape : EncoderShape
        Whose axes are the scanner's.
    crop : tuple of int, voxels
        Edges of what is drawn: multiples of the patch's.
    dtype : torch.dtype
        Of attention.
    device : torch.device
    """

    def __init__(
        self,
        anatomies: list[list[Anatomy]],
        scans: list[SignalScan],
        shape: EncoderShape,
        crop: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups: list[list[Anatomy] | list[SignalScan]] = [*anatomies, *([scans] if scans else [])]
        self.shape, self.crop, self.dtype, self.device = shape, crop, dtype, device

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random slab with some brain in it.

        Raises
        ------
        InputError
            If none is found.
        """
        for _ in range(ATTEMPTS):
            group = self.groups[int(rng.integers(len(self.groups)))]
            chosen = group[int(rng.integers(len(group)))]
            draw = self._of_anatomy if isinstance(chosen, Anatomy) else self._of_scan
            signal, inside, low, gtab = draw(chosen, rng)  # type: ignore[arg-type]
            if int(inside.sum()) >= MIN_TOKENS * self.shape.patch_voxels:
                protocol = EncoderProtocol.of(gtab, self.shape, self.dtype, self.device)
                start = low + rng.integers(MARGIN + 1, size=3)
                return Sample.of(signal, inside, start, gtab, protocol, self.shape.patch)
        msg = f"There is hardly any brain in what is trained on: none in {ATTEMPTS} parts of it."
        raise InputError(msg, "Look at the scans' brain masks.")

    def _of_anatomy(
        self, anatomy: Anatomy, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, NDArray[np.intp], GradientTable]:
        """Signal over the mean b0, brain, where it lies, and the volumes: of a simulated scan."""
        low = draw_box(anatomy.fields[WEIGHTS], self.crop, rng)
        part = part_of(anatomy.fields, low, self.crop).astype(np.float32)
        # left and right may change places; up and down, front and back do not
        fields, sizes = turned(part, anatomy.voxel_sizes, np.arange(3), np.array([rng.choice([-1, 1]), 1, 1]))
        protocol = Protocol.draw(FAMILY, rng)
        contents = draw_contents(fields.to(self.device), sizes, rng)
        signal = measured(contents, self.crop, protocol, rng)
        weighted = protocol.bvals > 0
        b0 = signal[torch.as_tensor(~weighted)].mean(0)
        inside = (fields[WEIGHTS].sum(0) > 0.5).to(self.device) & (b0 > 0)
        ratio = (signal[torch.as_tensor(weighted)] / b0).nan_to_num(0, 0, 0).clamp(0, MAX_RATIO)
        return ratio, inside, low, GradientTable(protocol.bvals[weighted], protocol.bvecs[weighted])

    def _of_scan(
        self, scan: SignalScan, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, NDArray[np.intp], GradientTable]:
        """The same of a real scan, of which some volumes are taken."""
        count = min(len(scan.gtab), int(rng.integers(FAMILY.directions[0], FAMILY.directions[1] + 1)))
        volumes = np.sort(rng.permutation(len(scan.gtab))[:count])
        low = draw_box(scan.inside[None], self.crop, rng)
        inside = part_of(scan.inside[None], low, self.crop)[0]
        signal = np.concatenate([part_of(scan.signal[volume : volume + 1], low, self.crop) for volume in volumes])
        gtab = scan.gtab.subset(volumes)
        if rng.random() < 0.5:
            signal, inside = signal[:, ::-1], inside[::-1]
            gtab = GradientTable(gtab.bvals, gtab.bvecs * [-1, 1, 1])
        return (
            torch.from_numpy(signal.astype(np.float32)).to(self.device),
            torch.from_numpy(inside.copy()).to(self.device),
            low,
            gtab,
        )
