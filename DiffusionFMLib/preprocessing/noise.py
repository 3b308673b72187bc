"""How noisy a scan is, where, and how far its noise is the same in neighbouring voxels.

The noise is what no smooth function of direction explains: within each shell, and among the b0s, signals are split
into even polynomials of the direction and the rest. The rest, in an orthonormal basis, is noise alone, independent and
of the noise's own variance. Shells of few directions are split in their logarithm, in which a fibre is a polynomial of
degree 2. Background is no use: scanners filter or blank it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradients import GradientTable

ORDERS: Final = (8, 6, 4, 2)
"""Degrees of the polynomials; all crossings at b = 3000 are smooth at the highest."""

MIN_FREEDOM: Final = 3
"""Fewer numbers per voxel that are noise alone are no basis for an estimate."""

SHARE_OF_NOISE: Final = 0.25
"""At least so much of a shell's numbers has to be left for the noise, when the degree is chosen."""

SMOOTHING_MM: Final = 10.0
"""Width of the Gaussian that turns voxels' scatter into a map; coils' sensitivities vary over centimetres."""

ODD: Final = 3.0
"""Voxels that scatter so many times more than the median have something else than noise: pulsation, movement."""

ROUNDING: Final = 1e-6
"""Scatter below this fraction of the largest signal is rounding."""

RICIAN_VOXELS: Final = 5000
"""Voxels that the correction for Rician noise is taken from."""

RICIAN_STEPS: Final = 8
"""Fixed-point steps of the correction for Rician noise."""


APART: Final = 2
"""Voxels between which noise is taken as independent, where neighbours are all there is to tell it by."""

LOWEST: Final = 0.25
"""Share of differences between neighbours, the smallest ones, that anatomy has least part in."""

MAX_CORRELATION: Final = 0.6


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """Noise of a scan.

    Parameters
    ----------
    sigma : float
        Standard deviation in each of the receiver's channels, in the scan's unit; its typical value in the mask.
        With less than about 16 directions, sharp crossings raise it: by up to a fifth where they are everywhere.
    sigma_map : array, shape (X, Y, Z), float32
        The same, smooth in space; 0 outside the mask.
    correlation : tuple of float
        Between the noise of neighbours along the three voxel axes.
    freedom : int
        Numbers per voxel that it rests on.
    """

    sigma: float
    sigma_map: NDArray[np.float32]
    correlation: tuple[float, float, float]
    freedom: int


def estimate_noise(acquisition: Acquisition, mask: NDArray[np.bool_]) -> NoiseEstimate | None:
    """Level and spatial correlation of a scan's noise.

    Parameters
    ----------
    acquisition : Acquisition
    mask : array, shape (X, Y, Z), bool
        The brain.

    Returns
    -------
    NoiseEstimate or None
        None where the protocol repeats nothing and has few directions, or the signal no scatter.
    """
    extract = NoiseExtractor(acquisition.gtab)
    freedom = extract.freedom
    if freedom < MIN_FREEDOM or not mask.any():
        return None
    scatter = np.zeros(mask.shape, np.float32)
    largest = 0.0
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        here = mask[:, :, z]
        signal = acquisition.signal[:, :, z][here]
        largest = max(largest, float(np.abs(signal).max()))
        scatter[here, z] = np.square(extract(signal)).mean(axis=1)
    typical = float(np.median(scatter[mask])) * freedom / chi2.median(freedom)
    if not typical > (ROUNDING * largest) ** 2:
        return None
    regular = mask & (scatter < ODD * typical)
    # what the limit cuts off of a chi-squared distribution, its mean lacks
    kept = chi2.cdf(ODD * freedom, freedom + 2) / chi2.cdf(ODD * freedom, freedom)
    shrinkage = _rician_shrinkage(acquisition, regular, typical)
    variance = _smooth(scatter, regular, acquisition.voxel_sizes) / (kept * shrinkage)
    return NoiseEstimate(
        float(np.sqrt(typical / shrinkage)),
        np.sqrt(np.where(mask, variance, 0)).astype(np.float32),
        _correlation(acquisition, extract, regular, ODD * float(np.sqrt(typical))),
        freedom,
    )


