"""Learned features of a scan, as maps: which places are alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import patch_centres, sines_and_cosines
from DiffusionFMLib.encoder.volume import DEFAULTS, Encoding, EncodingOptions, encode
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import PartReport, Report
from DiffusionFMLib.overlays.cells import Cells, half_patch

SHOWN: Final = (0.02, 0.98)
"""Quantiles of a component that become 0 and 1 of its colour."""

PLACE_RCOND: Final = 1e-4
"""Slow waves are much alike within a head; less of them is taken for none."""


@dataclass(frozen=True, eq=False)
class Features:
    """Tokens of a scan.

    Parameters
    ----------
    passes : tuple of Encoding
        The second's patches lie half a patch off the first's.
    cells : Cells
    """

    passes: tuple[Encoding, ...]
    cells: Cells

    @cached_property
    def of_tissue(self) -> tuple[NDArray[np.float32], ...]:
        """Tokens by pass, shape (X', Y', Z', C), less their mean and what place alone explains; 0 where there are none.

        Place is what the encoder is told of it, for each axis; the rest is linear least squares.
        """
        tokens = np.concatenate([each.tokens[each.slabs.present] for each in self.passes])
        places = np.concatenate([_places(each)[each.slabs.present] for each in self.passes])
        design = np.column_stack([places, np.ones(len(places), np.float32)])
        slopes = np.linalg.lstsq(design, tokens, rcond=PLACE_RCOND)[0]
        found = []
        for each in self.passes:
            explained = _places(each) @ slopes[:-1] + slopes[-1]
            found.append(np.where(each.slabs.present[..., None], each.tokens - explained, 0).astype(np.float32))
        return tuple(found)

    @cached_property
    def _units(self) -> tuple[NDArray[np.float32], ...]:
        """The same, of length 1."""
        return tuple(t / np.linalg.norm(t, axis=-1, keepdims=True).clip(1e-12) for t in self.of_tissue)

    def similarity(self, ijk: tuple[int, int, int]) -> NDArray[np.float32]:
        """Cosine between features of each cell and those at a voxel of the scan, shape `Cells.grid`; 0 outside.

        Raises
        ------
        InputError
            If the voxel lies outside the brain.
        """
        maps = []
        for each, units in zip(self.passes, self._units, strict=True):
            where = self.cells.patch_of(each.slabs, ijk)
            if each.slabs.present[where]:
                maps.append((each.slabs, units @ units[where]))
        if not maps:
            msg = f"There are no features at {ijk}: it lies outside the brain."
            raise InputError(msg, "Point into the brain.")
        return self.cells.mean(maps)

    def components(self) -> NDArray[np.float32]:
        """The three main components of the features, each from 0 to 1, shape (*grid, 3); 0 outside.

        The sign of a component is such that its largest weight is positive.
        """
        brain = [tokens[each.slabs.present] for each, tokens in zip(self.passes, self.of_tissue, strict=True)]
        tokens = np.concatenate(brain).astype(np.float64)
        _, vectors = np.linalg.eigh(np.cov(tokens, rowvar=False))
        axes = vectors[:, ::-1][:, :3]
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1, 2]])
        low, high = np.quantile(tokens @ axes, SHOWN, axis=0)
        scale = np.maximum(high - low, 1e-12)
        colors = [((tokens @ axes - low) / scale).clip(0, 1).astype(np.float32) for tokens in self.of_tissue]
        return self.cells.mean((each.slabs, values) for each, values in zip(self.passes, colors, strict=True))


def features_of(
    acquisition: Acquisition,
    trained: TrainedEncoder,
    report: Report,
    options: EncodingOptions = DEFAULTS,
    device: torch.device | None = None,
) -> Features:
    """Encode a scan twice, the second time with patches shifted by half; see `encode` for parameters and errors."""
    shifted = replace(options, shift=half_patch(trained.network.shape))
    passes = tuple(
        encode(acquisition, trained, PartReport(report, part, 2), each, device)
        for part, each in enumerate((options, shifted))
    )
    return Features(passes, Cells(passes[0].slabs))


def _places(encoding: Encoding) -> NDArray[np.float32]:
    """What the encoder is told of each patch's place, shape (X', Y', Z', F)."""
    slabs, shape = encoding.slabs, encoding.slabs.shape
    centres = patch_centres(slabs.grid, shape.patch, slabs.start)
    told = sines_and_cosines(centres / shape.position_divisor, shape.hidden // 2)
    return told.numpy().reshape(*slabs.grid, -1)
