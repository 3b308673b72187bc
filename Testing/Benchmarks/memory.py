"""Peak memory of ``diffusionfm fit`` from file to maps, in a fresh process, beside the size of the scan.

``python Testing/Benchmarks/memory.py`` takes two small scans: the peak grows by their size and no more. From 256 MiB
on an uncompressed scan stays in its file, and the system can take its pages back at any time. ``--large`` takes one of
145 x 174 x 145 voxels and 288 volumes (4.2 GB, and as much room on the disk), which has to fit in its size and 2 GiB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from large_scan import write_large_scan
from peak_memory import watch

from DiffusionFMLib.physics import MODELS

FULL = ((145, 174, 145, 288),)
SMALL = tuple((73, 87, 73, volumes) for volumes in (48, 192))
EXTENSIONS = ("nii", "nii.gz")
ALLOWANCE_MIB = 2048


@dataclass(frozen=True)
class MemoryRow:
    """One fit: size of its scan and peaks of its process, MiB; see `peak_memory.Peak`."""

    name: str
    scan_mib: float
    peak_mib: float
    own_mib: float
    seconds: float

    @property
    def beyond_mib(self) -> float:
        """Peak minus scan."""
        return self.peak_mib - self.scan_mib


def rows(
    shapes: tuple[tuple[int, int, int, int], ...], model: str = "dti", extensions: tuple[str, ...] = EXTENSIONS
) -> list[MemoryRow]:
    """Lines of the table; the mask is made automatically, as for a user who gives none."""
    return [_row(shape, extension, model) for shape in shapes for extension in extensions]


def _row(shape: tuple[int, int, int, int], extension: str, model: str) -> MemoryRow:
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / f"scan.{extension}", Path(folder) / "log"
        size = write_large_scan(path, shape)
        command = [sys.executable, "-m", "DiffusionFMLib", "fit", str(path), "--model", model, "--out", f"{folder}/out"]
        start = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(command, text=True, stdout=file, stderr=file)
            peak = watch(process)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(log.read_text())
    return MemoryRow(f"{'x'.join(map(str, shape))} {extension}", size / 2**20, peak.total, peak.own, seconds)


def show(table: list[MemoryRow]) -> None:
    print(f"{'MiB':<26}{'scan':>8}{'peak':>8}{'beyond':>8}{'own':>8}{'seconds':>9}")
    for row in table:
        numbers = (row.scan_mib, row.peak_mib, row.beyond_mib, row.own_mib)
        print(f"{row.name:<26}" + "".join(f"{value:8.0f}" for value in numbers) + f"{row.seconds:9.0f}")
    worst = max(row.beyond_mib for row in table)
    print(f"At most {worst:.0f} MiB beyond the scan; {ALLOWANCE_MIB} are allowed.")
    print("peak: all resident memory (VmHWM), beyond: less the scan; own: without mapped files (RssAnon + RssShmem).")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="the scan of 4.2 GB")
    parser.add_argument("--model", choices=tuple(MODELS), default="dti")
    parser.add_argument("--format", nargs="+", choices=EXTENSIONS, default=EXTENSIONS)
    options = parser.parse_args()
    show(rows(FULL if options.large else SMALL, options.model, tuple(options.format)))


if __name__ == "__main__":
    main()
