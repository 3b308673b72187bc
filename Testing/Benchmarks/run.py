"""How fast we are beside our peers, in one run on one machine: ``make bench``.

Prints a table and writes build/bench.json, a list of {name, ours_s, peer, peer_s, ratio, voxels, volumes, peak_mib}.
Times are medians of wall-clock seconds; `peak_mib` is how far the memory of a fresh process grows during a fit, its
results included. Compare ratios, not seconds: machines differ, and so does one machine from minute to minute.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import dki
import numpy as np
from phantom import phantom

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.fitting import fit
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import MODELS
from DiffusionFMLib.settings import FitSettings

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench.json"
OURS_PER_ROUND = 5

PEERS = {"ols": "OLS", "wls": "WLS", "nlls": "NLLS"}


@dataclass
class Row:
    """One line of the table."""

    name: str
    ours_s: float
    peer: str
    peer_s: float | None
    ratio: float | None
    voxels: int
    volumes: int
    peak_mib: float | None


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ours(acquisition: Acquisition, model: str, method: str) -> None:
    fit(acquisition, MODELS[model], FitSettings(model=model, method=method, device="cpu"), SilentReport())


def dipy_dti(acquisition: Acquisition, method: str) -> None:
    """Fit and the same maps as ours."""
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    gtab = gradient_table(acquisition.gtab.bvals, bvecs=acquisition.gtab.bvecs)
    fitted = TensorModel(gtab, fit_method=method, return_S0_hat=True).fit(acquisition.signal, mask=acquisition.mask)
    _ = fitted.fa, fitted.md, fitted.ad, fitted.rd, fitted.directions, fitted.color_fa, fitted.lower_triangular()


def mrtrix_dti(folder: Path) -> None:
    """Iterated WLS and its maps, on files that are already there; MRtrix3 cannot work in memory."""
    maps = [part for name in ("fa", "adc", "ad", "rd", "vector") for part in (f"-{name}", f"{name}.mif")]
    for command in (
        ["dwi2tensor", "dwi.nii", "tensor.mif", "-grad", "grad.b", "-mask", "mask.nii"],
        ["tensor2metric", "tensor.mif", "-mask", "mask.nii", *maps],
    ):
        subprocess.run([*command, "-force", "-quiet"], cwd=folder, check=True)


def write_for_mrtrix(acquisition: Acquisition, folder: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(acquisition.signal, acquisition.affine), folder / "dwi.nii")
    nibabel.save(nibabel.Nifti1Image(acquisition.mask.astype(np.uint8), acquisition.affine), folder / "mask.nii")
    np.savetxt(folder / "grad.b", acquisition.gtab.to_mrtrix())


def compare(name: str, model: str, method: str, acquisition: Acquisition, peers: dict, rounds: int) -> list[Row]:
    """Time ours between the peers' runs, so that both see the same machine."""
    ours(acquisition, model, method)
    own, theirs = [], {peer: [] for peer in peers}
    for _ in range(rounds):
        own += [seconds(lambda: ours(acquisition, model, method)) for _ in range(OURS_PER_ROUND)]
        for peer, work in peers.items():
            theirs[peer].append(seconds(work))
        own += [seconds(lambda: ours(acquisition, model, method)) for _ in range(OURS_PER_ROUND)]
    ours_s, peak = median(own), peak_memory(acquisition, model, method)
    facts = (int(acquisition.mask.sum()), len(acquisition.gtab), peak)
    if not peers:
        return [Row(name, ours_s, "", None, None, *facts)]
    return [Row(name, ours_s, peer, median(t), median(t) / ours_s, *facts) for peer, t in theirs.items()]


def peak_memory(acquisition: Acquisition, model: str, method: str) -> float | None:
    """Growth of a fresh process' resident memory during a fit, MiB; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        gtab = acquisition.gtab
        np.savez(path, signal=acquisition.signal, mask=acquisition.mask, bvals=gtab.bvals, bvecs=gtab.bvecs)
        command = [sys.executable, __file__, "--memory", str(path), model, method]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_memory(path: str, model: str, method: str) -> None:
    scan = np.load(path)
    acquisition = Acquisition(
        scan["signal"], np.eye(4), GradientTable(scan["bvals"], scan["bvecs"]), scan["mask"].astype(bool)
    )
    crop = Acquisition(acquisition.signal[40:56, 40:56, 20:30], acquisition.affine, acquisition.gtab)
    # what libraries load on first use is not the fit's
    ours(crop, model, method)

    def resident(key: str) -> float:
        found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    ours(acquisition, model, method)
    print(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="how often each peer runs (slow ones once)")
    parser.add_argument("--memory", nargs=3, metavar=("SCAN", "MODEL", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print_peak_memory(*options.memory)
        return

    acquisition = phantom()
    print(
        f"{acquisition}, {int(acquisition.mask.sum())} voxels in the mask, signal {acquisition.signal.nbytes >> 20} MiB"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in ("ols", "wls", "nlls"):
            peers = {f"DIPY {PEERS[method]}": lambda method=method: dipy_dti(acquisition, PEERS[method])}
            if method == "wls" and shutil.which("dwi2tensor"):
                write_for_mrtrix(acquisition, Path(folder))
                peers["MRtrix3 iterated WLS"] = lambda: mrtrix_dti(Path(folder))
            rounds = 1 if method == "nlls" else options.rounds
            rows += compare(f"DTI {method.upper()} + maps", "dti", method, acquisition, peers, rounds)
    rows += compare("ADC WLS + maps", "adc", "wls", acquisition, {}, 1)
    rows += dki.rows(compare, options.rounds)

    print(f"{'':<18}{'ours s':>9}  {'peer':<22}{'peer s':>8}{'ratio':>8}{'peak MiB':>10}")
    for row in rows:
        peer = f"{row.peer:<22}{row.peer_s:8.2f}{row.ratio:8.1f}" if row.peer else " " * 38
        print(f"{row.name:<18}{row.ours_s:9.3f}  {peer}{row.peak_mib or float('nan'):10.1f}")
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
