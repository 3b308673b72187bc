"""How noisy a scan is, where, and how far its noise is the same in neighbouring voxels.

The noise is what no smooth function of direction explains: within each shell, and among the b0s, signals are split
into even polynomials of the direction and the rest. The rest, in an orthonormal basis, is noise alone, independent and
of the noise's own variance. Shells of few directions are split in their logarithm, in which a fibre is a polynomial of
degree 2. Where there are too few even for that, noise is what varies least in small blocks of voxels. Background is no
use: scanners filter or blank it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.stats import chi2

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

SPIKE: Final = 20.0
"""A block with a value so many times that of the others shows no noise of the scan."""

RICIAN_VOXELS: Final = 5000
"""Voxels that the correction for Rician noise is taken from."""

RICIAN_STEPS: Final = 8
"""Fixed-point steps of the correction for Rician noise."""


BLOCKS: Final = (5, 3)
"""Edges of the blocks in which noise is told from anatomy where directions are too few, voxels; the second where no
larger one fits into the mask."""

MIN_BLOCK: Final = 9
"""Least voxels of one, where the volume is thin."""

MAX_BLOCKS: Final = 4000
QUIETEST: Final = 0.25
"""Most blocks that are looked at, evenly over the mask, and the share of them, with the least anatomy, that is used."""

SIMULATED_BLOCKS: Final = 1000
CALIBRATION_STEPS: Final = 8
"""Blocks of nothing but noise that are looked at in the same way, and steps until what they show is the same."""

MAX_CORRELATION: Final = 0.65


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
    scatter, largest = (np.zeros(mask.shape, np.float32) for _ in range(2))
    for z in np.flatnonzero(mask.any(axis=(0, 1))):
        here = mask[:, :, z]
        signal = acquisition.signal[:, :, z][here]
        largest[here, z] = np.abs(signal).max(axis=1)
        scatter[here, z] = np.square(extract(signal)).mean(axis=1)
    typical = float(np.median(scatter[mask])) * freedom / chi2.median(freedom)
    if not typical > (ROUNDING * float(np.median(largest[mask]))) ** 2:
        return None
    regular = mask & (scatter < ODD * typical)
    # what the limit cuts off of a chi-squared distribution, its mean lacks
    kept = chi2.cdf(ODD * freedom, freedom + 2) / chi2.cdf(ODD * freedom, freedom)
    shrinkage = _rician_shrinkage(acquisition, regular, typical, np.ones(len(acquisition.gtab)))
    variance = _smooth(scatter, regular, acquisition.voxel_sizes) / (kept * shrinkage)
    return NoiseEstimate(
        float(np.sqrt(typical / shrinkage)),
        np.sqrt(np.where(mask, variance, 0)).astype(np.float32),
        _correlation(acquisition, extract, regular, ODD * float(np.sqrt(typical))),
        freedom,
    )


def noise_in_blocks(acquisition: Acquisition, mask: NDArray[np.bool_]) -> NoiseEstimate:
    """Level and spatial correlation of the noise of a scan whose directions are too few for `estimate_noise`.

    Within a block of voxels anatomy varies in fewer ways than there are volumes: in the combination of volumes that
    varies least in every other voxel of a block, the voxels between show noise (by principal components as Veraart et
    al., 2016, but with voxels held out, as there are hardly more components than anatomy needs). Where noise is
    correlated that is not all of it: as much of it as in blocks of such noise alone. The level is taken as the same
    everywhere. At SNR 30 and more fibres that turn from voxel to voxel raise it, by up to a third.

    Parameters
    ----------
    acquisition : Acquisition
    mask : array, shape (X, Y, Z), bool
        The brain.

    Returns
    -------
    NoiseEstimate
        Of 0 where the signal has no scatter, or no block fits into the mask.
    """
    blocks = _blocks(acquisition.signal, mask)
    variance, shown, shares = _quietest(blocks) if len(blocks) else (0.0, np.zeros(3), np.ones(1))
    if not variance > (ROUNDING * float(np.abs(blocks).max(initial=0))) ** 2:
        return NoiseEstimate(0.0, np.zeros(mask.shape, np.float32), (0.0, 0.0, 0.0), 0)
    correlation, left = np.zeros(3), 1.0
    for _ in range(CALIBRATION_STEPS):
        left, expected, _ = _quietest(_pure_noise(blocks.shape[1:], correlation))
        correlation = np.clip(correlation + shown - expected, 0, MAX_CORRELATION)
    # where there is little but noise, magnitudes vary less: such volumes count most
    shrinkage = _rician_shrinkage(acquisition, mask, variance / left, shares)
    sigma = float(np.sqrt(variance / left / shrinkage))
    x, y, z = map(float, correlation)
    return NoiseEstimate(sigma, np.where(mask, sigma, 0).astype(np.float32), (x, y, z), 0)


def _blocks(signal: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Blocks of voxels that are all in the mask and without spikes, shape (B, X, Y, Z, N); none where none fits."""
    for edge in BLOCKS:
        edges = tuple(min(edge, n) for n in mask.shape)
        at = np.argwhere(sliding_window_view(mask, edges).all(axis=(-3, -2, -1)))
        if len(at) and np.prod(edges) >= MIN_BLOCK:
            at = at[:: -(-len(at) // MAX_BLOCKS)]
            x, y, z = np.moveaxis(at[:, None, None, None] + np.moveaxis(np.indices(edges), 0, -1), -1, 0)
            found = signal[x, y, z]
            largest = np.abs(found).max(axis=(1, 2, 3, 4))
            return found[largest <= SPIKE * np.median(largest)]
    return np.empty((0, 1, 1, 1, signal.shape[-1]), np.float32)


def _quietest(blocks: NDArray[np.float32]) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Variance and correlation along each axis of the combinations of volumes that vary least, and volumes' shares.

    The variance is of voxels by which a combination was not chosen; blocks, shape (B, X, Y, Z, N), are chosen in the
    same way, so that neither choice makes it smaller.
    """
    count, *edges, n = blocks.shape
    flat = blocks.reshape(count, -1, n).astype(np.float64)
    even = np.indices(edges).sum(0).ravel() % 2 == 0
    one, other = _covariances(flat[:, even]), _covariances(flat[:, ~even])
    variances = []
    for chosen_by, held in ((one, other), (other, one)):
        chosen, combination = _least(chosen_by)
        variances.append(np.einsum("bn,bnm,bm->b", combination, held[chosen], combination).mean())
    chosen, combination = _least(one + other)
    noise = flat[chosen] @ combination[..., None]
    noise = (noise - noise.mean(axis=1, keepdims=True)).reshape(-1, *edges)
    products = []
    for axis in range(1, 4):
        along = np.moveaxis(noise, axis, 0)
        products.append((along[1:] * along[:-1]).mean() if len(along) > 1 else 0.0)
    correlation = np.array(products) / max(np.square(noise).mean(), np.finfo(float).tiny)
    return float(np.mean(variances)), correlation, np.square(combination).mean(axis=0)


def _covariances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the volumes in each block, shape (B, N, N), of values, shape (B, V, N)."""
    left = values - values.mean(axis=1, keepdims=True)
    return left.transpose(0, 2, 1) @ left / (values.shape[1] - 1)


def _least(covariances: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Blocks, shape (B,), whose least variance is smallest, and the combination of volumes of each that has it."""
    sizes, vectors = np.linalg.eigh(covariances)
    chosen = sizes[:, 0] <= np.quantile(sizes[:, 0], QUIETEST)
    return chosen, vectors[chosen, :, 0]


def _pure_noise(shape: tuple[int, ...], correlation: NDArray[np.float64]) -> NDArray[np.float32]:
    """Blocks of standard normal noise, shape (X, Y, Z, N) each, whose neighbours are so correlated along each axis."""
    x, y, z, n = shape
    noise = np.random.default_rng(0).standard_normal((SIMULATED_BLOCKS, x + 2, y + 2, z + 2, n), np.float32)
    for axis, r in enumerate(correlation, start=1):
        a = np.float32(neighbours_weight(r))
        first, middle, last = (noise.take(np.arange(k, k + noise.shape[axis] - 2), axis) for k in range(3))
        noise = (middle + a * (first + last)) / np.sqrt(1 + 2 * a**2)
    return noise


def neighbours_weight(correlation: float) -> float:
    """That of both neighbours beside a voxel's own of 1, which correlates white noise so."""
    # weights a : 1 : a have the correlation 2 a / (1 + 2 a^2), which reaches 0.7
    return float((1 - np.sqrt(1 - 2 * correlation**2)) / (2 * correlation)) if correlation > 0 else 0.0


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


def _rician_shrinkage(
    acquisition: Acquisition, regular: NDArray[np.bool_], scatter: float, shares: NDArray[np.float64]
) -> float:
    """Variance of the measured signal over sigma^2, typical of the brain: below 1 where SNR is low.

    The scatter, sigma^2 times that, is of volumes of these shares, shape (N,).
    """
    import torch

    from DiffusionFMLib.physics.noise import RicianNoise

    voxels = np.argwhere(regular)
    signal = acquisition.signal[tuple(voxels[:: -(-len(voxels) // RICIAN_VOXELS)].T)]
    gtab = acquisition.gtab
    groups = [np.flatnonzero(gtab.b0_mask), *(np.array(shell.indices) for shell in gtab.shells)]
    groups = [group for group in groups if len(group)]
    sizes = torch.tensor([shares[group].sum() for group in groups], dtype=torch.float64)
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
