"""Methods that the prior is set beside, all of them on the same noisy scan: ours, DIPY's, AMICO, a per-scan network.

Each gives maps by name, shape (V,) over the voxels that are judged, diffusivities in um2/ms. DIPY's functions and AMICO
have their own defaults, unless it says so.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import least_squares, smoothed_scan
from numpy.typing import NDArray
from per_scan import train_on_scan

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import METHODS, MODELS
from DiffusionFMLib.physics.dki import MAX_KURTOSIS, MIN_KURTOSIS
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.preprocessing.denoise import mppca
from DiffusionFMLib.prior.fitting import fit as fit_prior
from DiffusionFMLib.settings import FitSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from amico_peer import amico_noddi

Maps = dict[str, NDArray[np.floating[Any]]]

MAPS = {"dti": ("fa", "md"), "dki": ("mk", "mkt", "fa", "md"), "noddi": ("ndi", "odi", "fwf")}
"""Maps that are judged, by model; not every method makes all of them."""

WIDTH = 0.7
"""Voxels, of the Gaussian that averages signals: the trivial smoother."""

SLOW = {"DIPY wls": 4, "FORCE": 4}
"""Every how many voxels get what takes long; errors are then of those."""

FORCE_MAPS = {
    "dti": {"fa": "fa", "md": "md"},
    "dki": {"mk": "mk"},
    "noddi": {"ndi": "nd", "odi": "dispersion", "fwf": "csf_fraction"},
}
"""Its names of the maps; its FA and MD are always those of the tensor."""

FORCE_DIRECTIONS = 30
"""Per shell, of the fits to its library."""

UNITS = {"md": 1e3}
"""From mm2/s to um2/ms."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scan to be fitted.

    Parameters
    ----------
    scan : Acquisition
        With the brain as its mask.
    judged : array, shape (X, Y, Z), bool
        V voxels in it.
    sigma : float
        Its noise, in the scan's unit.
    """

    scan: Acquisition
    judged: NDArray[np.bool_]
    sigma: float

    @property
    def signal(self) -> NDArray[np.float32]:
        """Of the voxels that are judged, shape (V, N)."""
        return self.scan.signal[self.judged]

    def every(self, step: int) -> Case:
        """The same with fewer voxels to judge, evenly spread."""
        places = np.flatnonzero(self.judged)[::step]
        judged = np.zeros_like(self.judged)
        judged.flat[places] = True
        return replace(self, judged=judged)

    def denoised(self) -> Case:
        """The same after MP-PCA."""
        return replace(self, scan=mppca(self.scan, SilentReport()))

    def averaged(self) -> Case:
        """The same with each voxel's signals averaged with its neighbours'."""
        return replace(self, scan=smoothed_scan(self.scan, self.scan.mask, WIDTH))


Method = Callable[[Case], Maps]


def voxelwise(model: str, case: Case) -> dict[str, Method]:
    """Methods that take each voxel by itself, so that they can follow a denoiser; none that cannot fit the scan."""
    gtab, own = case.scan.gtab, MODELS[model]
    conventional = [name for name in own.methods if METHODS[name].voxelwise and name in ("wls", "constrained", "map")]
    found: dict[str, Method] = {
        f"our {name}": lambda case, name=name: own_maps(case, model, name)
        for name in conventional
        if METHODS[name].unsupported(own, gtab) is None
    }
    if model != "noddi":
        found["ridge"] = lambda case: ridge(case, model)
    if model == "dki":
        found |= {"DIPY wls": dipy_kurtosis, "DIPY MSDKI": dipy_mean_signal}
    if model == "noddi" and find_spec("amico"):
        found["AMICO"] = amico
    return found


# --- ours ------------------------------------------------------------------------------------------------


def own_maps(case: Case, model: str, method: str, weights: str = "") -> Maps:
    """By a method of the library; ``prior`` is shown all of the brain."""
    settings = FitSettings(model=model, method=method, weights=weights, device="cpu")
    if METHODS[method].voxelwise:
        found = fit(case.scan.with_mask(case.judged), MODELS[model], settings, SilentReport())
    else:
        found = fit_prior(case.scan, MODELS[model], settings, SilentReport())
    return {name: found.maps[name].data[case.judged] * UNITS.get(name, 1) for name in MAPS[model]}


def ridge(case: Case, model: str) -> Maps:
    """Least squares with a weak prior, which is the same everywhere: it works with any number of directions."""
    sigma = np.full(int(case.judged.sum()), case.sigma)
    theta = least_squares(case.scan, case.judged, sigma, ridge=True, model=MODELS[model])
    return of_parameters(theta.T, model)


def per_scan(case: Case, model: str, radius: int) -> Maps:
    """By a network that is trained on this scan, and sees neighbours to this many voxels."""
    theta = train_on_scan(case.scan, model, radius)
    return of_parameters(theta[case.judged[case.scan.mask]], model)


def of_parameters(theta: NDArray[np.floating[Any]], model: str) -> Maps:
    """Maps of parameters, shape (V, P)."""
    found = MODELS[model].maps(torch.as_tensor(theta))
    return {name: found[name].numpy() * UNITS.get(name, 1) for name in MAPS[model]}


# --- others' ---------------------------------------------------------------------------------------------


def dipy_kurtosis(case: Case) -> Maps:
    """DIPY's kurtosis by weighted least squares; with fewer volumes than unknowns its pseudo-inverse still answers."""
    from dipy.reconst.dki import DiffusionKurtosisModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = DiffusionKurtosisModel(dipy_table(case.scan.gtab), fit_method="WLS").fit(case.signal)
        return {"mk": found.mk(), "mkt": found.mkt(), "fa": found.fa, "md": found.md * UNITS["md"]}


