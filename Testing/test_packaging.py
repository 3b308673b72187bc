"""What is shipped: CMake's file lists, the catalogue entry, and the wheel in a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import DiffusionFMLib

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = "https://example.org/REPLACE-ME"
NOT_SHIPPED = {"__pycache__", "CMakeLists.txt"}


def cmake_list(folder: str, variable: str) -> list[str]:
    """Entries of a `set(VARIABLE ...)` in a folder's CMakeLists.txt."""
    text = (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8")
    name = re.search(r"set\(MODULE_NAME (\w+)\)", text)
    body = re.search(rf"set\({variable}\s+([^)]*)\)", text)
    assert name is not None
    assert body is not None, f"{folder}/CMakeLists.txt sets no {variable}"
    return body[1].replace("${MODULE_NAME}", name[1]).split()


def tree(folder: str) -> list[str]:
    """Every file of a folder that an installation needs, relative to it."""
    return [
        path.relative_to(ROOT / folder).as_posix()
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and not NOT_SHIPPED & set(path.relative_to(ROOT / folder).parts)
    ]


@pytest.mark.parametrize("folder", ["DiffusionFM", "DiffusionFMLib"])
def test_cmake_lists_every_file(folder: str) -> None:
    files = tree(folder)
    scripts = cmake_list(folder, "MODULE_PYTHON_SCRIPTS")
    resources = cmake_list(folder, "MODULE_PYTHON_RESOURCES")
    assert sorted(scripts) == [name for name in files if name.endswith(".py")]
    assert sorted(resources) == [name for name in files if not name.endswith(".py")]


def test_extension_builds_both_folders_against_pytorch() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.findall(r"add_subdirectory\((\w+)\)", text) == ["DiffusionFMLib", "DiffusionFM"]
    assert 'set(EXTENSION_DEPENDS "PyTorch")' in text
    assert text.rstrip().endswith("include(${Slicer_EXTENSION_GENERATE_CONFIG})\ninclude(${Slicer_EXTENSION_CPACK})")


def test_catalogue_entry() -> None:
    entry = json.loads((ROOT / "DiffusionFM.json").read_text(encoding="utf-8"))
    # The fields and types of Slicer's catalog-entry schema v1.0.2.
    types = {
        "$schema": str,
        "category": str,
        "scm_url": str,
        "scm_revision": str,
        "scm_type": str,
        "build_dependencies": list,
        "build_subdirectory": str,
        "dicom_support_rule": str,
        "enabled": bool,
        "tier": int,
    }
    assert {"$schema", "category", "scm_url"} <= entry.keys() <= types.keys()
    assert all(isinstance(value, types[field]) for field, value in entry.items())
    assert entry["$schema"].endswith("/slicer-extension-catalog-entry-schema-v1.0.2.json#")
    assert entry["build_dependencies"] == ["PyTorch"]
    assert 1 <= entry["tier"] <= 5


def test_addresses_agree() -> None:
    entry = json.loads((ROOT / "DiffusionFM.json").read_text(encoding="utf-8"))
    addresses = dict(
        re.findall(r'set\((EXTENSION_\w*URLS?|EXTENSION_HOMEPAGE) "([^"]+)"\)', (ROOT / "CMakeLists.txt").read_text())
    )
    assert addresses.keys() == {"EXTENSION_HOMEPAGE", "EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"}
    assert all(address.startswith(entry["scm_url"]) for address in addresses.values())
    for address in (addresses["EXTENSION_ICONURL"], addresses["EXTENSION_SCREENSHOTURLS"]):
        assert (ROOT / "Resources" / address.rpartition("/")[2]).is_file()


def test_one_version_everywhere() -> None:
    version = DiffusionFMLib.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_links_in_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "DiffusionFMLib" / "Models").glob("*.md")]
    links = [
        (document, link)
        for document in documents
        for link in re.findall(r"\]\(([^)#\s]+)\)", document.read_text(encoding="utf-8"))
        if "://" not in link
    ]
    assert len(links) > 5
    assert [link for document, link in links if not (document.parent / link).is_file()] == []


