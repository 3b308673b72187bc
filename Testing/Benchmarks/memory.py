"""Peak memory of ``diffusionfm fit`` from file to maps, in a fresh process, beside the size of the scan.

``python Testing/Benchmarks/memory.py`` takes three small scans: the peak grows by their size and no more. From 256 MiB
on an uncompressed scan stays in its file, and the system can take its pages back at any time. ``--full`` takes one of
145 x 174 x 145 voxels and 288 volumes (4.2 GB, and as much room on the disk), which has to fit in its size and 2 GiB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from large_scan import write_large_scan
from peak_memory import watch

FULL = ((145, 174, 145, 288),)
SMALL = tuple((73, 87, 73, volumes) for volumes in (48, 96, 192))
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


def rows(shapes: tuple[tuple[int, int, int, int], ...], model: str, extensions: tuple[str, ...]) -> Iterator[MemoryRow]:
    """Lines of the table; the mask is made automatically, as for a user who gives none."""
    for shape in shapes:
        for extension in extensions:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"scan.{extension}"
                size = write_large_scan(path, shape)
                out = str(Path(folder) / "out")
                command = [sys.executable, "-m", "DiffusionFMLib", "fit", str(path), "--model", model, "--out", out]
                start = time.perf_counter()
                with (Path(folder) / "log").open("w+") as log:
                    process = subprocess.Popen(command, text=True, stdout=log, stderr=log)
                    peak = watch(process)
                    seconds = time.perf_counter() - start
                    log.seek(0)
                    if process.returncode:
                        raise RuntimeError(log.read())
            name = f"{'x'.join(map(str, shape))} {extension}"
            yield MemoryRow(name, size / 2**20, peak.total, peak.own, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the 4.2 GB scan")
    parser.add_argument("--model", default="dti")
    parser.add_argument("--format", nargs="+", choices=EXTENSIONS, default=EXTENSIONS)
    options = parser.parse_args()
    print(f"{'MiB':<26}{'scan':>8}{'peak':>8}{'beyond':>8}{'own':>8}{'seconds':>9}")
    worst = 0.0
    for row in rows(FULL if options.full else SMALL, options.model, tuple(options.format)):
        numbers = (row.scan_mib, row.peak_mib, row.beyond_mib, row.own_mib, row.seconds)
        print(f"{row.name:<26}" + "".join(f"{value:8.0f}" for value in numbers), flush=True)
        worst = max(worst, row.beyond_mib)
    print(f"At most {worst:.0f} MiB beyond the scan; {ALLOWANCE_MIB} are allowed.")
    print("peak: all resident memory (VmHWM), beyond: less the scan; own: without mapped files (RssAnon + RssShmem).")


if __name__ == "__main__":
    main()
