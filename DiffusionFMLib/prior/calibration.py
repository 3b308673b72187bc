"""How large the errors of a fit's maps are, beside what the posterior says.

The posterior is one Gaussian for each voxel, which has to allow for what is rare: in healthy tissue it is too wide,
where neighbours are of another kind too narrow. What a fit shows at a voxel and around it tells which. A small network
makes of it a factor for each standard deviation; it is learnt on simulated scans, by `training.calibration`.
"""

from __future__ import annotations

from math import log
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from DiffusionFMLib.fitting import Fit
from DiffusionFMLib.fitting.uncertainty import MAX_ERROR
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import DATA_FRACTION, DISAGREEMENT, RESIDUAL, STATUS, FitStatus, standard_deviation
from DiffusionFMLib.physics import SignalModel

CONTEXT: Final = {"dti": ("fa", "md"), "dki": ("fa", "md", "mk"), "noddi": ("ndi", "odi", "fwf")}
"""Maps that are looked at, by the model's name."""

WIDTH: Final = 24
"""Of the network."""

MAX_LOG_FACTOR: Final = log(8)

FAR: Final = 4.0
"""Standard deviations of a feature in training; what lies farther counts as that, so that nothing is extrapolated."""

AROUND: Final = 3
"""Edge of a voxel's surroundings, voxels."""

CHUNK: Final = 1 << 17
"""Voxels that factors are made for at once."""

FLOOR: Final = 1e-9
"""Of what a logarithm is taken of."""


class Calibration(nn.Module):
    """Makes factors of standard deviations.

    Parameters
    ----------
    model : SignalModel
        Whose maps they are of.
    size : int
        C, number of `features`.

    Attributes
    ----------
    centre, spread : Tensor, shape (C,)
        Of the features in training.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, model: SignalModel, size: int) -> None:
        super().__init__()
        self.names = calibrated_maps(model)
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.layers = nn.Sequential(
            nn.Linear(size, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, len(self.names))
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logarithms of the factors, shape (V, maps), of features, shape (V, C)."""
        relative = ((features - self.centre) / self.spread).clamp(-FAR, FAR)
        return MAX_LOG_FACTOR * torch.tanh(self.layers(relative) / MAX_LOG_FACTOR)

    @torch.no_grad()
    def apply_to(self, found: Fit, gtab: GradientTable) -> None:
        """Multiply the standard deviations of a fit by their factors; `MAX_ERROR`, where there is none, stays.

        Parameters
        ----------
        found : Fit
            By `prior.fitting.uncalibrated_fit`; its maps are changed.
        gtab : GradientTable
            Of the scan.
        """
        factors = torch.cat([self(part).exp() for part in features(found, gtab).split(CHUNK)]).numpy()
        for name, factor in zip(self.names, factors.T, strict=True):
            image = found.maps[f"{name}_sd"].data
            sd = image[found.mask]
            image[found.mask] = np.where(sd < MAX_ERROR, sd * factor, MAX_ERROR)


def calibrated_maps(model: SignalModel) -> tuple[str, ...]:
    """Names of a model's scalar maps, but S0, whose unit is the scan's."""
    return tuple(spec.name for spec in model.map_specs if not spec.components and spec.name != "s0")


FEATURES: Final = 2
"""Version of what `features` tells: 1 had the disagreement of neighbours, 2 that of single voxels that were fitted."""


def features(found: Fit, gtab: GradientTable) -> Tensor:
    """What a fit by the prior shows at each of V voxels and around it, and of the scan, shape (V, C).

    Parameters
    ----------
    found : Fit
        Of the scan, as `prior.fitting.uncalibrated_fit` gives it, with the noise that it was found to have in its
        provenance: the disagreement is that of single voxels, which tells more of a voxel's own error.
    gtab : GradientTable
        Of the scan.
    """
    mask, noise = found.mask, found.provenance["noise"]
    disagreement = np.nan_to_num(found.maps[DISAGREEMENT.name].data)
    fitted = mask & (found.maps[STATUS.name].data != FitStatus.DEGENERATE)
    inside = np.maximum(uniform_filter(fitted.astype(np.float32), AROUND, mode="constant"), FLOOR)

    def around(values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean over the voxel and its neighbours that were fitted, (V,)."""
        return uniform_filter(np.where(fitted, values, 0), AROUND, mode="constant")[mask] / inside[mask]

    columns = []
    specs = {spec.name: spec for spec in found.model.map_specs}
    for name in CONTEXT[found.model.name]:
        volume = found.maps[name].data
        values, near = volume[mask], around(volume)
        scatter = np.sqrt(np.maximum(around(volume**2) - near**2, 0))
        sd = found.maps[standard_deviation(specs[name]).name].data[mask]
        columns += [values, values - near, _log(scatter), _log(sd)]
    noise_to_signal = noise["sigma"] / np.maximum(found.maps["s0"].data[mask], FLOOR)
    columns += [
        np.tanh(disagreement[mask] / 5),
        np.tanh(around(disagreement) / 5),
        found.maps[DATA_FRACTION.name].data[mask],
        _log(found.maps[RESIDUAL.name].data[mask] / noise_to_signal),
        _log(noise_to_signal),
    ]
    weighted = gtab.bvals[~gtab.b0_mask]
    of_the_scan = [
        log(len(weighted)),
        log(gtab.b0_mask.sum()),
        weighted.mean() / 1000,
        np.mean(noise["correlation"]),
        log(np.abs(np.linalg.det(found.maps["s0"].affine[:3, :3]))) / 3,
        float("adaptation" in found.provenance),
    ]
    columns += [np.full(len(columns[0]), value) for value in of_the_scan]
    return torch.from_numpy(np.stack(columns, axis=1, dtype=np.float32, casting="same_kind"))


def _log(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.log(np.maximum(values, FLOOR))
