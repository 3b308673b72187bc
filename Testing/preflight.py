"""Check that this machine can hold the demo and the tests, before anything is downloaded.

Runs on the system's Python, so it uses the standard library alone. What lacks is named in one apt line, and
installed when this is root on a system with apt. Exit code 0: go on; 2: something the person has to do first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)

# The environment takes 3 GB on Linux with the CPU build of torch; unpacking needs room beside it.
NEEDED_GB = 5

# Loaded by QtGui, by VTK's OpenGL classes and by their off-screen forms: nothing is shown without them.
RENDERING_LIBRARIES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libfontconfig.so.1": "libfontconfig1",
    "libfreetype.so.6": "libfreetype6",
    "libdbus-1.so.3": "libdbus-1-3",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libX11.so.6": "libx11-6",
}
# What Qt's X11 plugin and VTK's X11 window add; without a display nobody misses them.
WINDOW_LIBRARIES = {
    "libX11-xcb.so.1": "libx11-xcb1",
    "libXcursor.so.1": "libxcursor1",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-sync.so.1": "libxcb-sync1",
    "libxcb-xfixes.so.0": "libxcb-xfixes0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
}


def missing_packages(libraries: dict[str, str]) -> list[str]:
    """Debian packages of those shared libraries that the loader does not find.

    Parameters
    ----------
    libraries : dict of str to str
        Package name by the file name (soname) that the loader looks for.
    """
    missing = []
    for soname, package in libraries.items():
        try:
            ctypes.CDLL(soname)
        except OSError:
            missing.append(package)
    return missing


def missing_venv_package() -> list[str]:
    """Debian's package of the venv module, where its Python came without."""
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return []
    return [f"python3.{sys.version_info.minor}-venv"]


def apt_install(packages: list[str]) -> bool:
    """Install Debian packages; False where apt refused or failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    commands = [
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
    ]
    return all(subprocess.run(command, env=environment, check=False).returncode == 0 for command in commands)


def check_python() -> None:
    """Say so when this Python is outside the range that the pinned packages are tried with."""
    running = sys.version_info[:2]
    if not OLDEST_PYTHON <= running <= NEWEST_PYTHON:
        print(
            f"preflight: Python {running[0]}.{running[1]} is outside {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]}.."
            f"{NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}, which the pinned packages are tried with."
        )
    no_wheel = running >= (3, 14) or (sys.platform == "linux" and platform.machine() == "aarch64")
    if no_wheel:
        print(
            "preflight: slicer-core has no wheel for this Python or processor, so there are no viewers here: "
            "`make demo` runs the command line and draws figures."
        )


def check_disk(folder: Path) -> bool:
    """Whether the file system of `folder` has room for the environment."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb >= NEEDED_GB:
        return True
    print(
        f"preflight: {free_gb:.1f} GB free in {folder}; the environment needs {NEEDED_GB} GB. "
        "Free some space, or clone the project onto a larger disk."
    )
    return False


def check_system_packages() -> bool:
    """Whether what Qt, VTK and venv need is there, after installing it where that is allowed."""
    needed = missing_venv_package()
    wanted: list[str] = []
    if sys.platform == "linux":
        needed += missing_packages(RENDERING_LIBRARIES)
        wanted = missing_packages(WINDOW_LIBRARIES)
    if not needed and not (wanted and os.environ.get("DISPLAY")):
        return True

    packages = [*needed, *wanted]
    apt_line = f"apt-get install -y {' '.join(packages)}"
    if not shutil.which("apt-get"):
        print(f"preflight: this machine lacks the libraries that Debian packages as: {' '.join(packages)}")
        print("preflight: install their equivalents with this system's package manager, then run make again.")
        return not needed
    if os.geteuid() == 0:
        print(f"preflight: installing what lacks: {apt_line}")
        if apt_install(packages):
            return True
        print("preflight: apt could not install them (is there a network?).")
        return not needed
    print(f"preflight: Qt, VTK or venv lack system packages. Please run:\n\n    sudo {apt_line}\n")
    if not needed:
        print("preflight: only the window needs them: without it a picture is written instead.")
    return not needed


def main() -> int:
    """Run every check, so that one pass names all that lacks."""
    # In a pipe, apt's own lines would otherwise come before what announces them.
    sys.stdout.reconfigure(line_buffering=True)
    check_python()
    passed = [check_disk(Path(__file__).resolve().parent), check_system_packages()]
    return 0 if all(passed) else 2


if __name__ == "__main__":
    sys.exit(main())
