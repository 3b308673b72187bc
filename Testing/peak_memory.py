"""How much memory another process takes, as Linux counts it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Peak:
    """Largest resident memory of a process, MiB.

    Parameters
    ----------
    total : float
        All of it, mapped files included, which the system takes back when it needs to (VmHWM).
    own : float
        Without mapped files: what nobody can take back (RssAnon and RssShmem).
    """

    total: float
    own: float


def watch(process: subprocess.Popen[str], done: Callable[[], bool] = lambda: False) -> Peak:
    """Peak of a process until it ends or is `done`; its own part is looked at every few milliseconds."""
    total = own = 0.0
    while process.poll() is None:
        found = dict(re.findall(r"(\w+):\s+(\d+) kB", _status(process.pid)))
        total = max(total, int(found.get("VmHWM", 0)) / 1024)
        own = max(own, (int(found.get("RssAnon", 0)) + int(found.get("RssShmem", 0))) / 1024)
        if done():
            break
        time.sleep(POLL_SECONDS)
    return Peak(total, own)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
