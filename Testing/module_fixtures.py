"""Fixtures of the module's tests; loaded by ``Testing/conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from module_driver import MODULE, Driver


@pytest.fixture
def emptyScene(slicerScene: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty scene, and the module's packages on Python's path as Slicer puts them there."""
    monkeypatch.syspath_prepend(str(MODULE.parent))
    return slicerScene


@pytest.fixture
def driver(slicerHost: Any, slicerWindow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The module's panel in the host's window, over an empty scene; its job folders in the test's own folder."""
    import slicer

    monkeypatch.setenv("DIFFUSIONFM_CACHE", str(tmp_path / "cache"))
    if not hasattr(slicer.modules, "DiffusionFMWidget"):
        slicerHost.loadModule(MODULE)
    else:
        slicer.modules.diffusionfm.widgetRepresentation().reload()
    driver = Driver(slicer.modules.DiffusionFMWidget)
    yield driver
    driver.widget.cleanup()
