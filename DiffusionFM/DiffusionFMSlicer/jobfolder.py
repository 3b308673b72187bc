"""Private folders that a run's input and raw results pass through."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from DiffusionFMLib.errors import OutputError

STALE_AFTER = 7 * 24 * 3600.0
"""Seconds after which a folder counts as left behind where processes cannot be asked."""


def cacheFolder() -> Path:
    """The user's cache folder for DiffusionFM; `DIFFUSIONFM_CACHE` moves it."""
    if os.environ.get("DIFFUSIONFM_CACHE"):
        return Path(os.environ["DIFFUSIONFM_CACHE"])
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "DiffusionFM"


def createJobFolder() -> Path:
    """Make an empty folder that only this user can read.

    Its name carries our process id, so that `removeStale` can tell what a crash left behind.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    jobs = cacheFolder() / "jobs"
    try:
        jobs.mkdir(parents=True, exist_ok=True)
        # mkdtemp gives mode 0700
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=jobs))
    except OSError as error:
        msg = f"The folder for temporary files, {jobs}, cannot be used: {error}."
        raise OutputError(msg, "Free some space there, or set DIFFUSIONFM_CACHE to another folder.") from error


def removeJobFolder(folder: Path) -> None:
    """Remove it with all it holds; a file that is still open elsewhere is left to `removeStale`."""
    shutil.rmtree(folder, ignore_errors=True)


def removeStale() -> None:
    """Remove the folders of processes that no longer run."""
    with contextlib.suppress(OSError):
        for folder in (cacheFolder() / "jobs").iterdir():
            owner = folder.name.partition("-")[0]
            if owner.isdigit() and int(owner) != os.getpid() and not _maybeAlive(int(owner), folder):
                removeJobFolder(folder)


def _maybeAlive(pid: int, folder: Path) -> bool:
    if os.name == "nt":
        # signal 0 would end the process on Windows, so age has to do
        return time.time() - folder.stat().st_mtime < STALE_AFTER
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
