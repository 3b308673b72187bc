"""A real worker process, and small scans for it: shared by the tests of jobs, worker and command line."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from DiffusionFMLib.events import Event, parse_event

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class WorkerClient:
    """Starts a worker and talks to it as the module does.

    Parameters
    ----------
    program : list of str
        Arguments of Python; the worker itself when not given.
    popen : dict
        Passed to `subprocess.Popen`.
    """

    def __init__(self, program=("-m", "DiffusionFMLib.worker"), **popen):
        self.process = subprocess.Popen(
            [sys.executable, *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=ENVIRONMENT, **popen,
        )  # fmt: skip
        self.lines = queue.SimpleQueue()
        self.log = []
        self._count = 0
        threading.Thread(target=self._read_events, daemon=True).start()
        threading.Thread(target=self._read_log, daemon=True).start()

    def _read_events(self):
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line.decode())
        self.lines.put(None)

    def _read_log(self):
        with self.process.stderr as stream:
            self.log.extend(line.decode() for line in stream)

    def write(self, data: bytes):
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def send(self, op, **body) -> str:
        self._count += 1
        body.setdefault("id", str(self._count))
        self.write(json.dumps({"op": op, **body}).encode() + b"\n")
        return body["id"]

    def run(self, job, arrays=None, **settings) -> list[Event]:
        """Run a job to its end; its events."""
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
        return self.until_end(self.send("run", job=job, settings=settings, arrays=str(arrays) if arrays else None))

    def next_event(self, timeout=60.0) -> Event:
        line = self.lines.get(timeout=timeout)
        if line is None:
            raise EOFError(f"worker ended with {self.process.wait()}:\n" + "".join(self.log))
        return parse_event(line)

    def until(self, id, accept, timeout=60.0) -> list[Event]:
        """Events of a request up to the first that `accept` takes; those of others are passed over."""
        end = time.monotonic() + timeout
        events = []
        while True:
            event = self.next_event(max(end - time.monotonic(), 0.01))
            if event.id == id:
                events.append(event)
                if accept(event):
                    return events

    def until_end(self, id, timeout=60.0) -> list[Event]:
        return self.until(id, lambda event: event.terminal, timeout)

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def of_kind(events, kind) -> list[Event]:
    return [event for event in events if event.kind == kind]


def write_small_scan(folder: Path, name="scan", shape=(24, 24, 12), n_directions=12, snr=40.0, seed=1, copies=1):
    """A head of 2.5 mm voxels: fibres left-right in the middle, up-down beside it, CSF around; NIfTI, bval, bvec."""
    import nibabel

    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((n_directions, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    bvecs = np.tile(np.vstack([np.zeros(3), directions]), (copies, 1))
    bvals = np.where(bvecs.any(axis=1), 1000, 0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), axis=-1)
    radius = np.linalg.norm(grid / [0.75, 0.85, 0.95], axis=-1)
    across = np.abs(grid[..., 2]) < 0.35
    fibres = np.where(across[..., None], [1.0, 0, 0], [0, 0, 1.0])
    along = (fibres @ bvecs.T) ** 2
    tissue = np.exp(-bvals / 1000 * (0.4 + 1.2 * along))
    fluid = np.exp(-bvals / 1000 * 3.0)
    signal = np.where((radius < 0.8)[..., None], 800 * tissue, 1600 * fluid) * (radius < 1)[..., None]
    noise = rng.standard_normal((2, *signal.shape)) * 800 / snr
    measured = np.hypot(signal + noise[0], noise[1])
    affine = np.diag([2.5, 2.5, 2.5, 1.0])
    affine[:3, 3] = -1.25 * (np.array(shape) - 1)
    path = folder / f"{name}.nii.gz"
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.rint(measured).astype(np.int16), affine), path)
    np.savetxt(folder / f"{name}.bval", bvals[None], fmt="%d")
    # FSL's x runs the other way for an affine of positive determinant
    np.savetxt(folder / f"{name}.bvec", (bvecs * [-1, 1, 1]).T, fmt="%.8f")
    return path
