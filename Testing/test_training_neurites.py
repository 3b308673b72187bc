"""NODDI maps as anatomies to train on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.training.anatomies import DIRECTIONS, WEIGHTS
from DiffusionFMLib.training.neurite_anatomies import MAPS, PACKING, TYPICAL_NEURITES, has_neurite_maps, neurite_anatomy
from DiffusionFMLib.training.scan_anatomies import scan_anatomies

SHAPE = (14, 12, 10)
AFFINE = np.diag([2.0, 2.0, 2.5, 1.0])
FIBRE = np.array([0.48, 0.6, 0.64])
"""In voxel axes."""


def write(folder: Path, maps: dict[str, NDArray[np.float64]], affine: NDArray[np.float64]) -> None:
    folder.mkdir(parents=True)
    for name, values in maps.items():
        nib.Nifti1Image(values.astype(np.float32), affine).to_filename(folder / f"{name}.nii.gz")


def tissues(affine: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """White matter, grey matter and fluid side by side, in a frame of air."""
    fluid, neurites, odi = (np.full(SHAPE, value) for value in (0.05, 0.6, 0.15))
    odi[5:9], neurites[5:9] = 0.7, 0.4
    # what a fit finds in fluid means nothing
    fluid[9:], neurites[9:], odi[9:] = 1.0, 1.0, 0.5
    # FSL's frame mirrors x where the affine does not
    x, y, z = FIBRE * ([-1, 1, 1] if np.linalg.det(affine) > 0 else [1, 1, 1])
    theta, phi = np.full(SHAPE, np.arccos(z)), np.full(SHAPE, np.arctan2(y, x))
    maps = dict(zip(MAPS, (fluid, neurites, odi, theta, phi), strict=True))
    for values in maps.values():
        values[:, :, :2] = 0
    return maps


@pytest.mark.parametrize("handed", [1, -1])
def test_maps_become_what_is_in_each_voxel(handed: int, tmp_path: Path) -> None:
    affine = AFFINE * [handed, 1, 1, 1]
    write(tmp_path / "maps", tissues(affine), affine)
    anatomy = neurite_anatomy(tmp_path / "maps")
    fields = anatomy.fields.astype(np.float64)
    assert fields.shape[1:] == (*SHAPE[:2], SHAPE[2] - 2)
    np.testing.assert_allclose(anatomy.voxel_sizes, [2, 2, 2.5])
    np.testing.assert_allclose(fields[WEIGHTS].sum(0), 1, atol=2e-3)
    white, grey, water = fields[:, 2, 6, 4], fields[:, 7, 6, 4], fields[:, 12, 6, 4]
    assert white[0] > 0.9
    assert grey[2] > 0.9
    assert water[3] > 0.97
    assert abs(white[DIRECTIONS[0]] @ FIBRE) > 0.999
    t = np.linspace(0, 1, 2001)
    for voxel, odi in ((white, 0.15), (grey, 0.7)):
        density = np.exp(t**2 / np.tan(np.pi / 2 * odi))
        assert voxel[10] == pytest.approx(float((density * (1 - t**2)).sum() / density.sum()), abs=2e-3)
    assert white[12] > 0.1 > -0.1 > grey[12]
    assert abs(water[12]) < 0.05


def test_noise_is_taken_out(tmp_path: Path) -> None:
    rng, maps = np.random.default_rng(0), tissues(AFFINE)
    for values in maps.values():
        values += 0.05 * rng.normal(size=SHAPE) * (values != 0)
    write(tmp_path / "maps", maps, AFFINE)
    white = neurite_anatomy(tmp_path / "maps").fields[12, 1:4, 1:-1, 1:-1].astype(np.float64)
    neurites = TYPICAL_NEURITES * (1 + PACKING * white)
    assert neurites.mean() == pytest.approx(0.6, abs=0.01)
    assert neurites.std() < 0.02


def test_maps_are_found_beside_scans(tmp_path: Path) -> None:
    write(tmp_path / "scans" / "head", tissues(AFFINE), AFFINE)
    assert has_neurite_maps(tmp_path / "scans" / "head")
    assert len(list(scan_anatomies(tmp_path / "scans", tmp_path / "pool", SilentReport()))) == 1
    assert (tmp_path / "pool" / "scan-head.npz").is_file()
    (tmp_path / "scans" / "head" / "phi.nii.gz").unlink()
    assert not has_neurite_maps(tmp_path / "scans" / "head")
    with pytest.raises(InputError, match="no scan to train on"):
        list(scan_anatomies(tmp_path / "scans", tmp_path / "other", SilentReport()))


def test_a_broken_map_is_named(tmp_path: Path) -> None:
    write(tmp_path / "scans" / "head", tissues(AFFINE), AFFINE)
    (tmp_path / "scans" / "head" / "ODI.nii.gz").write_bytes(b"no image")
    report = SilentReport()
    with pytest.raises(InputError, match="no scan to train on"):
        list(scan_anatomies(tmp_path / "scans", tmp_path / "pool", report))
    assert any("ODI.nii.gz" in message for _, message in report.warnings)
