"""Weights of the diffusion transformer: our files, and those that the paper's public code writes.

The public format is a plain state dictionary, which says neither how many heads there are nor whether D-RoPE was on.
Fine-tuned files hold the encoder as ``backbone.``, its last block apart as ``lastblock.``, either whole or as a
frozen part with low-rank changes W + (alpha / r) B A, and a head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from torch import Tensor

from DiffusionFMLib.encoder.shape import DIRECTION_FEATURES, EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.stored_weights import SHIPPED, read_weights, write_weights

KIND: Final = "diffusionfm-encoder"
FORMAT: Final = 1

HEAD_WIDTH: Final = 128
"""Entries of a head in the paper: the number of heads is not in a file."""

LORA_ALPHA: Final = 12.0
"""The paper's, which is not in a file either."""

IGNORED: Final = re.compile(r"(pos_embedding|decoder_pos_embedding|patch_embedding\..*)")
"""Buffers of the public code that follow from shapes, or from the last batch."""

DECODER: Final = re.compile(r"(mask_tokens|ln2\..*|decoder_.*)")

PEFT: Final = "base_model.model."


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """A network and what is known of its training.

    Parameters
    ----------
    network : DiffusionTransformer
        In evaluation mode.
    training : dict
        Plain JSON types.
    """

    network: DiffusionTransformer
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Coverage:
    """What became of each tensor of a file.

    Parameters
    ----------
    loaded : tuple of str
        Names in the network.
    merged : tuple of str
        Those of them that low-rank changes were added to.
    ignored : tuple of str
        Names in the file that nothing depends on.
    unknown : tuple of str
        Names in the file that this version knows nothing of.
    head : dict of str to Tensor
        What follows the encoder in fine-tuned files.
    decoder : bool
        Whether the file has one.
    """

    loaded: tuple[str, ...]
    merged: tuple[str, ...]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]
    head: dict[str, Tensor]
    decoder: bool

    def summary(self) -> str:
        """A few lines for a person."""
        lines = [f"{len(self.loaded)} tensors loaded, all that the network has."]
        if self.merged:
            lines.append(f"Low-rank changes merged into {len(self.merged)}: {', '.join(self.merged)}.")
        if not self.decoder:
            lines.append("No decoder in the file.")
        for what, names in (("Ignored", self.ignored), ("Not known", self.unknown), ("Of a head", tuple(self.head))):
            if names:
                lines.append(f"{what}: {', '.join(names)}.")
        return "\n".join(lines)


def save_encoder(path: Path, network: DiffusionTransformer, training: Mapping[str, Any]) -> None:
    """Write weights as safetensors, under a temporary name first."""
    header = {"kind": KIND, "format": FORMAT, "shape": network.shape.to_dict(), "training": dict(training)}
    write_weights(path, network.state_dict(), header)


def load_encoder(path: Path, device: torch.device | None = None) -> TrainedEncoder:
    """Read weights that `save_encoder` wrote.

    Raises
    ------
    InputError
        If the file is missing, broken or of another kind.
    """
    tensors, header = read_weights(path, KIND, FORMAT, "encoder's", device)
    network = DiffusionTransformer(EncoderShape.from_dict(header["shape"]))
    _fill(network, tensors, path)
    return TrainedEncoder(network.to(device).eval(), header["training"])


def encoder_file(chosen: str) -> Path:
    """The file that a setting means: the one that comes with the library when it is empty.

    Raises
    ------
    InputError
        If it is not there.
    """
    path = Path(chosen) if chosen else SHIPPED / "encoder-small.safetensors"
    if not path.is_file():
        msg = f"There are no weights of an encoder at {path}; expected a .safetensors file."
        hint = "Correct the path, or give none for those that come with DiffusionFM."
        raise InputError(msg, hint if chosen else "Install DiffusionFM again, or give a file of your own.")
    return path


def import_official(
    path: Path,
    *,
    rotary: bool,
    heads: int | None = None,
    layout: str = "official",
    position_divisor: float = 300.0,
    patch: tuple[int, int, int] = (8, 8, 4),
    lora_alpha: float = LORA_ALPHA,
    last_block_replaces: bool = False,
) -> tuple[TrainedEncoder, Coverage]:
    """Read a checkpoint of the paper's public code.

    Parameters
    ----------
    path : Path
    rotary : bool
        Whether it was trained with D-RoPE: names are the same without.
    heads : int, optional
        By default one for each 128 features.
    layout : {"official", "paper"}
        Of the frequencies.
    position_divisor : float, voxels
        300 in the public pretraining, 1 in its other scripts.
    patch : tuple of int
        Voxels along x, y and z.
    lora_alpha : float
    last_block_replaces : bool
        In fine-tuned files, whether ``lastblock`` replaces the last block of ``backbone`` or follows it.

    Raises
    ------
    InputError
        If the file is missing, broken, of another kind, or lacks a part of the network.
    """
    stored = {name.removeprefix("module."): tensor for name, tensor in _unpickled(path).items()}
    names, head = _with_last_block(stored, last_block_replaces)
    tensors, merged = _merge_low_rank(names, lora_alpha, path)
    ignored = tuple(sorted(name for name in tensors if IGNORED.fullmatch(name)))
    shape = _shape_of(tensors, path, rotary, heads, layout, position_divisor, patch)
    network = DiffusionTransformer(shape)
    expected = network.state_dict().keys()
    _fill(network, {name: tensor for name, tensor in tensors.items() if name in expected}, path)
    unknown = tuple(sorted(tensors.keys() - expected - set(ignored)))
    coverage = Coverage(tuple(expected), merged, ignored, unknown, head, bool(shape.decoder_blocks))
    training = {"source": "checkpoint of the paper's public code", "file": path.name}
    return TrainedEncoder(network.eval(), training), coverage


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file; nothing but tensors is let in."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, UnpicklingError, ValueError, KeyError) as error:
        first = str(error).partition("\n")[0]
        msg = f"The checkpoint {path} cannot be read: {first or 'it is empty'}."
        raise InputError(msg, "Choose a .pth file with nothing but weights, copied completely.") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        msg = f"{path} holds {type(found).__name__} of other things; expected names and tensors."
        raise InputError(msg, "Choose a plain state dictionary, as the public code saves it.")
    return found


