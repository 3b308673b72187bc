"""What a masked autoencoder has to beat: hidden signal from visible signal of the same place, without training.

All take and give rows of patches, as `encoder.mae` has them.
"""

from __future__ import annotations

import numpy as np
import torch
from baselines import RIDGE_MEAN, RIDGE_SD, TENSOR
from dipy.reconst.shm import real_sh_descoteaux
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.encoder.mae import Sample, same_shell_mean
from DiffusionFMLib.encoder.slabs import MAX_RATIO
from DiffusionFMLib.gradients import GradientTable

REWEIGHTINGS = 3
MIN_RATIO = 1e-3
MAX_EXPONENT = 10.0

ORDER = 4
LAPLACE = 0.006
"""Weight of the Laplace-Beltrami penalty (Descoteaux et al., 2007)."""


def tensor_prediction(sample: Sample, masked: Tensor, gtab: GradientTable, sigma: float) -> Tensor:
    """By the tensor of each voxel's visible volumes and of b0, shape (T, S, voxels of a patch).

    Weighted least squares with the weak prior on tensors that `baselines` has: few volumes determine no tensor.

    Parameters
    ----------
    sample : Sample
    masked : Tensor, shape (T, S), bool
    gtab : GradientTable
        Of its T volumes.
    sigma : float
        Noise over the mean b0.
    """
    design = torch.as_tensor(TENSOR.design(gtab))[:, :6]
    mean, sd = torch.as_tensor(RIDGE_MEAN[:6]), torch.as_tensor(RIDGE_SD[:6])
    measured = sample.patches.double()
    visible = (~masked)[..., None] & sample.inside
    expected = design @ mean
    log = measured.clamp_min(MIN_RATIO).log() - expected[:, None, None]
    weight = visible * (measured / sigma) ** 2
    for _ in range(REWEIGHTINGS):
        found = _solved(design, weight, log, torch.diag(1 / sd**2))
        predicted = (expected[:, None, None] + torch.einsum("tp,svp->tsv", design, found)).clamp_max(MAX_EXPONENT).exp()
        weight = visible * (predicted.clamp_max(MAX_RATIO) / sigma) ** 2
    return predicted.clamp(0, MAX_RATIO).to(sample.patches.dtype)


def harmonic_prediction(sample: Sample, masked: Tensor, gtab: GradientTable) -> Tensor:
    """By spherical harmonics of the visible volumes of each shell, shape (T, S, voxels of a patch).

    Where none is visible, by the shell's mean.
    """
    result = same_shell_mean(sample, masked)
    for shell in sample.shells.unique():
        same = sample.shells == shell
        basis, orders = harmonics(gtab.bvecs[same.numpy()])
        penalty = torch.diag(LAPLACE * orders**2 * (orders + 1) ** 2)
        measured = sample.patches[same].double()
        weight = (~masked[same])[..., None].expand_as(measured).double()
        told = weight.any(0).any(-1)
        found = _solved(basis, weight[:, told], measured[:, told], penalty)
        predicted = torch.einsum("tp,svp->tsv", basis, found).clamp(0, MAX_RATIO)
        result[same] = result[same].index_copy(1, told.nonzero()[:, 0], predicted.to(result.dtype))
    return result


def harmonics(bvecs: NDArray) -> tuple[Tensor, Tensor]:
    """Even real harmonics at directions (N, 3), shape (N, P), and their orders, shape (P,)."""
    x, y, z = bvecs.T
    basis, _, orders = real_sh_descoteaux(ORDER, np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x), legacy=False)
    return torch.as_tensor(basis), torch.as_tensor(orders, dtype=torch.float64)


def _solved(design: Tensor, weight: Tensor, target: Tensor, penalty: Tensor) -> Tensor:
    """Penalised weighted least squares of each voxel, shape (S, V, P); weight and target (T, S, V), design (T, P)."""
    normal = torch.einsum("tp,tq,tsv->svpq", design, design, weight) + penalty
    return torch.linalg.solve(normal, torch.einsum("tp,tsv->svp", design, weight * target))
