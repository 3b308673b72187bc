"""Errors that a person can do something about.

Everything the user can fix derives from `DiffusionFMError` and carries a hint; any other exception is a bug of
ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping


class DiffusionFMError(Exception):
    """A failure that the user can fix.

    Parameters
    ----------
    message : str
        What failed and where: expected X, got Y.
    hint : str
        What to do about it, as one sentence in the imperative.
    choices : mapping of str to str, optional
        What the user may choose among, when that is the way out: value of the setting to its description.
    """

    code = "error"

    def __init__(self, message: str, hint: str = "", choices: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.choices = dict(choices or {})

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(DiffusionFMError):
    """A scan, mask or other input file is missing, broken or does not fit the others."""

    code = "input"


class NotEncodedError(InputError):
    """A question is about what the encoder made of a scan that was not encoded."""

    code = "not-encoded"


class GradientError(InputError):
    """The b-values or gradient directions cannot be used."""

    code = "gradients"


class ProtocolError(InputError):
    """The scan is sound, but its protocol does not support what was asked for."""

    code = "protocol"


class SettingsError(DiffusionFMError):
    """A setting is unknown, of the wrong type or outside its range."""

    code = "settings"


class OutputError(DiffusionFMError):
    """Results cannot be written: no permission, no space, no such place."""

    code = "output"


class DeviceError(DiffusionFMError):
    """The chosen computing device is absent or out of memory."""

    code = "device"


class JobCancelled(Exception):  # noqa: N818 - not an error: the user asked for it
    """Raised inside a job at the next checkpoint after the user cancelled it."""
