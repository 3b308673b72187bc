"""``slicer.i18n``: texts as they are, since this host has no translations."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["getContext", "tr", "translate"]


def getContext(sourceFile: str) -> str:
    """Name under which Slicer would look up a file's texts: the file's own."""
    return sourceFile.replace("\\", "/").rpartition("/")[2].removesuffix(".py")


def translate(context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
    """The text."""
    return text


def tr(text: str, *_: Any) -> str:
    """The text, of the calling file's context."""
    caller = inspect.stack()[1].filename
    return translate(getContext(caller), text)
