"""Weights on disk: safetensors, with what is needed to use them in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from DiffusionFMLib.errors import InputError

if TYPE_CHECKING:
    import torch

SHIPPED: Final = Path(__file__).resolve().parent / "Models"
"""Folder of the weights that come with the library."""


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors, under a temporary name first.

    Parameters
    ----------
    path : Path
    tensors : mapping of str to Tensor
    header : mapping
        Plain JSON types, among them ``kind`` and ``format``.
    """
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, temporary, metadata={"diffusionfm": json.dumps(dict(header))})
    temporary.replace(path)


def read_weights(
    path: Path, kind: str, version: int, whose: str, device: torch.device | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a file.

    Parameters
    ----------
    path : Path
    kind : str
    version : int
        Of the kind's format.
    whose : str
        What errors call them, as ``prior's``.
    device : torch.device, optional

    Raises
    ------
    InputError
        If the file is missing, broken or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(device or "cpu")) as stored:
            header = json.loads((stored.metadata() or {}).get("diffusionfm", "{}"))
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        reason = error if isinstance(error, OSError) else "it is no safetensors file, or a damaged one"
        msg = f"The {whose} weights {path} cannot be read: {reason}."
        raise InputError(msg, "Choose a .safetensors file that training wrote.") from error
    found = header.get("kind"), header.get("format")
    if found != (kind, version):
        held = f"{found[0]} of format {found[1]}" if found[0] else "no weights of DiffusionFM"
        msg = f"{path} holds {held}; expected {kind} of format {version}."
        raise InputError(msg, "Choose weights that this version's training wrote.")
    if damaged := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        msg = f"The {whose} weights {path} are damaged: {damaged[0]} holds what is not a number."
        raise InputError(msg, "Choose a .safetensors file that training wrote.")
    return tensors, header
