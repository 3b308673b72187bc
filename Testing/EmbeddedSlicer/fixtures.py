"""Fixtures of the embedded host; loaded by ``Testing/conftest.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def slicerHost() -> Iterator[Any]:
    """The `EmbeddedSlicer.host` module, started in testing mode without a display: one application per process."""
    host = pytest.importorskip("EmbeddedSlicer.host")
    pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python or machine")
    pytest.importorskip("PySide6", reason="PySide6 is not installed")
    host.start(testing=True, display=False)
    yield host
    host.stop()


@pytest.fixture
def slicerScene(slicerHost: Any) -> Iterator[Any]:
    """The scene, empty before and after the test."""
    slicerHost.closeScene()
    yield slicerHost.application().mrmlScene()
    slicerHost.closeScene()


@pytest.fixture
def slicerWindow(slicerHost: Any, slicerScene: Any) -> Any:
    """The main window in the four-up layout, with an empty scene."""
    window = slicerHost.mainWindow()
    window.layoutManager.setLayout(slicerScene.GetFirstNodeByClass("vtkMRMLLayoutNode").SlicerLayoutFourUpView)
    slicerHost.application().processEvents()
    return window
