"""The prior applied to a whole scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import image_rotation
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX
from DiffusionFMLib.preprocessing.noise import NoiseEstimate
from DiffusionFMLib.prior.coordinates import Coordinates, WhitenedDesign
from DiffusionFMLib.prior.information import Information, Measurements, front_end
from DiffusionFMLib.prior.neighbourhood import pooled_estimate
from DiffusionFMLib.prior.network import conditions
from DiffusionFMLib.prior.posterior import posterior
from DiffusionFMLib.prior.systems import unpack
from DiffusionFMLib.prior.weights import TrainedPrior

CHUNK: Final = 1 << 15
"""Voxels that systems are solved for at once."""

TYPICAL_S0: Final = 1.1
"""Median S0 of a brain where that of white matter is 1."""

MARGIN: Final = 8
"""Voxels around the brain's box that the network sees."""


@dataclass(frozen=True, eq=False)
class PriorEstimate:
    """Posterior of a scan's V masked voxels, in C order of the mask.

    Parameters
    ----------
    theta : array, shape (P, V), float32
        Posterior mean of the model's parameters, in scanner RAS and physics' units; ln S0 in the scan's.
    ridge : array, shape (P, V), float32
        The same without neighbours: what the network starts from.
    covariance : array, shape (P, P, V), float32
        Of the whitened coordinates, which are in voxel axes.
    data_fraction : array, shape (V,), float32
        How much of an estimate came from the voxel's own measurements; see `Posterior.data_fraction`.
    """

    theta: NDArray[np.float32]
    ridge: NDArray[np.float32]
    covariance: NDArray[np.float32]
    data_fraction: NDArray[np.float32]


def estimate(
    acquisition: Acquisition,
    mask: NDArray[np.bool_],
    noise: NoiseEstimate,
    trained: TrainedPrior,
    report: Report,
    device: torch.device | None = None,
) -> PriorEstimate:
    """Posterior of every voxel of a mask.

    Parameters
    ----------
    acquisition : Acquisition
    mask : array, shape (X, Y, Z), bool
    noise : NoiseEstimate
        Of this scan, or of one of the same session that has more volumes.
    trained : TrainedPrior
        On that device.
    report : Report
    device : torch.device, optional

    Raises
    ------
    ProtocolError
        If the scan has no b0.
    """
    if not acquisition.gtab.b0_mask.any():
        msg = f"{acquisition.name} has no b0 volume, which the prior needs."
        raise ProtocolError(msg, "Choose another method, or a scan with a b0.")
    device = device or torch.device("cpu")
    model, coordinates = trained.model, trained.coordinates
    axes = image_rotation(acquisition.affine)
    design = WhitenedDesign.of(model, acquisition.gtab.rotated(axes.T), coordinates, device)
    signal = acquisition.signal[mask]
    scale = float(np.median(signal[:, acquisition.gtab.b0_mask].mean(axis=1))) / TYPICAL_S0
    sigma = np.maximum(noise.sigma_map[mask], 0.1 * noise.sigma) / scale

    def measured(voxels: slice) -> Measurements:
        part = torch.from_numpy(np.ascontiguousarray(signal[voxels].T / scale)).to(device)
        return Measurements(part, design, torch.from_numpy(np.ascontiguousarray(sigma[voxels])).to(device))

    chunks = [slice(start, min(start + CHUNK, len(signal))) for start in range(0, len(signal), CHUNK)]
    size = len(coordinates)
    packed = size * (size + 1) // 2
    # first estimate, its spread, and the data's information
    seen = torch.empty(size + packed + packed + size, len(signal), device=device)
    for chunk in chunks:
        report.check()
        front, data = front_end(measured(chunk))
        seen[:, chunk] = torch.cat([front.mean, front.spread(), data.precision, data.vector])
    told = conditions(
        torch.as_tensor(acquisition.voxel_sizes[None], dtype=torch.float32, device=device),
        torch.tensor([noise.correlation], dtype=torch.float32, device=device),
        torch.tensor([noise.sigma / scale], dtype=torch.float32, device=device),
    )
    raw = _neighbourhood(seen, mask, told, trained)

    theta, ridge = (np.empty((size, len(signal)), np.float32) for _ in range(2))
    covariance = np.empty((size, size, len(signal)), np.float32)
    data_fraction = np.empty(len(signal), np.float32)
    for done, chunk in enumerate(chunks):
        report.progress(done, len(chunks), "Prior")
        measurements = measured(chunk)
        front, data = front_end(measurements)
        with torch.no_grad():
            prior = trained.network.local_prior(raw[:, chunk]).information()
            result = posterior(prior, [measurements], [data])
        theta[:, chunk] = _in_ras(result.mean, coordinates, axes, scale)
        ridge[:, chunk] = _in_ras(front.mean, coordinates, axes, scale)
        covariance[..., chunk] = unpack(result.covariance()).cpu().numpy()
        data_fraction[chunk] = result.data_fraction().cpu().numpy()
    return PriorEstimate(theta, ridge, covariance, data_fraction)


def _neighbourhood(seen: Tensor, mask: NDArray[np.bool_], told: Tensor, trained: TrainedPrior) -> Tensor:
    """The network's raw output for masked voxels, shape (C, V), from what is known of them one by one."""
    size, multiple = len(trained.coordinates), trained.network.shape.multiple
    packed = size * (size + 1) // 2
    inside = np.argwhere(mask)
    low, high = inside.min(0) - MARGIN, inside.max(0) + 1 + MARGIN
    nx, ny, nz = (int(edge) for edge in -(-(high - low) // multiple) * multiple)
    place = torch.from_numpy(np.ravel_multi_index(tuple((inside - low).T), (nx, ny, nz))).to(seen.device)
    volume = seen.new_zeros(len(seen), nx * ny * nz)
    volume[:, place] = seen
    mean, spread, precision, vector = volume.split([size, packed, packed, size])
    pooled = pooled_estimate(Information(precision, vector), (nx, ny, nz))
    brain = seen.new_zeros(1, nx * ny * nz)
    brain[:, place] = 1
    features = torch.cat([mean, pooled * brain, spread]).reshape(1, -1, nx, ny, nz)
    with torch.no_grad():
        raw = trained.network(
            features.contiguous(memory_format=torch.channels_last_3d), brain.reshape(1, 1, nx, ny, nz), told
        )
    return raw[0].reshape(raw.shape[1], -1)[:, place].float()


def _in_ras(u: Tensor, coordinates: Coordinates, axes: NDArray[np.float64], scale: float) -> NDArray[np.float32]:
    """Parameters of whitened coordinates, their tensor turned from voxel axes to scanner RAS, S0 in the scan's unit."""
    theta = coordinates.theta(u.double()).cpu().numpy()
    tensor = np.einsum("ij,jkv,lk->ilv", axes, theta[np.array(AS_MATRIX)], axes)
    return np.concatenate([tensor[np.triu_indices(3)], theta[6:] + np.log(scale)]).astype(np.float32)
