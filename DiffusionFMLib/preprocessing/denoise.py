"""Denoising (MP-PCA) and removal of Gibbs ringing, both DIPY's, with places to stop at."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.preprocessing.masking import brain_mask

PATCH_RADIUS: Final = 2
"""MP-PCA looks at patches of 5 x 5 x 5 voxels, larger when there are more volumes than voxels in one."""

MIN_VOLUMES: Final = 4
"""With fewer, noise and signal cannot be told apart by their eigenvalues."""

SLICES_PER_STEP: Final = 4


def mppca(acquisition: Acquisition, report: Report) -> Acquisition:
    """Denoise by the Marchenko-Pastur law of the eigenvalues of local patches.

    Parameters
    ----------
    acquisition : Acquisition
    report : Report

    Returns
    -------
    Acquisition
        The head denoised; its surroundings, which DIPY would blank, as they were.

    Raises
    ------
    ProtocolError
        If there are fewer than `MIN_VOLUMES` volumes.

    Notes
    -----
    Veraart et al. 2016, NeuroImage 142:394-406; the implementation is `dipy.denoise.localpca.mppca`.
    """
    from dipy.denoise.localpca import mppca as dipy_mppca
    from scipy.ndimage import binary_dilation

    count = len(acquisition.gtab)
    if count < MIN_VOLUMES:
        msg = f"{acquisition.name} has {count} volumes; MP-PCA denoising needs {MIN_VOLUMES} or more."
        raise ProtocolError(msg, "Switch denoising off for this scan.")
    radius = PATCH_RADIUS
    while (2 * radius + 1) ** 3 <= count:
        radius += 1
    radii = np.minimum(radius, (np.array(acquisition.shape) - 1) // 2)
    brain = brain_mask(acquisition) if acquisition.mask is None else acquisition.mask
    focus = binary_dilation(brain, iterations=PATCH_RADIUS).view(_WatchedMask)
    focus.watch(report, "denoise", radii)
    # with few volumes some patches show no noise, whose level is then a mean of nothing; voxels that no patch covers
    # are 0/0; what is not finite keeps its signal below
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        signal = dipy_mppca(acquisition.signal, mask=focus, patch_radius=radii, out_dtype=np.float32)
    head = np.asarray(focus)
    for v in range(count):
        volume = signal[..., v]
        np.copyto(volume, acquisition.signal[..., v], where=~(head & np.isfinite(volume)))
    report.progress(1, 1, "denoise")
    size = " x ".join(str(2 * r + 1) for r in radii)
    return acquisition.with_signal(signal, f"Denoised with MP-PCA (DIPY, {size} patches).")


class _WatchedMask(np.ndarray):
    """A mask that reports progress when it is read voxel by voxel, as DIPY's loop over patches does.

    That loop is the only place where MP-PCA can be stopped: it offers no callback and takes minutes.
    """

    _report: Report | None = None
    _stage: str = ""
    _margin: int = 0
    _row: tuple[Any, ...] = ()

    def watch(self, report: Report, stage: str, radii: NDArray[np.int_]) -> None:
        """Report from now on; `radii` is the margin that the loop leaves out, voxels."""
        self._report, self._stage, self._margin = report, stage, int(radii[2])

    def __getitem__(self, index: Any) -> Any:
        if self._report is not None and isinstance(index, tuple) and index[1:] != self._row:
            # once per row: often enough to stop at, too rare to cost anything
            self._row = index[1:]
            self._report.progress(index[2] - self._margin, self.shape[2] - 2 * self._margin, self._stage)
        return super().__getitem__(index)


def remove_gibbs(acquisition: Acquisition, report: Report) -> Acquisition:
    """Remove Gibbs ringing within slices (the third image axis) by local subvoxel shifts.

    Parameters
    ----------
    acquisition : Acquisition
    report : Report

    Notes
    -----
    Kellner et al. 2016, Magn Reson Med 76:1574-1581; the implementation is `dipy.denoise.gibbs.gibbs_removal`.
    """
    from dipy.denoise.gibbs import gibbs_removal

    signal = np.empty_like(acquisition.signal)
    slices, volumes = acquisition.shape[2], len(acquisition.gtab)
    for v in range(volumes):
        for first in range(0, slices, SLICES_PER_STEP):
            report.progress(v * slices + first, volumes * slices, "gibbs")
            step = slice(first, first + SLICES_PER_STEP)
            slab = acquisition.signal[:, :, step, v].astype(np.float64)
            signal[:, :, step, v] = gibbs_removal(slab, slice_axis=2, inplace=False, num_processes=1)
    # shifting by a fraction of a voxel overshoots at sharp edges, and a magnitude is never negative
    np.maximum(signal, 0, out=signal)
    report.progress(1, 1, "gibbs")
    return acquisition.with_signal(signal, "Gibbs ringing removed by local subvoxel shifts (DIPY).")
