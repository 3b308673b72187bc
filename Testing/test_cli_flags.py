"""The command line's flags are the jobs' settings: nothing lost, nothing added, everything explained."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from DiffusionFMLib import __version__
from DiffusionFMLib.cli import (
    BUG,
    CANCELLED,
    COMMANDS,
    DONE,
    POSITIONAL,
    USER,
    build_parser,
    exit_code,
    main,
    settings_of,
)
from DiffusionFMLib.events import Cancelled, Failed, Finished

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def _values(field):
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    if field.metadata["form"]:
        return st.from_regex(field.metadata["form"], fullmatch=True)
    match field.default:
        case bool():
            return st.booleans()
        case int():
            return st.integers(low, high)
        case float():
            return st.floats(low, high)
    return WORDS


def _settings(command):
    kind = COMMANDS[command]
    return st.builds(kind, **{f.name: _values(f) for f in fields(kind)})


def _argv(command, settings):
    """The command line that a person would type for these settings."""
    argv, scan = [command], []
    for name, value in settings.to_dict().items():
        flag = name.replace("_", "-")
        if name in POSITIONAL and command != "demo":
            scan = ["--", value]
        elif isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            argv.append(f"--{flag}={value}")
    return argv + scan


@pytest.mark.parametrize("command", COMMANDS)
@given(data=st.data())
def test_settings_survive_the_command_line_and_json(command, data):
    settings = data.draw(_settings(command))
    assert settings_of(build_parser().parse_args(_argv(command, settings))) == settings
    assert type(settings).from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_given_keeps_its_default(command):
    kind = COMMANDS[command]
    named = {} if command == "demo" else {f.name: "a.file" for f in fields(kind) if f.name in POSITIONAL}
    assert settings_of(build_parser().parse_args([command, *named.values()])) == kind(**named)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_setting_its_unit_range_and_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for f in fields(COMMANDS[command]):
        line = next(line for line in text.splitlines() if f.metadata["help"] in line)
        assert f.metadata["unit"] in line
        if f.metadata["minimum"] is not None:
            low, high = re.search(r"(\S+) to ([\d.]+)(?=[;)])", line).groups()
            assert (float(low.lstrip("(")), float(high)) == (f.metadata["minimum"], f.metadata["maximum"])
        if not isinstance(f.default, bool) and f.default != "":
            assert f"default {f.default}" in line


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"diffusionfm {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["levitate"],
        ["fit"],
        ["fit", "scan.nii.gz", "--model", "voodoo"],
        ["fit", "scan.nii.gz", "--seed", "many"],
        ["fit", "scan.nii.gz", "--gib"],
        ["info", "a.nii.gz", "b.nii.gz"],
        ["fit", "scan.nii.gz", "--unheard-of", "1"],
    ],
)
def test_a_wrong_command_line_is_the_users_to_fix(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == USER
    assert capsys.readouterr().err.startswith("usage: diffusionfm")


@pytest.mark.parametrize(
    "argv",
    [
        ["fit", "scan.nii.gz", "--out", "maps", "--seed=-1"],
        ["info", "scan.nii.gz", "--b0-threshold", "nan"],
        ["track", "scan.nii.gz", "--out", "maps", "--max-angle", "100"],
        ["simulate", "--out", "scan", "--snr", "0"],
    ],
)
def test_a_value_out_of_range_names_the_range(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == USER
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "expected" in captured.err
    assert "Choose a value in that range." in captured.err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_tell_bug_fault_and_cancel_apart():
    assert exit_code(Finished("1")) == DONE == 0
    assert exit_code(Failed("1", "bug", "oops")) == BUG == 1
    assert exit_code(Failed("1", "input", "empty")) == USER == 2
    assert exit_code(Cancelled("1")) == CANCELLED == 3
