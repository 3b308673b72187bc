"""What the posterior leaves of the measurements, given back where neighbours say it alike (twicing: Tukey, 1977).

Each voxel's posterior takes its prior's error for one of its own. But what a prior does not expect, a lesion or a
bundle, it gets wrong alike in all voxels of it: what is left of their measurements, mostly noise in each of them,
together tells that error. It is estimated as the prior's mean is, by adding up information, and added.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from DiffusionFMLib.prior.information import Information
from DiffusionFMLib.prior.neighbourhood import VOXELS, filtered_at
from DiffusionFMLib.prior.systems import add_diagonal, multiply, solve

PASSES: Final = 1
"""Of the binomial filter: over the near neighbourhood, which is worth `neighbourhood.VOXELS` voxels."""

FIRMNESS: Final = {"dti": (8.0, 40.0, 8.0), "dki": (500.0, 400.0, 100.0, 400.0, 400.0, 500.0)}
"""Precision that the prior's errors are expected to have in white noise, by the model's name and for each harmonic of
`Coordinates.orders`. Mean diffusivity and ln S0, of which all measurements tell, are the least firm; not beside
kurtosis, which is a ratio that their noise is seen in. Chosen in simulated heads, on a phantom, and for the tensor in
real scans."""

CHUNK: Final = 1 << 15
"""Voxels that are solved for at once."""


def twiced(
    mean: Tensor, information: Information, firmness: ArrayLike, mask: NDArray[np.bool_], correlation: ArrayLike
) -> Tensor:
    """The posterior mean with the error added that neighbours' measurements tell, shape (P, V).

    Parameters
    ----------
    mean : Tensor, shape (P, V)
        Posterior mean of the whitened coordinates of a mask's voxels.
    information : Information
        What their measurements say, with weights from that mean.
    firmness : array, shape (P,)
        See `FIRMNESS`.
    mask : array, shape (X, Y, Z), bool
        Where they lie.
    correlation : array, shape (3,)
        Of the noise of neighbours along each axis: where they share it, they tell less.
    """
    place, shape = torch.from_numpy(np.flatnonzero(mask)).to(mean.device), mask.shape
    left = _gathered(information.vector - multiply(information.precision, mean), place, shape)
    known = _gathered(information.precision, place, shape)
    firm = mean.new_tensor(shared_noise(correlation) * np.asarray(firmness))[:, None]
    parts = [
        solve(add_diagonal(known[:, some], firm), left[:, some])
        for some in (slice(start, start + CHUNK) for start in range(0, len(place), CHUNK))
    ]
    return mean + torch.cat(parts, 1)


def shared_noise(correlation: ArrayLike) -> float:
    """Variance that the filter leaves of noise, over what it leaves of white noise.

    Parameters
    ----------
    correlation : array, shape (3,)
        Between neighbours along each axis; between the next but one it is taken to be the square.
    """
    near = np.clip(correlation, 0, 1)
    # of weights 1/4, 1/2, 1/4: squares 3/8, products of neighbours 1/4 and of the outer two 1/16, twice each
    return float(np.prod(1 + (near / 2 + near**2 / 8) / (3 / 8)))


def _gathered(rows: Tensor, place: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sums of rows, shape (C, V), over the voxels near each, as much as `VOXELS` of them in tissue of one kind."""
    return VOXELS[0] * filtered_at(rows, place, shape, PASSES)