def test_extension_installs_what_the_library_needs() -> None:
    """Slicer brings numpy, scipy, SimpleITK, the PyTorch extension torch; rich is for terminals."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", pyproject, flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    needed = set(re.findall(r'"([^"]+)"', block[1]))
    elsewhere = {line for line in needed if re.match(r"(torch|numpy|scipy|SimpleITK|rich)\b", line)}
    lines = (ROOT / "DiffusionFM" / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert listed == needed - elsewhere


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no earlier build/ leaks into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "DiffusionFMLib", source / "DiffusionFMLib", ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(built)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a fresh environment that holds the wheel, and borrows its dependencies from this one."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    options = ["--no-deps", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *options, str(wheel)], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # .pth files of the borrowed folder are not read from here, so the editable installation stays invisible.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return environment / "bin"


def outside_the_tree() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=outside_the_tree(), capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture
def tiny_scan(tmp_path: Path) -> Path:
    """A 6 x 6 x 6 scan of one tensor (along x, 1.7 and 0.3 x 1e-3 mm2/s), with bval, bvec and mask beside it."""
    rng = np.random.default_rng(0)
    bvecs = rng.normal(size=(12, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    bvecs = np.vstack([np.zeros(3), bvecs])
    bvals = np.array([0.0] + [1000.0] * 12)
    tensor = np.diag([1.7e-3, 0.3e-3, 0.3e-3])
    signal = 1000 * np.exp(-bvals * np.einsum("ni,ij,nj->n", bvecs, tensor, bvecs))
    # An LAS affine, so that FSL's vectors are those of the scanner but for the sign of x.
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    data = np.broadcast_to(signal.astype(np.float32), (6, 6, 6, 13))
    nib.save(nib.Nifti1Image(np.ascontiguousarray(data), affine), tmp_path / "tiny.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), affine), tmp_path / "mask.nii.gz")
    np.savetxt(tmp_path / "tiny.bval", bvals[None], fmt="%g")
    np.savetxt(tmp_path / "tiny.bvec", bvecs.T, fmt="%.9f")
    return tmp_path / "tiny.nii.gz"


def test_wheel_holds_the_whole_library(wheel: Path) -> None:
    import zipfile

    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(name for name in names if name.startswith("DiffusionFMLib/")) == [
        f"DiffusionFMLib/{name}" for name in tree("DiffusionFMLib")
    ]
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_installed_library_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    statement = "import DiffusionFMLib; print(DiffusionFMLib.__file__, DiffusionFMLib.__version__)"
    process = run([installed / "python", "-c", statement], tmp_path)
    assert process.returncode == 0, process.stderr
    file, version = process.stdout.split()
    assert Path(file).is_relative_to(installed.parent)
    assert version == DiffusionFMLib.__version__


def test_installed_command_explains_itself(installed: Path, tmp_path: Path) -> None:
    process = run([installed / "diffusionfm", "info", "--help"], tmp_path)
    assert process.returncode == 0, process.stderr
    assert "--bval" in process.stdout


def test_installed_command_reads_and_fits_a_scan(installed: Path, tiny_scan: Path, tmp_path: Path) -> None:
    command = installed / "diffusionfm"
    mask = tiny_scan.with_name("mask.nii.gz")
    process = run([command, "info", tiny_scan, "--mask", mask, "--json"], tmp_path)
    assert process.returncode == 0, process.stderr
    json.loads(process.stdout)

    out = tmp_path / "out"
    process = run([command, "fit", tiny_scan, "--mask", mask, "--out", out, "--device", "cpu"], tmp_path)
    assert process.returncode == 0, process.stderr
    fa = nib.load(out / "tiny_model-tensor_param-fa_desc-wls_dwimap.nii.gz").get_fdata()
    # FA of eigenvalues 1.7, 0.3, 0.3.
    np.testing.assert_allclose(fa, 0.7990, atol=1e-3)


def test_installed_command_names_what_is_missing(installed: Path, tmp_path: Path) -> None:
    process = run([installed / "diffusionfm", "fit", "nowhere.nii.gz", "--out", "out"], tmp_path)
    assert process.returncode == 2
    assert "nowhere.nii.gz" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "out").exists()
