"""Who may import whom: directions point down only, and what Slicer's own process reads stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "DiffusionFMLib"
MODULE = ROOT / "DiffusionFM"

MAX_LINES = 450

# From the ground up. A file may import from its own package and from the layers below its own; a new file or
# package has to be given its place here.
LAYERS = (
    {"errors", "fused"},
    {"events", "gradients", "layout", "stored_weights"},
    {"acquisition", "maps"},
    {"physics"},
    {"settings"},
    {"io"},
    {"fitting", "simulation", "preprocessing"},
    {"encoder", "gradient_check", "prior"},
    {"downstream", "overlays", "quality", "tractography"},
    {"connectome", "reporting", "session"},
    {"jobfiles", "training"},
    {"connectome_job", "encode_job", "scan_jobs", "fit_job"},
    {"track_job"},
    {"jobs"},
    {"worker", "console"},
    {"demo"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

VIEWER_MODULES = {"slicer", "qt", "ctk", "vtk", "PySide6", "PythonQt"}
# What Slicer's own process must not load before the person has asked for a computation, or at all.
HEAVY_MODULES = {"torch", "nibabel", "dipy"}
# What a scripted module may import at file scope: all of it ships with every Slicer.
SHIPPED_WITH_SLICER = {"slicer", "vtk", "qt", "ctk", "numpy", "scipy", "SimpleITK", "mrml"}


def imports(path: Path, *, file_scope_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `from package import name` gives `package.name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if not (file_scope_only and is_function):
            pending.extend(ast.iter_child_nodes(node))


def library_files() -> list[Path]:
    return sorted(LIBRARY.rglob("*.py"))


def module_files() -> list[Path]:
    return sorted(MODULE.rglob("*.py"))


def component(path: Path) -> str:
    """First name below the library's root: `fitting` for fitting/ols.py, `jobs` for jobs.py."""
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_part_of_the_library_has_a_layer() -> None:
    parts = {component(path) for path in library_files()} - {"__init__"}
    assert parts - RANK.keys() == set()


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_library_imports_point_down(path: Path) -> None:
    own = component(path)
    upward = []
    for name in imports(path):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package != "DiffusionFMLib" or target in {"", own} or target.startswith("__"):
            continue
        if own == "__init__" or RANK[target] >= RANK[own]:
            upward.append(name)
    assert upward == [], f"{relative(path)} imports from its own layer or one above it"


@pytest.mark.parametrize("path", library_files(), ids=relative)
def test_library_knows_no_viewer(path: Path) -> None:
    packages = {name.split(".")[0] for name in imports(path)}
    assert packages & (VIEWER_MODULES | {"DiffusionFM", "DiffusionFMSlicer"}) == set()


def test_module_imports_at_file_scope_only_what_every_slicer_has() -> None:
    allowed = SHIPPED_WITH_SLICER | set(sys.stdlib_module_names) | {"DiffusionFMLib", "DiffusionFMSlicer"}
    foreign = {
        f"{relative(path)}: {name}"
        for path in module_files()
        for name in imports(path, file_scope_only=True)
        if name.split(".")[0] not in allowed
    }
    assert foreign == set()


def test_module_never_imports_torch() -> None:
    named = {relative(path) for path in module_files() for name in imports(path) if name.split(".")[0] == "torch"}
    assert named == set()


def library_modules_read_by_slicer() -> list[str]:
    """Library modules that the module's files import, in a form that `import` takes."""
    names = {"DiffusionFMLib"}
    names.update(
        f"DiffusionFMLib.{name}"
        for name in ("errors", "events", "gradients", "acquisition", "maps", "physics", "settings")
    )
    for path in module_files():
        for name in imports(path):
            if name.startswith("DiffusionFMLib."):
                as_file = ROOT / (name.replace(".", "/") + ".py")
                is_module = as_file.is_file() or as_file.with_suffix("").is_dir()
                names.add(name if is_module else name.rpartition(".")[0])
    return sorted(names)


def test_what_slicer_reads_loads_nothing_heavy() -> None:
    statement = f"import sys, {', '.join(library_modules_read_by_slicer())}; print(*sys.modules, sep='\\n')"
    process = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    loaded = {name.split(".")[0] for name in process.stdout.split()}
    assert "DiffusionFMLib" in loaded
    assert loaded & (HEAVY_MODULES | VIEWER_MODULES) == set()


def test_files_stay_readable() -> None:
    long = {
        relative(path): lines
        for folder in (LIBRARY, MODULE, ROOT / "Testing")
        for path in folder.rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert long == {}


def test_names_say_something() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "helper.py", "misc.py", "common.py"}
    named = [
        relative(path)
        for folder in (LIBRARY, MODULE, ROOT / "Testing")
        for path in folder.rglob("*.py")
        if path.name in vague
    ]
    assert named == []
    assert not (ROOT / "Testing" / "__init__.py").exists()
