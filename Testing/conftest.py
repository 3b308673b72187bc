"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from module_fixtures import driver, emptyScene  # noqa: F401

from EmbeddedSlicer.fixtures import slicerHost, slicerScene, slicerWindow  # noqa: F401 - fixtures are found by name

if TYPE_CHECKING:
    from worker_client import WorkerClient

PROJECT_ROOT = Path(__file__).resolve().parents[1]
DATA_VARIABLE = "DIFFUSIONFM_DATA"

# A busy machine is slow, not wrong; and a failure must come back on the next run.
hypothesis.settings.register_profile("project", deadline=None, print_blob=True)
hypothesis.settings.load_profile("project")

# Qt and VTK read these when they are first loaded, so they are set before any test module is imported.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# torch and BLAS in one process each would otherwise start a thread per core in every worker the tests launch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """Folder that holds pyproject.toml."""
    return PROJECT_ROOT


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scan as NIfTI, with bval and bvec beside it."""
    from worker_client import write_small_scan

    return write_small_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerClient]:
    """A worker process of the file's own: starting another costs seconds."""
    # only now, since it copies the environment that is set above
    from worker_client import WorkerClient

    with WorkerClient() as client:
        yield client


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the anatomies that the tiny preset trains on."""
    from DiffusionFMLib.training.anatomies import random_phantom

    folder = tmp_path_factory.mktemp("pool")
    for seed in range(2):
        random_phantom(seed).save(folder / f"random{seed:03d}.npz")
    return folder


@pytest.fixture(scope="session")
def scans() -> Path:
    """Folder of public real scans (`train/`, `test/`, `dicom/`); the test is skipped without it."""
    named = os.environ.get(DATA_VARIABLE)
    root = Path(named).expanduser() if named else PROJECT_ROOT.parent / "shared" / "data"
    if not (root / "test").is_dir():
        pytest.skip(f"no real scans in {root}: set {DATA_VARIABLE} to the folder that holds test/ and train/")
    return root
