"""How runs end badly, done to real processes: cancelled, killed, orphaned, out of disk, out of memory, side by side."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from worker_client import ENVIRONMENT, WorkerClient, of_kind, write_small_scan

from DiffusionFMLib.cli import main

if os.name != "nt":
    import resource

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")

CANCEL_LIMIT = 4.0
"""Seconds within which a cancelled run must have ended."""


@pytest.fixture(scope="module")
def big_scan(tmp_path_factory):
    """Large enough that denoising it takes far longer than a cancel may."""
    return write_small_scan(tmp_path_factory.mktemp("big"), shape=(72, 72, 36), n_directions=32)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_small_scan(tmp_path_factory.mktemp("scan"), shape=(40, 40, 20))


@pytest.fixture(scope="module")
def clean(worker, scan, tmp_path_factory):
    """Files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("clean")
    assert worker.run("fit", dwi=scan, out=out)[-1].kind == "finished"
    return _contents(out)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _start_fit(worker, scan, out, **settings):
    return worker.send("run", job="fit", settings={"dwi": str(scan), "out": str(out), **settings})


def _in_stage(title):
    return lambda event: event.kind == "progress" and event.stage == title


def _is_map(event):
    return event.kind == "artifact" and event.role == "map"


def test_cancel_ends_a_long_computation_and_leaves_nothing(worker, big_scan, tmp_path):
    id = _start_fit(worker, big_scan, tmp_path / "maps", denoise="mppca")
    worker.until(id, _in_stage("Denoising"))
    begun = time.monotonic()
    worker.send("cancel", id=id)
    events = worker.until_end(id)
    assert time.monotonic() - begun < CANCEL_LIMIT
    assert events[-1].kind == "cancelled"
    assert not (tmp_path / "maps").exists()
    assert worker.run("info", dwi=big_scan)[-1].kind == "finished"


def test_cancel_between_files_keeps_the_finished_ones(worker, scan, clean, tmp_path):
    # another scan in between, so that nothing is remembered
    worker.run("info", dwi=write_small_scan(tmp_path / "other"))
    out = tmp_path / "maps"
    id = _start_fit(worker, scan, out)
    worker.until(id, _is_map)
    worker.send("cancel", id=id)
    assert worker.until_end(id)[-1].kind in ("cancelled", "finished")
    assert _contents(out).items() <= clean.items()
    events = worker.run("fit", dwi=scan, out=out)
    assert of_kind(events, "result")[0].data["reused"]
    assert _contents(out) == clean


@posix_only
def test_a_killed_run_leaves_no_half_file_and_a_rerun_resumes(worker, scan, clean, tmp_path):
    victim = WorkerClient()
    id = _start_fit(victim, scan, tmp_path)
    for _ in range(3):
        victim.until(id, _is_map)
    victim.process.kill()
    victim.process.wait()
    left = _contents(tmp_path)
    finished = {name: data for name, data in left.items() if not name.startswith(".part-")}
    # what stands under its final name is whole
    assert finished.items() <= clean.items()
    assert sum(name.endswith(".nii.gz") for name in finished) >= 3
    # what the killed process left goes when nobody can be writing it any more
    stale = tmp_path / f".part-{victim.process.pid}-some.nii.gz"
    stale.write_bytes(b"half")
    an_hour_ago = time.time() - 3600
    for path in tmp_path.glob(".part-*"):
        os.utime(path, (an_hour_ago, an_hour_ago))
    events = worker.run("fit", dwi=scan, out=tmp_path)
    assert len(of_kind(events, "result")[0].data["reused"]) >= 3
    assert _contents(tmp_path) == clean


@posix_only
@pytest.mark.parametrize("ending", ["end of input", "terminate", "shutdown"])
def test_a_worker_that_is_left_ends_at_once(big_scan, tmp_path, ending):
    worker = WorkerClient()
    id = _start_fit(worker, big_scan, tmp_path / "maps", denoise="mppca", device="cpu")
    worker.until(id, _in_stage("Reading"))
    match ending:
        case "end of input":
            worker.process.stdin.close()
        case "terminate":
            worker.process.terminate()
        case "shutdown":
            worker.send("shutdown")
    worker.process.wait(CANCEL_LIMIT)
    assert not (tmp_path / "maps").exists()


def test_a_worker_that_is_left_while_writing_removes_its_temporary_files(scan, clean, tmp_path):
    worker = WorkerClient()
    id = _start_fit(worker, scan, tmp_path)
    worker.until(id, _is_map)
    worker.process.stdin.close()
    worker.process.wait(CANCEL_LIMIT)
    assert _contents(tmp_path).items() <= clean.items()


PARENT = """
import subprocess, sys, time
command = [sys.executable, "-m", "DiffusionFMLib.worker"]
worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
worker.stdin.write(sys.argv[1].encode() + b"\\n")
worker.stdin.flush()
print(worker.pid, flush=True)
for line in worker.stdout:
    if b"Denoising" in line:
        print("computing", flush=True)
        time.sleep(60)
"""


