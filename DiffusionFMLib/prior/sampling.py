"""Samples of the posterior: heads that the data allow, each as rich in detail as the next.

The network was trained to use a noisy look at the truth, so it is a denoiser at any noise level. A sample starts from
a noisy look, and each step makes a less noisy one of it. While looks are so noisy that whole structures are open, the
step is that of the probability flow (Song et al., 2021), and what voxels share becomes structure: answers that are
drawn in each voxel by itself would never agree on one. Later they are drawn so, from what data and look say; where the
posterior is a Gaussian per voxel, samples are exact.

Structures larger than the network looks are made first, in coarse voxels and without the data; these then say what of
it can be.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from DiffusionFMLib.events import Report
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.information import LOOK_LEVELS, front_end, look_at
from DiffusionFMLib.prior.posterior import Posterior
from DiffusionFMLib.prior.systems import add_diagonal, solve, unpack

LEVELS: Final = 20
"""Steps of a sample, in coarse voxels and again in the scan's."""

OPEN: Final = 1.0
"""Noise level of looks down to which structures are open, in whitened coordinates."""

STRUCTURE: Final = 9.0
"""Smoothness of what samples start from: the width of a Gaussian that white noise is filtered with, mm."""

COARSE: Final = 4.0
"""Edge of the voxels that structures are made in, mm, about."""

KNOWN: Final = 3.0
"""Noise level of the first look at these structures in the scan's voxels: what is finer is made anew."""


def draw(result: Posterior, noise: Tensor) -> Tensor:
    """Coordinates u drawn from a posterior, shape (P, V), by standard normal noise of that shape."""
    factor = torch.linalg.cholesky(unpack(result.covariance()).permute(2, 0, 1).double())
    return result.mean + torch.einsum("vij,jv->iv", factor, noise.double()).to(result.mean.dtype)


def smooth_noise(scan: ScanPosterior, white: Tensor) -> Tensor:
    """Normal noise, shape (P, V), smooth in space and of variance 1, from independent noise, shape (P, X, Y, Z)."""
    # over the whole volume and round its edges: a small mask alone would hardly vary
    smooth = gaussian_filter(white.cpu().numpy(), (0, *(STRUCTURE / scan.voxel_sizes)), mode="wrap")
    typical = np.sqrt((smooth**2).mean((1, 2, 3), keepdims=True))
    return torch.from_numpy((smooth / typical)[:, scan.mask]).to(white)


def sample(scan: ScanPosterior, seed: int, report: Report, levels: int = LEVELS) -> Tensor:
    """One sample of a scan's posterior, whitened, shape (P, V); `scan.in_ras` makes parameters of it.

    Parameters
    ----------
    scan : ScanPosterior
    seed : int
        The same seed gives the same sample.
    report : Report
    levels : int
        Noise levels, two or more, evenly spaced in their logarithm.
    """
    generator = torch.Generator(scan.device).manual_seed(seed)
    start = structure(scan, generator, report, levels)
    for chunk in scan.chunks():
        # the data say where the answer lies; where they do not, this is one of those that can be
        _, data = front_end(scan.measured(chunk))
        start[:, chunk] = solve(add_diagonal(data.precision, 1.0), data.vector + start[:, chunk])
    return _refined(scan, start, KNOWN, levels, generator, report)


def structure(scan: ScanPosterior, generator: torch.Generator, report: Report, levels: int) -> Tensor:
    """A sample that knows nothing of a scan but its mask, without what is finer than coarse voxels.

    Parameters
    ----------
    scan : ScanPosterior
    generator : torch.Generator
        On the scan's device.
    report : Report
    levels : int
        Noise levels.

    Returns
    -------
    Tensor, shape (P, V)
        Whitened.
    """
    edges = [
        max(1, round((n - 1) * size / COARSE) + 1) for n, size in zip(scan.mask.shape, scan.voxel_sizes, strict=True)
    ]
    inside = torch.from_numpy(scan.mask)[None].float()
    coarse = scan.told_nothing(functional.adaptive_max_pool3d(inside, edges)[0].numpy() > 0)
    white = torch.randn(len(scan.trained.coordinates), *edges, generator=generator, device=scan.device)
    found = _refined(coarse, smooth_noise(coarse, white), LOOK_LEVELS[1], levels, generator, report)
    volume = torch.zeros_like(white)
    volume[:, torch.from_numpy(coarse.mask).to(white.device)] = found
    fine = functional.interpolate(volume[None], size=scan.mask.shape, mode="trilinear", align_corners=True)[0]
    return fine[:, torch.from_numpy(scan.mask).to(fine.device)]


def _refined(
    scan: ScanPosterior, start: Tensor, first: float, levels: int, generator: torch.Generator, report: Report
) -> Tensor:
    """A sample, shape (P, V), of which a start, shape (P, V), holds what a look of some noise level leaves."""

    def noise() -> Tensor:
        return torch.randn(start.shape, generator=generator, device=scan.device)

    steps = np.geomspace(first, LOOK_LEVELS[0], levels).tolist()
    answer, look = start.clone(), start + steps[0] * noise()
    for k, (level, after) in enumerate(pairwise([*steps, 0.0])):
        report.progress(k, levels, "Sampling")
        white = noise() if level <= OPEN else None
        for chunk, _, result in scan.given(look_at(look, level), report):
            answer[:, chunk] = result.mean if white is None else draw(result, white[:, chunk])
        if white is None:
            look = answer + after / level * (look - answer)
        else:
            # what lies between this look and the answer: a look at the next level (DDPM's posterior)
            share = (after / level) ** 2
            look = share * look + (1 - share) * answer + after * (1 - share) ** 0.5 * noise()
    return answer
