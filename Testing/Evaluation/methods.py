"""Estimates and what they claim of themselves, each as maps of the voxels of a mask; MD in um2/ms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from baselines import maps
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting.uncertainty import spread_to_maps
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DTI, MODELS
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.settings import FitSettings

PRIOR = "prior"

PER_UNIT = {"fa": 1.0, "md": 1e3}
"""What maps are multiplied by: MD comes in mm2/s."""


def by_prior(acquisition: Acquisition, weights: Path, report: SilentReport | None = None) -> dict[str, NDArray]:
    """FA, MD, their sd, data fraction and disagreement, each (V,): as a user gets them, the noise unknown."""
    settings = FitSettings(method="prior", weights=str(weights), device="cpu")
    result = fit(acquisition, MODELS[DTI.name], settings, report or SilentReport())
    found = {name: image.data[result.mask] for name, image in result.maps.items()}
    for name, scale in PER_UNIT.items():
        found[name] = found[name] * scale
        found[f"{name}_sd"] = found[f"{name}_sd"] * scale
    return found


def scalars(theta: NDArray) -> dict[str, NDArray]:
    """FA and MD, each (V,), of a tensor's parameters, shape (7, V)."""
    found = maps(theta)
    return {name: found[name] * scale for name, scale in PER_UNIT.items()}


def wls_errors(theta: NDArray, gtab: GradientTable, sigma: NDArray) -> dict[str, NDArray]:
    """Standard errors of FA and MD by weighted least squares at the true parameters (7, V) and noise (V,), each (V,).

    To first order, and so below what low SNR makes of them; they need no residuals, of which 6 directions leave none.
    """
    design = DTI().design(gtab)
    weight = (np.exp(design @ theta) / sigma) ** 2
    covariance = np.linalg.inv(np.einsum("ni,nv,nj->vij", design, weight, design))
    found = spread_to_maps(DTI(), torch.as_tensor(theta), torch.as_tensor(covariance))
    return {name: found[name].numpy() * scale for name, scale in PER_UNIT.items()}
