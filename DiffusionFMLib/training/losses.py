"""What the prior is trained to lower, and what is watched while it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.prior.coordinates import DEVIATION_SD, MD_SD, TYPICAL_MD
from DiffusionFMLib.prior.information import concatenate
from DiffusionFMLib.prior.kurtosis import mean_apparent_kurtosis, mean_kurtosis
from DiffusionFMLib.prior.left_out import student
from DiffusionFMLib.prior.network import PriorNetwork
from DiffusionFMLib.prior.posterior import Posterior, posterior
from DiffusionFMLib.training.examples import Example
from DiffusionFMLib.training.measured_scans import MeasuredExample
from DiffusionFMLib.training.task import Losses

SIGNAL_WEIGHT, LIKELIHOOD_WEIGHT, FA_WEIGHT = 4.0, 0.2, 0.5

MD_WEIGHT, KURTOSIS_WEIGHT = 1.0, 2.0
"""Where there is kurtosis: its 15 components would drown its means, of the tensor and over directions, and MD."""

TENSOR: Final = 7
"""Unknowns of a model without kurtosis."""

MEASURED_WEIGHT: Final = 1.0
"""Of volumes left out of real scans."""

SMOOTHNESS: Final = 0.02
"""Errors below it are squared, larger ones absolute: in whitened coordinates."""

FAR: Final = 4.0
"""Truths whose squared distance is so many times what it should be count by their distance, not its square."""

SIGNAL_DIRECTIONS: Final = 7
"""Volumes, b0 among them, that signals are compared in."""

LOG_SIGNAL_RANGE: Final = (-8.0, 3.0)

FLUID_MD: Final = 1.2
"""Voxels of higher mean diffusivity are fluid, um2/ms."""

ANISOTROPIC: Final = 0.25
"""Tissue of higher FA is white matter, of lower grey."""

NOISE_BINS: Final = {"snr5": 0.12, "snr12": 0.055, "snr25": 0.0}
"""Lowest sigma of each group of examples that errors are watched in."""

LOOK_BINS: Final = {"look3": 3.0, "look1": 1.0, "look0": 0.0}
"""The same of those with a look at the truth, by the look's noise."""

DETERMINED: Final = 6
"""With fewer directions no neighbour can tell a tensor either: a group of their own, ``few``."""


def batch_input(examples: Sequence[Example | MeasuredExample]) -> tuple[Tensor, Tensor, Tensor]:
    """Features, masks and conditions of examples of one shape, as the network takes them."""
    layout = torch.channels_last_3d
    return (
        torch.stack([e.features for e in examples]).contiguous(memory_format=layout),
        torch.stack([e.brain for e in examples]).contiguous(memory_format=layout),
        torch.stack([e.conditions for e in examples]),
    )


def posterior_of(network: PriorNetwork, raw: Tensor, examples: list[Example]) -> Posterior:
    """Posterior of the judged voxels of a batch, one example after another, from the network's raw output."""
    margin = examples[0].margin
    inner = slice(margin, -margin or None)
    raw = raw[:, :, inner, inner, inner].float().contiguous()
    mean = torch.cat([network.mean(one, e.neighbourhood) for one, e in zip(raw, examples, strict=True)], 1)
    triangle = raw[:, len(mean) : len(mean) + network.packed].movedim(1, 0).reshape(network.packed, -1)
    prior = network.local_prior(mean, triangle).information()
    # a look at the truth comes from outside the voxel's measurements, as the prior does
    looks = [e.look or e.data.nothing() for e in examples]
    return posterior(prior + concatenate(looks), [e.measurements for e in examples], [e.data for e in examples])


def losses(result: Posterior, examples: list[Example], rng: np.random.Generator) -> Losses:
    """Loss of a batch's posterior; errors by noise and tissue, beside the ridge estimate's, in all but ln S0.

    Whitened error of the mean, likelihood of the truth, signals at the protocol's shells, FA, and mean diffusivity and
    kurtosis where the model has one. The signal term has b0 in it: without it S0 and MD drift together. With a look at
    the truth only squares of errors and the likelihood count: what a denoiser has to give is the mean, and no other
    loss is lowest there.
    """
    truth = torch.cat([e.truth for e in examples], 1)
    mask = torch.cat([e.mask for e in examples])
    looked = torch.cat([torch.full_like(e.mask, e.look is not None) for e in examples])
    # weights that depend on the truth would move a denoiser's mean
    md = (TYPICAL_MD + MD_SD * truth[0]).where(~looked, TYPICAL_MD)
    weight = mask / (0.5 + md.clamp(0, 4).square())
    weight = weight / weight.sum()

    square = (result.mean - truth).square().sum(0)
    typical = torch.cat(
        [_typical(part.detach(), e.mask) for part, e in zip(_split(square, examples), examples, strict=True)]
    )
    error = torch.where(looked, 0.5 * square / typical, (square + SMOOTHNESS**2).sqrt() - SMOOTHNESS)
    parameters = (weight * error).sum()

    unknowns = len(truth)
    distance = result.distance(truth)
    far = FAR * unknowns
    # a few voxels whose signal is no tensor's would outweigh all others
    distance = torch.where(distance < far, distance, 2 * (far * distance.clamp_min(far)).sqrt() - far)
    log_prob = 0.5 * (result.log_determinant - distance)
    # weighted by the sd that is claimed, so that uncertain voxels are learnt from too (Seitzer et al., 2022)
    claimed = (-0.5 / unknowns * result.log_determinant.detach()).exp()
    likelihood = -(weight * claimed * log_prob).sum() / unknowns

    weight = weight * ~looked
    fa_error = fa(result.mean) - fa(truth)
    anisotropy = (weight * fa_error.abs()).sum()
    signals = _signal_error(result.mean, truth, weight, examples, rng)
    total = parameters + SIGNAL_WEIGHT * signals + LIKELIHOOD_WEIGHT * likelihood + FA_WEIGHT * anisotropy
    parts = {"parameters": parameters, "signals": signals, "likelihood": likelihood, "fa": anisotropy}
    if unknowns > TENSOR:
        parts["md"] = (weight * (result.mean[0] - truth[0]).abs()).sum()
        total = total + MD_WEIGHT * parts["md"]
        for name, of in (("mkt", mean_kurtosis), ("mk", mean_apparent_kurtosis)):
            parts[name] = (weight * (of(result.mean) - of(truth)).abs()).sum()
            total = total + KURTOSIS_WEIGHT * parts[name]
    ridge = torch.cat([e.ridge for e in examples], 1)
    return Losses(
        total,
        {name: float(value.detach()) for name, value in parts.items()},
        _watched(result.mean.detach(), ridge, truth, mask, examples),
    )


