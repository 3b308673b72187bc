"""Features by hand, which a representation has to beat: of the tensor and of harmonics, by region."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.slabs import MAX_RATIO
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting.estimate import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.layout import Layout
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.settings import FitSettings

CELLS: Final = (3, 3, 2)
"""Regions that a brain's box is cut into along x, y and z, where no atlas is at hand."""

ORDER: Final = 4
LAPLACE: Final = 0.006
"""Of spherical harmonics: highest order, and weight of the Laplace-Beltrami penalty (Descoteaux et al., 2007)."""


def tensor_maps(acquisition: Acquisition) -> NDArray[np.float32]:
    """FA, and MD in um2/ms, along the patient's axes, shape (2, X, Y, Z); 0 outside the mask."""
    found = fit(acquisition, DTI(), FitSettings(method="wls", device="cpu"), SilentReport()).maps
    return _along_axes(acquisition, np.stack([found["fa"].data, 1000 * found["md"].data]))


def rotation_invariants(acquisition: Acquisition, order: int = ORDER) -> NDArray[np.float32]:
    """Energies of spherical harmonics of the signal over b0, by shell and order (Mirzaalian et al., 2016).

    Sums of squared coefficients of an order do not change when the head turns, or when other directions are as dense.

    Parameters
    ----------
    acquisition : Acquisition
        With a mask.
    order : int
        Highest, even.

    Returns
    -------
    array, shape (shells * (order / 2 + 1), X, Y, Z)
        Along the patient's axes; by shell, then by order; 0 outside the mask.

    Raises
    ------
    ProtocolError
        If there is no b0.
    """
    gtab = acquisition.gtab
    if not gtab.b0_mask.any():
        msg = f"{acquisition.name} has no b0, which the signal is divided by."
        raise ProtocolError(msg, "Choose a scan with a b0.")
    mask = _mask(acquisition)
    b0 = acquisition.signal[mask][:, gtab.b0_mask].mean(1, keepdims=True)
    ratio = np.divide(acquisition.signal[mask], b0, out=np.zeros_like(acquisition.signal[mask]), where=b0 > 0)
    ratio = ratio.clip(0, MAX_RATIO).astype(float)
    energies = []
    for shell in gtab.shells:
        volumes = [volume for volume in shell.indices if not gtab.trace_mask[volume]]
        energies.append(energies_of(ratio[:, volumes], gtab.subset(volumes), order))
    maps = np.zeros((sum(map(len, energies)), *mask.shape), np.float32)
    maps[:, mask] = np.concatenate(energies)
    return _along_axes(acquisition, maps)


def energies_of(signal: NDArray[np.float64], gtab: GradientTable, order: int) -> NDArray[np.float64]:
    """Of a shell's signal, shape (V, N): shape (order / 2 + 1, V)."""
    from dipy.reconst.shm import real_sh_descoteaux

    x, y, z = gtab.bvecs.T
    basis, _, orders = real_sh_descoteaux(order, np.arccos(np.clip(z, -1, 1)), np.arctan2(y, x), legacy=False)
    # the penalty is of the order only, so that it turns with the head too
    penalty = np.diag(LAPLACE * (orders * (orders + 1.0)) ** 2)
    found = np.linalg.solve(basis.T @ basis + penalty, basis.T @ signal.T)
    return np.stack([np.square(found[orders == each]).sum(0) for each in range(0, order + 1, 2)])


def cells(acquisition: Acquisition, counts: tuple[int, int, int] = CELLS) -> NDArray[np.intp]:
    """Regions of a brain, along the patient's axes, shape (X, Y, Z): its box cut evenly; -1 outside the mask."""
    mask = _along_axes(acquisition, _mask(acquisition)[None])[0]
    where = np.argwhere(mask)
    if not len(where):
        msg = f"The brain mask of {acquisition.name} is empty."
        raise InputError(msg, "Draw one, or let it be made automatically.")
    low, high = where.min(0), where.max(0) + 1
    place = (where - low) * counts // (high - low)
    labels = np.full(mask.shape, -1, np.intp)
    labels[mask] = np.ravel_multi_index(tuple(place.T), counts)
    return labels


def by_region(maps: NDArray[np.float32], labels: NDArray[np.intp], regions: int) -> NDArray[np.float64]:
    """Means and then standard deviations of maps, shape (C, X, Y, Z), in each region: shape (2 * C * regions,).

    Those of a region without voxels are not a number.
    """
    inside = labels >= 0
    label, values = labels[inside], maps[:, inside].astype(float)
    count = np.bincount(label, minlength=regions)

    def mean(of: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.stack([np.bincount(label, row, regions) for row in of])
        return np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0)

    means = mean(values)
    return np.concatenate([means, np.sqrt(mean(np.square(values - means[:, label])))]).ravel()


def _mask(acquisition: Acquisition) -> NDArray[np.bool_]:
    return np.ones(acquisition.shape, bool) if acquisition.mask is None else acquisition.mask


def _along_axes(acquisition: Acquisition, maps: NDArray) -> NDArray:
    """Maps, shape (C, X, Y, Z), along the patient's axes."""
    turned = Layout.of(acquisition.affine, acquisition.shape).turned(np.moveaxis(maps, 0, -1))
    return np.ascontiguousarray(np.moveaxis(turned, -1, 0))
