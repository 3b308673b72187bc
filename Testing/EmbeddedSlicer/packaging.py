"""``slicer.packaging``: says what is installed, and installs nothing.

The host's environment is made by the project's own set-up.

What it leaves out: everything that changes the environment, progress dialogs, and constraints.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

__all__ = ["load_requirements", "pip_check", "pip_ensure", "pip_install", "pip_uninstall"]


def load_requirements(path: str | Path) -> list[Requirement]:
    """Requirements of a file, one a line; comments and blank lines are skipped."""
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def pip_check(requirements: Any) -> bool:
    """Whether all requirements are met."""
    return not _missing(requirements)


def pip_ensure(requirements: Any, **options: Any) -> None:
    """Make sure that requirements are met.

    Raises
    ------
    RuntimeError
        If one is not: the host does not install it.
    """
    missing = _missing(requirements)
    if missing:
        msg = f"Not installed: {', '.join(missing)}. This host installs nothing; use the environment's own pip."
        raise RuntimeError(msg)


def pip_install(requirements: Any, **options: Any) -> None:
    """The same as `pip_ensure`."""
    pip_ensure(requirements)


def pip_uninstall(requirements: Any, **options: Any) -> None:
    """Refuse.

    Raises
    ------
    RuntimeError
        Always.
    """
    msg = "This host does not change its environment."
    raise RuntimeError(msg)


def _missing(requirements: Any) -> list[str]:
    return [str(r) for r in _parse(requirements) if not _met(r)]


def _parse(requirements: Any) -> Iterable[Requirement]:
    items = requirements.split() if isinstance(requirements, str) else requirements
    for item in [items] if isinstance(items, Requirement) else items:
        yield item if isinstance(item, Requirement) else Requirement(item)


def _met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
