"""Private folders that a run's input and raw results pass through."""

from __future__ import annotations

import contextlib
import os
import platform
import re
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

    Its name carries our process id and computer, so that `removeStale` can tell what a crash left behind.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    jobs = cacheFolder() / "jobs"
    try:
        jobs.mkdir(parents=True, exist_ok=True)
        # mkdtemp gives mode 0700
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-{_computer()}-", dir=jobs))
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
            owner, _, rest = folder.name.partition("-")
            here = rest.rpartition("-")[0] == _computer()
            if (
                owner.isdigit()
                and not (here and int(owner) == os.getpid())
                and not _maybeAlive(int(owner), here, folder)
            ):
                removeJobFolder(folder)


def _computer() -> str:
    # home folders are shared between the computers of a cluster
    return re.sub(r"[^\w.]+", "_", platform.node())


def _maybeAlive(pid: int, here: bool, folder: Path) -> bool:
    if os.name == "nt" or not here:
        # signal 0 would end the process on Windows, and asks nobody elsewhere: age has to do
        return time.time() - folder.stat().st_mtime < STALE_AFTER
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
