"""The NODDI phantom of the published figures: noisy scans of a part of it, and the truth of every model's maps.

Its script is not part of the project: it is loaded from beside it. The part is an eighth of the brain, so that slow
peers finish, with all its tissues in the brain's own shares. What lies next to the faces it was cut at is fitted, but
not judged.
"""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers import Case, Maps, own_maps

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable

SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "phantom" / "phantom.py"

SCHEMES = {"a": "a_ss30", "b": "b_ss6", "c": "c_ms2", "d": "d_sparse"}
"""Protocols by their short names: 1 b0 + 30 at b = 1000, 1 + 6, 6 + 30 + 60 at b = 2000, 1 + 6 + 6 at b = 2000."""

DENSE = {"dti": "ref_dti", "dki": "ref_dki"}
"""Protocols of very many directions, at the shells of `SCHEMES`, whose noise-free fit is the truth."""

S0 = 1000.0
"""Of white matter, without the bias field; noise is relative to it."""

MAX_CSF = 0.3
"""Errors are taken where less of a voxel is CSF, as in the published figures."""

MARGIN = 3
"""Voxels around what is judged that are fitted too, so that methods that look at neighbours find some."""

EIGHTH = (slice(0, 48), slice(48, None), slice(25, None))
"""What is judged; of all eighths its brightness, and with it the real SNR, is nearest the whole brain's."""

LEFT_HANDED = np.array([-1, 1, 1])
"""The script's directions are in the axes of an image whose first axis runs to the left."""


class BrainPhantom:
    """A part of the phantom.

    Parameters
    ----------
    script : path
    whole : bool
        All of the brain instead of an eighth.

    Attributes
    ----------
    mask : array, shape (X, Y, Z), bool
        Its voxels in the brain.
    judged : array, shape (X, Y, Z), bool
        Those V of them that errors are taken of.
    """

    def __init__(self, script: Path = SCRIPT, whole: bool = False) -> None:
        self._code = runpy.run_path(str(script))
        fields = self._code["fields"](0)
        judged = np.zeros_like(fields["mask"])
        judged[(...,) if whole else EIGHTH] = True
        part = (
            (...,)
            if whole
            else tuple(slice(max(0, edge.start - MARGIN), edge.stop and edge.stop + MARGIN) for edge in EIGHTH)
        )
        self.mask: NDArray[np.bool_] = fields["mask"][part]
        self.judged: NDArray[np.bool_] = (fields["mask"] & judged & (fields["csf"] < MAX_CSF))[part]
        self._fields = {name: fields[name][part] for name in ("ndi", "fwf", "odi", "F", "U", "s0")}
        self.truth = lru_cache(self._truth)

    def case(self, scheme: str, snr: float) -> Case:
        """A scan with Rician noise, in the brain and around it; `snr` is that of white matter at b0, and the seed."""
        scan = self._noiseless(SCHEMES[scheme], self.mask)
        clean = scan.signal.reshape(-1, len(scan.gtab))
        noisy = self._code["rician"](clean, np.float32(S0 / snr), seed=int(snr)).reshape(scan.signal.shape)
        return Case(replace(scan, signal=noisy), self.judged, S0 / snr)

    def _truth(self, model: str) -> Maps:
        """Maps of the voxels that are judged.

        Those of NODDI are the tissue's own, ODI that of the Watson distribution whose mean squared cosine is that of
        all fibres together. Those of the tensor and of kurtosis are what very many directions without noise give at
        the very shells: there is no tensor that holds for all b-values.
        """
        if model == "noddi":
            tissue = self._tissue(self.judged)
            return {"ndi": tissue["ndi"], "odi": self._code["orient_odi"](tissue), "fwf": tissue["fwf"]}
        dense = Case(self._noiseless(DENSE[model], self.judged), self.judged, 0.0)
        return own_maps(dense, model, "ols" if model == "dti" else "wls")

    def reference(self) -> Maps:
        """The script's own fit of very many directions, which is slow; MD in mm2/s."""
        return self._code["reference_truth"](self._tissue(self.judged))

    def _noiseless(self, protocol: str, mask: NDArray[np.bool_]) -> Acquisition:
        bvals, bvecs = self._code["make_scheme"](protocol)
        signal = np.zeros((*self.mask.shape, len(bvals)), np.float32)
        signal[mask] = self._code["signal"](self._tissue(mask), bvals, bvecs)
        gtab = GradientTable(bvals, bvecs * LEFT_HANDED)
        return Acquisition(signal, np.diag([-2.0, 2, 2, 1]), gtab, self.mask, name="phantom")

    def _tissue(self, some: NDArray[np.bool_]) -> Maps:
        return {name: values[some] for name, values in self._fields.items()}
