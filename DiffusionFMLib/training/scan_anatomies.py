"""Anatomies from real scans: tissue of real shapes, once the noise is taken out of the fit.

A raw fit carries its noise as texture, which a network would learn as anatomy. So tensors are cleaned by total
variation first, and read as tissue: fluid from mean diffusivity, fibres along the main directions, their spread from
the anisotropy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError, ProtocolError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import image_rotation
from DiffusionFMLib.io.bids import BidsDataset
from DiffusionFMLib.io.images import stem
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import AS_MATRIX
from DiffusionFMLib.prior.coordinates import coordinates_of
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.training.anatomies import FIELDS, Anatomy, cached, trimmed
from DiffusionFMLib.training.cleaning import CLEANING, denoised, noise_of
from DiffusionFMLib.training.neurite_anatomies import has_neurite_maps, neurite_anatomy

Made = TypeVar("Made")

TISSUE_MD, FLUID_MD = 0.85, 3.0
"""Mean diffusivity that tissue is taken to end at, and that of fluid, um2/ms."""

GREY_FA, WHITE_FA = 0.12, 0.3
"""FA at which tissue starts to be white matter, and is nothing else."""

STRAIGHT_FA: Final = 0.8
"""FA of white matter whose fibres are parallel."""

WHITENED_RANGE: Final = (-4.0, 4.0)
"""Fitted coordinates beyond are noise."""


def scan_anatomies(scans: Path, folder: Path, report: Report) -> Iterator[Anatomy]:
    """Anatomies of all scans in a folder that a tensor can be fitted to, from the cache or new.

    Parameters
    ----------
    scans : Path
        Searched through all its folders for NIfTI images with bval and bvec beside them, for the maps of NODDI fits
        (see `neurite_anatomies.MAPS`), and for BIDS datasets; of these the subjects' diffusion scans are taken.
    folder : Path
        Where anatomies are kept between runs.
    report : Report
        Warned of scans that are left out.

    Raises
    ------
    InputError
        If there are none.
    """

    def read(path: Path, dataset: BidsDataset | None) -> Anatomy:
        make = partial(neurite_anatomy, path) if path.is_dir() else partial(_anatomy_in, path, dataset, report)
        return cached(folder, f"scan-{scan_name(path, scans)}", make)

    return of_each_scan(scans, read, report)


def of_each_scan(
    scans: Path, read: Callable[[Path, BidsDataset | None], Made], report: Report, maps: bool = True
) -> Iterator[Made]:
    """What `read` makes of each scan in a folder; those that it cannot read are left out with a warning.

    Parameters
    ----------
    scans : Path
        See `scan_anatomies`.
    read : callable
        Given a scan's path and the BIDS dataset that it belongs to, if any.
    report : Report
    maps : bool
        Whether folders of NODDI maps are scans too.

    Raises
    ------
    InputError
        If nothing is left.
    """
    found = sorted((scan for scan in _scans(scans) if maps or not scan[0].is_dir()), key=lambda scan: scan[0])
    used = 0
    for done, (path, dataset) in enumerate(found):
        report.progress(done, len(found), "Scans")
        try:
            made = read(path, dataset)
        except InputError as error:
            report.warning("scan", f"{path.name} is not trained on: {error.message}")
            continue
        used += 1
        yield made
    if not used:
        wanted = "NIfTI with .bval and .bvec beside it" + (", NODDI maps" if maps else "")
        msg = f"There is no scan to train on in {scans}; expected {wanted}, or BIDS."
        raise InputError(msg, "Choose another folder.")


def _scans(folder: Path) -> Iterator[tuple[Path, BidsDataset | None]]:
    """Scans and folders of NODDI maps, in a folder and those below it, with the dataset that they belong to."""
    for parent, folders, files in os.walk(folder):
        dataset = BidsDataset.at(Path(parent))
        if dataset is not None:
            yield from ((path, dataset) for path in dataset.scans())
            # derivatives and sources would show the same heads again
            folders.clear()
            continue
        if has_neurite_maps(Path(parent)):
            yield Path(parent), None
        paths = (Path(parent, name) for name in files if name.endswith((".nii", ".nii.gz")))
        yield from ((path, None) for path in paths if path.with_name(f"{stem(path)}.bval").is_file())


def scan_name(path: Path, scans: Path) -> str:
    """What a scan's files in the cache are called."""
    return "-".join((*path.relative_to(scans).parts[:-1], stem(path)))


