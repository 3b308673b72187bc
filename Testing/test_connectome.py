"""Which regions streamlines join: against brute force and MRtrix3, on grids of every orientation, and as files."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scan_files import AXES, affine_of
from worker_client import write_small_scan

from DiffusionFMLib.cli import DONE, USER, main
from DiffusionFMLib.connectome import Connectome, connect, sample_within
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import Image, LabelImage, read_labels, read_tracts, write_tracts

SHAPE = (20, 18, 15)
LABELS = (2, 3, 17, 1004, 70_000)


def regions(axes: NDArray[np.float64], seed: int = 0) -> LabelImage:
    """Boxes of labels in an oblique grid, with gaps between them."""
    rng = np.random.default_rng(seed)
    data = np.zeros(SHAPE, np.int32)
    for label in 4 * LABELS:
        low = rng.integers(0, np.array(SHAPE) - 6)
        data[tuple(slice(a, a + 6) for a in low)] = label
    return LabelImage(data, affine_of(axes), "atlas.nii.gz")


def streamlines(image: LabelImage, count: int = 400, seed: int = 1) -> list[NDArray[np.float32]]:
    """Bent lines of unequal steps from anywhere to anywhere, some of them ending outside the image."""
    rng = np.random.default_rng(seed)
    lines = []
    for n in rng.integers(1, 12, count):
        voxels = rng.uniform(-3, np.array(SHAPE) + 2, (2, 3))
        way = np.sort(rng.random(n))[:, None]
        points = voxels[0] + way * (voxels[1] - voxels[0]) + np.sin(np.pi * way) * rng.normal(0, 2, 3)
        lines.append((points @ image.affine[:3, :3].T + image.affine[:3, 3]).astype(np.float32))
    return lines


def label_by_search(point: NDArray[np.float32], image: LabelImage, radius: float) -> int:
    """The label at a point, by looking at every voxel."""
    voxel = np.floor(np.linalg.solve(image.affine, [*point, 1.0])[:3] + 0.5).astype(int)
    if (voxel >= 0).all() and (voxel < SHAPE).all() and image.data[tuple(voxel)]:
        return int(image.data[tuple(voxel)])
    labelled = np.argwhere(image.data)
    distances = np.linalg.norm(labelled @ image.affine[:3, :3].T + image.affine[:3, 3] - point, axis=1)
    nearest = int(np.argmin(distances))
    return int(image.data[tuple(labelled[nearest])]) if distances[nearest] < radius else 0


def arc_length(line: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.r_[0, np.cumsum(np.linalg.norm(np.diff(line.astype(float), axis=0), axis=1))]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("radius", [0.0, 2.5])
def test_matrices_are_those_of_a_search_through_all_voxels(axes: str, radius: float) -> None:
    image = regions(AXES[axes])
    lines = streamlines(image, 200)
    rng = np.random.default_rng(2)
    along = [rng.random(len(line)).astype(np.float32) for line in lines]
    found = connect(lines, image, radius, np.concatenate(along))

    labels = sorted(set(LABELS))
    contributions: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for line, values in zip(lines, along, strict=True):
        one, other = (label_by_search(end, image, radius) for end in (line[0], line[-1]))
        if one and other:
            way = arc_length(line)
            steps = (values[1:].astype(float) + values[:-1]) / 2 * np.diff(way)
            mean = steps.sum() / way[-1] if way[-1] else float(values[0])
            for pair in {(one, other), (other, one)}:
                contributions.setdefault(pair, []).append((way[-1], mean))
    np.testing.assert_array_equal(found.labels, labels)
    assert found.streamlines == 200
    assert found.assigned == sum(len(c) for (a, b), c in contributions.items() if a <= b) > 10
    for i, one in enumerate(labels):
        for j, other in enumerate(labels):
            joined = contributions.get((one, other), [])
            assert found.counts[i, j] == len(joined)
            expected = np.mean(joined, axis=0) if joined else (np.nan, np.nan)
            np.testing.assert_allclose((found.lengths[i, j], found.means[i, j]), expected, rtol=1e-5)


def test_the_same_regions_stored_the_other_way_round_give_the_same_matrix() -> None:
    image = regions(AXES["oblique left-handed"])
    lines = streamlines(image)
    found = connect(lines, image, 4.0)
    # axes exchanged and two of them reversed: another handedness, the same place
    turned = np.zeros((4, 4))
    turned[[0, 1, 2, 3], [2, 0, 1, 3]] = 1
    turned[:3, 3] = (0, SHAPE[1] - 1, SHAPE[2] - 1)
    turned[1, 0], turned[2, 1] = -1, -1
    data = image.data[:, ::-1, ::-1].transpose(1, 2, 0)
    other = connect(lines, LabelImage(np.ascontiguousarray(data), image.affine @ turned, image.name), 4.0)
    np.testing.assert_array_equal(other.counts, found.counts)
    np.testing.assert_array_equal(other.lengths, found.lengths)
    backwards = connect([line[::-1] for line in lines], image, 4.0)
    np.testing.assert_array_equal(backwards.counts, found.counts)


@pytest.mark.skipif(shutil.which("tck2connectome") is None, reason="MRtrix3 is not installed")
@pytest.mark.parametrize("radius", [3.0, 6.0])
def test_counts_and_lengths_are_those_of_mrtrix(radius: float, tmp_path: Path) -> None:
    image = regions(AXES["oblique left-handed"])
    # MRtrix3 numbers its rows by label, up to the highest
    image.data[image.data > 100] -= 998
    image.data[image.data > 100] = 5
    # its format ends a streamline of one point otherwise
    lines = [line for line in streamlines(image, 2000) if len(line) > 1]
    nib.save(nib.Nifti1Image(image.data, image.affine), tmp_path / "atlas.nii.gz")
    write_tracts(tmp_path / "tracts.tck", lines, image.affine, SHAPE)
    found = connect(lines, image, radius)
    assert 0.2 < found.assigned / len(lines) < 0.95
    for flags, matrix, tolerance in (
        ([], found.counts, 0),
        (["-scale_length", "-stat_edge", "mean"], found.lengths, 1e-4),
    ):
        command = ["tck2connectome", "tracts.tck", "atlas.nii.gz", "out.csv", "-symmetric", "-quiet", "-force", *flags]
        command += ["-assignment_radial_search", f"{radius:g}", "-nthreads", "0"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        theirs = np.loadtxt(tmp_path / "out.csv", delimiter=",")
        picked = theirs[np.ix_(found.labels - 1, found.labels - 1)]
        np.testing.assert_allclose(np.nan_to_num(np.asarray(matrix, float)), picked, rtol=tolerance)


def block_connectome(gap: float, radius: float) -> Connectome:
    """Streamlines that end so many mm short of the face of each of two blocks, 2 mm voxels."""
    data = np.zeros((30, 10, 10), np.int32)
    data[:5], data[25:] = 1, 2
    image = LabelImage(data, np.diag([2.0, 2, 2, 1]), "atlas.nii.gz")
    # faces of the blocks are at 9 and 49 mm
    line = np.array([[9 + gap, 9.0, 9.0], [29, 11, 9], [49 - gap, 9.2, 9]], np.float32)
    return connect([line], image, radius)


def test_ends_are_looked_for_within_the_radius() -> None:
    # the centre of the outermost voxel is 1 mm behind its face
    assert block_connectome(2.5, 4.0).counts.tolist() == [[0, 1], [1, 0]]
    assert block_connectome(-0.5, 0.0).counts[0, 1] == 1
    for gap, radius in ((3.5, 4.0), (2.5, 3.0), (0.1, 0.0)):
        with pytest.raises(InputError, match=rf"or within {radius:g} mm of one; 0 of 2 ends are") as caught:
            block_connectome(gap, radius)
        assert "raise the radius" in caught.value.hint


def test_both_ends_in_one_region_count_once_on_the_diagonal() -> None:
    data = np.zeros((10, 10, 10), np.int32)
    data[:4], data[6:] = 5, 9
    image = LabelImage(data, np.eye(4), "atlas.nii.gz")
    loop = np.array([[1, 1, 1], [5, 5, 5], [2, 2, 2]], np.float32)
    across = np.array([[1, 1, 1], [8, 1, 1]], np.float32)
    found = connect([loop, across, across[::-1], np.zeros((0, 3), np.float32)], image, 2.0)
    assert found.counts.tolist() == [[1, 2], [2, 0]]
    assert (found.assigned, found.streamlines) == (3, 4)
    assert found.lengths[0, 1] == 7
    assert np.isnan(found.lengths[1, 1])
    assert found.means is None


def test_a_map_has_to_cover_the_streamlines() -> None:
    grid = np.indices((6, 6, 6)).sum(0).astype(np.float32)
    map = Image(grid, np.diag([-2.0, 2, 2, 1]), "fa")
    line = np.array([[-1.0, 2, 3], [-10.9, 10.9, 0]], np.float32)
    np.testing.assert_allclose(sample_within(map, [line], "fa.nii.gz")[0], 3.0)
    with pytest.raises(InputError, match=r"fa\.nii\.gz does not cover the streamlines: 1 of their 2 points"):
        sample_within(map, [line + np.float32([-0.2, 0, 0])], "fa.nii.gz")


# --- files -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan with tracts of each format, and a label image of another grid that cuts the brain in two sides."""
    folder = tmp_path_factory.mktemp("tracked")
    scan = write_small_scan(folder)
    assert main(["track", str(scan), "--out", str(folder), "--max-count", "200"]) == DONE
    tracts = folder / "scan_model-tensor_desc-deterministic_tractography.trx"
    lines, fa = read_tracts(tracts)
    for kind in (".tck", ".trk"):
        write_tracts(tracts.with_suffix(kind), lines, nib.load(scan).affine, nib.load(scan).shape[:3], fa)
    affine = affine_of(AXES["oblique left-handed"], (3, 3, 3), (0, 0, 0))
    affine[:3, 3] = -affine[:3, :3] @ [15, 15, 15]
    x, _, z = np.moveaxis(np.moveaxis(np.indices((31, 31, 31)), 0, -1) @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    labels = np.where(np.abs(x) < 3, 0, np.where(x < 0, 11, 12)) * (np.abs(z) < 2)
    nib.save(nib.Nifti1Image(labels.astype(np.uint16), affine), folder / "two-sides.nii.gz")
    return folder


def name_of(measure: str) -> str:
    return f"scan_model-tensor_seg-twosides_meas-{measure}_desc-deterministic_connectome"


def read_matrix(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    header, *rows = path.read_text().splitlines()
    return header.split("\t"), np.array([[float(v.replace("n/a", "nan")) for v in row.split("\t")] for row in rows])


@pytest.mark.parametrize("kind", ["trx", "tck", "trk"])
def test_the_command_writes_matrices_beside_the_tracts(kind: str, tracked: Path, tmp_path: Path, capsys) -> None:
    folder = shutil.copytree(tracked, tmp_path / "maps")
    tracts = folder / f"scan_model-tensor_desc-deterministic_tractography.{kind}"
    before = {path.name for path in folder.iterdir()}
    command = ["connectome", str(tracts), "--labels", str(folder / "two-sides.nii.gz")]
    if kind == "tck":
        command += ["--map", str(folder / "scan_model-tensor_param-fa_desc-wls_dwimap.nii.gz")]
    assert main([*command, "--json"]) == DONE
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [f"{name_of(measure)}.tsv" for measure in ("count", "length", "meanfa")]
    assert {path.name for path in folder.iterdir()} - before == {
        f"{name_of(measure)}.{end}" for measure in ("count", "length", "meanfa") for end in ("tsv", "json")
    }

    header, counts = read_matrix(folder / f"{name_of('count')}.tsv")
    assert header == ["11", "12"]
    np.testing.assert_array_equal(counts, counts.T)
    assert counts[0, 1] > 10
    assert np.triu(counts).sum() == result["assigned"] < result["count"]
    lengths, fa = (read_matrix(folder / f"{name_of(measure)}.tsv")[1] for measure in ("length", "meanfa"))
    # fibres of the middle slab run from side to side
    assert 25 < lengths[0, 1] < 60
    assert 0.3 < fa[0, 1] < 0.9

    table = folder / f"{name_of('count')}.tsv"
    sidecar = json.loads(table.with_suffix(".json").read_text())
    assert sidecar["Regions"] == [11, 12]
    assert (sidecar["Streamlines"], sidecar["Assigned"]) == (result["count"], result["assigned"])
    assert sidecar["AssignedFraction"] == pytest.approx(result["assigned"] / result["count"], abs=1e-6)
    assert sidecar["Provenance"]["settings"] == {"radius": 4.0}
    assert sidecar["Provenance"]["inputs"]["tracts"]["Sha256"] == hashlib.sha256(tracts.read_bytes()).hexdigest()
    assert sidecar["Sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    assert str(tmp_path) not in table.with_suffix(".json").read_text()

    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(command) == DONE
    shown = capsys.readouterr().out
    assert f"{result['assigned']} of {result['count']} streamlines" in shown
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


def test_formats_and_workers_agree(tracked: Path, tmp_path: Path) -> None:
    from DiffusionFMLib.events import Artifact
    from DiffusionFMLib.session import Session
    from DiffusionFMLib.worker import Request, execute

    tables = []
    for kind in ("trx", "tck", "trk"):
        out = tmp_path / kind
        tracts = tracked / f"scan_model-tensor_desc-deterministic_tractography.{kind}"
        settings = {"tracts": str(tracts), "labels": str(tracked / "two-sides.nii.gz"), "out": str(out), "radius": 6.0}
        events: list = []
        terminal = execute(
            Request("1", "run", {"job": "connectome", "settings": settings, "arrays": None}), events.append, Session()
        )
        assert terminal.kind == "finished"
        found = [Path(e.path).name for e in events if isinstance(e, Artifact) and e.role == "matrix"]
        # TCK has no room for FA
        assert len(found) == (2 if kind == "tck" else 3)
        tables.append(read_matrix(out / f"{name_of('count')}.tsv")[1])
    np.testing.assert_array_equal(tables[0], tables[1])
    np.testing.assert_array_equal(tables[0], tables[2])


def spoilt(change: Callable[[NDArray[np.float32]], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        image = nib.load(folder / "two-sides.nii.gz")
        data = np.asarray(image.dataobj).astype(np.float32)
        change(data)
        nib.save(nib.Nifti1Image(data, image.affine), folder / "two-sides.nii.gz")

    return spoil


def moved(folder: Path) -> None:
    image = nib.load(folder / "two-sides.nii.gz")
    affine = image.affine.copy()
    affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / "two-sides.nii.gz")


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "elsewhere": (moved, "two-sides.nii.gz lies elsewhere than the streamlines", "not in that of a template"),
    "fractions": (spoilt(lambda d: np.multiply(d, 0.3, out=d)), "two-sides.nii.gz holds 3.6; expected", "nearest"),
    "negative": (spoilt(lambda d: d.__setitem__((0, 0, 0), -4)), "two-sides.nii.gz holds -4; expected", "positive"),
    "not a number": (spoilt(lambda d: d.__setitem__((0, 0, 0), np.nan)), "not finite", "Export"),
    "large": (spoilt(lambda d: d.__setitem__((0, 0, 0), 2.0**25)), "labels up to 33554432", "anew"),
    "empty": (spoilt(lambda d: d.fill(0)), "two-sides.nii.gz is empty", "another label image"),
    "far from ends": (
        spoilt(lambda d: (d.fill(0), d.__setitem__((0, 0, 0), 1))),
        "streamlines has both ends in a region of two-sides.nii.gz",
        "raise the radius",
    ),
    "no labels": (lambda folder: (folder / "two-sides.nii.gz").unlink(), "two-sides.nii.gz does not exist", "name"),
    "no streamlines": (
        lambda folder: write_tracts(folder / "tracts.tck", [], np.eye(4), SHAPE),
        "There are no streamlines",
        "Track with",
    ),
    "damaged": (lambda folder: (folder / "tracts.tck").write_bytes(b"tck"), "tracts.tck is not a readable", ".trx"),
    "points nowhere": (
        lambda folder: write_tracts(folder / "tracts.trk", [np.full((2, 3), np.nan, np.float32)], np.eye(4), SHAPE),
        "2 points of the streamlines are not finite",
        "again",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_bad_input_says_what_to_do_and_writes_nothing(how: str, tracked: Path, tmp_path: Path, capsys) -> None:
    spoil, message, hint = BAD[how]
    shutil.copy(tracked / "two-sides.nii.gz", tmp_path)
    shutil.copy(tracked / "scan_model-tensor_desc-deterministic_tractography.tck", tmp_path / "tracts.tck")
    spoil(tmp_path)
    before = sorted(tmp_path.iterdir())
    tracts = next(path for path in (tmp_path / "tracts.trk", tmp_path / "tracts.tck") if path.exists())
    assert main(["connectome", str(tracts), "--labels", str(tmp_path / "two-sides.nii.gz")]) == USER
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors
    assert hint in errors
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_not_given_is_asked_for(tmp_path: Path, capsys) -> None:
    assert main(["connectome", ""]) == USER
    assert "No streamlines were given" in capsys.readouterr().err
    assert main(["connectome", str(tmp_path / "a.trx")]) == USER
    assert "No label image was given" in capsys.readouterr().err
    assert main(["connectome", str(tmp_path / "a.trx"), "--labels", "b.nii"]) == USER
    assert "a.trx is not a readable file" in " ".join(capsys.readouterr().err.split())


def test_doubts_about_a_label_images_place_are_told(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), None), tmp_path / "atlas.nii.gz")
    report = SilentReport()
    read_labels(tmp_path / "atlas.nii.gz", report)
    assert [code for code, _ in report.warnings] == ["no-orientation"]
