"""The examples in the library's docstrings and the commands in README.md do what they say."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest

from DiffusionFMLib.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]


def modules_with_examples() -> list[str]:
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "DiffusionFMLib").rglob("*.py"))
        if ">>>" in path.read_text(encoding="utf-8")
    ]


def readme_commands() -> list[str]:
    """`diffusionfm ...` lines of README.md's shell blocks, with continued lines joined."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("diffusionfm ")]


def test_there_are_examples() -> None:
    assert modules_with_examples()
    assert readme_commands()


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_parse(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])
