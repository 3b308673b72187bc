"""The prior's weights on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib.errors import InputError
from DiffusionFMLib.physics import MODELS, LogLinearModel, SignalModel
from DiffusionFMLib.physics.methods import RESTS_ON
from DiffusionFMLib.prior.calibration import Calibration
from DiffusionFMLib.prior.coordinates import Coordinates, coordinates_of
from DiffusionFMLib.prior.network import NetworkShape, PriorNetwork
from DiffusionFMLib.stored_weights import SHIPPED, read_weights, write_weights

__all__ = ["TrainedPrior", "carrier", "load_weights", "save_weights", "weights_file", "weights_files"]

KIND: Final = "diffusionfm-prior"
FORMAT: Final = 4

CALIBRATION: Final = "calibration"
"""What the names of a calibration's tensors begin with, before the model's name and their own."""


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
    calibrations : dict of str to Calibration
        Of standard deviations, by the name of the model that is fitted, which may be another that rests on this; on the
        CPU. Empty where nobody has calibrated the weights.
    """

    network: PriorNetwork
    model: LogLinearModel
    coordinates: Coordinates
    training: dict[str, Any]
    adjustment: Callable[[Tensor], Tensor] | None = None
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


def save_weights(
    path: Path,
    network: PriorNetwork,
    model: LogLinearModel,
    training: dict[str, Any],
    calibrations: Mapping[str, Calibration] | None = None,
) -> None:
    """Write weights, under a temporary name first."""
    header = {"kind": KIND, "format": FORMAT, "model": model.name, "shape": network.shape.to_dict()}
    tensors = dict(network.state_dict())
    for name, calibration in (calibrations or {}).items():
        tensors |= {f"{CALIBRATION}.{name}.{key}": value for key, value in calibration.state_dict().items()}
    write_weights(path, tensors, {**header, "training": training})


def carrier(model: SignalModel) -> SignalModel:
    """The model whose prior carries another: itself where it has one of its own."""
    return MODELS[RESTS_ON.get(model.name, model.name)]


def weights_file(chosen: str, model: SignalModel, sampling: bool = False) -> Path:
    """The file that a setting means: the one that comes with the library when it is empty.

    Parameters
    ----------
    chosen : str
    model : SignalModel
    sampling : bool
        What samples are to be drawn with. A small network cannot be the best at estimates and at making up what no
        measurement tells, so that there may be one of its own.

    Raises
    ------
    InputError
        If it is not there.
    """
    name = carrier(model).name
    path = Path(chosen) if chosen else SHIPPED / f"prior-{name}-small.safetensors"
    own = SHIPPED / f"sampler-{name}-small.safetensors"
    if sampling and not chosen and own.is_file():
        return own
    if not path.is_file():
        msg = f"There are no weights of a prior at {path}; expected a .safetensors file."
        hint = "Correct the path, or give none for those that come with DiffusionFM."
        raise InputError(msg, hint if chosen else "Install DiffusionFM again, or give a file of your own.")
    return path


def weights_files(chosen: str, model: SignalModel, sampling: bool) -> list[Path]:
    """What a fit uses: the file of its estimates; after it that of its samples, where it takes some and has another."""
    return list(dict.fromkeys(weights_file(chosen, model, use) for use in (False, sampling)))


def load_weights(path: Path, device: torch.device | None = None, expected: SignalModel | None = None) -> TrainedPrior:
    """Read weights, of a model when it is named.

    Raises
    ------
    InputError
        If the file is missing, broken or of another kind or model.
    """
    tensors, header = read_weights(path, KIND, FORMAT, "prior's", device)
    model = MODELS.get(header.get("model", ""))
    if model is None:
        msg = f"{path} does not name a model that this version knows: {header.get('model')!r}."
        raise InputError(msg, "Choose a .safetensors file that training wrote.")
    if expected is not None and model.name != expected.name:
        msg = f"{path} was trained for {model.title}; expected {expected.title}."
        raise InputError(msg, "Choose weights of that model.")
    if not isinstance(model, LogLinearModel):
        msg = f"{path} is for {model.title}, for which there is no prior."
        raise InputError(msg, "Choose weights of another model.")
    try:
        calibrations = _calibrations(tensors)
        training, network = header["training"], PriorNetwork(NetworkShape(**header["shape"]))
        network.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(CALIBRATION)})
        if network.shape.unknowns != len(model.parameters):
            msg = f"{network.shape.unknowns} unknowns, where {model.title} has {len(model.parameters)}"
            raise ValueError(msg)  # noqa: TRY301
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"The prior's weights {path} are not complete, or not of the shape that they name: {reason}"
        raise InputError(msg, "Choose a .safetensors file that training wrote.") from error
    network.to(device=device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    network.eval()
    return TrainedPrior(network, model, coordinates_of(model), training, None, calibrations)


def _calibrations(tensors: Mapping[str, Tensor]) -> dict[str, Calibration]:
    """Those among the tensors of a file."""
    states: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for path, value in tensors.items():
        kind, _, rest = path.partition(".")
        if kind == CALIBRATION:
            name, _, key = rest.partition(".")
            states[name][key] = value.cpu()
    calibrations = {name: Calibration(MODELS[name], len(state["centre"])) for name, state in states.items()}
    for name, calibration in calibrations.items():
        calibration.load_state_dict(states[name])
    return calibrations
