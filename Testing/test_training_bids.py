"""Scans to train on, from BIDS datasets: which files are taken, and which gradients belong to them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import GradientError, InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.io import write_acquisition
from DiffusionFMLib.io.bids import BidsDataset
from DiffusionFMLib.physics import DTI
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.training.anatomies import DIRECTIONS
from DiffusionFMLib.training.scan_anatomies import scan_anatomies


def dataset(root: Path, *files: str) -> BidsDataset:
    """A dataset of empty files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "made up", "BIDSVersion": "1.10.0"}))
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = BidsDataset.at(root)
    assert found is not None
    return found


def test_only_diffusion_scans_of_subjects_are_taken(tmp_path: Path) -> None:
    wanted = [
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-02/ses-a/dwi/sub-02_ses-a_acq-1k_run-1_dwi.nii",
        "sub-02/ses-a/dwi/sub-02_ses-a_acq-1k_run-2_part-mag_dwi.nii.gz",
        "sub-02/ses-b/dwi/sub-02_ses-b_dwi.nii.gz",
    ]
    others = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/dwi/sub-01_sbref.nii.gz",
        "sub-01/dwi/sub-01_part-phase_dwi.nii.gz",
        "sub-01/dwi/sub-01_dwi.json",
        "sub-01/fmap/sub-01_dwi.nii.gz",
        "sub-01/extra/dwi/sub-01_dwi.nii.gz",
        "derivatives/denoised/sub-01/dwi/sub-01_dwi.nii.gz",
        "sourcedata/sub-01/dwi/sub-01_dwi.nii.gz",
    ]
    found = dataset(tmp_path / "ds", *wanted, *others).scans()
    assert [path.relative_to(tmp_path / "ds").as_posix() for path in found] == sorted(wanted)


def test_a_folder_of_results_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    assert BidsDataset.at(tmp_path) is None
    (tmp_path / "sub-01_dwi.nii.gz").touch()
    assert BidsDataset.at(tmp_path) is None


SCAN = "sub-01/ses-1/dwi/sub-01_ses-1_acq-a_run-1_dwi.nii.gz"

INHERITED = {
    "its own": ["sub-01/ses-1/dwi/sub-01_ses-1_acq-a_run-1_dwi", "sub-01/ses-1/dwi/sub-01_ses-1_dwi", "dwi"],
    "of all runs": ["sub-01/ses-1/dwi/sub-01_ses-1_acq-a_dwi", "sub-01/ses-1/dwi/sub-01_ses-1_run-2_dwi"],
    "of the session": ["sub-01/ses-1/sub-01_ses-1_dwi", "sub-01/sub-01_dwi", "dwi"],
    "of the subject": ["sub-01/sub-01_acq-a_dwi", "sub-01/sub-01_acq-b_dwi", "acq-a_dwi"],
    "of the acquisition": ["acq-a_dwi", "acq-b_dwi", "acq-a_bold"],
    "of all": ["dwi", "sub-02_dwi", "run-2_dwi"],
}


@pytest.mark.parametrize("how", INHERITED)
def test_gradients_are_inherited_from_the_nearest_level(how: str, tmp_path: Path) -> None:
    tables = [f"{name}.{end}" for name in INHERITED[how] for end in ("bval", "bvec")]
    one = dataset(tmp_path / "ds", SCAN, *tables)
    found = one.gradients(tmp_path / "ds" / SCAN)
    assert [path.relative_to(tmp_path / "ds").as_posix() for path in found] == tables[:2]


def test_bval_and_bvec_may_lie_on_different_levels(tmp_path: Path) -> None:
    one = dataset(tmp_path / "ds", SCAN, "dwi.bval", "dwi.bvec", "sub-01/ses-1/dwi/sub-01_ses-1_dwi.bvec")
    assert [path.name for path in one.gradients(tmp_path / "ds" / SCAN)] == ["dwi.bval", "sub-01_ses-1_dwi.bvec"]


