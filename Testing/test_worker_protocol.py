"""Requests and events of the worker, without a process: parsing, progress, failures."""

from __future__ import annotations

import errno
import json
import threading

import pytest

from DiffusionFMLib.errors import DeviceError, InputError, JobCancelled, OutputError, SettingsError
from DiffusionFMLib.events import Progress, Warned, parse_event
from DiffusionFMLib.reporting import JobReport, explained, failure
from DiffusionFMLib.worker import parse_request


def test_a_request_keeps_what_its_operation_needs():
    request = parse_request('{"id": "7", "op": "run", "job": "fit", "settings": {"dwi": "a"}, "arrays": null}')
    assert (request.id, request.op) == ("7", "run")
    assert request.body == {"job": "fit", "settings": {"dwi": "a"}, "arrays": None}
    assert not request.cancelled.is_set()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        "[1, 2]",
        '"run"',
        '{"id": "1"}',
        '{"id": "1", "op": "fly"}',
        '{"op": "run"}',
        '{"id": 1, "op": "run"}',
        '{"id": "1", "op": ["run"]}',
        b"\xff\xfe",
        '{"id": "1", "op": "run"',
    ],
)
def test_a_line_that_is_no_request_is_the_senders_fault(line):
    with pytest.raises(SettingsError) as error:
        parse_request(line)
    assert error.value.hint


def _report(costs, cancelled=None):
    events = []
    report = JobReport("1", events.append, cancelled or threading.Event())
    report.plan(costs)
    return report, events


def test_progress_of_the_whole_follows_the_stages_shares():
    report, events = _report({"Reading": 1, "Fitting": 3})
    report.enter("Reading")
    report.progress(1, 2, "Decompressing")
    report.enter("Fitting")
    report.progress(1, 2, "Fitting")
    report.progress(2, 2, "Fitting")
    assert [(e.stage, e.fraction) for e in events] == [
        ("Reading", 0.0), ("Decompressing", 0.125), ("Fitting", 0.25), ("Fitting", 1.0)
    ]  # fmt: skip


def test_progress_never_goes_back_and_is_not_flooded():
    report, events = _report({"Preparing": 1})
    report.enter("Preparing")
    for step in ("Denoising", "Aligning"):
        for i in range(1000):
            report.progress(i, 1000, step)
    fractions = [e.fraction for e in events]
    assert fractions == sorted(fractions)
    assert len(events) < 20
    assert all(isinstance(e, Progress) for e in events)


def test_every_progress_is_a_place_to_stop_at():
    cancelled = threading.Event()
    report, _ = _report({"Fitting": 1}, cancelled)
    report.progress(0, 10, "Fitting")
    cancelled.set()
    for stop in (report.check, lambda: report.progress(1, 10, "Fitting"), lambda: report.enter("Fitting")):
        with pytest.raises(JobCancelled):
            stop()


def test_a_warning_is_told_once():
    report, events = _report({})
    for _ in range(3):
        report.warning("noise", "Noisy.")
    # the quality check finds again what the reader warned of
    report.warning("quality", "Noisy.")
    assert events == [Warned("1", "noise", "Noisy.")]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "fa.nii.gz"), OutputError),
        (OSError(errno.EFBIG, "File too large"), OutputError),
        (PermissionError(errno.EACCES, "Permission denied", "out"), OutputError),
        (FileNotFoundError(errno.ENOENT, "No such file", "dwi.nii.gz"), InputError),
        (MemoryError(), DeviceError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), DeviceError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), DeviceError),
    ],
)  # fmt: skip
def test_what_the_system_says_becomes_something_to_do(error, kind):
    known = explained(error)
    assert type(known) is kind
    assert known.message
    assert known.hint
    assert failure("1", error).traceback == ""


def test_a_package_that_does_not_load_is_the_users_to_mend_and_a_file_of_ours_a_bug():
    broken = explained(ImportError("cannot import name 'x' from 'dipy.tracking'", name="dipy.tracking"))
    assert broken is not None
    assert "cannot import name 'x'" in broken.message
    assert "Install" in broken.hint
    assert explained(ImportError("cannot import name 'x'", name="DiffusionFMLib.io")) is None


def test_torchs_out_of_memory_is_about_the_device():
    torch = pytest.importorskip("torch")
    known = explained(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert isinstance(known, DeviceError)
    assert "cpu" in known.hint


def test_a_bug_keeps_its_traceback():
    try:
        {}["absent"]
    except KeyError as error:
        event = failure("1", error)
    assert event.code == "bug"
    assert "test_worker_protocol.py" in event.traceback
    assert parse_event(event.to_json()) == event


def test_our_errors_keep_code_message_and_hint():
    event = failure("1", InputError("a.nii.gz is empty.", "Copy it again."))
    assert json.loads(event.to_json()) == {
        "event": "failed", "id": "1", "code": "input", "message": "a.nii.gz is empty.", "hint": "Copy it again.",
        "traceback": "", "choices": {},
    }  # fmt: skip
