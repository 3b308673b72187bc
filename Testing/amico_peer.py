"""NODDI maps by AMICO, the peer that ours is compared with."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import numpy as np

from DiffusionFMLib.acquisition import Acquisition

SH_ORDER, DIRECTIONS = 12, 500
"""AMICO's defaults for turning its kernels."""


def amico_noddi(amico: ModuleType, acquisition: Acquisition, folder: Path) -> dict[str, np.ndarray]:
    """Maps ``ndi``, ``odi`` and ``fwf``, shape (X, Y, Z), with AMICO's own defaults; see `timed_amico_noddi`."""
    return timed_amico_noddi(amico, acquisition, folder)[0]


def timed_amico_noddi(amico: ModuleType, acquisition: Acquisition, folder: Path) -> tuple[dict[str, np.ndarray], float]:
    """Maps, and the seconds of AMICO's fit without the set-up of its kernels.

    Parameters
    ----------
    amico : module
    acquisition : Acquisition
    folder : Path
        AMICO works on files: its input and its kernels go here.
    """
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    shape, gtab = acquisition.shape, acquisition.gtab
    mask = np.ones(shape, bool) if acquisition.mask is None else acquisition.mask
    nibabel.save(nibabel.Nifti1Image(acquisition.signal.astype(np.float32), acquisition.affine), folder / "dwi.nii")
    nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), acquisition.affine), folder / "mask.nii")
    rows = np.column_stack([gtab.bvecs, np.where(gtab.b0_mask, 0, gtab.bvals)])
    np.savetxt(folder / "dwi.scheme", rows, header="VERSION: BVECTOR", comments="", fmt="%.8f")

    amico.set_verbose(0)
    # its own set-up also makes the tables of twenty other direction sets, which takes minutes
    amico.lut.precompute_rotation_matrices(SH_ORDER, DIRECTIONS)
    evaluation = amico.Evaluation(str(folder), ".")
    evaluation.load_data("dwi.nii", "dwi.scheme", mask_filename="mask.nii", b0_thr=0)
    evaluation.set_model("NODDI")
    evaluation.generate_kernels(regenerate=True, lmax=SH_ORDER, ndirs=DIRECTIONS)
    evaluation.load_kernels()
    start = time.perf_counter()
    evaluation.fit()
    seconds = time.perf_counter() - start
    found = dict(zip(evaluation.model.maps_name, np.moveaxis(evaluation.RESULTS["MAPs"], -1, 0), strict=True))
    return {"ndi": found["NDI"], "odi": found["ODI"], "fwf": found["FWF"]}, seconds
