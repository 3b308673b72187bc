"""Reading a volume node that the module exported: Slicer's array and a description beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scan_files import AXES, BVALS, BVECS, affine_of, signal_of, write_scan

from DiffusionFMLib.errors import GradientError, InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import read_acquisition, read_image, read_mask
from DiffusionFMLib.settings import ScanSettings

AFFINE = affine_of(AXES["oblique left-handed"])
GTAB = GradientTable.from_fsl(BVALS, BVECS, AFFINE)


def export(folder: Path, array: np.ndarray | None = None, stem: str = "node", **change: object) -> Path:
    """Write a node as the module does: axes k, j, i, volumes."""
    array = signal_of().transpose(2, 1, 0, 3) if array is None else array
    np.save(folder / f"{stem}.npy", np.ascontiguousarray(array))
    values = {
        "format": "diffusionfm-exported-node",
        "version": 1,
        "affine": AFFINE.tolist(),
        "bvals": BVALS.tolist(),
        "bvecs": GTAB.bvecs.tolist(),
        "name": "DTI 30 dir",
        **change,
    }
    (folder / f"{stem}.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder / f"{stem}.npy"


def read(path: Path):
    return read_acquisition(ScanSettings(dwi=str(path)), SilentReport())


def test_it_is_the_scan_that_nifti_gives(tmp_path: Path) -> None:
    node, file = read(export(tmp_path)), read(write_scan(tmp_path))
    np.testing.assert_array_equal(node.signal, file.signal)
    assert node.signal.dtype == np.float32
    np.testing.assert_allclose(node.affine, file.affine, atol=1e-6)
    np.testing.assert_allclose(node.gtab.bvecs, file.gtab.bvecs, atol=1e-6)
    assert node.name == "DTI-30-dir"


@pytest.mark.parametrize("dtype", ["i2", "u2", "f4", "f8"])
def test_scalar_types(dtype: str, tmp_path: Path) -> None:
    array = signal_of().transpose(2, 1, 0, 3).astype(dtype)
    np.testing.assert_array_equal(read(export(tmp_path, array)).signal, signal_of())


def test_trace_volumes_are_set_aside(tmp_path: Path) -> None:
    bvecs = GTAB.bvecs.copy()
    bvecs[2] = 0
    np.testing.assert_array_equal(read(export(tmp_path, bvecs=bvecs.tolist())).signal, np.delete(signal_of(), 2, 3))


def test_masks_and_images_have_no_bvals(tmp_path: Path) -> None:
    mask = np.zeros((3, 5, 4), np.uint8)
    mask[1, 2, 3] = 7
    path = export(tmp_path, mask, "mask", bvals=None, bvecs=None)
    inside = read_mask(path, read(export(tmp_path)))
    assert np.argwhere(inside).tolist() == [[3, 2, 1]]
    assert read_image(path).data[3, 2, 1] == 7


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"version": 2}, InputError, "version 1"),
        ({"format": "something"}, InputError, "does not describe an exported volume"),
        ({"affine": [[1, 0], [0, 1]]}, InputError, r"affine of shape \(2, 2\)"),
        ({"affine": "none"}, InputError, "affine"),
        ({"bvals": [0, 1000]}, InputError, r"bvals of shape \(2,\); expected \(7,\)"),
        ({"bvecs": None}, InputError, "bvecs"),
        ({"bvecs": (BVECS * 2).tolist()}, GradientError, "has length 2"),
        ({"affine": np.zeros((4, 4)).tolist()}, InputError, "no usable orientation"),
    ],
)
def test_broken_descriptions(change: dict[str, object], kind: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=message) as caught:
        read(export(tmp_path, **change))
    assert caught.value.hint


def test_broken_arrays(tmp_path: Path) -> None:
    path = export(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="not a whole NumPy array"):
        read(path)
    np.save(path, np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a whole NumPy array"):
        read(path)
    export(tmp_path).with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"no readable node\.json"):
        read(path)
