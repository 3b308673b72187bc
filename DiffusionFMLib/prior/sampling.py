"""Samples of the posterior: heads that the data allow, each as rich in detail as the next.

The network was trained to use a noisy look at the truth, so it is a denoiser at any noise level. A sample starts from
pure noise, and each step makes a less noisy look of it. While looks are so noisy that whole structures are open, the
step is that of the probability flow (Song et al., 2021), and noise that voxels share becomes structure: answers that
are drawn in each voxel by itself would never agree on one. Later they are drawn so, from what data and look say; where
the posterior is a Gaussian per voxel, samples are exact.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from DiffusionFMLib.events import Report
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.information import LOOK_LEVELS, look_at
from DiffusionFMLib.prior.posterior import Posterior
from DiffusionFMLib.prior.systems import unpack

LEVELS: Final = 20
"""Steps of a sample."""

OPEN: Final = 1.0
"""Noise level of looks down to which structures are open, in whitened coordinates."""

STRUCTURE: Final = 5.0
"""Smoothness of what samples start from: the width of a Gaussian that white noise is filtered with, mm. Voxels of heads
8 mm apart are half as alike as one is to itself."""


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
    last, first = LOOK_LEVELS
    steps = np.geomspace(first, last, levels).tolist()
    size = len(scan.trained.coordinates)

    def noise(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator, device=scan.device)

    # a look at nothing first: the data say where the answer lies, and how surely; where they do not, what heads vary by
    answer = smooth_noise(scan, noise(*scan.mask.shape))
    for chunk, _, result in scan.given(look_at(steps[0] * noise(len(scan)), steps[0]), report):
        answer[:, chunk] = draw(result, answer[:, chunk])
    look = answer + steps[0] * noise(len(scan))
    for k, (level, after) in enumerate(pairwise([*steps, 0.0])):
        report.progress(k, levels, "Sampling")
        for chunk, _, result in scan.given(look_at(look, level), report):
            answer[:, chunk] = result.mean if level > OPEN else draw(result, noise(len(result.mean[0])))
        if level > OPEN:
            look = answer + after / level * (look - answer)
        else:
            # what lies between this look and the answer: a look at the next level (DDPM's posterior)
            share = (after / level) ** 2
            look = share * look + (1 - share) * answer + after * (1 - share) ** 0.5 * noise(len(scan))
    return answer