def read_scan(path: Path, dataset: BidsDataset | None, report: Report) -> Acquisition:
    """A scan, with the gradients that belong to it in its dataset."""
    from DiffusionFMLib.io import read_acquisition
    from DiffusionFMLib.settings import ScanSettings

    bval, bvec = map(str, dataset.gradients(path)) if dataset is not None else ("", "")
    return read_acquisition(ScanSettings(dwi=str(path), bval=bval, bvec=bvec), report)


def _anatomy_in(path: Path, dataset: BidsDataset | None, report: Report) -> Anatomy:
    from DiffusionFMLib.preprocessing.masking import brain_mask

    acquisition = read_scan(path, dataset, report)
    if problem := DTI().unsupported(acquisition.gtab):
        raise ProtocolError(problem)
    return anatomy_of(acquisition, brain_mask(acquisition), report)


def anatomy_of(acquisition: Acquisition, mask: NDArray[np.bool_], report: Report) -> Anatomy:
    """What is in each voxel of a scan, shape of the mask (X, Y, Z)."""
    from DiffusionFMLib.fitting import fit

    fitted = fit(replace(acquisition, mask=mask), DTI(), FitSettings(reweightings=3, device="cpu"), report)
    coordinates = coordinates_of(DTI())
    theta = torch.as_tensor(fitted.parameters.T.astype(np.float64))
    theta[6] = 0
    volume, inside = torch.zeros(6, *mask.shape), torch.as_tensor(mask)
    volume[:, inside] = coordinates.whiten(theta)[:6].clamp(*WHITENED_RANGE).float()
    clean = torch.zeros_like(theta)
    clean[:6] = denoised(volume, inside, CLEANING * noise_of(volume, inside))[:, inside].double()
    tensors = coordinates.theta(clean).numpy()[:6]
    axes = image_rotation(acquisition.affine)
    fields = np.zeros((len(FIELDS), *mask.shape), np.float16)
    fields[:, mask] = tissue_of(np.einsum("ji,jkv,kl->vil", axes, tensors[np.array(AS_MATRIX)], axes))
    return Anatomy(trimmed(fields), acquisition.voxel_sizes)


def tissue_of(tensors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fields, shape (13, V), whose tensors are about those given, shape (V, 3, 3), um2/ms."""
    evals, evecs = np.linalg.eigh(tensors)
    low, middle, high = np.maximum(evals, 0.05).T
    md = (low + middle + high) / 3
    fluid = np.clip((md - TISSUE_MD) / (FLUID_MD - TISSUE_MD), 0, 1)
    # the tissue's own tensor, without the fluid's share of it
    solid = [np.maximum(value - fluid * FLUID_MD, 0.05) for value in (low, middle, high)]
    mean = sum(solid) / 3
    fa = np.sqrt(1.5 * sum((value - mean) ** 2 for value in solid) / sum(value**2 for value in solid))
    white = np.clip((fa - GREY_FA) / (WHITE_FA - GREY_FA), 0, 1)
    # planar tensors are two populations, along the two larger axes
    linear, planar = solid[2] - solid[1], solid[1] - solid[0]
    second = 0.5 * np.clip(planar / (linear + planar + 1e-3), 0, 1)
    spread = np.clip(0.45 * (1 - fa / STRAIGHT_FA), 0.005, 0.5)
    tissue = 1 - fluid
    return np.concatenate(
        [
            [tissue * white * (1 - second), tissue * white * second, tissue * (1 - white), fluid],
            evecs[:, :, 2].T,
            evecs[:, :, 1].T,
            [spread, spread, np.clip((0.8 - mean) / 0.8, -0.4, 0.4)],
        ]
    )
