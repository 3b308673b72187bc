"""The preflight names what lacks, once, and says what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import preflight
import pytest

ABSENT = {"libsurely-not-there.so.9": "libsurely-not-there9"}


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine with apt and everything installed, on which nothing is really installed."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(preflight, "missing_venv_package", list)
    monkeypatch.setattr(preflight, "RENDERING_LIBRARIES", {})
    monkeypatch.setattr(preflight, "WINDOW_LIBRARIES", {})
    monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000, raising=False)
    return monkeypatch


def test_missing_library_gives_its_package() -> None:
    assert preflight.missing_packages(ABSENT) == ["libsurely-not-there9"]


def test_complete_machine_is_silent(linux: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight.check_system_packages()
    assert capsys.readouterr().out == ""


def test_user_gets_one_apt_line(linux: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    linux.setattr(preflight, "RENDERING_LIBRARIES", ABSENT)
    linux.setattr(preflight, "missing_venv_package", lambda: ["python3.11-venv"])
    assert not preflight.check_system_packages()
    assert "sudo apt-get install -y python3.11-venv libsurely-not-there9\n" in capsys.readouterr().out


@pytest.mark.parametrize("succeeds", [True, False])
def test_root_installs(linux: pytest.MonkeyPatch, succeeds: bool) -> None:
    asked = []

    def apt_install(packages: list[str]) -> bool:
        asked.append(packages)
        return succeeds

    linux.setattr(preflight, "RENDERING_LIBRARIES", ABSENT)
    linux.setattr(preflight.os, "geteuid", lambda: 0)
    linux.setattr(preflight, "apt_install", apt_install)
    assert preflight.check_system_packages() is succeeds
    assert asked == [["libsurely-not-there9"]]


def test_window_libraries_matter_only_with_a_display(linux: pytest.MonkeyPatch) -> None:
    linux.setattr(preflight, "WINDOW_LIBRARIES", ABSENT)
    linux.setattr(preflight, "apt_install", lambda _: pytest.fail("installed for no window"))
    linux.setattr(preflight.os, "geteuid", lambda: 0)
    assert preflight.check_system_packages()


def test_no_window_libraries_still_gives_a_picture(
    linux: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linux.setenv("DISPLAY", ":0")
    linux.setattr(preflight, "WINDOW_LIBRARIES", ABSENT)
    assert preflight.check_system_packages()
    assert "a picture is written instead" in capsys.readouterr().out


def test_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.25e9))
    assert not preflight.check_disk(tmp_path)
    assert "1.2 GB free" in capsys.readouterr().out


@pytest.mark.parametrize(("version", "machine"), [((3, 14, 0), "x86_64"), ((3, 11, 7), "aarch64")])
def test_no_viewers_is_said(
    version: tuple[int, ...],
    machine: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(preflight.platform, "machine", lambda: machine)
    preflight.check_python()
    assert "`make demo` runs the command line" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_leaves_an_environment_that_is_a_link_alone(project_root: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project_root / name, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".venv").symlink_to(elsewhere)
    done = subprocess.run(["make", "install"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "is a link to another checkout's environment" in done.stderr
    assert not [*elsewhere.iterdir()]
