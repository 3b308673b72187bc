"""Stands for the worker in tests of the module: speaks its protocol, computes nothing.

Run as ``python fake_worker.py MODE``; the modes are the functions below.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZE = {"blocks": 3, "heads": 4}

cancelled = threading.Event()
encoded: dict[str, Any] = {}


def emit(event: str, id: str, **values: Any) -> None:
    print(json.dumps({"event": event, "id": id, **values}), flush=True)


def progress(id: str, fraction: float) -> None:
    emit("progress", id, done=fraction, total=1.0, stage="Fitting", fraction=fraction, eta=2.0)


def artifact(request: dict[str, Any], name: str, array: np.ndarray, affine: np.ndarray, **values: Any) -> None:
    path = Path(request["arrays"]) / f"{name}.npy"
    np.save(path, array)
    shown = {"title": name.upper(), "unit": "", "window": [0.0, 1.0], "colors": "grey"} | values
    emit(
        "artifact", request["id"], path=f"{name}.nii.gz", role="map", name=name, array=str(path),
        affine=affine.tolist(), **shown,
    )  # fmt: skip


def scan_of(request: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    path = Path(request["settings"]["dwi"])
    header = json.loads(path.with_suffix(".json").read_text())
    return np.load(path), np.array(header["affine"])


def ok(request: dict[str, Any]) -> None:
    """Gives back the scan's first volumes as maps, and a streamline along its first axis."""
    progress(request["id"], 0.5)
    if request["job"] == "encode":
        encode(request)
        return
    if request["job"] != "info":
        maps(request)
    quality = {"facts": "measured", "light": "amber", "findings": ["Two slices <lost> signal."]}
    emit("result", request["id"], data={"quality": quality, "methods": {"adc": {"wls": None}, "dti": {"wls": None}}})
    emit("finished", request["id"], seconds=0.1)


def maps(request: dict[str, Any]) -> None:
    signal, affine = scan_of(request)
    artifact(request, "fa", signal[..., 1].astype(np.float32), affine, title="FA", window=[0.0, 0.8])
    artifact(
        request, "md", signal[..., 2].astype(np.float32) * 1e-3, affine, title="MD", unit="mm2/s", window=[0.0, 3e-3]
    )
    artifact(request, "colorfa", signal[..., 1:4].astype(np.float32), affine, title="Colour FA", colors="rgb")
    tensor = np.zeros((*signal.shape[:3], 6), np.float32)
    tensor[..., [0, 3, 5]] = [1.7e-3, 0.4e-3, 0.3e-3]
    artifact(request, "tensor", tensor, affine, title="Tensor", unit="mm2/s", window=[-3e-3, 3e-3])
    artifact(request, "status", np.ones(signal.shape[:3], np.float32), affine, title="Fit status", colors="labels")
    artifact(request, "residual", signal[..., 1].astype(np.float32), affine, title="Residual", colors="inferno")
    if request["job"] == "track":
        ijk = np.c_[np.arange(5.0), np.ones((5, 2))]
        points = (ijk @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)
        path = Path(request["arrays"]) / "tracts.npz"
        np.savez(path, points=points, offsets=np.array([0, 5]), fa=np.full(5, 0.5, np.float32))
        emit("artifact", request["id"], path="t.trx", role="tracts", name="tracts", title="Tracts", array=str(path))


def encode(request: dict[str, Any]) -> None:
    """The scan's first volumes as feature colours and a heat map, which are remembered."""
    signal, affine = scan_of(request)
    values = signal[..., 1].astype(np.float32)
    artifact(
        request,
        "pca",
        signal[..., 1:4].astype(np.float32),
        affine,
        title="Feature colours",
        colors="rgb",
        method="encoder",
    )
    artifact(request, "rollout", values, affine, title="Attention rollout", colors="inferno", method="encoder")
    encoded["values"], encoded["affine"] = values, affine
    header = json.loads(Path(request["settings"]["dwi"]).with_suffix(".json").read_text())
    encoded["bvals"], encoded["bvecs"] = header["bvals"], header["bvecs"]
    emit("result", request["id"], data={"name": "scan", "overlays": ["pca", "rollout"], **SIZE})
    emit("finished", request["id"], seconds=0.1)


