"""Estimates that the prior has to beat: least squares with a ridge and without, and what smoothing adds to them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.physics import DTI, LogLinearModel
from DiffusionFMLib.physics.tensor_arrays import QUARTIC
from DiffusionFMLib.preprocessing.denoise import mppca

RIDGE_MEAN = np.array([0.95, 0, 0, 0.95, 0, 0.95, 0])
RIDGE_SD = np.array([0.7, 0.3, 0.3, 0.7, 0.3, 0.7, 1.5])
"""Weak prior on Dxx Dxy Dxz Dyy Dyz Dzz, um2/ms, and ln S0 where typical tissue has 0."""

KURTOSIS = 0.8
KURTOSIS_SD = 0.3
"""The same on V = MD^2 W, um4/ms2: a ball's of this kurtosis, which is its sd too; the second is that of components of
two axes or three."""

TENSOR = DTI()

REWEIGHTINGS = 3
MAX_EXPONENT = 15.0


WLS, DENOISED_WLS, RIDGE, SMOOTHED = "wls", "MP-PCA + wls", "ridge", "ridge + Gaussian .5"


def conventional(
    acquisition: Acquisition, mask: NDArray[np.bool_], sigma: NDArray, denoise: bool
) -> dict[str, NDArray]:
    """Parameters of the tensor by every method, each (7, V); after MP-PCA only if asked to."""
    ridge = least_squares(acquisition, mask, sigma, ridge=True)
    found = {WLS: least_squares(acquisition, mask, sigma, ridge=False)}
    if denoise:
        denoised = mppca(replace(acquisition, mask=mask), SilentReport())
        found[DENOISED_WLS] = least_squares(denoised, mask, sigma, ridge=False)
    return {**found, RIDGE: ridge, SMOOTHED: smoothed(ridge, mask, 0.5)}


def maps(theta: NDArray) -> dict[str, NDArray]:
    """The tensor's maps of parameters (7, V)."""
    return {name: values.numpy() for name, values in DTI().maps(torch.as_tensor(theta.T)).items()}


def ridge_of(model: LogLinearModel) -> tuple[NDArray, NDArray]:
    """Mean and sd of the weak prior on the parameters of the tensor or of kurtosis, shape (P,) each."""
    if model.name == TENSOR.name:
        return RIDGE_MEAN, RIDGE_SD
    axes = [len(set(name)) for name in QUARTIC]
    paired = [all(name.count(axis) % 2 == 0 for axis in name) for name in QUARTIC]
    mean = [KURTOSIS * pair / (1 if count == 1 else 3) for count, pair in zip(axes, paired, strict=True)]
    sd = [KURTOSIS if count == 1 else KURTOSIS_SD for count in axes]
    return np.r_[RIDGE_MEAN[:6], mean, RIDGE_MEAN[6]], np.r_[RIDGE_SD[:6], sd, RIDGE_SD[6]]


def least_squares(
    acquisition: Acquisition,
    mask: NDArray[np.bool_],
    sigma: NDArray,
    ridge: bool,
    model: LogLinearModel = TENSOR,
) -> NDArray:
    """Weighted least squares of the log signal, with the ridge or without, shape (P, V); ln S0 in the scan's unit.

    Weights come from the predicted signal and `sigma`, the noise of each of the mask's V voxels.
    """
    signal = torch.as_tensor(acquisition.signal[mask], dtype=torch.float64)
    scale = float(signal[:, torch.as_tensor(acquisition.gtab.b0_mask)].mean(1).median())
    design = torch.as_tensor(model.design(acquisition.gtab))
    size = design.shape[1]
    mean, sd = (torch.as_tensor(part) for part in ridge_of(model))
    penalty = torch.diag(1 / sd**2) * float(ridge)
    log = (signal / scale).clamp_min(1e-4).log() - design @ mean
    noise = torch.as_tensor(sigma / scale)[:, None]
    weight = ((log + design @ mean).exp() / noise) ** 2
    products = (design[:, :, None] * design[:, None]).reshape(len(design), -1)
    for _ in range(REWEIGHTINGS):
        normal = (weight @ products).reshape(-1, size, size) + penalty
        # the tiniest ridge keeps voxels without signal from stopping the others
        normal = normal + 1e-9 * normal.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * torch.eye(size)
        found = torch.linalg.solve(normal, ((weight * log) @ design)[..., None])[..., 0]
        weight = ((design @ mean + found @ design.T).clamp(-MAX_EXPONENT, MAX_EXPONENT).exp() / noise) ** 2
    theta = (found + mean).T.numpy()
    theta[-1] += np.log(scale)
    return theta


def smoothed(theta: NDArray, mask: NDArray[np.bool_], width: float) -> NDArray:
    """Parameters (P, V) of a mask smoothed by a Gaussian of so many voxels, within the mask."""
    weight = gaussian_filter(mask.astype(float), width)
    result = np.empty_like(theta)
    for row, values in zip(result, theta, strict=True):
        volume = np.zeros(mask.shape)
        volume[mask] = values
        row[:] = gaussian_filter(volume, width)[mask] / weight[mask]
    return result


def smoothed_scan(acquisition: Acquisition, mask: NDArray[np.bool_], width: float) -> Acquisition:
    """A scan whose signals are averaged by a Gaussian of so many voxels, within the mask."""
    signal = acquisition.signal.copy()
    signal[mask] = smoothed(signal[mask].T, mask, width).T
    return replace(acquisition, signal=signal)
