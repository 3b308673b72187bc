"""The tensor beside DIPY and MRtrix3: fit and maps of a whole head in one shell."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from phantom import phantom
from timing import SpeedRow, compare

from DiffusionFMLib.acquisition import Acquisition


def dipy(acquisition: Acquisition, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Fit and the same maps as ours; returns FA and MD, the latter in mm2/s."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    gtab = gradient_table(acquisition.gtab.bvals, bvecs=acquisition.gtab.bvecs)
    fitted = TensorModel(gtab, fit_method=method, return_S0_hat=True).fit(acquisition.signal, mask=acquisition.mask)
    _ = fitted.ad, fitted.rd, fitted.directions, fitted.color_fa, fitted.lower_triangular()
    return fitted.fa, fitted.md


def mrtrix(folder: Path) -> None:
    """Iterated WLS and its maps, on files that are already there; MRtrix3 cannot work in memory."""
    maps = [part for name in ("fa", "adc", "ad", "rd", "vector") for part in (f"-{name}", f"{name}.mif")]
    for command in (
        ["dwi2tensor", "dwi.nii", "tensor.mif", "-grad", "grad.b", "-mask", "mask.nii"],
        ["tensor2metric", "tensor.mif", "-mask", "mask.nii", *maps],
    ):
        subprocess.run([*command, "-force", "-quiet"], cwd=folder, check=True)


def write_for_mrtrix(acquisition: Acquisition, folder: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(acquisition.signal, acquisition.affine), folder / "dwi.nii")
    nibabel.save(nibabel.Nifti1Image(acquisition.mask.astype(np.uint8), acquisition.affine), folder / "mask.nii")
    np.savetxt(folder / "grad.b", acquisition.gtab.to_mrtrix())


def rows(rounds: int) -> list[SpeedRow]:
    """Lines of the table of speed."""
    acquisition = phantom()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("ols", "wls", "nlls"):
            peers = {f"DIPY {method.upper()}": lambda method=method: dipy(acquisition, method.upper())}
            if method == "wls" and shutil.which("dwi2tensor"):
                write_for_mrtrix(acquisition, Path(folder))
                peers["MRtrix3 iterated WLS"] = lambda: mrtrix(Path(folder))
            # one slow run is enough
            found += compare(
                f"DTI {method.upper()} + maps", "dti", method, acquisition, peers, 1 if method == "nlls" else rounds
            )
    return found + compare("ADC WLS + maps", "adc", "wls", acquisition, {}, 1)
