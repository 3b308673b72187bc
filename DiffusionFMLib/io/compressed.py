"""Gzip, by isal where it is installed (several times faster), else by the standard library."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from DiffusionFMLib.errors import InputError

try:
    from isal import igzip, isal_zlib
except ImportError:
    _gzip: Any = gzip
    _LEVEL = 4
    _DAMAGE: tuple[Any, ...] = (EOFError, zlib.error, gzip.BadGzipFile)
else:
    _gzip, _LEVEL = igzip, 2
    _DAMAGE = (EOFError, isal_zlib.error, gzip.BadGzipFile)

GZIP_MAGIC: Final = b"\x1f\x8b"


@contextmanager
def opened(path: Path, offset: int = 0, gzipped: bool | None = None) -> Iterator[BinaryIO]:
    """A file's content for reading, decompressed when it is gzip, whatever its name.

    Parameters
    ----------
    path : Path
    offset : int
        Where in the file to start, bytes.
    gzipped : bool, optional
        Whether it is gzip from there; told by the first bytes when not given.

    Raises
    ------
    InputError
        If the file is missing, unreadable or damaged, also while it is being read.
    """
    try:
        with path.open("rb") as raw:
            raw.seek(offset)
            if gzipped is None:
                gzipped = raw.read(2) == GZIP_MAGIC
                raw.seek(offset)
            if gzipped:
                with _gzip.open(raw) as content:
                    yield cast("BinaryIO", content)
            else:
                yield raw
    except _DAMAGE as error:
        msg = f"{path.name} is damaged: its gzip stream is cut short or corrupt ({error})."
        raise InputError(msg, "Copy or download the file again.") from error
    except FileNotFoundError as error:
        msg = f"{path} does not exist."
        raise InputError(msg, "Check the name and the folder.") from error
    except IsADirectoryError as error:
        msg = f"{path} is a folder; expected a file."
        raise InputError(msg, "Choose a file in it.") from error
    except PermissionError as error:
        msg = f"{path} may not be read: {error.strerror}."
        raise InputError(msg, "Change its permissions, or choose a copy.") from error
    except OSError as error:
        msg = f"{path} could not be read: {error.strerror or error}."
        raise InputError(msg, "Check the disk or the network drive.") from error


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip, whatever its name."""
    with opened(path, gzipped=False) as raw:
        return raw.read(2) == GZIP_MAGIC


def drain(file: BinaryIO) -> None:
    """Read to the end: a gzip stream's checksum is there, and tells of damage in the middle."""
    while file.read(1 << 20):
        pass


def compress(data: bytes) -> bytes:
    """Gzip stream of the data; the same bytes each time (no name, no time)."""
    return bytes(_gzip.compress(data, compresslevel=_LEVEL, mtime=0))


@contextmanager
def compressing(raw: BinaryIO) -> Iterator[BinaryIO]:
    """A file whose content goes to another as gzip, for what is too large to `compress` at once."""
    with _gzip.GzipFile("", "wb", _LEVEL, raw, 0) as content:
        yield content
