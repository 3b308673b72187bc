"""The gradient table: frames against MRtrix3, invariants, and what it rejects."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_files import AXES, affine_of, rotation, write_scan, write_text

from DiffusionFMLib.errors import GradientError
from DiffusionFMLib.gradients import GradientTable, fsl_to_ras, image_rotation

# FSL's files of these five volumes ...
RECORDED_BVALS = [0, 1000, 1000, 2000, 700]
RECORDED_BVECS = [[0, 0, 0], [1, 0, 0], [0.6, 0.8, 0], [0.48, -0.6, 0.64], [-0.36, 0.48, 0.8]]

# ... beside an image with these axes are, by MRtrix3 3.0.3 `mrinfo dwi.nii -fslgrad bvec bval -dwgrad`, in scanner RAS:
MRTRIX = {
    "RAS": [[-1, 0, 0], [-0.6, 0.8, 0], [-0.48, -0.6, 0.64], [0.36, 0.48, 0.8]],
    "LAS": [[-1, 0, 0], [-0.6, 0.8, 0], [-0.48, -0.6, 0.64], [0.36, 0.48, 0.8]],
    "LPS": [[1, 0, 0], [0.6, -0.8, 0], [0.48, 0.6, 0.64], [-0.36, -0.48, 0.8]],
    "PSR": [[0, -1, 0], [0, -0.6, 0.8], [0.64, -0.48, -0.6], [0.8, 0.36, 0.48]],
    "oblique right-handed": [
        [0.921923153042621, -0.141302449711924, -0.360681740027633],
        [0.390142750273161, -0.859796878485857, -0.329451001144738],
        [0.775630110169413, 0.383027468855731, 0.501685050904006],
        [-0.166138219345982, -0.577151503019643, 0.799558774971993],
    ],
    "oblique left-handed": [
        [-0.921923153042621, 0.141302449711924, 0.360681740027633],
        [-0.390142750273161, 0.859796878485857, 0.329451001144738],
        [-0.353932829080119, -0.643845292408875, 0.678376585638297],
        [0.693259820707599, 0.251129223578214, 0.675518270705886],
    ],
    "oblique sagittal": [
        [0.218508011473329, 0.975528258335725, 0.0244717410585872],
        [-0.0437016021861317, 0.604894348817405, 0.795105651303733],
        [-0.372687518359934, 0.593415645895274, -0.713415646636243],
        [-0.944391942909636, -0.164637327641151, 0.284637328041394],
    ],
}

angles = st.floats(-180, 180)
axes = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.1)
edges = st.tuples(*[st.floats(0.5, 6)] * 3)
handedness = st.sampled_from([1.0, -1.0])


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    turned = rotation(draw(axes), draw(angles)) @ np.diag([draw(handedness), 1, 1])
    return affine_of(turned[:, draw(st.permutations([0, 1, 2]))], draw(edges))


@st.composite
def directions(draw: st.DrawFn) -> np.ndarray:
    vectors = np.array(draw(st.lists(axes, min_size=2, max_size=20)))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# --- frames ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MRTRIX)
def test_fsl_directions_become_those_that_mrtrix_gives(name: str) -> None:
    gtab = GradientTable.from_fsl(RECORDED_BVALS, RECORDED_BVECS, affine_of(AXES[name]))
    np.testing.assert_allclose(gtab.bvecs[1:], MRTRIX[name], atol=1e-9)


def test_recorded_axes_have_both_handednesses() -> None:
    signs = {np.sign(np.linalg.det(AXES[name])) for name in MRTRIX if name.startswith("oblique")}
    assert signs == {1.0, -1.0}


@pytest.mark.skipif(shutil.which("mrinfo") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("name", MRTRIX)
def test_the_installed_mrtrix_agrees_with_the_record(name: str, tmp_path: Path) -> None:
    scan = write_scan(tmp_path, "dwi.nii", np.ones((4, 5, 3, 5), np.int16), affine_of(AXES[name]), None, None)
    bval, bvec = (
        write_text(tmp_path / "bval", RECORDED_BVALS),
        write_text(tmp_path / "bvec", np.transpose(RECORDED_BVECS)),
    )
    command = ["mrinfo", str(scan), "-fslgrad", str(bvec), str(bval), "-dwgrad"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    grad = np.array([[float(word) for word in line.split()] for line in table.splitlines() if line.strip()])
    np.testing.assert_allclose(grad[1:, :3], MRTRIX[name], atol=1e-6)
    np.testing.assert_allclose(GradientTable.from_mrtrix(grad).bvals, RECORDED_BVALS, atol=1e-6)


@given(affines(), directions())
def test_fsl_round_trip(affine: np.ndarray, bvecs: np.ndarray) -> None:
    gtab = GradientTable(np.full(len(bvecs), 1000.0), bvecs)
    back = GradientTable.from_fsl(gtab.bvals, gtab.to_fsl(affine), affine)
    np.testing.assert_allclose(back.bvecs, gtab.bvecs, atol=1e-9)


@given(affines(), directions())
def test_frames_keep_lengths_and_angles(affine: np.ndarray, bvecs: np.ndarray) -> None:
    gtab = GradientTable.from_fsl(np.full(len(bvecs), 1000.0), bvecs, affine)
    np.testing.assert_allclose(gtab.bvecs @ gtab.bvecs.T, bvecs @ bvecs.T, atol=1e-9)


@given(affines())
def test_fsl_frame_is_always_left_handed(affine: np.ndarray) -> None:
    assert np.linalg.det(fsl_to_ras(affine)) == pytest.approx(-1)


@given(affines(), directions())
@settings(max_examples=50)
def test_mirroring_an_image_in_x_leaves_fsl_files_as_they_are(affine: np.ndarray, bvecs: np.ndarray) -> None:
    # why FSL flips x: the same scan stored with its first axis reversed has the same bvec file
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    bvals = np.full(len(bvecs), 1000.0)
    one, other = (GradientTable.from_fsl(bvals, bvecs, a) for a in (affine, mirrored))
    np.testing.assert_allclose(one.bvecs, other.bvecs, atol=1e-9)


def test_shear_does_not_change_lengths() -> None:
    sheared = affine_of(AXES["LAS"]) @ np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    axes = image_rotation(sheared)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)


def test_dicom_directions_are_lps() -> None:
    gtab = GradientTable.from_dicom([1000, 1000], [[1, 0, 0], [0, 0.6, 0.8]])
    np.testing.assert_allclose(gtab.bvecs, [[-1, 0, 0], [0, -0.6, 0.8]])


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("right-anterior-superior", [0, 1, 0]),
        ("left-anterior-superior", [0, 1, 0]),
        ("left-posterior-superior", [0, -1, 0]),
    ],
)
def test_nrrd_measurement_frame_has_its_vectors_as_columns(space: str, expected: list[float]) -> None:
    # "measurement frame: (0,1,0) (-1,0,0) (0,0,1)" takes (1,0,0) to the space's (0,1,0)
    frame = np.column_stack([(0, 1, 0), (-1, 0, 0), (0, 0, 1)])
    gtab = GradientTable.from_nrrd([1000], [[1, 0, 0]], frame, space)
    np.testing.assert_allclose(gtab.bvecs, [expected])


def test_an_unknown_nrrd_space_is_rejected() -> None:
    with pytest.raises(GradientError, match="scanner-xyz"):
        GradientTable.from_nrrd([1000], [[1, 0, 0]], np.eye(3), "scanner-xyz")


def test_mrtrix_rows() -> None:
    gtab = GradientTable.from_mrtrix([[0, 0, 0, 0], [0, 0.6, 0.8, 1200]])
    np.testing.assert_allclose(gtab.to_mrtrix(), [[0, 0, 0, 0], [0, 0.6, 0.8, 1200]])


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, 1, 0, 1])])
def test_an_affine_without_axes_is_rejected(affine: np.ndarray) -> None:
    with pytest.raises(GradientError, match="do not span space"):
        GradientTable.from_fsl([1000], [[1, 0, 0]], affine)


# --- normalisation and rejection -----------------------------------------------------------------------------


def test_directions_of_b0_are_zeroed_and_noted() -> None:
    gtab = GradientTable([1.25, 50, 1000], [[0.6, 0.8, 0], [np.sqrt(0.5), np.sqrt(0.5), 0], [1, 0, 0]])
    assert gtab.b0_mask.tolist() == [True, True, False]
    np.testing.assert_array_equal(gtab.bvecs[:2], 0)
    assert gtab.notes == ("2 b0 volume(s) had a gradient direction; it was set to zero.",)


def test_small_rounding_of_lengths_is_normalised_and_noted() -> None:
    gtab = GradientTable([1000, 1000], [[0.99, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(np.linalg.norm(gtab.bvecs, axis=1), 1)
    assert gtab.notes == ("Gradient directions were normalised to unit length.",)


def test_six_digits_are_no_reason_for_a_note() -> None:
    assert GradientTable([1000], [[0.577350, 0.577350, 0.577350]]).notes == ()


@pytest.mark.parametrize(
    ("bvals", "bvecs", "message"),
    [
        ([0, 1000], [[0, 0, 0]], "2 b-values but 1 gradient directions"),
        ([1000], [[1, 0]], r"shape \(1, 2\)"),
        ([np.nan], [[1, 0, 0]], r"b-values of volume\(s\) 0 are not finite"),
        ([1000, 1000], [[1, 0, 0], [0, np.inf, 0]], r"directions of volume\(s\) 1 are not finite"),
        ([0, -5], [[0, 0, 0], [1, 0, 0]], r"volume\(s\) 1 is negative"),
        ([0, 1000], [[0, 0, 0], [0.5, 0, 0]], r"volume 1 \(b = 1000\) has length 0.5"),
        ([1000], [[1, 1, 1]], "has length 1.73"),
    ],
)
def test_rejected(bvals: list[float], bvecs: list[list[float]], message: str) -> None:
    with pytest.raises(GradientError, match=message) as caught:
        GradientTable(bvals, bvecs)
    assert caught.value.hint


def test_arrays_cannot_be_changed() -> None:
    given = np.array([0.0, 1000])
    gtab = GradientTable(given, [[0, 0, 0], [1, 0, 0]])
    given[1] = 5
    assert gtab.bvals[1] == 1000
    with pytest.raises(ValueError, match="read-only"):
        gtab.bvals[0] = 1


# --- shells and volumes -----------------------------------------------------------------------------------------


def test_shells_tolerate_five_percent() -> None:
    bvals = [0, 960, 1000, 1040, 1995, 2005, 5]
    gtab = GradientTable(bvals, [[0, 0, 0], *[[1, 0, 0]] * 5, [0, 0, 0]])
    assert [s.indices for s in gtab.shells] == [(1, 2, 3), (4, 5)]
    assert gtab.summary() == "b 0 1000 2000: 2+3+2"
    assert repr(gtab) == "GradientTable(7 volumes: 2 b0, 3 at b = 1000, 2 at b = 2000)"


@given(st.lists(st.floats(0, 5000), min_size=1, max_size=40))
def test_every_weighted_volume_is_in_one_shell(bvals: list[float]) -> None:
    gtab = GradientTable(bvals, np.tile([0.0, 0.6, 0.8], (len(bvals), 1)))
    placed = sorted(i for shell in gtab.shells for i in shell.indices)
    assert placed == np.flatnonzero(~gtab.b0_mask).tolist()
    means = [shell.bval for shell in gtab.shells]
    assert means == sorted(means)


def test_opposite_directions_are_one_axis() -> None:
    gtab = GradientTable([0, 1000, 1000, 2000], [[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0]])
    assert gtab.n_directions == 2


def test_trace_volumes_are_weighted_without_direction() -> None:
    gtab = GradientTable([0, 1000, 1000], [[0, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert gtab.trace_mask.tolist() == [False, False, True]
    assert gtab.n_directions == 1


def test_b0_threshold_is_a_setting() -> None:
    bvecs = [[0, 0, 0], [1, 0, 0]]
    assert GradientTable([65, 1000], bvecs).b0_mask.tolist() == [False, False]
    assert GradientTable([65, 1000], bvecs, b0_threshold=100).subset([0, 1]).b0_mask.tolist() == [True, False]


@given(axes, angles, directions())
@settings(max_examples=50)
def test_rotations_turn_directions_and_back(axis: tuple[float, ...], degrees: float, bvecs: np.ndarray) -> None:
    gtab = GradientTable(np.full(len(bvecs), 1000.0), bvecs)
    turn = rotation(axis, degrees)
    np.testing.assert_allclose(gtab.rotated(turn).bvecs, bvecs @ turn.T, atol=1e-9)
    np.testing.assert_allclose(gtab.rotated(turn).rotated(turn.T).bvecs, bvecs, atol=1e-9)
