"""Packages that the worker needs: which of them count as missing."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

pytestmark = pytest.mark.usefixtures("emptyScene")


@pytest.fixture
def requirements(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# why\n\nnumpy>=1.0\nscipy>=999\nno-such-package>=1\n")
    return path


def test_what_is_absent_or_too_old_is_missing(requirements):
    from DiffusionFMSlicer.dependencies import _missing

    assert _missing(requirements) == ["scipy>=999", "no-such-package>=1"]


def test_pips_own_copy_reads_the_requirements_where_packaging_is_absent(requirements, monkeypatch):
    pytest.importorskip("pip", reason="this environment was made without pip")
    from DiffusionFMSlicer.dependencies import _missing

    for name in [n for n in sys.modules if n.partition(".")[0] == "packaging"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "packaging", None)
    assert _missing(requirements) == ["scipy>=999", "no-such-package>=1"]


def test_a_prerelease_is_new_enough(tmp_path, monkeypatch):
    from DiffusionFMSlicer.dependencies import _missing

    monkeypatch.setattr(metadata, "version", lambda name: "2.0.0rc1")
    (tmp_path / "r.txt").write_text("dipy>=1.12\n")
    assert _missing(tmp_path / "r.txt") == []
