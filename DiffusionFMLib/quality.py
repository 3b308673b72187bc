"""How good a scan is, in a few seconds: facts, measures, a traffic light and plain sentences.

The measures are cheap estimates that rank scans and find broken ones; they are not a substitute for looking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradient_check import GradientCheck, check_gradients
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import quadratic_form

if TYPE_CHECKING:
    from DiffusionFMLib.preprocessing.noise import NoiseEstimate

TENSOR_DIRECTIONS: Final = 6
FEW_DIRECTIONS: Final = 12

LOW_SNR: Final = 10.0
BAD_SNR: Final = 4.0
"""Of a b0 volume in the brain."""

DROP_FRACTION: Final = 0.2
DROP_Z: Final = 6.0
"""A slice is an outlier when its mean is this far below its neighbours', by both measures."""

FULL_SLICE: Final = 0.3
"""Slices with less brain than this fraction of the largest are not judged: a small shift changes them a lot."""

MANY_OUTLIERS: Final = 0.05
"""Fraction of slices."""

MOTION_MM: Final = 2.5
MUCH_MOTION_MM: Final = 10.0
"""The estimate is good to about 1 mm, and distortion by eddy currents counts as motion in it."""

GRID_MM: Final = 4.0
"""Motion is estimated on voxels of about this size, mm."""

HEAD_RADIUS_MM: Final = 70.0

MIN_BRAIN_ML: Final = 300.0
"""In less brain, motion and lost slices cannot be told from its contrast, ml."""

MIN_GROUP: Final = 5
"""Outliers and motion are judged against the mean of at least so many volumes of the same b-value."""

SNR_VOXELS: Final = 20_000

LIGHTS: Final = ("green", "amber", "red")

_GRADES: Final = {"consistent": 0, "undetermined": 1, "suspect": 2}
"""Light, counted in `LIGHTS`, of each verdict on the gradients: directions that nobody could check need a look."""


@dataclass(frozen=True)
class ShellFacts:
    """Volumes at one b-value (s/mm2; 0 for all b0s) and their distinct directions."""

    bval: float
    volumes: int
    directions: int


@dataclass(frozen=True)
class OutlierSlice:
    """A slice (third image axis) of a volume, both counted from 0, and how much of its signal is missing, 0..1."""

    volume: int
    slice: int
    drop: float


@dataclass(frozen=True)
class QualitySummary:
    """Quality of a scan.

    Parameters
    ----------
    name : str
    shape : tuple of int
        Voxels along x, y, z.
    voxel_sizes : tuple of float, mm
    shells : tuple of ShellFacts
        b0s first.
    n_directions : int
    snr : float or None
        Median signal of a b0 in the brain over the noise's standard deviation.
    snr_weighted : float or None
        The same for the shell of highest b-value.
    noise_correlation : tuple of float, or None
        Between neighbours along the three voxel axes: interpolated scans have much.
    outliers : tuple of OutlierSlice
        Slices that lost signal.
    outlier_fraction : float
        Of all slices that were judged.
    motion_mm : float or None
        Largest displacement in the head of a volume from the mean of its b-value; a linear estimate.
    motion_median_mm : float or None
    mask_ml : float
    gradients : GradientCheck or None
        None when it was not asked for.
    light : str
        ``green``: nothing found. ``amber``: look at it. ``red``: not to be trusted as it is.
    findings : tuple of str
        What made it amber or red, gravest first.
    facts : str
        One line: ``96x96x60, 2 x 2 x 2 mm, b 0 1000: 2+30``.
    """

    name: str
    shape: tuple[int, int, int]
    voxel_sizes: tuple[float, float, float]
    shells: tuple[ShellFacts, ...]
    n_directions: int
    snr: float | None
    snr_weighted: float | None
    noise_correlation: tuple[float, ...] | None
    outliers: tuple[OutlierSlice, ...]
    outlier_fraction: float
    motion_mm: float | None
    motion_median_mm: float | None
    mask_ml: float
    gradients: GradientCheck | None
    light: str
    findings: tuple[str, ...]
    facts: str

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return asdict(self)