def _with_last_block(stored: Mapping[str, Tensor], replaces: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file's tensors under the names of pretraining, and its head."""
    head = {name: tensor for name, tensor in stored.items() if name.startswith("head.")}
    rest = {name.removeprefix("backbone."): tensor for name, tensor in stored.items() if name not in head}
    last = {name: tensor for name, tensor in rest.items() if name.startswith("lastblock.")}
    names = {name: tensor for name, tensor in rest.items() if name not in last}
    if last:
        number = _count(names, "blocks") - (1 if replaces else 0)
        prefix = f"blocks.{number}."
        names = {name: tensor for name, tensor in names.items() if not name.startswith(prefix)}
        for name, tensor in last.items():
            names[prefix + name.removeprefix("lastblock.").removeprefix(PEFT)] = tensor
    return names, head


def _merge_low_rank(names: Mapping[str, Tensor], alpha: float, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors with low-rank changes in them, and the names of those that had some."""
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in names.items() if ".lora_" not in name}
    merged = []
    for name, a in names.items():
        stem, found, _ = name.partition(".lora_A.")
        if not found:
            continue
        b, weight = names.get(name.replace(".lora_A.", ".lora_B.")), tensors.get(f"{stem}.weight")
        if b is None or weight is None or (len(b), a.shape[1]) != weight.shape or b.shape[1] != len(a):
            msg = f"{path} has low-rank changes of {stem}, but not all parts of them, or of another size."
            raise InputError(msg, "Save the fine-tuned network again with its base layers.")
        tensors[f"{stem}.weight"] = weight + (alpha / len(a)) * (b @ a)
        merged.append(f"{stem}.weight")
    return tensors, tuple(merged)


def _count(names: Mapping[str, Tensor], what: str) -> int:
    """How many blocks there are."""
    numbers = [int(match[1]) for name in names if (match := re.match(rf"{what}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _shape_of(
    tensors: Mapping[str, Tensor],
    path: Path,
    rotary: bool,
    heads: int | None,
    layout: str,
    position_divisor: float,
    patch: tuple[int, int, int],
) -> EncoderShape:
    """The network's size, from those of its tensors."""

    def edge(name: str, axis: int) -> int:
        if name not in tensors or tensors[name].ndim <= axis:
            msg = f"{path} has no {name}: it is no checkpoint of the diffusion transformer."
            raise InputError(msg, "Choose a file that the public code of the paper wrote.")
        return tensors[name].shape[axis]

    hidden = edge("cls_token", 2)
    heads = heads or hidden // HEAD_WIDTH
    voxels, told = edge("patch_mlp.weight", 1), edge("qpos_embed.weight", 1)
    if voxels != patch[0] * patch[1] * patch[2]:
        msg = f"{path} has patches of {voxels} voxels; expected {' x '.join(map(str, patch))}."
        raise InputError(msg, "Give the patch size that it was trained with.")
    kinds = {count: kind for kind, count in DIRECTION_FEATURES.items()}
    if told not in kinds:
        msg = f"{path} tells directions in {told} numbers; expected one of {', '.join(map(str, kinds))}."
        raise InputError(msg, "Choose a file that the public code of the paper wrote.")
    has_decoder = any(DECODER.fullmatch(name) and not IGNORED.fullmatch(name) for name in tensors)
    decoder = "decoder_blocks.0.mlp_space.linear1.weight"
    return EncoderShape(
        hidden=hidden,
        heads=heads,
        blocks=_count(tensors, "blocks"),
        mlp=edge("blocks.0.mlp_space.linear1.weight", 0),
        decoder_blocks=_count(tensors, "decoder_blocks"),
        decoder_mlp=edge(decoder, 0) if has_decoder else 0,
        patch=patch,
        rotary=rotary,
        layout=layout,
        directions=kinds[told],
        position_divisor=position_divisor,
        last_relu=layout == "official",
    )


def _fill(network: DiffusionTransformer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network its weights.

    Raises
    ------
    InputError
        If some are missing, or of another size.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        listed = ", ".join(missing[:5]) + (f", ... ({len(missing)} in all)" if len(missing) > 5 else "")
        msg = f"{path} lacks {listed}."
        raise InputError(msg, "Choose a complete checkpoint of this network.")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            found, wanted = (" x ".join(map(str, size.shape)) for size in (tensors[name], tensor))
            msg = f"{path} has {name} of {found}; expected {wanted}."
            raise InputError(msg, "Choose a checkpoint of this network, or give the settings that it was trained with.")
    network.load_state_dict(dict(tensors))
