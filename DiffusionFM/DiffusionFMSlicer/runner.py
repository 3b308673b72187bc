"""One request at a time through the worker, and its results into the scene: the logic behind the panel.

Knows nothing of widgets. `poll` is called by a timer. Results are read by a thread and come into the scene in short
steps, one per turn of the event loop, so that the viewers stay alive.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from DiffusionFMLib.errors import DiffusionFMError, OutputError
from DiffusionFMLib.events import (
    Artifact,
    Cancelled,
    Event,
    Failed,
    Finished,
    Progress,
    Result,
    Started,
    Warned,
)
from DiffusionFMLib.settings import JOBS, ComputeSettings, FitSettings, ScanSettings
from DiffusionFMSlicer.jobfolder import createJobFolder, removeJobFolder
from DiffusionFMSlicer.listener import Listener, Outcome, State
from DiffusionFMSlicer.process import WorkerProcess
from DiffusionFMSlicer.queries import Queries
from DiffusionFMSlicer.scene import inputs, results
from DiffusionFMSlicer.scene.geometry import makeImage
from DiffusionFMSlicer.scene.results import FEATURES, RunLabel

STEP_MS = 5
"""Pause between two steps of bringing results into the scene: the viewers draw in it."""


FRAME_WARNING = (
    "The directions are taken relative to the volumes' axes in Slicer, which may have reversed one of the file's. "
    "Open the file itself to be sure."
)


@dataclass
class _Request:
    """What is known of the request that runs.

    Parameters
    ----------
    job : str
    folder : Path
    label : RunLabel, optional
        Of runs that make results.
    source : dict
        Settings that name the files, of a scan that is being opened.
    wanted : bool
        False after the scene was closed: results are dropped.
    over : bool
        The worker is done with it; its last results may still be on their way into the scene.
    """

    job: str
    folder: Path
    label: RunLabel | None = None
    source: dict[str, str] = field(default_factory=dict)
    wanted: bool = True
    over: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    image: Artifact | None = None


class Runner:
    """Applies, opens and checks scans.

    Parameters
    ----------
    listener : Listener
    schedule : callable(int, callable)
        Calls back after so many milliseconds: ``qt.QTimer.singleShot``.
    worker : callable, optional
        Makes the worker process from `onEvent` and `onExit`.
    """

    def __init__(
        self,
        listener: Listener,
        schedule: Callable[[int, Callable[[], None]], None],
        worker: Callable[..., WorkerProcess] = WorkerProcess,
    ) -> None:
        self.state = State.IDLE
        self.worker = worker(self._onEvent, self._onExit)
        self.queries = Queries(self.worker, lambda: self.state is State.IDLE, schedule)
        self._listener = listener
        self._schedule = schedule
        self._request: _Request | None = None
        self._steps: deque[Iterator[Any]] = deque()
        self._stepping = False
        # one after the other: results must not fill the memory before they are shown
        self._background = ThreadPoolExecutor(1, "DiffusionFM results")

    # --- what the panel asks for ------------------------------------------------------------------------------

    def apply(
        self, scan: Any, settings: Callable[..., ComputeSettings], mask: Any = None, seedMask: Any = None
    ) -> None:
        """Run the job that the settings are of: fit, track or encode.

        Parameters
        ----------
        scan : vtkMRMLNode
        settings : callable
            Completes the panel's settings by the paths of what is exported here.
        mask, seedMask : vtkMRMLNode, optional

        Raises
        ------
        DiffusionFMError
            If the scan or a mask cannot be exported, or the worker not be started.
        """
        request = _Request("", createJobFolder())
        with self._starting(request):
            paths = self._scanPaths(scan, request.folder)
            if mask is not None:
                paths["mask"] = str(inputs.exportMask(mask, scan, request.folder, "mask"))
            if seedMask is not None:
                paths["seed_mask"] = str(inputs.exportMask(seedMask, scan, request.folder, "seeds"))
            complete = settings(**paths)
            if not complete.out:
                complete = settings(**paths, out=str(request.folder / "out"))
            request.job = next(job for job, kind in JOBS.items() if type(complete) is kind)
            kind = (complete.model, complete.method) if isinstance(complete, FitSettings) else FEATURES
            request.label = RunLabel(scan, scan.GetName(), *kind)
            self._send(request, complete, arrays=True)

    def open(self, source: dict[str, str]) -> None:
        """Read a scan from files and put it into the scene.

        Parameters
        ----------
        source : dict
            Settings that name the files: ``dwi``, and ``bval``, ``bvec``, ``series`` where needed.
        """
        request = _Request("info", createJobFolder(), source=dict(source))
        with self._starting(request):
            self._send(request, ScanSettings.from_dict(dict(source)), arrays=True)

    def check(self, scan: Any, files: dict[str, str]) -> None:
        """Quality summary of a scan node; `files` are its ``bval`` and ``bvec`` if it has no gradients itself."""
        request = _Request("info", createJobFolder(), label=RunLabel(scan, scan.GetName(), "", ""))
        with self._starting(request):
            self._send(
                request, ScanSettings.from_dict({**files, **self._scanPaths(scan, request.folder)}), arrays=False
            )

    def cancel(self) -> None:
        """Stop what runs; results that are in the scene already stay."""
        if self._request is None or self._request.over or self.state is not State.RUNNING:
            return
        self.state = State.CANCELLING
        self.worker.cancel(self._request.id)

    def abandon(self) -> None:
        """Cancel, and drop whatever still comes: the scene that it belongs to goes away."""
        self.queries.forget()
        if self._request is None:
            return
        self._request.wanted = False
        self._request.label = None
        self._steps.clear()
        if self._request.over:
            self._end(Outcome.CANCELLED, "", "")
        else:
            self.cancel()

    def close(self) -> None:
        """End the worker and remove the job folder: the module goes away."""
        self.abandon()
        self.worker.stop()
        self._background.shutdown(cancel_futures=True)
        if self._request is not None:
            removeJobFolder(self._request.folder)
            self._request = None
        self.state = State.IDLE

    def poll(self) -> None:
        """Take in what the worker said; called by a timer."""
        self.worker.poll()
        self.queries.pump()

    # --- requests ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _starting(self, request: _Request) -> Iterator[None]:
        if self._request is not None:
            removeJobFolder(request.folder)
            msg = "Another run is under way."
            raise DiffusionFMError(msg, "Wait for it, or cancel it.")
        try:
            yield
        except BaseException as error:
            removeJobFolder(request.folder)
            self._request = None
            self.state = State.IDLE
            if isinstance(error, OSError):
                msg = f"The scan could not be passed to the background process: {error}."
                hint = "Free some space there, or set DIFFUSIONFM_CACHE to another folder."
                raise OutputError(msg, hint) from error
            raise

    def _scanPaths(self, scan: Any, folder: Path) -> dict[str, str]:
        # the scan's own gradients count, whatever files were given for another one
        own = {"bval": "", "bvec": ""}
        source = inputs.unchangedSource(scan)
        if source:
            return {**own, **source}
        if inputs.gradientsOf(scan) is not None:
            return {**own, "dwi": str(inputs.exportScan(scan, folder))}
        file = inputs.niftiFile(scan)
        if file is not None:
            return {"dwi": str(file)}
        self._listener.onWarning(FRAME_WARNING)
        return {"dwi": str(inputs.exportScan(scan, folder))}

    def _send(self, request: _Request, settings: ScanSettings, arrays: bool) -> None:
        copies = request.folder / "arrays"
        copies.mkdir()
        self.worker.send(
            {
                "id": request.id,
                "op": "run",
                "job": request.job,
                "settings": settings.to_dict(),
                "arrays": str(copies) if arrays else None,
            }
        )
        self._request = request
        self.state = State.RUNNING

    # --- events -----------------------------------------------------------------------------------------------

    def _onEvent(self, event: Event) -> None:
        if self.queries.take(event):
            return
        request = self._request
        if request is None or event.id != request.id:
            return
        if isinstance(event, Started):
            self._listener.onStarted(event.device)
        elif isinstance(event, Progress):
            self._listener.onProgress(event)
        elif isinstance(event, Warned):
            self._listener.onWarning(event.message)
        elif isinstance(event, Artifact):
            self._take(event, request)
        elif isinstance(event, Result):
            self._answer(event.data, request)
        elif isinstance(event, Finished):
            self._whenImported(Outcome.FINISHED)
        elif isinstance(event, Cancelled):
            self._whenImported(Outcome.CANCELLED)
        elif isinstance(event, Failed):
            if event.traceback:
                self.worker.log.extend(event.traceback.splitlines())
            self._whenImported(Outcome.FAILED, event.message, event.hint, event.choices)

    def _onExit(self, status: int) -> None:
        if self._request is None:
            return
        if self.state is State.CANCELLING:
            self._whenImported(Outcome.CANCELLED)
            return
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._whenImported(
            Outcome.FAILED,
            f"The background process ended unexpectedly ({how}).",
            "Look at the log. If the computer ran out of memory, close other programs; then apply again.",
        )

    def _take(self, event: Artifact, request: _Request) -> None:
        if not request.wanted:
            return
        if event.role == "image":
            request.image = event
        elif request.label is not None and event.array:
            self._import(self._results(event, request))

    def _results(self, event: Artifact, request: _Request) -> Iterator[None]:
        future = self._background.submit(results.prepare, event)
        while not future.done():
            yield
        label = request.label
        if label is None or future.result() is None:
            return
        if label.scan is not None and label.scan.GetScene() is None:
            # the scan was deleted while it was computed: its results are still worth having
            label = request.label = replace(label, scan=None)
        if event.method:
            label = replace(label, method=event.method)
        node = results.place(event, future.result(), label)
        yield
        yield from results.reveal(event, node)
        self._listener.onNode(node)
        yield

    def _answer(self, data: dict[str, Any], request: _Request) -> None:
        if not request.wanted:
            return
        if request.image is not None:
            self._import(self._openedScan(request.image, data, request))
        else:
            self._listener.onAnswer(request.job, request.label.scan if request.label else None, data)

    def _openedScan(self, image: Artifact, data: dict[str, Any], request: _Request) -> Iterator[None]:
        array = image.array
        if array is None or image.affine is None:
            return
        future = self._background.submit(lambda: makeImage(np.load(array)))
        while not future.done():
            yield
        node = results.makeScan(future.result(), image.affine, data["bvals"], data["bvecs"], data["name"])
        yield
        inputs.rememberSource(node, request.source)
        self._listener.onNode(node)
        yield
        self._listener.onAnswer(request.job, node, data)

    # --- importing --------------------------------------------------------------------------------------------

    def _import(self, steps: Iterator[Any]) -> None:
        self._steps.append(steps)
        if not self._stepping:
            self._stepping = True
            self._schedule(STEP_MS, self._step)

    def _step(self) -> None:
        try:
            while self._steps:
                if next(self._steps[0], self) is not self:
                    self._schedule(STEP_MS, self._step)
                    return
                if self._steps:
                    self._steps.popleft()
            self._stepping = False
        except Exception as error:
            self._stepping = False
            self._steps.clear()
            message, hint = (
                (error.message, error.hint)
                if isinstance(error, DiffusionFMError)
                else (f"A result could not be shown: {error}.", "This is a fault of DiffusionFM: please report it.")
            )
            if self._request is not None and not self._request.over:
                self.worker.stop()
            self._end(Outcome.FAILED, message, hint)
            if not isinstance(error, DiffusionFMError):
                raise

    def _whenImported(
        self, outcome: Outcome, message: str = "", hint: str = "", choices: dict[str, str] | None = None
    ) -> None:
        self.worker.settled()
        if self._request is not None:
            self._request.over = True

        def last() -> Iterator[None]:
            self._end(outcome, message, hint, choices)
            yield

        self._import(last())

    def _end(self, outcome: Outcome, message: str, hint: str, choices: dict[str, str] | None = None) -> None:
        request, self._request = self._request, None
        self.state = State.IDLE
        if request is not None:
            removeJobFolder(request.folder)
            self._listener.onEnded(request.job, outcome, message, hint, choices or {})
