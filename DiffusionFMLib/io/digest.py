"""What a file is known again by, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

CHUNK: Final = 1 << 22


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()