@posix_only
def test_no_orphan_outlives_a_killed_parent(big_scan, tmp_path):
    settings = {"dwi": str(big_scan), "out": str(tmp_path / "maps"), "denoise": "mppca", "device": "cpu"}
    request = json.dumps({"id": "1", "op": "run", "job": "fit", "settings": settings})
    command = [sys.executable, "-c", PARENT, request]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as parent:
        orphan = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "computing\n"
        parent.kill()
    _, alive = psutil.wait_procs([orphan], timeout=CANCEL_LIMIT)
    assert not alive
    assert not (tmp_path / "maps").exists()


DEAF = """
from DiffusionFMLib import worker

def broken(line):
    raise RuntimeError("a bug")

worker.parse_request = broken
worker.main()
"""


def test_a_worker_that_hears_nothing_any_more_ends_with_an_error():
    """Waiting for the next request, it could be neither cancelled nor ended."""
    done = subprocess.run(
        [sys.executable, "-c", DEAF], input="{}\n", capture_output=True, env=ENVIRONMENT, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


def test_two_workers_share_an_output_folder(worker, scan, clean, tmp_path):
    with WorkerClient() as other:
        # once it has loaded all it needs, both write at about the same time
        other.run("info", dwi=scan)
        time.sleep(0.5)
        other.run("info", dwi=scan)
        ids = [(client, _start_fit(client, scan, tmp_path)) for client in (other, worker)]
        for client, id in ids:
            assert client.until_end(id)[-1].kind == "finished"
    assert _contents(tmp_path) == clean


@contextmanager
def _limited(worker, what, value):
    pid, most = worker.process.pid, resource.RLIM_INFINITY
    resource.prlimit(pid, what, (value, most))
    yield
    resource.prlimit(pid, what, (most, most))


@posix_only
def test_a_full_disk_is_told_and_leaves_no_half_file(worker, scan, clean, tmp_path):
    # a file size limit fails writes as a full disk does, and root is not exempt from it
    limit = sorted(len(data) for data in clean.values())[-2]
    with _limited(worker, resource.RLIMIT_FSIZE, limit):
        failed = worker.run("fit", dwi=scan, out=tmp_path)[-1]
    assert (failed.kind, failed.code) == ("failed", "output")
    assert "space" in failed.hint
    assert _contents(tmp_path).items() <= clean.items()
    assert worker.run("fit", dwi=scan, out=tmp_path)[-1].kind == "finished"
    assert _contents(tmp_path) == clean


def _tiled(path, to, copies):
    """The scan at `path`, repeated along its axes; written to `to`."""
    import nibabel

    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.tile(np.asarray(image.dataobj), copies), image.affine), to)
    for suffix in (".bval", ".bvec"):
        shutil.copy(str(path).replace(".nii.gz", suffix), str(to).replace(".nii.gz", suffix))
    return to


@posix_only
def test_out_of_memory_is_told_and_the_worker_lives_on(worker, scan, clean, tmp_path):
    # twice what the process may find free: threads that end give back some 64 MiB of reserved addresses
    huge_scan = _tiled(scan, tmp_path / "huge_dwi.nii.gz", (5, 5, 4, 1))
    worker.run("fit", dwi=scan, out=tmp_path / "small")
    used = psutil.Process(worker.process.pid).memory_info().vms
    with _limited(worker, resource.RLIMIT_AS, used + (8 << 20)):
        failed = worker.run("fit", dwi=huge_scan, out=tmp_path / "big")[-1]
    assert (failed.kind, failed.code) == ("failed", "device")
    assert "memory" in failed.message
    assert not (tmp_path / "big").exists()
    assert worker.run("fit", dwi=scan, out=tmp_path / "small")[-1].kind == "finished"
    assert _contents(tmp_path / "small") == clean


def test_a_folder_that_cannot_be_made_is_told_before_any_work(worker, scan, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    events = worker.run("fit", dwi=scan, out=tmp_path / "file" / "maps")
    assert (events[-1].kind, events[-1].code) == ("failed", "output")
    assert str(tmp_path / "file") in events[-1].message
    assert of_kind(events, "progress") == []


@posix_only
@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_the_command_line_stops_at_ctrl_c_and_when_terminated(big_scan, tmp_path, wish):
    command = [
        sys.executable,
        "-m",
        "DiffusionFMLib",
        "fit",
        str(big_scan),
        "--denoise",
        "mppca",
        "--device",
        "cpu",
        "--out",
    ]
    process = subprocess.Popen(
        [*command, str(tmp_path / "maps")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    for line in process.stderr:
        if "Denoising" in line:
            break
    begun = time.monotonic()
    process.send_signal(wish)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < CANCEL_LIMIT
    assert process.returncode == 3
    assert "cancelled" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "maps").exists()


def test_the_command_line_and_the_worker_write_the_same_bytes(scan, clean, tmp_path):
    assert main(["fit", str(scan), "--out", str(tmp_path)]) == 0
    assert _contents(tmp_path) == clean
    assert all(clean.values())