def summarise(
    acquisition: Acquisition, report: Report, check: bool = True, doubts: Sequence[str] = ()
) -> QualitySummary:
    """Summary of a scan's quality.

    Parameters
    ----------
    acquisition : Acquisition
        Its mask is used; one is made where it has none.
    report : Report
        Stage ``quality``; findings go into the summary, not into warnings.
    check : bool
        Also check the gradients against the fibres.
    doubts : sequence of str
        What the reader found doubtful in the scan's files; amber.
    """
    from DiffusionFMLib.preprocessing.masking import brain_mask, mask_doubt
    from DiffusionFMLib.preprocessing.noise import estimate_noise

    report.progress(0, 5, "quality")
    mask = brain_mask(acquisition) if acquisition.mask is None else acquisition.mask
    acquisition = acquisition.with_mask(mask)
    report.progress(1, 5, "quality")
    gradients = check_gradients(acquisition, report) if check else None
    report.progress(2, 5, "quality")
    noise = estimate_noise(acquisition, mask)
    snr, snr_weighted = _snr(acquisition, mask, noise)
    report.progress(3, 5, "quality")
    outliers, fraction = _outlier_slices(acquisition, mask, report)
    report.progress(4, 5, "quality")
    motion = _motion(acquisition, mask, report)
    report.progress(5, 5, "quality")

    doubt = mask_doubt(acquisition, mask)
    found = [
        *_protocol_findings(acquisition),
        *([(_GRADES[gradients.verdict], gradients.sentence)] if gradients and _GRADES[gradients.verdict] else []),
        *_signal_findings(snr, outliers, fraction, motion),
        *([(1, doubt)] if doubt else []),
        *((1, sentence) for sentence in doubts),
    ]
    found.sort(key=lambda finding: -finding[0])
    gtab = acquisition.gtab
    shells = [ShellFacts(0.0, int(gtab.b0_mask.sum()), 0)]
    shells += [ShellFacts(s.bval, len(s), gtab.subset(list(s.indices)).n_directions) for s in gtab.shells]
    sizes = [float(size) for size in acquisition.voxel_sizes]
    edges = " x ".join(f"{size:.3g}" for size in sizes)
    return QualitySummary(
        name=acquisition.name,
        shape=acquisition.shape,
        voxel_sizes=(sizes[0], sizes[1], sizes[2]),
        shells=tuple(shells),
        n_directions=gtab.n_directions,
        snr=snr,
        snr_weighted=snr_weighted,
        noise_correlation=None if noise is None else tuple(round(value, 2) for value in noise.correlation),
        outliers=outliers,
        outlier_fraction=fraction,
        motion_mm=None if motion is None else round(float(motion.max()), 2),
        motion_median_mm=None if motion is None else round(float(np.median(motion)), 2),
        mask_ml=round(float(mask.sum() * acquisition.voxel_volume / 1000), 1),
        gradients=gradients,
        light=LIGHTS[max((grade for grade, _ in found), default=0)],
        findings=tuple(sentence for _, sentence in found),
        facts=f"{'x'.join(map(str, acquisition.shape))}, {edges} mm, {gtab.summary()}",
    )


# --- findings: (grade, sentence), grade 1 amber, 2 red -------------------------------------------------------


def _protocol_findings(acquisition: Acquisition) -> list[tuple[int, str]]:
    gtab, found = acquisition.gtab, []
    if not acquisition.signal.max() > 0:
        found.append((2, "No value of the signal is above zero: there is nothing to measure."))
    if not gtab.b0_mask.any():
        found.append((2, "There is no b0 volume: S0 and diffusivities cannot be measured."))
    if gtab.n_directions < TENSOR_DIRECTIONS:
        needed = f"a tensor needs {TENSOR_DIRECTIONS}, or {DTI.prior_directions} with the generative prior"
        grade = 2 if gtab.n_directions < DTI.prior_directions else 1
        found.append((grade, f"Distinct gradient directions: {gtab.n_directions}; {needed}."))
    elif gtab.n_directions < FEW_DIRECTIONS:
        found.append((1, f"There are only {gtab.n_directions} gradient directions: FA is noisy and biased upwards."))
    if gtab.trace_mask.any():
        found.append((1, f"{int(gtab.trace_mask.sum())} volumes have b > 0 and no direction (trace images)."))
    return found + [(1, sentence) for _, sentence in acquisition.out_of_protocol()]


def _signal_findings(
    snr: float | None, outliers: tuple[OutlierSlice, ...], fraction: float, motion: NDArray[np.float64] | None
) -> list[tuple[int, str]]:
    found = []
    if snr is not None and snr < LOW_SNR:
        found.append((2 if snr < BAD_SNR else 1, f"SNR is about {snr:.0f}: maps will be noisy."))
    if outliers:
        volumes = sorted({outlier.volume for outlier in outliers})
        grade = 2 if fraction > MANY_OUTLIERS else 1
        where = ", ".join(map(str, volumes[:8])) + (", ..." if len(volumes) > 8 else "")
        found.append((grade, f"Slices that lost signal: {len(outliers)}, in volume(s) {where} (the first is 0)."))
    if motion is not None and motion.max() > MOTION_MM:
        worst = float(motion.max())
        cause = "by head motion or eddy currents; consider motion correction"
        sentence = f"Volumes are displaced by up to about {worst:.1f} mm, {cause}."
        found.append((2 if worst > MUCH_MOTION_MM else 1, sentence))
    return found


# --- measures ------------------------------------------------------------------------------------------------


def _groups(acquisition: Acquisition) -> list[NDArray[np.intp]]:
    """Volumes of like b-value, where there are enough to compare one with the rest."""
    gtab = acquisition.gtab
    groups = [np.flatnonzero(gtab.b0_mask), *(np.array(shell.indices, np.intp) for shell in gtab.shells)]
    return [group for group in groups if len(group) >= MIN_GROUP]


