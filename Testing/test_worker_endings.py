"""How runs end badly, done to real processes: cancelled, killed, orphaned, out of disk, out of memory, side by side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from worker_client import ENVIRONMENT, WorkerClient, of_kind, write_small_scan

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
def clean(scan, tmp_path_factory):
    """Files of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("clean")
    with WorkerClient() as worker:
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


def test_cancel_ends_a_long_computation_and_leaves_nothing(big_scan, tmp_path):
    with WorkerClient() as worker:
        id = _start_fit(worker, big_scan, tmp_path / "maps", denoise="mppca")
        worker.until(id, _in_stage("Denoising"))
        begun = time.monotonic()
        worker.send("cancel", id=id)
        events = worker.until_end(id)
        assert time.monotonic() - begun < CANCEL_LIMIT
        assert events[-1].kind == "cancelled"
        assert not (tmp_path / "maps").exists()
        assert worker.run("info", dwi=big_scan)[-1].kind == "finished"


def test_cancel_between_files_keeps_the_finished_ones(scan, clean, tmp_path):
    with WorkerClient() as worker:
        id = _start_fit(worker, scan, tmp_path)
        worker.until(id, _is_map)
        worker.send("cancel", id=id)
        end = worker.until_end(id)[-1]
        assert end.kind in ("cancelled", "finished")
        left = _contents(tmp_path)
        assert left.items() <= clean.items()
        events = worker.run("fit", dwi=scan, out=tmp_path)
    assert of_kind(events, "result")[0].data["reused"]
    assert _contents(tmp_path) == clean


@posix_only
def test_a_killed_run_leaves_no_half_file_and_a_rerun_resumes(scan, clean, tmp_path):
    for after in range(3):
        out = tmp_path / str(after)
        worker = WorkerClient()
        id = _start_fit(worker, scan, out)
        for _ in range(after + 1):
            worker.until(id, _is_map)
        worker.process.kill()
        worker.process.wait()
        finished = {name: data for name, data in _contents(out).items() if not name.startswith(".")}
        # what stands under its final name is whole
        assert finished.items() <= clean.items()
        assert any(name.endswith(".nii.gz") for name in finished)
        with WorkerClient() as fresh:
            events = fresh.run("fit", dwi=scan, out=out)
        assert len(of_kind(events, "result")[0].data["reused"]) >= after + 1
        assert {n: d for n, d in _contents(out).items() if not n.startswith(".")} == clean


@posix_only
@pytest.mark.parametrize("ending", ["end of input", "terminate", "shutdown"])
def test_a_worker_that_is_left_ends_at_once(big_scan, tmp_path, ending):
    worker = WorkerClient()
    id = _start_fit(worker, big_scan, tmp_path / "maps", denoise="mppca")
    worker.until(id, _in_stage("Denoising"))
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
worker = subprocess.Popen([sys.executable, "-m", "DiffusionFMLib.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          start_new_session=True)
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
    import json

    settings = {"dwi": str(big_scan), "out": str(tmp_path / "maps"), "denoise": "mppca"}
    request = json.dumps({"id": "1", "op": "run", "job": "fit", "settings": settings})
    command = [sys.executable, "-c", PARENT, request]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True) as parent:
        orphan = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "computing\n"
        parent.kill()
    _, alive = psutil.wait_procs([orphan], timeout=CANCEL_LIMIT)
    assert not alive
    assert not (tmp_path / "maps").exists()


def test_two_workers_share_an_output_folder(scan, clean, tmp_path):
    with WorkerClient() as one, WorkerClient() as other:
        ids = [(worker, _start_fit(worker, scan, tmp_path)) for worker in (one, other)]
        for worker, id in ids:
            assert worker.until_end(id)[-1].kind == "finished"
    assert _contents(tmp_path) == clean


@posix_only
def test_a_full_disk_is_told_and_leaves_no_half_file(scan, clean, tmp_path):
    import resource

    with WorkerClient() as worker:
        # a file size limit fails writes as a full disk does, and root is not exempt from it
        limit = sorted(len(data) for data in clean.values())[-2]
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        failed = worker.run("fit", dwi=scan, out=tmp_path)[-1]
        assert (failed.kind, failed.code) == ("failed", "output")
        assert "space" in failed.message
        assert _contents(tmp_path).items() <= clean.items()
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert worker.run("fit", dwi=scan, out=tmp_path)[-1].kind == "finished"
    assert _contents(tmp_path) == clean


@posix_only
def test_out_of_memory_is_told_and_the_worker_lives_on(scan, big_scan, tmp_path):
    import resource

    with WorkerClient() as worker:
        assert worker.run("fit", dwi=scan, out=tmp_path / "small")[-1].kind == "finished"
        used = psutil.Process(worker.process.pid).memory_info().vms
        resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
        failed = worker.run("fit", dwi=big_scan, out=tmp_path / "big")[-1]
        assert (failed.kind, failed.code) == ("failed", "device")
        assert "memory" in failed.message
        assert not (tmp_path / "big").exists()
        resource.prlimit(worker.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert worker.run("fit", dwi=scan, out=tmp_path / "small")[-1].kind == "finished"


def test_a_folder_that_cannot_be_made_is_told_before_any_work(scan, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with WorkerClient() as worker:
        events = worker.run("fit", dwi=scan, out=tmp_path / "file" / "maps")
    assert (events[-1].kind, events[-1].code) == ("failed", "output")
    assert str(tmp_path / "file") in events[-1].message
    assert of_kind(events, "progress") == []


@posix_only
def test_the_command_line_stops_at_ctrl_c(big_scan, tmp_path):
    command = [sys.executable, "-m", "DiffusionFMLib", "fit", str(big_scan), "--denoise", "mppca", "--out"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "maps")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True
    )
    for line in process.stderr:
        if "Denoising" in line:
            break
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begun < CANCEL_LIMIT
    assert process.returncode == 3
    assert "cancelled" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "maps").exists()


def test_the_command_line_and_the_worker_write_the_same_bytes(scan, clean, tmp_path):
    command = [sys.executable, "-m", "DiffusionFMLib", "fit", str(scan), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    assert _contents(tmp_path) == clean
    assert np.array([len(data) for data in clean.values()]).min() > 0
