"""``make demo`` on a scan of the user's: the whole path in a process of its own, down to the picture."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from worker_client import ROOT, write_small_scan


def test_demo_shows_a_scan(slicerHost, tmp_path):
    from PySide6 import QtGui

    scan = write_small_scan(tmp_path / "scan")
    out = tmp_path / "demo"
    ran = subprocess.run(
        [sys.executable, str(ROOT / "Testing" / "demo.py"), "--dwi", str(scan), "--out", str(out), "--headless"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert {"dataset_description.json", "scan_model-tensor_param-fa_desc-wls_dwimap.nii.gz"} <= {
        p.name for p in (out / "maps").iterdir()
    }
    picture = QtGui.QImage(str(out / "screenshot.png")).convertToFormat(QtGui.QImage.Format.Format_RGB888)
    assert (picture.width(), picture.height()) == (1400, 900)
    pixels = np.array(picture.constBits()).reshape(900, -1)
    # the axial view holds a head, not only its frame
    assert (pixels[60:420, 3 * 500 : 3 * 780] > 60).mean() > 0.1


def test_demo_fails_with_the_hint_on_what_is_no_scan(tmp_path):
    wrong = tmp_path / "notes.nii.gz"
    wrong.write_text("no image")
    ran = subprocess.run(
        [sys.executable, str(ROOT / "Testing" / "demo.py"), "--dwi", str(wrong), "--out", str(tmp_path), "--headless"],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "notes.nii.gz" in ran.stderr