def query(request: dict[str, Any]) -> None:
    """Answers from what the last encoding left, on every other voxel, and logs what it was asked."""
    id, what = request["id"], request["what"]
    print(json.dumps({"query": request}), file=sys.stderr, flush=True)
    time.sleep(float(os.environ.get("FAKE_WORKER_DELAY", "0")))
    if what == "encoding":
        data = {"encoded": bool(encoded), "overlays": ["similarity", "directions", "raw"], **SIZE}
    elif not encoded:
        emit("failed", id, code="input", message="No scan was encoded yet.", hint="Compute its features first.")
        return
    elif what == "overlay":
        i, j, k = request["ijk"]
        values = encoded["values"][::2, ::2, ::2]
        grid = encoded["affine"] @ np.diag([2.0, 2, 2, 1])
        # tells in the picture what it was asked about
        values = np.full_like(values, i + 10 * j + 100 * k + 1000 * (request["block"] or 0) + 0.5)
        data = {
            "overlay": request["overlay"], "shape": list(values.shape[::-1]), "affine": grid.tolist(),
            "values": base64.b64encode(values.astype("<f4").tobytes()).decode(), "window": [0.0, 1000.0],
        }  # fmt: skip
    else:
        n = len(encoded["bvals"])
        attention = np.full(n, 1 / n)
        attention[[1, 2]] += (0.5 / n, -0.5 / n)
        data = {
            "bvals": encoded["bvals"], "bvecs": encoded["bvecs"],
            "attention": attention.tolist(), "geometry": [1 / n] * n,
        }  # fmt: skip
    emit("result", id, data=data)
    emit("finished", id, seconds=0.01)


def slow(request: dict[str, Any]) -> None:
    """Works until it is cancelled."""
    print("a stray line on the event stream", flush=True)
    print("what the log shows", file=sys.stderr, flush=True)
    for i in range(600):
        if cancelled.wait(0.05):
            emit("cancelled", request["id"])
            return
        progress(request["id"], i / 600)


def hang(request: dict[str, Any]) -> None:
    """Does not listen, and has a child that does not either."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    emit("warning", request["id"], code="child", message=str(child.pid))
    time.sleep(60)


def crash(request: dict[str, Any]) -> None:
    """Dies in the middle, the first time; works from then on."""
    once = Path(os.environ["FAKE_WORKER_ONCE"])
    if once.exists():
        ok(request)
        return
    once.touch()
    progress(request["id"], 0.3)
    print("Fatal: out of memory", file=sys.stderr, flush=True)
    os._exit(9)


def fail(request: dict[str, Any]) -> None:
    emit("failed", request["id"], code="protocol", message="Only 3 directions; expected 6.", hint="Choose ADC.")


def flood(request: dict[str, Any]) -> None:
    """Says far more than a panel can show."""
    for i in range(15_000):
        progress(request["id"], i / 15_000)
    ok(request)


def listen(mode: Any) -> None:
    waiting: list[dict[str, Any]] = []
    ready = threading.Condition()

    def read() -> None:
        for line in sys.stdin:
            request = json.loads(line)
            if request["op"] == "cancel":
                cancelled.set()
                continue
            with ready:
                waiting.append(request)
                ready.notify()
        if mode is not hang:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        with ready:
            ready.wait_for(lambda: waiting)
            request = waiting.pop(0)
        if request["op"] == "query":
            query(request)
            continue
        cancelled.clear()
        emit("started", request["id"], device="cpu", pid=os.getpid())
        mode(request)


if __name__ == "__main__":
    listen({f.__name__: f for f in (ok, slow, hang, crash, fail, flood)}[sys.argv[1]])
