"""A real worker process: what it answers, and that it survives whatever is sent to it."""

from __future__ import annotations

import json
import statistics
import time

import numpy as np
import pytest
from worker_client import WorkerClient, of_kind, write_small_scan

from DiffusionFMLib.maps import FitStatus
from DiffusionFMLib.physics import MODELS


@pytest.fixture(scope="module")
def fitted(worker, scan, tmp_path_factory):
    """Events and folders of one fit."""
    out, arrays = tmp_path_factory.mktemp("maps"), tmp_path_factory.mktemp("arrays")
    return worker.run("fit", dwi=scan, out=out, arrays=arrays), out, arrays


def test_events_of_a_run_come_in_order(worker, fitted):
    events, _, _ = fitted
    kinds = [e.kind for e in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["result", "finished"]
    assert [e.terminal for e in events].count(True) == 1
    assert events[0].pid == worker.process.pid
    assert events[0].device in ("cpu", "cuda")
    fractions = [e.fraction for e in of_kind(events, "progress")]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    stages = list(dict.fromkeys(e.stage for e in of_kind(events, "progress")))
    assert stages == ["Reading", "Checking the scan", "Finding the brain", "Fitting", "Writing"]


def test_every_map_is_announced_and_agrees_with_its_array(fitted):
    import nibabel

    events, out, _ = fitted
    maps = {e.name: e for e in of_kind(events, "artifact") if e.role == "map"}
    assert list(maps) == [spec.name for spec in MODELS["dti"].map_specs] + ["residual", "status"]
    for name, event in maps.items():
        image = nibabel.load(event.path)
        array = np.load(event.array)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(np.swapaxes(array, 0, 2), np.asarray(image.dataobj, np.float32), err_msg=name)
        np.testing.assert_array_equal(image.affine, event.affine)
    assert maps["fa"].title == "FA"
    assert maps["fa"].window == [0.0, 0.8]
    assert maps["s0"].window is None
    assert maps["md"].unit == "mm2/s"
    assert {path.name for path in out.iterdir()} >= {"dataset_description.json", "scan_desc-quality_dwi.json"}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_the_result_says_what_was_found(fitted):
    events, out, _ = fitted
    (result,) = of_kind(events, "result")
    assert result.data["reused"] == []
    assert result.data["maps"][:2] == ["fa", "md"]
    assert result.data["quality"]["light"] in ("green", "amber", "red")
    assert json.loads((out / "scan_desc-quality_dwi.json").read_text()) == result.data["quality"]


def test_a_second_run_keeps_the_maps(worker, fitted, scan):
    _, out, _ = fitted
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.nii.gz")}
    events = worker.run("fit", dwi=scan, out=out)
    assert events[-1].kind == "finished"
    assert set(of_kind(events, "result")[0].data["reused"]) == set(of_kind(events, "result")[0].data["maps"])
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.nii.gz")} == before


def test_a_fresh_worker_keeps_the_maps_and_gives_the_same_arrays(fitted, scan, tmp_path):
    _, out, arrays = fitted
    with WorkerClient() as other:
        events = other.run("fit", dwi=scan, out=out, arrays=tmp_path)
        assert len(of_kind(events, "result")[0].data["reused"]) == len(of_kind(events, "result")[0].data["maps"])
        voxel = other.until_end(other.send("query", what="voxel", ijk=[12, 12, 6]))[0].data
    for array in arrays.glob("*.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / array.name), np.load(array))
    assert voxel["maps"]["fa"] == pytest.approx(np.load(next(arrays.glob("*param-fa_*")))[6, 12, 12])


def test_a_damaged_map_is_made_again(worker, fitted, scan):
    _, out, _ = fitted
    path = out / "scan_model-tensor_param-fa_desc-wls_dwimap.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    (out / "scan_model-tensor_param-md_desc-wls_dwimap.nii.gz").unlink()
    (result,) = of_kind(worker.run("fit", dwi=scan, out=out), "result")
    assert set(result.data["maps"]) - set(result.data["reused"]) == {"fa", "md"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize("tract_format", ["trx", "trk", "tck"])
def test_streamlines_come_with_an_array_and_are_kept_by_a_second_run(worker, scan, tmp_path, tract_format):
    settings = {"dwi": scan, "out": tmp_path / "maps", "tract_format": tract_format, "max_count": 100}
    events = worker.run("track", arrays=tmp_path / "arrays", **settings)
    first = next(e for e in of_kind(events, "artifact") if e.role == "tracts")
    assert of_kind(events, "progress")[-1].fraction == 1
    made = {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()}
    again = worker.run("track", arrays=tmp_path / "again", **settings)
    (result,) = of_kind(again, "result")
    assert "tracts" in result.data["reused"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()} == made
    second = next(e for e in of_kind(again, "artifact") if e.role == "tracts")
    with np.load(first.array) as one, np.load(second.array) as other:
        assert len(one["offsets"]) == result.data["count"] + 1 == 101
        assert one["points"].shape == (one["offsets"][-1], 3)
        assert one["points"].dtype == one["fa"].dtype == np.float32
        np.testing.assert_array_equal(one["offsets"], other["offsets"])
        np.testing.assert_allclose(one["points"], other["points"], atol=1e-3)
        np.testing.assert_allclose(one["fa"], other["fa"], atol=1e-6)
    (changed,) = of_kind(worker.run("track", **{**settings, "max_angle": 20.0}), "result")
    assert "tracts" not in changed.data["reused"]
    assert "fa" in changed.data["reused"]


def test_a_seed_mask_starts_streamlines_where_it_is(worker, scan, tmp_path):
    import nibabel

    image = nibabel.load(scan)
    seeds = np.zeros(image.shape[:3], np.uint8)
    seeds[10:14, 12, 6] = 3
    seeds[12, 12, 10] = 7
    nibabel.save(nibabel.Nifti1Image(seeds, image.affine), tmp_path / "seeds.nii.gz")
    settings = {"dwi": scan, "out": tmp_path / "maps", "seed_mask": tmp_path / "seeds.nii.gz", "seed_density": 8.0}
    settings |= {"min_length": 5.0}
    events = worker.run("track", arrays=tmp_path, seed_label=3, **settings)
    with np.load(next(e for e in of_kind(events, "artifact") if e.role == "tracts").array) as tracts:
        # all of them pass the row of seeds, in the middle of the slab
        middles = [line.mean(axis=0) for line in np.split(tracts["points"], tracts["offsets"][1:-1])]
    assert len(middles) == of_kind(events, "result")[0].data["count"] > 5
    assert np.abs(np.array(middles)[:, 1:] - [1.25, 1.25]).max() < 5
    (other,) = of_kind(worker.run("track", arrays=tmp_path, **settings), "result")
    assert "tracts" not in other.data["reused"]
    failed = worker.run("track", **{**settings, "seed_mask": tmp_path / "absent.nii.gz"})[-1]
    assert failed.code == "input"


def test_a_change_of_settings_or_scan_makes_new_maps(worker, scan, tmp_path):
    copy = write_small_scan(tmp_path / "scan", seed=1)
    worker.run("fit", dwi=copy, out=tmp_path / "maps")
    changed = worker.run("fit", dwi=copy, out=tmp_path / "maps", b0_threshold=40.0)
    assert of_kind(changed, "result")[0].data["reused"] == []
    write_small_scan(tmp_path / "scan", seed=2)
    changed = worker.run("fit", dwi=copy, out=tmp_path / "maps", b0_threshold=40.0)
    assert of_kind(changed, "result")[0].data["reused"] == []


def test_info_tells_what_the_scan_supports(worker, scan, tmp_path):
    few = write_small_scan(tmp_path, n_directions=5)
    (result,) = of_kind(worker.run("info", dwi=few), "result")
    assert result.data["models"]["adc"] is None
    methods = result.data["methods"]["dti"]
    assert "6" in methods["wls"]
    assert methods["prior"] is result.data["models"]["dti"] is None
    (result,) = of_kind(worker.run("info", dwi=scan), "result")
    assert result.data["models"]["adc"] is result.data["models"]["dti"] is None
    assert "two shells" in result.data["models"]["dki"]


def test_the_voxel_inspector_answers_fast(worker, fitted, scan):
    worker.run("fit", dwi=scan, out=fitted[1])
    seconds = []
    for i in range(20):
        begun = time.perf_counter()
        events = worker.until_end(worker.send("query", what="voxel", ijk=[8 + i % 8, 12, 6]))
        seconds.append(time.perf_counter() - begun)
    assert [e.kind for e in events] == ["result", "finished"]
    answer = events[0].data
    assert len(answer["signal"]) == len(answer["fitted"]) == len(answer["bvals"]) == 13
    assert np.corrcoef(answer["signal"], answer["fitted"])[0, 1] > 0.98
    fa = np.load(next(fitted[2].glob("*param-fa_*")))
    assert answer["maps"]["fa"] == pytest.approx(fa[6, 12, answer["ijk"][0]])
    assert answer["maps"]["status"] in {float(s) for s in FitStatus}
    print(f"voxel query: median {1000 * statistics.median(seconds):.1f} ms, worst {1000 * max(seconds):.1f} ms")
    assert statistics.median(seconds) < 0.1


@pytest.mark.parametrize("ijk", [[24, 0, 0], [-1, 0, 0], [0, 0], "abc", None, [0.5, 0, 0], [True, 0, 0], {"i": 1}])
def test_a_voxel_outside_is_refused(worker, fitted, ijk):
    (failed,) = worker.until_end(worker.send("query", what="voxel", ijk=ijk))
    assert (failed.kind, failed.code) == ("failed", "settings")


def test_the_worker_outlives_nonsense(worker, scan):
    for line in (b"\n", b"nonsense\n", b'{"id": "n", "op": "fly"}\n', b"\xff\xfe\x00\n", b"[]\n", b'{"op": "run"}\n'):
        worker.write(line)
    worker.send("cancel", id="nobody")
    nonsense = [worker.next_event() for _ in range(5)]
    assert [(e.kind, e.code) for e in nonsense] == [("failed", "settings")] * 5
    assert [e.id for e in nonsense] == ["", "n", "", "", ""]
    assert worker.run("info", dwi=scan)[-1].kind == "finished"


@pytest.mark.parametrize(
    ("job", "settings", "code"),
    [
        ("levitate", {}, "settings"),
        ("fit", {"colour": "red"}, "settings"),
        ("fit", {"seed": "one"}, "settings"),
        ("fit", None, "settings"),
        ("fit", {}, "settings"),
        ("fit", {"dwi": "absent.nii.gz", "out": "maps"}, "input"),
        ("fit", {"dwi": "absent.nii.gz"}, "settings"),
        ("info", {}, "settings"),
        ("track", {"dwi": "absent.nii.gz", "out": "maps", "min_length": 300.0, "max_length": 200.0}, "settings"),
        ("track", {"dwi": "absent.nii.gz", "out": "maps", "model": "adc"}, "settings"),
    ],
)
def test_a_run_that_cannot_be_done_says_why(worker, job, settings, code):
    events = worker.until_end(worker.send("run", job=job, settings=settings))
    assert (events[-1].kind, events[-1].code) == ("failed", code)
    assert events[-1].message
    assert events[-1].hint
    assert events[-1].traceback == ""


def test_a_graphics_card_that_is_absent_is_named(worker, fitted, scan, tmp_path):
    if fitted[0][0].device == "cuda":
        pytest.skip("this machine has a graphics card")
    events = worker.run("fit", dwi=scan, out=tmp_path / "maps", device="cuda")
    assert events[-1].code == "device"
    assert "cuda" in events[-1].message
    assert not (tmp_path / "maps").exists()


def test_a_queued_request_can_be_cancelled(worker, scan, tmp_path):
    first = worker.send("run", job="fit", settings={"dwi": str(scan), "out": str(tmp_path / "first")})
    second = worker.send("run", job="fit", settings={"dwi": str(scan), "out": str(tmp_path / "second")})
    worker.send("cancel", id=second)
    assert worker.until_end(first)[-1].kind == "finished"
    assert [e.kind for e in worker.until_end(second)] == ["cancelled"]
    assert not (tmp_path / "second").exists()


def test_an_id_in_use_is_refused_without_ending_its_owner(worker, scan, tmp_path):
    id = worker.send("run", job="fit", settings={"dwi": str(scan), "out": str(tmp_path)})
    worker.send("query", id=id, what="quality")
    events = [worker.next_event()]
    while not (events[-1].terminal and events[-1].id == id):
        events.append(worker.next_event())
    assert events[-1].kind == "finished"
    assert [e.code for e in events if e.id == ""] == ["settings"]


NOISY = """
import ctypes, os
from DiffusionFMLib import worker
run = worker.run
def noisy(*arguments):
    print("noise")
    os.write(1, b"noise without an end")
    ctypes.CDLL(None).puts(b"noise of a native library")
    os.system("echo noise of a child")
    return run(*arguments)
worker.run = noisy
worker.main()
"""


def test_stray_output_goes_to_the_log(scan):
    with WorkerClient(["-c", NOISY]) as noisy:
        events = noisy.run("info", dwi=scan)
        assert events[-1].kind == "finished"
        noisy.send("shutdown")
        assert noisy.process.wait(10) == 0
    assert "noise without an end" in "".join(noisy.log)


BROKEN = """
import sys
from DiffusionFMLib import worker
def broken(*arguments):
    sys.exit("a library gave up") if arguments[0] == "info" else {}["absent"]
worker.run = broken
worker.main()
"""


def test_a_bug_is_reported_with_its_traceback_and_the_worker_lives_on(scan):
    with WorkerClient(["-c", BROKEN]) as broken:
        for job, error in (("info", "SystemExit"), ("convert", "KeyError")):
            failed = broken.run(job, dwi=scan)[-1]
            assert (failed.kind, failed.code) == ("failed", "bug")
            assert error in failed.message
            assert "in broken" in failed.traceback
        assert broken.process.poll() is None