def noise_between_neighbours(acquisition: Acquisition, mask: NDArray[np.bool_]) -> NoiseEstimate:
    """Level and spatial correlation of the noise of a scan whose directions are too few for `estimate_noise`.

    In differences between a shell's volumes isotropic tissue cancels, and in second differences of those along an axis
    what varies smoothly; the smallest are noise. The level is taken as the same everywhere. It comes out high, by up to
    a half, where SNR is high and fibres turn from voxel to voxel; and where no two weighted volumes have a b-value in
    common, so that there are only the second differences.

    Parameters
    ----------
    acquisition : Acquisition
    mask : array, shape (X, Y, Z), bool
        The brain.
    """
    volumes = np.array(max(acquisition.gtab.shells, key=len).indices)
    alone = len(volumes) == 1
    if alone:
        volumes = np.flatnonzero(~acquisition.gtab.b0_mask)
    noise = np.where(mask[..., None], acquisition.signal[..., volumes], 0)
    if not alone:
        noise = noise @ _complement(acquisition.gtab.bvecs[volumes], 0)
    near, far = ([_second_difference(noise, mask, axis, step) for axis in range(3)] for step in (1, APART))
    # along the axis that anatomy changes least on
    typical = min((_spread(one) for one in far if len(one)), default=0.0)
    shrinkage = _rician_shrinkage(acquisition, mask, typical) if typical > 0 else 1.0
    ratios = [_spread(one) / _spread(other) if other.any() else 1.0 for one, other in zip(near, far, strict=True)]
    # neighbours' correlation r makes second differences smaller: 3/2 - 2 r instead of 3/2
    x, y, z = (float(np.clip(0.75 * (1 - ratio), 0, MAX_CORRELATION)) for ratio in ratios)
    sigma = float(np.sqrt(typical / shrinkage))
    return NoiseEstimate(sigma, np.where(mask, sigma, 0).astype(np.float32), (x, y, z), 0)


def _second_difference(
    volumes: NDArray[np.float32], mask: NDArray[np.bool_], axis: int, step: int
) -> NDArray[np.float32]:
    """Voxels less the mean of the two so many steps away along an axis, where all are in the mask; flat."""
    volumes, mask = np.moveaxis(volumes, axis, 0), np.moveaxis(mask, axis, 0)
    inside = mask[step:-step] & mask[: -2 * step] & mask[2 * step :]
    return np.ravel((volumes[step:-step] - (volumes[: -2 * step] + volumes[2 * step :]) / 2)[inside])


def _spread(differences: NDArray[np.float32]) -> float:
    """Variance of the noise in second differences of it, by the smallest of them; there is at least one."""
    return float(np.quantile(np.abs(differences), LOWEST) / norm.ppf((1 + LOWEST) / 2)) ** 2 / 1.5


