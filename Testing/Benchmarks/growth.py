"""How far a fit makes a fresh process grow, its results included: the scan is in memory before."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.settings import FitSettings


def peak_memory(acquisition: Acquisition, model: str, method: str) -> float | None:
    """Growth of resident memory during a fit, MiB; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        gtab = acquisition.gtab
        np.savez(path, signal=acquisition.signal, mask=acquisition.mask, bvals=gtab.bvals, bvecs=gtab.bvecs)
        command = [sys.executable, __file__, str(path), model, method]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured_apart(module: str) -> list[dict[str, Any]]:
    """What `measure` of a module here prints as JSON, last, in a fresh process."""
    here = Path(__file__).resolve()
    code = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {module}; {module}.measure()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here.parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def main(path: str, model: str, method: str) -> None:
    scan = np.load(path)
    acquisition = Acquisition(
        scan["signal"], np.eye(4), GradientTable(scan["bvals"], scan["bvecs"]), scan["mask"].astype(bool)
    )
    crop = Acquisition(acquisition.signal[40:56, 40:56, 20:30], acquisition.affine, acquisition.gtab)
    settings = FitSettings(model=model, method=method, device="cpu")
    # what libraries load on first use is not the fit's
    fit(crop, MODELS[model], settings, SilentReport())

    before = resident("VmRSS", reset=True)
    fit(acquisition, MODELS[model], settings, SilentReport())
    print(resident("VmHWM") - before)


def resident(what: str, reset: bool = False) -> float | None:
    """Memory of this process, MiB, its peak begun anew if asked to; None where the system does not tell."""
    status, refs = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.is_file():
        return None
    if reset:
        refs.write_text("5")
    return int(re.search(rf"{what}:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]


if __name__ == "__main__":
    main(*sys.argv[1:])
