"""Signals of real scans for the encoder to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.slabs import MAX_RATIO
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.layout import Layout
from DiffusionFMLib.training.kept_scans import save_signal


@dataclass(frozen=True, eq=False)
class SignalScan:
    """Weighted volumes of a scan over its mean b0, along the patient's axes.

    Parameters
    ----------
    signal : array, shape (T, X, Y, Z), float16
    inside : array, shape (X, Y, Z), bool
        Brain.
    gtab : GradientTable, T volumes
    """

    version: ClassVar[int] = 1
    """See `kept_scans.Kept`."""

    signal: NDArray[np.float16]
    inside: NDArray[np.bool_]
    gtab: GradientTable

    @classmethod
    def of(cls, acquisition: Acquisition) -> SignalScan:
        """From a scan with a mask.

        Raises
        ------
        ProtocolError
            If it has no b0, or fewer than two directions.
        """
        gtab = acquisition.gtab
        weighted = np.flatnonzero(~gtab.b0_mask & ~gtab.trace_mask)
        if len(weighted) < 2 or not gtab.b0_mask.any():
            msg = f"{acquisition.name} has {len(weighted)} directions and {int(gtab.b0_mask.sum())} b0."
            raise ProtocolError(msg, "Choose scans with a b0 and two directions at least.")
        b0 = acquisition.signal[..., gtab.b0_mask].mean(-1)
        inside = (b0 > 0) if acquisition.mask is None else acquisition.mask & (b0 > 0)
        ratio = np.zeros((len(weighted), *acquisition.shape), np.float16)
        ratio[:, inside] = np.clip(acquisition.signal[inside][:, weighted].T / b0[inside], 0, MAX_RATIO)
        layout = Layout.of(acquisition.affine, acquisition.shape)
        along = np.moveaxis(layout.turned(np.moveaxis(ratio, 0, -1)), -1, 0)
        return cls(np.ascontiguousarray(along), np.ascontiguousarray(layout.turned(inside)), gtab.subset(weighted))

    def save(self, path: Path) -> None:
        """Write it; see `kept_scans`."""
        save_signal(path, self.signal, self.version, inside=self.inside, bvals=self.gtab.bvals, bvecs=self.gtab.bvecs)

    @classmethod
    def load(cls, path: Path) -> SignalScan:
        """What `save` wrote; the signal stays on disk until it is used."""
        with np.load(path.with_suffix(".npz")) as rest:
            gtab = GradientTable(rest["bvals"], rest["bvecs"])
            return cls(np.load(path, mmap_mode="r"), rest["inside"], gtab)
