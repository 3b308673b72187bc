"""Numbers that say how far an estimate is right, from arrays alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats


def rmse(error: NDArray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(error))))


def recovery(found: NDArray, true: NDArray) -> float:
    """How much of a change was found: 1 for all of it, 0 for none.

    The slope of the changes that were found on the true ones, through the origin: voxels count by the square of what
    there is to find in them, and a change of the wrong sign counts against.
    """
    return float((found * true).sum() / np.square(true).sum())


def coverage(error: NDArray, sd: NDArray, share: float) -> float:
    """How often the central interval that should hold this share of truths does hold them."""
    return float((np.abs(error) <= stats.norm.ppf((1 + share) / 2) * sd).mean())


def coverage_by_sd(error: NDArray, sd: NDArray, share: float, groups: int = 10) -> NDArray:
    """The same in groups of equal size, from the smallest standard deviations to the largest, shape (groups,)."""
    parts = np.array_split(np.argsort(sd, kind="stable"), groups)
    return np.array([coverage(error[part], sd[part], share) for part in parts])


def spearman(one: NDArray, other: NDArray) -> float:
    """Rank correlation."""
    return float(stats.spearmanr(one, other).statistic)


def auc(abnormal: NDArray, normal: NDArray) -> float:
    """How often a value of an abnormal voxel is above one of a normal voxel; ties count half."""
    ranks = stats.rankdata(np.concatenate([abnormal, normal]))[: len(abnormal)]
    count = len(abnormal)
    return float((ranks.sum() - count * (count + 1) / 2) / (count * len(normal)))


def detected(abnormal: NDArray, normal: NDArray, false_alarms: float = 0.05) -> tuple[float, float]:
    """Limit that this share of normal voxels is above, and the share of abnormal ones that is above it."""
    limit = float(np.quantile(normal, 1 - false_alarms))
    return limit, float((abnormal > limit).mean())


def lumps(flagged: NDArray[np.bool_], voxel_sizes: NDArray, diameter: float) -> int:
    """Connected groups of flagged voxels at least as large as a ball of that diameter, mm."""
    labels, count = ndimage.label(flagged)
    volumes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * float(np.prod(voxel_sizes))
    return int((volumes >= np.pi / 6 * diameter**3).sum())


def psnr(error: NDArray, peak: float = 1.0) -> float:
    """Peak signal over root mean square error in decibels: 10 log10(peak^2 / mean square error)."""
    return float(10 * np.log10(peak**2 / np.mean(np.square(error))))


def similarity(found: NDArray, true: NDArray, width: float = 1.5, peak: float = 1.0) -> NDArray:
    """Structural similarity (Wang et al., 2004) at each voxel of two volumes, in Gaussian windows of that width."""

    def local(values: NDArray) -> NDArray:
        return ndimage.gaussian_filter(values, width, mode="nearest", truncate=3.5)

    found, true = found.astype(float), true.astype(float)
    mean, other = local(found), local(true)
    variances = local(found**2) - mean**2 + local(true**2) - other**2
    covariance = local(found * true) - mean * other
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    alike = (2 * mean * other + c1) * (2 * covariance + c2)
    return alike / ((mean**2 + other**2 + c1) * (variances + c2))


def paired(one: NDArray, other: NDArray, share: float = 0.95) -> tuple[float, float]:
    """Mean difference of pairs, and half the width of its interval by Student's t; not a number of one pair."""
    difference = np.asarray(one) - np.asarray(other)
    if len(difference) < 2:
        return float(difference.mean()), float("nan")
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean()), float(stats.t.ppf((1 + share) / 2, len(difference) - 1) * error)
