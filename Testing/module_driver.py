"""Drives the module in the embedded host as a user would, for its tests."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
MODULE = Path(__file__).resolve().parent.parent / "DiffusionFM" / "DiffusionFM.py"
AFFINE = np.array([[-2.0, 0, 0.1, 10], [0, 2, 0, -20], [0, 0.3, 2.5, 5], [0, 0, 0, 1]])
"""Oblique, and left-handed: a flip or a transpose does not go unseen."""


def smallScan(seed: int = 0) -> tuple[np.ndarray, list[float], list[list[float]]]:
    """Signal (K, J, I, N) of random numbers, b-values and directions in RAS."""
    rng = np.random.default_rng(seed)
    bvecs = rng.normal(size=(12, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    bvecs[0] = 0
    bvals = np.where(bvecs.any(axis=1), 1000.0, 0.0)
    return rng.random((7, 8, 9, 12)).astype(np.float32), bvals.tolist(), bvecs.tolist()


def addSmallScan(name: str = "scan", seed: int = 0) -> Any:
    """A diffusion-weighted volume node of `smallScan`."""
    from DiffusionFMSlicer.scene.geometry import makeImage
    from DiffusionFMSlicer.scene.results import makeScan

    signal, bvals, bvecs = smallScan(seed)
    return makeScan(makeImage(signal), AFFINE, bvals, bvecs, name)


class Driver:
    """The module's panel in the host.

    Parameters
    ----------
    widget : DiffusionFMWidget
    """

    def __init__(self, widget: Any) -> None:
        self.widget = widget

    @property
    def panel(self) -> Any:
        return self.widget.panel

    @property
    def ui(self) -> Any:
        return self.widget.panel.ui

    @property
    def worker(self) -> Any:
        return self.panel.runner.worker

    def useFakeWorker(self, mode: str) -> None:
        """Let the next request start the fake worker in that mode."""
        self.worker.stop()
        self.worker._command = [sys.executable, str(FAKE_WORKER), mode]

    def useRealWorker(self) -> None:
        self.worker.stop()
        self.worker._command = None

    def spin(self, seconds: float = 0.2) -> None:
        """Let the event loop run."""
        import slicer

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.005)

    def until(self, done: Callable[[], Any], seconds: float = 30.0) -> float:
        """Let the event loop run until something holds; seconds that it took."""
        import slicer

        begun = time.monotonic()
        while not done():
            waited = time.monotonic() - begun
            assert waited < seconds, (
                f"not within {seconds} s; {self.ui.messageLabel.text!r} {list(self.worker.log)[-5:]}"
            )
            slicer.app.processEvents()
            time.sleep(0.005)
        return time.monotonic() - begun

    def timeCallbacks(self) -> list[float]:
        """Seconds that each callback of the module works from now on, in the time of this thread alone.

        The host's own drawing is not among them, nor what else the machine is busy with.
        """
        # a collection of what other tests left in this process would count as the module's time
        gc.collect()
        gc.freeze()
        seconds: list[float] = []

        def timed(plain: Callable[[], Any]) -> Callable[[], Any]:
            def call() -> Any:
                begun = time.thread_time()
                try:
                    return plain()
                finally:
                    seconds.append(time.thread_time() - begun)

            return call

        runner = self.panel.runner
        for owner, name in ((runner, "_step"), (runner, "poll"), (self.panel, "refresh")):
            setattr(owner, name, timed(getattr(owner, name)))
        return seconds

    @property
    def idle(self) -> bool:
        return self.panel.runner.state.name == "IDLE"

    def choose(self, scan: Any) -> None:
        """Choose a scan in the panel."""
        self.spin(0.05)
        self.ui.scanSelector.setCurrentNode(scan)
        self.spin(0.05)
        assert self.panel.parameters.reference("Scan") is scan

    def apply(self, seconds: float = 30.0) -> None:
        """Press Apply, and wait for the end."""
        assert self.ui.applyButton.enabled, self.ui.applyButton.toolTip
        self.ui.applyButton.click()
        self.until(lambda: self.idle, seconds)
        self.spin(0.15)

    def chooseOverlay(self, name: str) -> None:
        """Choose among features and attention, and wait for the worker's answer."""
        self.ui.featureSelector.currentIndex = self.ui.featureSelector.findData(name)
        self.settle()

    def settle(self) -> None:
        """Let the panel hear of what changed, ask the worker, and be answered."""
        queries = self.panel.runner.queries
        self.spin(0.05)
        self.until(lambda: self.idle and queries._asked is None and not queries._waiting)
        # the log comes on a way of its own
        self.spin(0.05)

    def results(self) -> dict[str, Any]:
        """Result nodes by map name."""
        from DiffusionFMSlicer.scene.results import NAME, resultNodes

        return {node.GetAttribute(NAME): node for node in resultNodes()}
