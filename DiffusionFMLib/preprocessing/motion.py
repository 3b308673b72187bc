"""Motion correction: volumes are aligned rigidly, and each gradient rotates with the head.

The registration is DIPY's, by mutual information. Like is aligned with like: b0s with the first b0, each shell's
volumes with the mean of the others, because between a b0 and a diffusion-weighted volume mutual information is off by a
mm or so (CSF changes from bright to dark, and eddy currents distort). Eddy-current distortion itself is not
modelled: that needs the phase-encoding protocol, and tools made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.preprocessing.masking import GRID_MM, brain_mask, resample

LEVELS: Final = ((2, 3.0, 30), (1, 1.0, 50))
"""Coarse, then fine: factor of the grid, smoothing in its voxels, most iterations."""

RIM_MM: Final = 15.0
"""The registration looks this far around the brain: its outline says more than its inside, mm."""

HEAD_RADIUS_MM: Final = 70.0
"""Where a rotation is turned into a displacement, mm from the centre of the brain."""

STILL_VOXELS: Final = 0.2
"""A volume that moved by less than this fraction of a voxel anywhere in the head is not resampled: that would only
blur it."""

CROSS_CONTRAST_VOXELS: Final = 1.0
"""A shell's mean counts as moved from the b0 only beyond this, since their contrasts differ."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Pose of the head in each volume.

    Parameters
    ----------
    transforms : ndarray, shape (N, 4, 4)
        From a point of the reference (the first b0), RAS mm, to the same tissue in the volume.
    displacement : ndarray, shape (N,), mm
        Largest movement within the head.
    """

    transforms: NDArray[np.float64]
    displacement: NDArray[np.float64]


def correct_motion(acquisition: Acquisition, report: Report) -> tuple[Acquisition, Motion]:
    """Align the volumes of a scan with its first b0.

    Parameters
    ----------
    acquisition : Acquisition
    report : Report

    Returns
    -------
    Acquisition
        Resampled (cubic splines) and with rotated gradients; volumes that did not move are untouched.
    Motion
    """
    aligner = _Aligner(acquisition, report)
    gtab = acquisition.gtab
    b0s = np.flatnonzero(gtab.b0_mask)
    groups = [np.array(shell.indices) for shell in gtab.shells]
    aligner.expect(max(len(b0s) - 1, 0) + sum(2 * len(group) for group in groups))
    transforms = np.broadcast_to(np.eye(4), (len(gtab), 4, 4)).copy()
    for v in b0s[1:]:
        transforms[v] = aligner.align(aligner.volume(b0s[0]), aligner.volume(v))
    for group in groups:
        transforms[group], mean = aligner.align_group(group)
        if len(b0s):
            to_mean = aligner.align(aligner.volume(b0s[0]), mean)
            if aligner.displacement(to_mean) > CROSS_CONTRAST_VOXELS * acquisition.voxel_sizes.max():
                transforms[group] = transforms[group] @ to_mean

    displacement = np.array([aligner.displacement(t) for t in transforms])
    still = displacement < STILL_VOXELS * acquisition.voxel_sizes.min()
    transforms[still], displacement[still] = np.eye(4), 0.0
    signal = acquisition.signal.copy()
    for v in np.flatnonzero(~still):
        report.check()
        signal[..., v] = _moved_back(acquisition.signal[..., v], transforms[v], acquisition.affine)
    report.progress(1, 1, "motion")
    # the head turned by R, the gradient did not: seen from the head it turned by R's inverse
    rotations = np.swapaxes(transforms[:, :3, :3], 1, 2)
    note = (
        f"Motion corrected (rigid, mutual information, DIPY): {int((~still).sum())} of {len(gtab)} volumes moved, "
        f"by up to {displacement.max():.1f} mm; their gradients were rotated."
    )
    return acquisition.with_signal(signal, note, gtab.rotated(rotations)), Motion(transforms, displacement)


class _Aligner:
    """Registers volumes of one scan on a grid of about 3 mm, in coordinates in which the optimiser is at ease."""

    def __init__(self, acquisition: Acquisition, report: Report) -> None:
        from scipy.ndimage import binary_dilation

        self._signal, self._report = acquisition.signal, report
        sizes, shape = acquisition.voxel_sizes, np.array(acquisition.shape)
        self._shape = np.maximum(np.round(shape * np.minimum(sizes / GRID_MM, 1)), 1).astype(int)
        mask = brain_mask(acquisition) if acquisition.mask is None else acquisition.mask
        centre = acquisition.affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + acquisition.affine[:3, 3]
        # head radii about the middle of the brain: rotations and shifts then matter alike, and do not mix
        self._to_ras = np.diag([HEAD_RADIUS_MM] * 3 + [1.0])
        self._to_ras[:3, 3] = centre
        step = shape / self._shape
        coarser = np.diag([*step, 1.0])
        coarser[:3, 3] = (step - 1) / 2
        self._affine = acquisition.affine @ coarser
        low = resample(mask.astype(np.float32), self._shape) > 0.5
        self._region = binary_dilation(low, iterations=int(RIM_MM / GRID_MM)).astype(np.int32)
        self._done = self._total = 0

    def expect(self, registrations: int) -> None:
        """Tell how many there will be."""
        self._total = registrations

    def volume(self, index: int) -> NDArray[np.float64]:
        """A volume on the coarser grid."""
        return resample(np.ascontiguousarray(self._signal[..., index]), self._shape).astype(np.float64)

    def align_group(self, indices: NDArray[np.int_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Transforms from the group's common pose to each volume, shape (len(indices), 4, 4), and its mean volume.

        First to the volume that is most like the rest, because a mean over two poses shows both, and each volume
        finds its own in it; then to the mean of the aligned others, which has no direction's contrast.
        """
        found = np.broadcast_to(np.eye(4), (len(indices), 4, 4)).copy()
        volumes = np.stack([self.volume(v) for v in indices])
        if len(indices) == 1:
            return found, volumes[0]
        middle = int(np.abs(volumes - np.median(volumes, axis=0)).sum(axis=(1, 2, 3)).argmin())
        for row in range(len(indices)):
            if row != middle:
                found[row] = self.align(volumes[middle], volumes[row])
        back = np.stack([_moved_back(v, t, self._affine) for v, t in zip(volumes, found, strict=True)])
        total = back.sum(axis=0)
        for row, volume in enumerate(volumes):
            others = (total - back[row]) / (len(indices) - 1)
            found[row] = self.align(others, volume, found[row])
        back = np.stack([_moved_back(v, t, self._affine) for v, t in zip(volumes, found, strict=True)])
        return found, back.mean(axis=0)

    def align(
        self, static: NDArray[np.float64], moving: NDArray[np.float64], start: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Rigid transform from static RAS to moving RAS, shape (4, 4)."""
        from dipy.align.imaffine import AffineRegistration, MutualInformationMetric
        from dipy.align.transforms import RigidTransform3D

        report = self._report

        class Metric(MutualInformationMetric):
            """DIPY's metric, with a checkpoint at each evaluation."""

            def distance_and_gradient(self, params: Any) -> Any:
                """See `MutualInformationMetric`."""
                report.check()
                return super().distance_and_gradient(params)

        report.progress(self._done, self._total, "motion")
        # with a start it is only refined
        levels = LEVELS if start is None else LEVELS[1:]
        registration = AffineRegistration(
            metric=Metric(nbins=32),
            level_iters=[iterations for _, _, iterations in levels],
            sigmas=[sigma for _, sigma, _ in levels],
            factors=[factor for factor, _, _ in levels],
            options={"gtol": 1e-4, "ftol": 1e-6},
            verbosity=0,
        )
        from_ras = np.linalg.inv(self._to_ras)
        local = from_ras @ self._affine
        found = registration.optimize(
            static,
            moving,
            RigidTransform3D(),
            None,
            static_grid2world=local,
            moving_grid2world=local,
            starting_affine=None if start is None else from_ras @ start @ self._to_ras,
            static_mask=self._region,
        )
        self._done += 1
        return self._to_ras @ found.affine @ from_ras

    def displacement(self, transform: NDArray[np.float64]) -> float:
        """Largest movement over six points of the head's surface, mm."""
        points = self._to_ras[:3, 3] + HEAD_RADIUS_MM * np.vstack([np.eye(3), -np.eye(3)])
        moved = points @ transform[:3, :3].T + transform[:3, 3]
        return float(np.linalg.norm(moved - points, axis=1).max())


def _moved_back(
    moving: NDArray[np.floating[Any]], transform: NDArray[np.float64], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A volume resampled to where the head was in the reference."""
    from scipy.ndimage import affine_transform

    voxels = np.linalg.inv(affine) @ transform @ affine
    volume = np.ascontiguousarray(moving, np.float64)
    aligned = affine_transform(volume, voxels[:3, :3], voxels[:3, 3], order=3, mode="nearest")
    # splines overshoot at edges, and a magnitude is never negative
    return np.maximum(aligned, 0)