class NoiseExtractor:
    """Combinations of the volumes in which anatomy cancels and only noise is left, as large as in one volume.

    Parameters
    ----------
    gtab : GradientTable

    Attributes
    ----------
    freedom : int
        Number F of combinations.
    """

    def __init__(self, gtab: GradientTable) -> None:
        self._groups: list[tuple[NDArray[np.intp], NDArray[np.float32], bool]] = []
        b0s = np.flatnonzero(gtab.b0_mask)
        if len(b0s) > 1:
            self._groups.append((b0s, _complement(gtab.bvecs[b0s], 0), False))
        for shell in gtab.shells:
            volumes = np.array([index for index in shell.indices if not gtab.trace_mask[index]], np.intp)
            for order in ORDERS:
                rest = _complement(gtab.bvecs[volumes], order)
                if rest.shape[1] >= max(MIN_FREEDOM, SHARE_OF_NOISE * len(volumes)):
                    self._groups.append((volumes, rest, order == ORDERS[-1]))
                    break
        self.freedom = sum(rest.shape[1] for _, rest, _ in self._groups)

    def __call__(self, signal: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise, shape (..., F), of signals, shape (..., N)."""
        parts = []
        for volumes, rest, logarithmic in self._groups:
            values = signal[..., volumes]
            if not logarithmic:
                parts.append(values @ rest)
                continue
            log = np.log(np.maximum(values, np.finfo(np.float32).tiny))
            left = log @ rest
            # noise of the logarithm is that of the signal over the signal
            spread = np.exp(-2 * np.clip(log - left @ rest.T, -40, 40)) @ (rest**2).mean(axis=1)
            parts.append(left / np.sqrt(spread)[..., None])
        return np.concatenate(parts, axis=-1)


def _complement(directions: NDArray[np.float64], order: int) -> NDArray[np.float32]:
    """Orthonormal basis, shape (n, F), of what polynomials of the directions, shape (n, 3), do not explain."""
    monomials = combinations_with_replacement(range(3), order)
    explained = np.stack([directions[:, list(axes)].prod(axis=1) for axes in monomials], axis=1)
    vectors, sizes, _ = np.linalg.svd(explained)
    return vectors[:, int((sizes > 1e-6 * sizes.max()).sum()) :].astype(np.float32)


def _rician_shrinkage(acquisition: Acquisition, regular: NDArray[np.bool_], scatter: float) -> float:
    """Variance of the measured signal over sigma^2, typical of the brain: below 1 where SNR is low."""
    import torch

    from DiffusionFMLib.physics.noise import RicianNoise

    voxels = np.argwhere(regular)
    signal = acquisition.signal[tuple(voxels[:: -(-len(voxels) // RICIAN_VOXELS)].T)]
    gtab = acquisition.gtab
    groups = [np.flatnonzero(gtab.b0_mask), *(np.array(shell.indices) for shell in gtab.shells)]
    groups = [group for group in groups if len(group)]
    sizes = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    squares = [np.square(signal[:, group], dtype=np.float64).mean(axis=1) for group in groups]
    mean_square = torch.as_tensor(np.stack(squares, axis=1))
    shrinkage = 1.0
    for _ in range(RICIAN_STEPS):
        sigma = torch.as_tensor(scatter / shrinkage, dtype=torch.float64).sqrt()
        # the square of the measured signal is s^2 + 2 sigma^2 on average
        clean = (mean_square - 2 * sigma**2).clamp_min(0).sqrt()
        ratio = RicianNoise().variance(clean, sigma) / sigma**2
        shrinkage = float(((ratio * sizes).sum(1) / sizes.sum()).median())
    return shrinkage


def _smooth(
    scatter: NDArray[np.float32], regular: NDArray[np.bool_], voxel_sizes: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Local mean over regular voxels, everywhere near one."""
    from scipy.ndimage import gaussian_filter

    width = SMOOTHING_MM / voxel_sizes
    weight = gaussian_filter(regular.astype(np.float32), width, mode="constant")
    total = gaussian_filter(np.where(regular, scatter, 0), width, mode="constant")
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-6)


def _correlation(
    acquisition: Acquisition, extract: NoiseExtractor, regular: NDArray[np.bool_], limit: float
) -> tuple[float, float, float]:
    """Correlation of the noise of neighbours along x, y and z; `limit` cuts single odd values off."""
    products, squares = np.zeros(3), np.zeros(3)
    before, noise_before = (
        np.zeros(regular.shape[:2], bool),
        np.zeros((*regular.shape[:2], extract.freedom), np.float32),
    )
    for z in range(regular.shape[2]):
        here = regular[:, :, z]
        noise = np.clip(extract(acquisition.signal[:, :, z]), -limit, limit)
        pairs = [
            (noise[1:], noise[:-1], here[1:] & here[:-1]),
            (noise[:, 1:], noise[:, :-1], here[:, 1:] & here[:, :-1]),
            (noise, noise_before, here & before),
        ]
        for axis, (one, other, both) in enumerate(pairs):
            products[axis] += float((one[both] * other[both]).sum())
            squares[axis] += float((one[both] ** 2 + other[both] ** 2).sum()) / 2
        before, noise_before = here, noise
    x, y, z = np.divide(products, squares, out=np.zeros(3), where=squares > 0)
    return float(x), float(y), float(z)
