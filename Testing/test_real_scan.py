"""The main job on a real scan that shaped nothing: what the maps must say about a healthy brain.

The scan is a healthy adult, 32 directions at b = 1000, 1.75 x 1.75 x 2.5 mm.
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from DiffusionFMLib.cli import main
from DiffusionFMLib.io.tracts import read_tracts

HALF_MIDLINE_MM = 7.0


class Maps:
    """Maps of a run by name, with the RAS position of each voxel."""

    def __init__(self, out: Path) -> None:
        self.out = out
        image = nib.load(self._path("fa"))
        self.affine = image.affine
        i, j, k = np.indices(image.shape, dtype=np.float32)
        self.ras = np.stack([i, j, k], -1) @ self.affine[:3, :3].T + self.affine[:3, 3]
        self.inside = self["status"] > 0
        self.ras[..., 0] -= np.median(self.ras[self.inside][:, 0])

    def _path(self, name: str) -> Path:
        (path,) = self.out.rglob(f"*_param-{name}_*_dwimap.nii.gz")
        return path

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(nib.load(self._path(name)).dataobj)

    def callosum(self) -> np.ndarray:
        """Largest component near the midline whose fibres run left to right, shape (X, Y, Z)."""
        crossing = (np.abs(self["v1"][..., 0]) > 0.8) & (self["fa"] > 0.4)
        labels, _ = ndimage.label(crossing & (np.abs(self.ras[..., 0]) < HALF_MIDLINE_MM))
        return labels == np.bincount(labels.ravel())[1:].argmax() + 1


@pytest.fixture(scope="module")
def run(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bangalore")
    scan = scans / "test" / "philips_bangalore_32dir" / "dwi.nii.gz"
    assert main(["track", str(scan), "--out", str(out), "--max-count", "3000"]) == 0
    return out


@pytest.fixture(scope="module")
def maps(run: Path) -> Maps:
    return Maps(run)


def test_diffusivity_of_white_matter(maps: Maps) -> None:
    # of the voxels that were fitted; a published normal range
    assert 0.65e-3 < np.median(maps["md"][maps.inside & (maps["fa"] > 0.3)]) < 0.85e-3


def test_callosum(maps: Maps) -> None:
    callosum = maps.callosum()
    assert 0.55 < maps["fa"][callosum].mean() < 0.75
    volume_ml = callosum.sum() * abs(np.linalg.det(maps.affine[:3, :3])) / 1000
    assert 4 < volume_ml < 20


def test_corticospinal_tract_rises(maps: Maps) -> None:
    below = maps.ras - maps.ras[maps.callosum()].mean(axis=0)
    capsule = (np.abs(np.abs(maps.ras[..., 0]) - 25) < 7) & (np.abs(below[..., 1] + 10) < 6)
    capsule &= (np.abs(below[..., 2] + 5) < 8) & (maps["fa"] > 0.5)
    assert capsule.sum() > 200
    x, y, z = np.median(np.abs(maps["v1"][capsule]), axis=0)
    assert z > 0.85
    assert max(x, y) < 0.5


def test_brain_mask(maps: Maps) -> None:
    volume_ml = maps.inside.sum() * abs(np.linalg.det(maps.affine[:3, :3])) / 1000
    assert 1100 < volume_ml < 1800


def test_streamlines_follow_the_maps(run: Path, maps: Maps) -> None:
    (path,) = run.rglob("*.trx")
    streamlines, fa = read_tracts(path)
    assert len(streamlines) == 3000
    points = np.concatenate([line[:-1] for line in streamlines])
    steps = np.concatenate([np.diff(line, axis=0) for line in streamlines])
    voxels = np.rint((points - maps.affine[:3, 3]) @ np.linalg.inv(maps.affine[:3, :3]).T)
    v1 = maps["v1"][tuple(voxels.astype(int).T)]
    cosine = np.abs((steps * v1).sum(1)) / np.linalg.norm(steps, axis=1).clip(1e-6)
    assert np.median(cosine) > 0.97
    assert np.median(fa) > 0.3
    # left and right hemisphere alike
    middle = np.median((np.argwhere(maps.inside) @ maps.affine[:3, :3].T + maps.affine[:3, 3])[:, 0])
    assert 0.35 < (points[:, 0] > middle).mean() < 0.65


def test_gradients_are_found_consistent(run: Path) -> None:
    (path,) = run.rglob("*quality*.json")
    assert json.loads(path.read_text(encoding="utf-8"))["gradients"]["verdict"] == "consistent"
