"""No step from file to maps copies the whole scan."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from large_scan import write_large_scan
from peak_memory import watch

from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition, write_acquisition
from DiffusionFMLib.settings import ScanSettings

SHAPE = (56, 64, 56, 256)
"""Many volumes of few voxels, so that maps and masks are small beside the scan."""

COPY = 0.25
"""A fit of a scan that stays in its file takes less than this fraction of it: about half of that, when nothing is
copied. A copy of the scan would be 1, one of its brain 0.2."""

CHILD = """
import sys
from pathlib import Path
from DiffusionFMLib import cli
from DiffusionFMLib.io import nifti
nifti.MAPPED_FROM = 1
for scan in sys.argv[1:]:
    if cli.main(["fit", scan, "--out", f"{scan}-maps", "--memory-mib", "16", "--json"]):
        sys.exit(f"{scan} could not be fitted")
    Path(f"{scan}-done").touch()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted as Linux does")
def test_no_step_of_a_fit_copies_the_scan(tmp_path: Path) -> None:
    small, large = tmp_path / "small.nii", tmp_path / "large.nii"
    write_large_scan(small, (*SHAPE[:3], 16))
    size = write_large_scan(large, SHAPE)
    command = [sys.executable, "-c", CHILD, str(small), str(large)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL)
    before, after = (watch(process, Path(f"{scan}-done").exists).own * 2**20 for scan in (small, large))
    large.unlink()
    assert process.wait() == 0
    # the first has paid for libraries, masks and maps
    assert after - before < COPY * size


def test_writing_a_scan_takes_some_volumes(tmp_path: Path) -> None:
    write_large_scan(tmp_path / "given.nii", (24, 24, 24, 64))
    acquisition = read_acquisition(ScanSettings(dwi=str(tmp_path / "given.nii")), SilentReport())
    for name in ("scan.nii", "scan.nii.gz", "scan.nrrd", "scan.nhdr"):
        tracemalloc.start()
        write_acquisition(acquisition, tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.5 * acquisition.signal.nbytes, name
