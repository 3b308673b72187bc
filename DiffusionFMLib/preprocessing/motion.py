"""Motion correction: each volume is aligned rigidly with the first b0, and its gradient rotates with the head.

The registration is DIPY's, by mutual information. Eddy-current distortion is not modelled: that needs the
phase-encoding protocol, and tools made for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.preprocessing.masking import brain_mask

LEVELS: Final = (30, 20)
"""Most iterations at a quarter and at half of the resolution."""

SIGMAS: Final = (3.0, 1.0)
FACTORS: Final = (4, 2)

STILL_VOXELS: Final = 0.1
"""A volume that moved by less than this fraction of a voxel anywhere in the head is not resampled: that would only
blur it."""

HEAD_RADIUS_MM: Final = 70.0
"""Where a rotation is turned into a displacement, mm from the centre of the brain."""


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
    gtab = acquisition.gtab
    reference = int(np.argmax(gtab.b0_mask)) if gtab.b0_mask.any() else 0
    mask = brain_mask(acquisition) if acquisition.mask is None else acquisition.mask
    centre = _centre_of(mask, acquisition.affine)
    volumes = len(gtab)
    transforms = np.broadcast_to(np.eye(4), (volumes, 4, 4)).copy()
    displacement = np.zeros(volumes)
    signal = acquisition.signal.copy()
    static = np.ascontiguousarray(acquisition.signal[..., reference], np.float64)
    for v in range(volumes):
        report.progress(v, volumes, "motion")
        if v == reference:
            continue
        moving = np.ascontiguousarray(acquisition.signal[..., v], np.float64)
        transform = _register(static, moving, acquisition.affine, mask, report)
        moved = _displacement(transform, centre)
        if moved < STILL_VOXELS * acquisition.voxel_sizes.min():
            continue
        transforms[v], displacement[v] = transform, moved
        signal[..., v] = _resample(moving, transform, acquisition.affine)
    report.progress(volumes, volumes, "motion")
    # the head turned by R, the gradient did not: seen from the head it turned by R's inverse
    rotations = np.swapaxes(transforms[:, :3, :3], 1, 2)
    note = (
        f"{int((displacement > 0).sum())} of {volumes} volumes aligned with volume {reference} (rigid, mutual "
        f"information, DIPY), up to {displacement.max():.1f} mm; their gradients rotated."
    )
    corrected = acquisition.with_signal(signal, note, gtab.rotated(rotations))
    return corrected, Motion(transforms, displacement)


def _register(
    static: NDArray[np.float64],
    moving: NDArray[np.float64],
    affine: NDArray[np.float64],
    mask: NDArray[np.bool_],
    report: Report,
) -> NDArray[np.float64]:
    """Rigid transform from static RAS to moving RAS, shape (4, 4)."""
    from dipy.align.imaffine import AffineRegistration, MutualInformationMetric
    from dipy.align.transforms import RigidTransform3D

    class Metric(MutualInformationMetric):
        """DIPY's metric, with a checkpoint at each evaluation."""

        def distance_and_gradient(self, params: Any) -> Any:
            """See `MutualInformationMetric`."""
            report.check()
            return super().distance_and_gradient(params)

    registration = AffineRegistration(
        metric=Metric(nbins=32),
        level_iters=list(LEVELS),
        sigmas=list(SIGMAS),
        factors=list(FACTORS),
        options={"gtol": 1e-4, "ftol": 1e-5},
        verbosity=0,
    )
    # coordinates from the centre of the brain: about a far scanner origin, rotating would mean shifting, and the
    # optimiser would crawl along that valley
    centre = np.eye(4)
    centre[:3, 3] = _centre_of(mask, affine)
    local = np.linalg.inv(centre) @ affine
    found = registration.optimize(
        static,
        moving,
        RigidTransform3D(),
        None,
        static_grid2world=local,
        moving_grid2world=local,
        static_mask=mask.astype(np.int32),
    )
    return centre @ found.affine @ np.linalg.inv(centre)


def _centre_of(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def _displacement(transform: NDArray[np.float64], centre: NDArray[np.float64]) -> float:
    """Largest movement over six points of a head around `centre`, mm."""
    points = centre + HEAD_RADIUS_MM * np.vstack([np.eye(3), -np.eye(3)])
    moved = points @ transform[:3, :3].T + transform[:3, 3]
    return float(np.linalg.norm(moved - points, axis=1).max())


def _resample(
    moving: NDArray[np.float64], transform: NDArray[np.float64], affine: NDArray[np.float64]
) -> NDArray[np.float64]:
    from scipy.ndimage import affine_transform

    voxels = np.linalg.inv(affine) @ transform @ affine
    aligned = affine_transform(moving, voxels[:3, :3], voxels[:3, 3], order=3, mode="nearest")
    return np.maximum(aligned, 0)