def dipy_mean_signal(case: Case) -> Maps:
    """DIPY's kurtosis of the mean signal of each shell: 3 unknowns, whatever the directions.

    It is clipped to the range of DIPY's other kurtosis: a few voxels of hundreds would be all of its error.
    """
    from dipy.reconst.msdki import MeanDiffusionKurtosisModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = MeanDiffusionKurtosisModel(dipy_table(case.scan.gtab)).fit(case.signal)
        return {"mk": found.msk.clip(MIN_KURTOSIS, MAX_KURTOSIS), "md": found.msd * UNITS["md"]}


def amico(case: Case) -> Maps:
    """NODDI by AMICO."""
    import amico as package

    with tempfile.TemporaryDirectory() as folder:
        found = amico_noddi(package, case.scan.with_mask(case.judged), Path(folder))
    return {name: values[case.judged] for name, values in found.items()}


def force_library(gtab: GradientTable, size: int) -> dict[str, NDArray[Any]]:
    """FORCE's simulated signals of a protocol and what they were made of, `size` of them; nothing is kept on disk.

    In its favour the maps that it fits to its signals come from many more directions, at the same shells: kurtosis has
    more unknowns than a sparse scan has volumes. DIPY seeds it by the clock, so that figures differ from run to run.
    """
    from dipy.sims.force import generate_force_simulations

    more = spread_directions(FORCE_DIRECTIONS)
    bvals = [shell.bval for shell in gtab.shells]
    dense = GradientTable(
        np.r_[gtab.bvals, np.repeat(bvals, len(more))], np.concatenate([gtab.bvecs, *(more for _ in bvals)])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = generate_force_simulations(
            dipy_table(dense), num_simulations=size, compute_dki=len(bvals) > 1, verbose=False
        )
    return library | {"signals": np.ascontiguousarray(library["signals"][:, : len(gtab)])}


def force(case: Case, model: str, library: dict[str, NDArray[Any]]) -> Maps:
    """DIPY's FORCE: what the library's signals that are most like the measured ones were made of.

    Their weighted mean, because here it is nearer the truth than the most similar one alone, FORCE's default.
    """
    from dipy.reconst.force import FORCEModel

    matcher = FORCEModel(dipy_table(case.scan.gtab), simulations=library, use_posterior=True)
    found = matcher.fit(case.signal)
    return {name: getattr(found, theirs) * UNITS.get(name, 1) for name, theirs in FORCE_MAPS[model].items()}


def dipy_table(gtab: GradientTable) -> Any:
    """Gradients as DIPY wants them."""
    from dipy.core.gradients import gradient_table

    return gradient_table(np.where(gtab.b0_mask, 0, gtab.bvals), bvecs=gtab.bvecs)
