"""Weights on disk: safetensors, with what is needed to use them in the header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.physics import MODELS, LogLinearModel, SignalModel
from DiffusionFMLib.physics.methods import RESTS_ON
from DiffusionFMLib.prior.coordinates import Coordinates, coordinates_of
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork

KIND: Final = "diffusionfm-prior"
FORMAT: Final = 3

SHIPPED: Final = Path(__file__).resolve().parents[1] / "Models"
"""Folder of the weights that come with the library."""


@dataclass(frozen=True, eq=False)
class TrainedPrior:
    """A network and what it was trained for.

    Parameters
    ----------
    network : PriorNetwork
        In evaluation mode.
    model : LogLinearModel
    coordinates : Coordinates
    training : dict
        How it was trained; plain JSON types.
    adjustment : callable, optional
        What adaptation to a scan makes of the network's raw output; see `adaptation.Adjustment`.
    """

    network: PriorNetwork
    model: LogLinearModel
    coordinates: Coordinates
    training: dict[str, Any]
    adjustment: Callable[[Tensor], Tensor] | None = None


def save_weights(path: Path, network: PriorNetwork, model: LogLinearModel, training: dict[str, Any]) -> None:
    """Write weights, under a temporary name first."""
    from safetensors.torch import save_file

    header = {"kind": KIND, "format": FORMAT, "model": model.name, "shape": network.shape.to_dict()}
    temporary = path.with_name(f".{path.name}.part")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, temporary, metadata={"diffusionfm": json.dumps({**header, "training": training})})
    temporary.replace(path)


def carrier(model: SignalModel) -> SignalModel:
    """The model whose prior carries another: itself where it has one of its own."""
    return MODELS[RESTS_ON.get(model.name, model.name)]


def weights_file(chosen: str, model: SignalModel) -> Path:
    """The file that a setting means: the one that comes with the library when it is empty.

    Raises
    ------
    InputError
        If it is not there.
    """
    path = Path(chosen) if chosen else SHIPPED / f"prior-{carrier(model).name}-small.safetensors"
    if not path.is_file():
        msg = f"The prior's weights {path} are not there."
        hint = "Correct the path, or leave it empty for those that come with DiffusionFM."
        raise InputError(msg, hint if chosen else "Install DiffusionFM again, or give a file of your own.")
    return path


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_weights(path: Path, device: torch.device | None = None) -> TrainedPrior:
    """Read weights.

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
        msg = f"The prior's weights {path} cannot be read: {error}."
        raise InputError(msg, "Choose a .safetensors file that training wrote.") from error
    found = header.get("kind"), header.get("format")
    if found != (KIND, FORMAT):
        held = f"{found[0]} of format {found[1]}" if found[0] else "no weights of DiffusionFM"
        msg = f"{path} holds {held}; expected {KIND} of format {FORMAT}."
        raise InputError(msg, "Choose weights that this version's training wrote.")
    model = MODELS[header["model"]]
    if not isinstance(model, LogLinearModel):
        msg = f"{path} is for {model.title}, for which there is no prior."
        raise InputError(msg, "Choose weights of another model.")
    network = PriorNetwork(NetworkShape(**header["shape"]))
    network.load_state_dict(tensors)
    network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.eval()
    return TrainedPrior(network, model, coordinates_of(model), header["training"])
