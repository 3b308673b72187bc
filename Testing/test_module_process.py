"""The worker process as the module sees it: start, events, cancel, kill, death, no orphans."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Cancelled, Event, Progress, Started, Warned
from DiffusionFMSlicer.process import CANCEL_GRACE, LOG_LINES, WorkerProcess, workerEnvironment

FAKE = Path(__file__).with_name("fake_worker.py")


class Recorder:
    """A worker of one mode, and what it said."""

    def __init__(self, mode: str) -> None:
        self.events: list[Event] = []
        self.exits: list[int] = []
        self.worker = WorkerProcess(self.events.append, self.exits.append, [sys.executable, str(FAKE), mode])

    def send(self, id: str = "a", **values: object) -> None:
        self.worker.send({"id": id, "op": "run", "job": "fit", "settings": {}, "arrays": None, **values})

    def until(self, done: Callable[[], object], seconds: float = 20.0) -> float:
        begun = time.monotonic()
        while not done():
            assert time.monotonic() - begun < seconds, (
                f"nothing within {seconds} s: {self.events[-3:]}, {self.worker.log}"
            )
            self.worker.poll()
            time.sleep(0.02)
        return time.monotonic() - begun

    def kinds(self) -> set[type[Event]]:
        return {type(e) for e in self.events}


@pytest.fixture
def record() -> Iterator[Callable[[str], Recorder]]:
    made: list[Recorder] = []

    def make(mode: str) -> Recorder:
        made.append(Recorder(mode))
        return made[-1]

    yield make
    for recorder in made:
        recorder.worker.stop()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # a killed grandchild that nobody waits for stays as a zombie
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_events_arrive_in_order_and_stray_lines_go_to_the_log(record):
    r = record("slow")
    r.send()
    r.until(lambda: Progress in r.kinds())
    assert isinstance(r.events[0], Started)
    fractions = [e.fraction for e in r.events if isinstance(e, Progress)]
    assert fractions == sorted(fractions)
    assert any("stray line" in line for line in r.worker.log)
    assert "what the log shows" in r.worker.log


def test_polite_cancel_keeps_the_process(record):
    r = record("slow")
    r.send()
    r.until(lambda: Progress in r.kinds())
    pid = r.worker.pid
    r.worker.cancel("a")
    assert r.until(lambda: Cancelled in r.kinds()) < 1
    assert r.worker.pid == pid
    assert not r.exits


def test_hung_worker_is_killed_with_its_children(record):
    r = record("hang")
    r.send()
    r.until(lambda: Warned in r.kinds())
    child = next(int(e.message) for e in r.events if isinstance(e, Warned))
    pid = r.worker.pid
    r.worker.cancel("a")
    waited = r.until(lambda: r.exits)
    assert CANCEL_GRACE <= waited < 4
    assert gone(pid)
    assert gone(child)


def test_death_is_reported_after_the_last_event(record, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_ONCE", str(tmp_path / "died"))
    r = record("crash")
    r.send()
    r.until(lambda: r.exits)
    assert r.exits == [9]
    assert Progress in r.kinds()
    assert "Fatal: out of memory" in r.worker.log
    assert not r.worker.running


def test_next_request_starts_a_new_process(record, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_WORKER_ONCE", str(tmp_path / "died"))
    r = record("crash")
    r.send()
    r.until(lambda: r.exits)
    r.send("b", op="run", job="fit")
    r.until(lambda: any(isinstance(e, Started) and e.id == "b" for e in r.events))


def test_flood_of_events_does_not_hold_up_a_poll(record):
    r = record("flood")
    r.send()
    longest, begun = 0.0, time.monotonic()
    while len(r.events) < 15_000:
        assert time.monotonic() - begun < 60
        start = time.monotonic()
        r.worker.poll()
        longest = max(longest, time.monotonic() - start)
        time.sleep(0.005)
    assert longest < 0.2


def test_stop_ends_the_process_and_reports_nothing(record):
    r = record("slow")
    r.send()
    r.until(lambda: Started in r.kinds())
    pid = r.worker.pid
    r.worker.stop()
    said = len(r.events)
    r.worker.poll()
    assert gone(pid)
    assert (r.exits, len(r.events)) == ([], said)


def test_log_is_bounded(record):
    r = record("slow")
    r.worker.log.extend(str(i) for i in range(10 * LOG_LINES))
    assert len(r.worker.log) == LOG_LINES


def test_missing_program_is_an_error_with_a_hint():
    worker = WorkerProcess(lambda e: None, lambda s: None, ["/no/such/python"])
    with pytest.raises(DiffusionFMError, match="cannot be started") as caught:
        worker.send({"id": "a"})
    assert "/no/such/python" in caught.value.hint


def test_worker_finds_the_library_where_the_module_found_it():
    root = str(Path(__file__).resolve().parent.parent)
    environment = workerEnvironment({"PYTHONPATH": os.pathsep.join(["/elsewhere", root]), "HOME": "/home/x"})
    assert environment["PYTHONPATH"].split(os.pathsep) == [root, "/elsewhere"]
    assert environment["HOME"] == "/home/x"