def test_no_gradients_or_several_are_errors(tmp_path: Path) -> None:
    # what lies above the root does not belong to the dataset
    (tmp_path / "dwi.bval").touch()
    one = dataset(tmp_path / "ds", SCAN, "sub-01/sub-01_dwi.bvec", "acq-b_dwi.bval")
    with pytest.raises(GradientError, match="run-1_dwi.nii.gz has no bval file"):
        one.gradients(tmp_path / "ds" / SCAN)
    two = dataset(tmp_path / "ds", "acq-a_dwi.bval", "run-1_dwi.bval", "dwi.bvec")
    with pytest.raises(
        GradientError, match=r"several bval files in .*: acq-a_dwi\.bval, run-1_dwi\.bval; expected one"
    ):
        two.gradients(tmp_path / "ds" / SCAN)


def bundle(axes: np.ndarray, seed: int) -> Acquisition:
    """Fibres along the first axis of the scanner, in 16 voxels a side; the directions are turned by `axes`."""
    directions = np.r_[np.zeros((1, 3)), spread_directions(15) @ axes.T]
    gtab = GradientTable(np.r_[0, np.full(15, 1000.0)], directions)
    theta = np.zeros((16, 16, 16, 7))
    theta[..., [0, 3, 5]] = (1.5, 0.4, 0.4)
    theta[:, :, 12:, [0, 3, 5]] = 3.0
    theta[..., 6] = np.log(500)
    noise = np.random.default_rng(seed).normal(0, 10, (16, 16, 16, 16))
    signal = np.maximum(np.exp(theta @ DTI().design(gtab).T) + noise, 1)
    return Acquisition(signal.astype(np.float32), np.diag([-2.0, 2, 2, 1]), gtab)


def test_a_dataset_is_trained_on_with_the_gradients_of_each_subject(tmp_path: Path) -> None:
    root = tmp_path / "archive" / "ds"
    first, second = bundle(np.eye(3), 0), bundle(Rotation.from_rotvec([0, 0, np.pi / 2]).as_matrix(), 1)
    folders = {name: root / name / "dwi" for name in ("sub-01", "sub-02", "sub-03")}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        write_acquisition(second if name == "sub-02" else first, folder / f"{name}_dwi.nii.gz")
    # all share a table, but the second has one of its own; the third scan is not compressed
    (folders["sub-01"] / "sub-01_dwi.bval").rename(root / "dwi.bval")
    (folders["sub-01"] / "sub-01_dwi.bvec").rename(root / "dwi.bvec")
    (folders["sub-02"] / "sub-02_dwi.bvec").rename(root / "sub-02" / "sub-02_dwi.bvec")
    (folders["sub-02"] / "sub-02_dwi.bval").unlink()
    packed = folders["sub-03"] / "sub-03_dwi.nii.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    for path in (packed, *folders["sub-03"].glob("*.bv*")):
        path.unlink()
    dataset(root, "sub-04/dwi/sub-04_dwi.nii.gz", "derivatives/x/sub-01/dwi/sub-01_dwi.nii.gz")
    (root / "derivatives/x/sub-01/dwi/sub-01_dwi.bval").touch()

    report = SilentReport()
    anatomies = list(scan_anatomies(tmp_path / "archive", tmp_path / "pool", report))
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == [
        f"scan-ds-sub-{number}-dwi-sub-{number}_dwi.npz" for number in ("01", "02", "03")
    ]
    (warning,) = (message for code, message in report.warnings if code == "scan")
    assert "sub-04_dwi.nii.gz is not trained on" in warning
    for anatomy in anatomies:
        fibres = anatomy.fields.astype(np.float32)[DIRECTIONS[0]][:, 3:13, 3:13, 3:9]
        assert np.median(np.abs(fibres[0])) > 0.97
    # the dataset itself, as most people would name it
    assert len(list(scan_anatomies(root, tmp_path / "other", SilentReport()))) == 3


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scan to train on"):
        list(scan_anatomies(tmp_path / "absent", tmp_path / "pool", SilentReport()))