def add_measured(
    simulated: Losses, network: PriorNetwork, raw: Tensor, examples: list[MeasuredExample], judged: Tensor
) -> Losses:
    """Losses of simulated examples, and of crops of real scans.

    Parameters
    ----------
    simulated : Losses
    network : PriorNetwork
    raw : Tensor, shape (B, C, X, Y, Z)
        Its output for the crops.
    examples : list of MeasuredExample
    judged : Tensor, shape (C,), bool
        Channels that are learnt from them; see `judged_channels`.
    """
    learnt = judged[:, None, None, None]
    misfits, watched, count = [], [0.0, 0.0], 0
    for one, example in zip(raw.float(), examples, strict=True):
        left_out = example.left_out
        if not len(left_out.judged):
            continue
        inside = left_out.inside(torch.where(learnt, one, one.detach())).contiguous()
        residuals = left_out.residuals(left_out.posterior_mean(network, inside))
        misfits.append(student(residuals).mean())
        for place, each in enumerate((residuals.detach(), left_out.residuals(left_out.ridge))):
            watched[place] += float(student(each).sum())
        count += residuals.numel()
    if not misfits:
        return simulated
    misfit = torch.stack(misfits).mean()
    return Losses(
        simulated.total + MEASURED_WEIGHT * misfit,
        {**simulated.parts, "measured": float(misfit.detach())},
        {**simulated.squares, "measured_tissue": (watched[0], watched[1], count)},
    )


def _split(values: Tensor, examples: list[Example]) -> Sequence[Tensor]:
    """Values of all voxels, shape (V,), by example."""
    return values.split([len(e.mask) for e in examples])


def _typical(square: Tensor, mask: Tensor) -> Tensor:
    """Root mean square error of an example's voxels, for each of them."""
    return (square * mask).sum().div(mask.sum().clamp_min(1)).sqrt().clamp_min(SMOOTHNESS).expand_as(square)


def fa(u: Tensor) -> Tensor:
    """FA of whitened tensor coordinates (P, V), without its eigenvalues, shape (V,)."""
    md = TYPICAL_MD + MD_SD * u[0]
    deviation = DEVIATION_SD**2 * u[1:6].square().sum(0)
    return (1.5 * deviation / (3 * md.square() + deviation) + 1e-6).sqrt().clamp_max(1.2)


def _signal_error(
    mean: Tensor, truth: Tensor, weight: Tensor, examples: list[Example], rng: np.random.Generator
) -> Tensor:
    total = mean.new_zeros(())
    start = 0
    for e in examples:
        voxels = slice(start, start + e.truth.shape[1])
        start = voxels.stop
        volumes = torch.as_tensor([0, *(1 + rng.permutation(len(e.dense.matrix) - 1)[: SIGNAL_DIRECTIONS - 1])])
        matrix, offset = e.dense.matrix[volumes], e.dense.offset[volumes]
        found = (offset + matrix @ mean[:, voxels]).clamp(*LOG_SIGNAL_RANGE).exp()
        right = (offset + matrix @ truth[:, voxels]).clamp(*LOG_SIGNAL_RANGE).exp()
        total = total + (weight[voxels] * (found - right).abs().mean(0)).sum()
    return total


def _watched(
    mean: Tensor, ridge: Tensor, truth: Tensor, mask: Tensor, examples: list[Example]
) -> dict[str, tuple[float, float, int]]:
    squares: dict[str, tuple[float, float, int]] = {}
    errors = [(estimate - truth)[:-1].square().sum(0) for estimate in (mean, ridge)]
    fluid = TYPICAL_MD + MD_SD * truth[0] > FLUID_MD
    white = fa(truth) > ANISOTROPIC
    tissues = {"wm": white & ~fluid & mask, "gm": ~white & ~fluid & mask, "fluid": fluid & mask}
    start = 0
    for e in examples:
        voxels = slice(start, start + e.truth.shape[1])
        start = voxels.stop
        level = "few"
        if e.look is not None:
            noise = e.look.level
            level = next(name for name, lowest in LOOK_BINS.items() if noise >= lowest)
        elif e.directions >= DETERMINED:
            level = next(name for name, lowest in NOISE_BINS.items() if e.sigma >= lowest)
        for name, where in tissues.items():
            here = where[voxels]
            ours, theirs = (float(error[voxels][here].sum()) for error in errors)
            before = squares.get(f"{level}_{name}", (0.0, 0.0, 0))
            squares[f"{level}_{name}"] = (before[0] + ours, before[1] + theirs, before[2] + int(here.sum()))
    return squares
