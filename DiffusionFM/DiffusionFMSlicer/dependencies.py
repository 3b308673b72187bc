"""The worker's packages: looked for without importing them, and installed when a run first needs them."""

from __future__ import annotations

import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import slicer

from DiffusionFMLib.errors import DiffusionFMError

KEPT = ("numpy", "scipy", "SimpleITK", "vtk")
"""Packages of Slicer itself, which an installation must not exchange."""


def ensurePackages(requirements: Path) -> None:
    """Install what lacks of a requirements file, and PyTorch through its extension.

    Slicer asks the user before it installs anything.

    Raises
    ------
    DiffusionFMError
        If PyTorch lacks and its extension too, or if an installation failed.
    """
    if _missing(requirements):
        _install(requirements)
    if find_spec("torch") is None:
        _installTorch()
    missing = [*_missing(requirements), *(["torch"] if find_spec("torch") is None else [])]
    if missing:
        msg = f"Packages that the computation needs are not installed: {', '.join(missing)}."
        raise DiffusionFMError(msg, "Apply again and accept their installation.")


def _missing(requirements: Path) -> list[str]:
    """Requirements that are absent or of another version, as they stand in the file."""
    try:
        from packaging.requirements import Requirement
    except ImportError:
        # pip, which every Slicer has, brings its own copy
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

    lines = requirements.read_text(encoding="utf-8").splitlines()
    return [str(r) for r in (Requirement(line) for line in lines if line.strip() and line[0] != "#") if not _met(r)]


def _met(requirement: Any) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def _install(requirements: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={v}\n" for name, v in _versions().items()), encoding="utf-8")
        try:
            packaging: Any = getattr(slicer, "packaging", None)
            if packaging is not None:
                packaging.pip_ensure(
                    packaging.load_requirements(requirements), constraints=constraints, requester="DiffusionFM"
                )
            else:
                # Slicer before 5.11
                slicer.util.pip_install(["-r", str(requirements), "-c", str(constraints)])
        except (OSError, RuntimeError, ValueError) as error:
            msg = f"Packages could not be installed: {error}."
            raise DiffusionFMError(msg, "Check the network connection, and apply again.") from error


def _versions() -> dict[str, str]:
    found = {}
    for name in KEPT:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _installTorch() -> None:
    try:
        import PyTorchUtils
    except ImportError as error:
        msg = "PyTorch is not installed."
        raise DiffusionFMError(
            msg, "Install the extension PyTorch with the Extensions Manager, restart Slicer, and apply again."
        ) from error
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=">=2.2")
