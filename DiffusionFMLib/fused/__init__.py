"""Estimators and attention as compiled loops, where numba is installed: several times faster on a CPU than torch.

Each is called by the threads that share out tiles or slabs, and uses none of its own.
"""

from __future__ import annotations

import os
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path


def available() -> bool:
    """Whether numba is there to compile them."""
    return find_spec("numba") is not None


def cache_folder() -> Path:
    """Where compiled loops are kept, another folder for every version of their sources.

    numba itself would not notice that a loop calls a function of another file, and that this one has changed.
    """
    here = Path(__file__).parent
    sources = b"".join(path.read_bytes() for path in sorted(here.glob("*.py")))
    own = here / "__pycache__"
    parent = own if os.access(own if own.exists() else here, os.W_OK) else Path.home() / ".cache" / "diffusionfm"
    return parent / f"loops-{sha256(sources).hexdigest()[:12]}"


# before numba is imported, which reads it
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder()))
