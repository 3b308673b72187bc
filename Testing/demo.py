"""The main job in the embedded Slicer core: opens a scan, presses Apply, and shows maps, tracts and learned features.

``python Testing/demo.py --out demo`` simulates a whole-brain scan first; ``--dwi PATH`` takes yours. Where there is a
display its window stays open, else it writes ``screenshot.png``. Where the viewers cannot be installed it does the
same job on the command line.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZE = (1400, 900)
TRACT_COUNT = 6000
"""Streamlines: enough to see the bundles, few enough to turn smoothly without a graphics card."""

ANSWER_PATIENCE = 10.0
"""Seconds that an overlay may take."""

PATIENCE = 1800.0
"""Seconds that a run may take: a long scan on a slow computer."""


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dwi", default="", help="your scan: NIfTI with bval and bvec beside it, NRRD or DICOM folder")
    parser.add_argument("--out", default="demo", type=Path, help="folder for everything that is written (%(default)s)")
    parser.add_argument("--headless", action="store_true", help="write a screenshot even where there is a display")
    arguments = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]
    if find_spec("slicer") is None or find_spec("PySide6") is None:
        print("slicer-core or PySide6 is not there for this Python or machine: the same job without viewers.")
        scan = ["--dwi", arguments.dwi] if arguments.dwi else []
        return subprocess.call(
            [sys.executable, "-m", "DiffusionFMLib", "demo", *scan, "--out", str(arguments.out)], cwd=ROOT
        )
    return show(arguments.dwi, arguments.out.resolve(), arguments.headless)


def show(dwi: str, out: Path, headless: bool) -> int:
    """Do the job in the host."""
    from EmbeddedSlicer import host

    host.start(display=False if headless else None)
    out.mkdir(parents=True, exist_ok=True)
    host.logTo(out / "vtk.log")
    window = host.mainWindow()
    window.resize(*SIZE)
    widget = host.loadModule(ROOT / "DiffusionFM" / "DiffusionFM.py")
    panel = widget.panel
    begun = time.monotonic()
    scan = Path(dwi).expanduser().resolve() if dwi else simulate(out / "scan")
    print(f"Opening {scan.name}")
    panel.open(str(scan))
    if not finish(host, panel):
        return 2
    print(f"Apply on {panel.ui.factsLabel.text}")
    for name, value in {"tracts": True, "tubes": True, "max_count": TRACT_COUNT, "out": str(out / "maps")}.items():
        panel.parameters.set(name, value)
    panel.showParameters()
    if not panel.ui.applyButton.enabled:
        print(panel.ui.applyButton.toolTip, file=sys.stderr)
        return 2
    panel.ui.applyButton.click()
    if not finish(host, panel):
        return 2
    unfold(panel)
    panel.ui.encodeButton.click()
    if not finish(host, panel):
        return 2
    arrange(panel)
    showOverlay(host, panel)
    print(f"Done in {time.monotonic() - begun:.0f} s: maps, tracts and features are in {out / 'maps'}")
    if not headless and host.hasUsableDisplay():
        return host.run()
    picture = host.screenshot(out / "screenshot.png")
    print(f"No display: the window is in {picture}")
    host.stop()
    return 0


def simulate(folder: Path) -> Path:
    """Simulate a scan by the command line's job; the scan's file."""
    scan = folder / "simulated_dwi.nii.gz"
    if scan.exists():
        print(f"Taking the scan of an earlier demo; remove {folder} for a new one")
    else:
        print("Simulating a whole-brain scan")
        subprocess.run([sys.executable, "-m", "DiffusionFMLib", "simulate", "--out", str(folder)], cwd=ROOT, check=True)
    return scan


def finish(host: Any, panel: Any) -> bool:
    """Wait for the run, and tell its stages; whether it went well."""
    told = ""

    def idle() -> bool:
        nonlocal told
        stage = panel.ui.progressBar.format.partition(",")[0]
        if stage != told:
            told = stage
            print(f"  {stage}", flush=True)
        return panel.runner.state.name == "IDLE"

    done = host.wait(idle, PATIENCE)
    if not done or panel.lastError:
        print(panel.ui.messageLabel.text or "The run took too long.", file=sys.stderr)
        return False
    return True


def unfold(panel: Any) -> None:
    """Make room for the section of the encoder, which is folded at first."""
    for section in (panel.ui.scanSection, panel.ui.mapsSection, panel.ui.tractsSection):
        section.collapsed = True
    panel.ui.featuresSection.collapsed = False


def arrange(panel: Any) -> None:
    """Three slices and the tracts in 3D."""
    panel.ui.fourUpButton.click()
    panel.ui.centreButton.click()


def showOverlay(host: Any, panel: Any) -> None:
    """Lay over FA the first overlay of the list: one that passed the gate."""
    from DiffusionFMSlicer.parameters import SCAN
    from DiffusionFMSlicer.scene import features

    selector = panel.ui.featureSelector
    selector.currentIndex = 0
    scan, name = panel.parameters.reference(SCAN), selector.currentData
    host.wait(lambda: features.overlayNode(scan, name) is not None, ANSWER_PATIENCE)


if __name__ == "__main__":
    sys.exit(main())