def _snr(
    acquisition: Acquisition, mask: NDArray[np.bool_], noise: NoiseEstimate | None
) -> tuple[float | None, float | None]:
    """SNR of b0s and of the highest shell."""
    gtab = acquisition.gtab
    if noise is None or not gtab.b0_mask.any():
        return None, None
    voxels = np.argwhere(mask)
    signal = acquisition.signal[tuple(voxels[:: -(-len(voxels) // SNR_VOXELS)].T)]
    weighted = list(gtab.shells[-1].indices) if gtab.shells else []
    snr_weighted = round(float(np.median(signal[:, weighted])) / noise.sigma, 1) if weighted else None
    return round(float(np.median(signal[:, gtab.b0_mask])) / noise.sigma, 1), snr_weighted


def _outlier_slices(
    acquisition: Acquisition, mask: NDArray[np.bool_], report: Report
) -> tuple[tuple[OutlierSlice, ...], float]:
    """Slices that are darker than their neighbours in the same volume, given how bright each is in its shell."""
    from scipy.ndimage import percentile_filter

    area = mask.sum(axis=(0, 1))
    slices = np.flatnonzero(area > FULL_SLICE * max(int(area.max()), 1))
    outliers: list[OutlierSlice] = []
    judged = 0
    if len(slices) < 5 or mask.sum() * acquisition.voxel_volume / 1000 < MIN_BRAIN_ML:
        return (), 0.0
    weights = mask.astype(np.float32)
    for group in _groups(acquisition):
        means = np.empty((len(group), len(slices)))
        for row, v in enumerate(group):
            report.check()
            means[row] = np.einsum("xyz,xyz->z", acquisition.signal[..., v], weights)[slices] / area[slices]
        ratio = means / np.maximum(np.median(means, axis=0), 1e-6)
        # a high percentile, because interleaved scanning loses every other slice
        trend = percentile_filter(ratio, 70, size=(1, 7), mode="nearest")
        deviation = ratio / np.maximum(trend, 1e-6) - 1
        centred = deviation - np.median(deviation)
        scatter = 1.4826 * float(np.median(np.abs(centred)))
        judged += deviation.size
        for row, k in np.argwhere((deviation < -DROP_FRACTION) & (centred < -DROP_Z * scatter)):
            outliers.append(OutlierSlice(int(group[row]), int(slices[k]), round(float(-deviation[row, k]), 3)))
    return tuple(outliers), round(len(outliers) / judged, 4) if judged else 0.0


def _motion(acquisition: Acquisition, mask: NDArray[np.bool_], report: Report) -> NDArray[np.float64] | None:
    """Displacement of each volume from the others of its b-value, mm; None where no group is large enough.

    A volume that moved a little differs from what its shell predicts by the picture's spatial gradient times the
    displacement: one linear least-squares step gives shift and rotation (Lucas and Kanade 1981).
    """
    from scipy.ndimage import binary_dilation, gaussian_filter

    from DiffusionFMLib.preprocessing.masking import resample

    groups = _groups(acquisition)
    extent = np.array(acquisition.shape) * acquisition.voxel_sizes
    shape = np.maximum(np.round(extent / np.maximum(acquisition.voxel_sizes, GRID_MM)), 1).astype(int)
    if not groups or shape.min() < 5 or mask.sum() * acquisition.voxel_volume / 1000 < MIN_BRAIN_ML:
        return None
    spacing = extent / shape
    region = binary_dilation(resample(mask.astype(np.float32), shape) > 0.5, iterations=2)
    position = (np.argwhere(region) - np.argwhere(region).mean(axis=0)) * spacing
    surface = HEAD_RADIUS_MM * np.vstack([np.eye(3), -np.eye(3)])
    found = []
    for group in groups:
        mean = np.zeros(shape, np.float32)
        signal = np.empty((len(group), len(position)), np.float32)
        for row, v in zip(signal, group, strict=True):
            report.check()
            volume = gaussian_filter(resample(np.ascontiguousarray(acquisition.signal[..., v]), shape), 1.0)
            mean += volume / len(group)
            row[:] = volume[region]
        slope = np.stack([g[region] for g in np.gradient(mean, *spacing)], axis=1)
        inverse = np.linalg.pinv(np.column_stack([slope, np.cross(position, slope), mean[region]])).T
        # row by row, and before the directions' part is taken off: that saves copies in float64
        poses = _unexplained(np.stack([row @ inverse for row in signal]), acquisition.gtab.bvecs[group])
        moved = poses[:, None, :3] + np.cross(poses[:, None, 3:6], surface)
        found.append(np.linalg.norm(moved, axis=2).max(axis=1))
    return np.concatenate(found)


def _unexplained(values: NDArray[np.float64], bvecs: NDArray[np.float64]) -> NDArray[np.float64]:
    """What neither the mean of a shell nor a quadratic form of the direction explains, shape as `values` (N, ...).

    Without it, that fibres look different in every direction would pass for motion. What the form takes of the
    motion itself is made up for on average, by its share of the degrees of freedom.
    """
    design = quadratic_form(bvecs)
    if np.linalg.matrix_rank(design) < 6 or len(design) < 9:
        design = np.ones((len(values), 1))
    hat = design @ np.linalg.pinv(design)
    return (values - hat @ values) / np.sqrt(np.maximum(1 - np.diag(hat), 0.1))[:, None]
