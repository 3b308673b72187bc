"""The check of gradients against fibres: silent on right tables, and every wrong one named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from brain_scans import head, load_scan

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.gradient_check import CANDIDATES, MIN_MARGIN, Candidate, check_gradients
from DiffusionFMLib.gradients import GradientTable, image_rotation
from DiffusionFMLib.preprocessing.masking import brain_mask

REAL = (
    "test/philips_bangalore_32dir/dwi",
    "test/siemens_xa30_b2500_APPA_T1/dwi_AP",
    "train/siemens_decubitus_b1000_T1/dwi_b",
    "train/uih_16dir_b950_T1/dwi_AP",
)
# a single sign, or two axes exchanged
SINGLE = [c for c in CANDIDATES if (c.flip is None) != (c.order == (0, 1, 2)) and sum(map(np.equal, c.order, range(3)))]

OBLIQUE = np.linalg.qr([[0.9, 0.3, -0.2], [-0.2, 0.9, 0.4], [0.3, -0.3, 0.9]])[0]
LEFT_HANDED = OBLIQUE * np.array([-1, 1, 1]) * np.sign(np.linalg.det(OBLIQUE))


def spoiled(scan: Acquisition, right: Candidate) -> Acquisition:
    """The scan with a table that `right` would put right."""
    axes = image_rotation(scan.affine)
    bvecs = scan.gtab.bvecs @ axes @ right.matrix @ axes.T
    return replace(scan, gtab=GradientTable(scan.gtab.bvals, bvecs))


def named(candidate: Candidate) -> tuple[str, str]:
    flip = "" if candidate.flip is None else "xyz"[candidate.flip]
    swap = "" if candidate.order == (0, 1, 2) else "".join("xyz"[i] for i in candidate.order)
    return flip, swap


def test_candidates_are_all_signed_permutations_up_to_sign():
    matrices = {tuple((c.matrix * s).ravel()) for c in CANDIDATES for s in (1, -1)}
    assert len(CANDIDATES) == 24
    assert len(matrices) == 48
    assert (CANDIDATES[0].matrix == np.eye(3)).all()


@pytest.mark.parametrize("axes", [np.eye(3), OBLIQUE, LEFT_HANDED], ids=["straight", "oblique", "left-handed"])
def test_names_every_flip_and_swap_of_a_phantom(axes):
    scan, truth = head(axes=axes)
    scan = scan.with_mask(truth)
    right = check_gradients(scan)
    assert right.verdict == "consistent"
    for candidate in CANDIDATES[1:] if axes is OBLIQUE else SINGLE:
        found = check_gradients(spoiled(scan, candidate))
        assert (found.verdict, found.flip, found.swap) == ("suspect", *named(candidate))
        assert found.best_score == pytest.approx(right.score, rel=1e-3)


def test_sentence_names_the_image_axis_and_the_anatomy():
    scan, truth = head()
    scan = scan.with_mask(truth)
    flipped = check_gradients(spoiled(scan, Candidate((0, 1, 2), 1))).sentence
    assert "image's y axis (front-back)" in flipped
    assert "x and z swapped" in check_gradients(spoiled(scan, Candidate((2, 1, 0), None))).sentence


def test_few_directions_or_little_brain_are_undetermined():
    scan, truth = head(count=11)
    few = check_gradients(spoiled(scan.with_mask(truth), CANDIDATES[1]))
    assert few.verdict == "undetermined"
    assert "11 directions" in few.sentence
    scan, truth = head()
    corner = truth.copy()
    corner[:, :, 14:] = False
    corner[:, 20:] = False
    small = check_gradients(spoiled(scan.with_mask(corner), CANDIDATES[1]))
    assert small.verdict == "undetermined"
    assert "ml of brain" in small.sentence


def test_noise_is_undetermined():
    scan, truth = head()
    rng = np.random.default_rng(1)
    noise = np.hypot(*rng.normal(0.5, 0.2, (2, *scan.signal.shape))).astype(np.float32)
    assert check_gradients(replace(scan, signal=noise, mask=truth)).verdict == "undetermined"


@pytest.mark.parametrize("name", REAL)
def test_real_scan_is_consistent_and_its_faults_are_named(scans, name):
    scan = load_scan(scans / name)
    scan = scan.with_mask(brain_mask(scan))
    right = check_gradients(scan)
    assert right.verdict == "consistent"
    # twice the threshold: other scans may be worse than these
    assert right.margin > 2 * MIN_MARGIN
    assert len(SINGLE) == 6
    for candidate in SINGLE:
        found = check_gradients(spoiled(scan, candidate))
        assert (found.verdict, found.flip, found.swap) == ("suspect", *named(candidate))


def test_real_table_with_another_convention_is_caught(scans):
    # its bvec file holds x with the opposite sign of FSL's convention for this affine
    found = check_gradients(load_scan(scans / "train/niivue_dsistudio_b2000/dwi"))
    assert (found.verdict, found.flip, found.swap) == ("suspect", "x", "")


def test_real_crop_is_undetermined(scans):
    assert check_gradients(load_scan(scans / "test/mrtrix_msmt_3shell_crop/dwi")).verdict == "undetermined"
