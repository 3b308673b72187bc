"""Samples of the posterior: heads that the data allow, each as rich in detail as the next.

The network was trained to use a noisy look at the truth, so it is a denoiser at any noise level. A sample starts from
pure noise; each step draws an answer given the data and the look, and makes a less noisy look of it (Song et al., 2021,
with the drawn answer in place of its mean). Voxels are drawn independently in each step: what they share they come by
through the looks, and where the posterior is a Gaussian per voxel the samples are exact.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from DiffusionFMLib.events import Report
from DiffusionFMLib.prior.estimate import ScanPosterior
from DiffusionFMLib.prior.information import LOOK_LEVELS, look_at
from DiffusionFMLib.prior.posterior import Posterior
from DiffusionFMLib.prior.systems import unpack

LEVELS: Final = 20


def draw(result: Posterior, generator: torch.Generator) -> Tensor:
    """Coordinates u drawn from a posterior, shape (P, V), independently in every voxel."""
    factor = torch.linalg.cholesky(unpack(result.covariance()).permute(2, 0, 1).double())
    noise = torch.randn(result.mean.shape, generator=generator, device=result.mean.device, dtype=torch.float64)
    return result.mean + torch.einsum("vij,jv->iv", factor, noise).to(result.mean.dtype)


def sample(scan: ScanPosterior, seed: int, report: Report, levels: int = LEVELS) -> Tensor:
    """One sample of a scan's posterior, whitened, shape (P, V); `scan.in_ras` makes parameters of it.

    Parameters
    ----------
    scan : ScanPosterior
    seed : int
        The same seed gives the same sample.
    report : Report
    levels : int
        Noise levels, evenly spaced in their logarithm.
    """
    generator = torch.Generator(scan.device).manual_seed(seed)
    last, first = LOOK_LEVELS
    steps = [first * (last / first) ** (k / (levels - 1)) for k in range(levels)] if levels > 1 else [last]
    answer = torch.empty(len(scan.trained.coordinates), len(scan), device=scan.device)
    # without a look at first: the data alone say where the answer lies, and how surely
    for chunk, _, result in scan.given(None, report):
        answer[:, chunk] = draw(result, generator)
    look = answer + steps[0] * torch.randn(answer.shape, generator=generator, device=scan.device)
    for k, level in enumerate(steps):
        report.progress(k, levels, "Sampling")
        for chunk, _, result in scan.given(look_at(look, level), report):
            answer[:, chunk] = draw(result, generator)
        if k + 1 < levels:
            # what lies between this look and the answer: a look at the next level (DDPM's posterior)
            share = (steps[k + 1] / level) ** 2
            noise = torch.randn(answer.shape, generator=generator, device=scan.device)
            look = share * look + (1 - share) * answer + steps[k + 1] * (1 - share) ** 0.5 * noise
    return answer
