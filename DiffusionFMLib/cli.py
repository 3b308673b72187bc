"""The command line, ``diffusionfm``: its flags are the jobs' settings, its work is the worker's.

Exit codes: 0 done, 1 a bug of ours, 2 something the user can fix, 3 cancelled.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_type_hints

from DiffusionFMLib import __version__
from DiffusionFMLib.console import EventSink, show_result
from DiffusionFMLib.demo import DemoSettings, demo
from DiffusionFMLib.errors import DiffusionFMError
from DiffusionFMLib.events import Cancelled, Event, Failed, Finished
from DiffusionFMLib.jobs import discard_temporaries
from DiffusionFMLib.reporting import failure
from DiffusionFMLib.session import Session
from DiffusionFMLib.settings import JOBS, Settings
from DiffusionFMLib.training.command import run_training
from DiffusionFMLib.training.settings import TrainSettings
from DiffusionFMLib.worker import Request, execute

DONE, BUG, USER, CANCELLED = 0, 1, 2, 3
"""Exit codes."""

COMMANDS: dict[str, type[Settings]] = {**JOBS, "demo": DemoSettings, "train": TrainSettings}

POSITIONAL = {"dwi": "DWI", "tracts": "TRACTS"}
"""Settings that are named by their place, and what they are called there."""

_DESCRIPTION = "Microstructure maps and tractography from brain diffusion MRI."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; those of this process when not given.
    """
    arguments = build_parser().parse_args(argv)
    sink = EventSink(quiet=arguments.json)
    try:
        settings = settings_of(arguments)
    except DiffusionFMError as error:
        sink(failure("", error))
        return USER
    with sink, _interruptible() as cancelled:
        if isinstance(settings, DemoSettings):
            terminal = demo(settings, sink, cancelled)
        elif isinstance(settings, TrainSettings):
            terminal = run_training(settings, sink, cancelled)
        else:
            body = {"job": arguments.command, "settings": settings.to_dict(), "arrays": None}
            terminal = execute(Request("cli", "run", body, cancelled), sink, Session())
    if isinstance(terminal, Finished):
        if arguments.json:
            sys.stdout.write(json.dumps({**sink.result, "warnings": sink.warnings}, indent=2) + "\n")
        else:
            show_result(arguments.command, sink.result)
    return exit_code(terminal)


def exit_code(terminal: Event) -> int:
    """Exit code of the event that ended a job."""
    if isinstance(terminal, Failed):
        return BUG if terminal.code == "bug" else USER
    return CANCELLED if isinstance(terminal, Cancelled) else DONE


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, made from the jobs' settings."""
    parser = argparse.ArgumentParser("diffusionfm", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"diffusionfm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, settings in COMMANDS.items():
        purpose = (settings.__doc__ or "").split(" (job ")[0].rstrip(".") + "."
        sub = commands.add_parser(command, help=purpose, description=purpose, allow_abbrev=False)
        _add_settings(sub, settings)
        sub.add_argument("--json", action="store_true", help="Print the result as JSON, and nothing else, on stdout.")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Settings of parsed arguments.

    Raises
    ------
    SettingsError
        If a value is out of its range.
    """
    kind = COMMANDS[arguments.command]
    return kind.from_dict({f.name: getattr(arguments, f.name) for f in fields(kind)})


def _add_settings(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    types = get_type_hints(settings)
    for f in fields(settings):
        about = _about(f.default, f.metadata).replace("%", "%%")
        if f.name in POSITIONAL and settings is not DemoSettings:
            parser.add_argument(f.name, metavar=POSITIONAL[f.name], help=about)
            continue
        flag = "--" + f.name.replace("_", "-")
        if types[f.name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=f.default, help=about)
            continue
        metavar = None if f.metadata["choices"] else "PATH" if f.metadata["path"] else types[f.name].__name__.upper()
        choices = f.metadata["choices"] or None
        kind = types[f.name]
        parser.add_argument(flag, type=kind, default=f.default, choices=choices, metavar=metavar, help=about)


def _about(default: Any, metadata: Any) -> str:
    """Help of a setting: what it is, then its unit, range and default."""
    low, high, unit = metadata["minimum"], metadata["maximum"], metadata["unit"]
    facts = [unit] if unit else []
    if low is not None and high is not None:
        facts.append(f"{_number(low)} to {_number(high)}")
    if default != "":
        facts.append(f"default {default if not isinstance(default, bool) else 'yes' if default else 'no'}")
    return f"{metadata['help']} ({'; '.join(facts)})" if facts else metadata["help"]


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:g}"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, or wish to terminate, sets; the second ends the process at once."""
    cancelled = threading.Event()

    def interrupt(*_: object) -> None:
        if cancelled.is_set():
            discard_temporaries()
            os._exit(CANCELLED)
        cancelled.set()

    if threading.current_thread() is not threading.main_thread():
        yield cancelled
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancelled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
