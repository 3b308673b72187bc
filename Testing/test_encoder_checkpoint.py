"""Weights of the encoder: ours, and files of the paper's public format, made up here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_oracle import plain_encoder, protocol

from DiffusionFMLib.encoder.checkpoint import import_official, load_encoder, save_encoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol, patch_centres
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.prior.weights import KIND as PRIOR
from DiffusionFMLib.stored_weights import write_weights

C, VOXELS, MLP, DECODER_MLP, RANK = 48, 16, 80, 64, 3
PATCH = (2, 4, 2)
GTAB = protocol({0.0: 1, 1000.0: 3, 3000.0: 3})

State = dict[str, torch.Tensor]


def official(blocks: int = 3, decoder: bool = True) -> State:
    """A state dictionary as the public code's pretraining saves it, from the list of its names and sizes."""
    generator = torch.Generator().manual_seed(0)

    def some(*size: int) -> torch.Tensor:
        return 0.3 * torch.randn(*size, generator=generator)

    state = {"cls_token": some(1, 1, C), "pos_embedding": some(1, 7, 6, C), "patch_embedding.weight": some(3, 3)}
    linear = {"patch_mlp": (C, VOXELS), "qpos_embed": (C // 2, 3)}
    norms = ["ln"]
    stacks = [("blocks", blocks, MLP)]
    if decoder:
        state |= {"mask_tokens": some(1, 1, C), "decoder_pos_embedding": some(4, 7, 6, C)}
        linear |= {"decoder_embed": (C, C), "decoder_pred.0": (VOXELS, C)}
        norms.append("ln2")
        stacks.append(("decoder_blocks", 2, DECODER_MLP))
        for layer, (into, out) in {0: (1, 8), 2: (8, 8), 4: (8, 1)}.items():
            state |= {f"decoder_conv.{layer}.weight": some(out, into, 3, 3, 3), f"decoder_conv.{layer}.bias": some(out)}
    for stack, count, mlp in stacks:
        for at in (f"{stack}.{number}" for number in range(count)):
            for kind in ("diffusion", "space"):
                norms += [f"{at}.norm1_{kind}", f"{at}.norm2_{kind}"]
                state[f"{at}.attn_{kind}.qkv.weight"] = some(3 * C, C)
                linear[f"{at}.attn_{kind}.out_proj"] = (C, C)
                linear |= {f"{at}.mlp_{kind}.linear1": (mlp, C), f"{at}.mlp_{kind}.linear2": (C, mlp)}
    for name, size in linear.items():
        state |= {f"{name}.weight": some(*size), f"{name}.bias": some(size[0])}
    for name in norms:
        state |= {f"{name}.weight": 1 + some(C), f"{name}.bias": some(C)}
    return state


def fine_tuned(low_rank: bool) -> tuple[State, State]:
    """A file as fine-tuning saves it, and the same network's state dictionary with all changes in it."""
    whole = official(decoder=False)
    last = {name.removeprefix("blocks.2."): whole.pop(name) for name in list(whole) if name.startswith("blocks.2.")}
    stored = {f"backbone.{name}": tensor for name, tensor in whole.items()}
    generator = torch.Generator().manual_seed(1)
    for name, tensor in last.items():
        stem, _, kind = name.rpartition(".")
        if low_rank and stem.endswith(("qkv", "linear1")):
            at = f"lastblock.base_model.model.{stem}"
            stored[f"{at}.base_layer.{kind}"] = tensor
            if kind == "weight":
                a = torch.randn(RANK, tensor.shape[1], generator=generator)
                b = torch.randn(tensor.shape[0], RANK, generator=generator)
                stored |= {f"{at}.lora_A.default.weight": a, f"{at}.lora_B.default.weight": b}
                tensor = tensor + 12 / RANK * b @ a
        else:
            stored[f"lastblock.base_model.model.{name}" if low_rank else f"lastblock.{name}"] = tensor
        whole[f"blocks.2.{name}"] = tensor
    stored |= {"head.0.weight": torch.ones(C), "head.4.weight": torch.ones(1, C), "head.4.bias": torch.ones(1)}
    return stored, whole


def saved(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


def assert_equals_plain(network: DiffusionTransformer, state: State, shape: EncoderShape) -> None:
    """The network does what the weights say when they are written out."""
    patches = torch.rand(len(GTAB), 4, VOXELS, generator=torch.Generator().manual_seed(0))
    places = patch_centres((2, 2, 1), PATCH, np.array([20, 30, 8]))
    tokens, cls = plain_encoder(state, patches, places, GTAB, shape)
    told = EncoderProtocol.of(GTAB, network.shape, torch.float64)
    with torch.no_grad():
        found = network.double()(patches[None].double(), places[None].double(), [told])
    torch.testing.assert_close(found.tokens[0], tokens, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.cls[0], cls, rtol=0, atol=2e-6)


def expected_shape(layout: str, decoder_blocks: int = 2, rotary: bool = True) -> EncoderShape:
    return EncoderShape(
        C,
        2,
        3,
        MLP,
        decoder_blocks,
        DECODER_MLP if decoder_blocks else 0,
        PATCH,
        rotary=rotary,
        layout=layout,
        last_relu=layout == "official",
    )


@pytest.mark.parametrize("layout", ["official", "paper"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_official_checkpoint_is_read(tmp_path: Path, layout: str, prefix: str) -> None:
    state = official()
    path = saved(tmp_path / "trained_model_300.pth", {prefix + name: tensor for name, tensor in state.items()})
    trained, coverage = import_official(path, rotary=True, heads=2, layout=layout, patch=PATCH)
    assert trained.network.shape == expected_shape(layout)
    assert not trained.network.training
    assert coverage.ignored == ("decoder_pos_embedding", "patch_embedding.weight", "pos_embedding")
    assert set(coverage.loaded) == state.keys() - set(coverage.ignored)
    assert coverage.unknown == coverage.merged == ()
    assert coverage.decoder
    assert_equals_plain(trained.network, state, expected_shape(layout))


def test_layouts_and_rotation_matter(tmp_path: Path) -> None:
    path = saved(tmp_path / "trained_model_300.pth", official())
    patches, places = torch.rand(1, len(GTAB), 1, VOXELS), torch.zeros(1, 1, 3)
    found = []
    for flags in ({"rotary": True}, {"rotary": True, "layout": "paper"}, {"rotary": False}):
        network = import_official(path, heads=2, patch=PATCH, **flags)[0].network
        with torch.no_grad():
            found.append(network(patches, places, [EncoderProtocol.of(GTAB, network.shape)]).tokens)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((found[one] - found[other]).abs().max()) > 0.05


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_fine_tuned_checkpoint_is_read(tmp_path: Path, low_rank: bool) -> None:
    stored, whole = fine_tuned(low_rank)
    path = saved(tmp_path / "best.pth", stored)
    trained, coverage = import_official(path, rotary=True, heads=2, patch=PATCH)
    assert trained.network.shape == expected_shape("official", decoder_blocks=0)
    assert set(coverage.head) == {"head.0.weight", "head.4.weight", "head.4.bias"}
    assert coverage.unknown == ()
    assert len(coverage.merged) == (4 if low_rank else 0)
    assert "No decoder" in coverage.summary()
    assert ("blocks.2.attn_space.qkv.weight" in coverage.summary()) == low_rank
    assert_equals_plain(trained.network, whole, expected_shape("official", decoder_blocks=0))


def test_a_last_block_may_replace_that_of_the_backbone(tmp_path: Path) -> None:
    stored, whole = fine_tuned(low_rank=False)
    stored |= {
        name.replace("lastblock.", "backbone.blocks.2."): torch.zeros_like(tensor)
        for name, tensor in stored.items()
        if name.startswith("lastblock.")
    }
    path = saved(tmp_path / "best.pth", stored)
    trained, _ = import_official(path, rotary=True, heads=2, patch=PATCH, last_block_replaces=True)
    assert_equals_plain(trained.network, whole, expected_shape("official", decoder_blocks=0))


def test_our_files_keep_everything(tmp_path: Path) -> None:
    path = saved(tmp_path / "trained_model_300.pth", official())
    network = import_official(path, rotary=False, heads=2, patch=PATCH)[0].network
    save_encoder(tmp_path / "encoder.safetensors", network, {"steps": 300})
    found = load_encoder(tmp_path / "encoder.safetensors")
    assert found.training == {"steps": 300}
    assert found.network.shape == network.shape
    for name, tensor in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for name in ("blocks.1.mlp_space.linear2.bias", "decoder_conv.2.weight", "ln.weight", "cls_token"):
        state = official()
        del state[name]
        with pytest.raises(InputError, match=rf"(lacks|has no) {name}"):
            import_official(saved(tmp_path / "part.pth", state), rotary=True, heads=2, patch=PATCH)


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "more.pth", official() | {"teacher.weight": torch.ones(3)})
    coverage = import_official(path, rotary=True, heads=2, patch=PATCH)[1]
    assert coverage.unknown == ("teacher.weight",)
    assert "Not known: teacher.weight." in coverage.summary()


def test_low_rank_changes_have_to_be_complete(tmp_path: Path) -> None:
    stored, _ = fine_tuned(low_rank=True)
    del stored["lastblock.base_model.model.attn_space.qkv.lora_B.default.weight"]
    with pytest.raises(InputError, match=r"low-rank changes of blocks\.2\.attn_space\.qkv"):
        import_official(saved(tmp_path / "best.pth", stored), rotary=True, heads=2, patch=PATCH)


def test_sizes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = official() | {"ln.weight": torch.ones(C + 1)}
    with pytest.raises(InputError, match=r"has ln\.weight of 49; expected 48"):
        import_official(saved(tmp_path / "size.pth", state), rotary=True, heads=2, patch=PATCH)
    with pytest.raises(InputError, match="patches of 16 voxels; expected 8 x 8 x 4"):
        import_official(saved(tmp_path / "patch.pth", official()), rotary=True, heads=2)


class Foreign:
    """What a checkpoint must not make us build."""


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.pth", official()).read_bytes()
    contents = {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "text.pth": b"no weights",
        "short.pth": whole[:9],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            import_official(tmp_path / name, rotary=True)
    with pytest.raises(InputError, match="cannot be read"):
        import_official(tmp_path / "absent.pth", rotary=True)
    with pytest.raises(InputError, match="cannot be read"):
        import_official(saved(tmp_path / "code.pth", {"model": Foreign()}), rotary=True)
    for content in ([torch.ones(3)], {"state_dict": official(), "epoch": 3}):
        with pytest.raises(InputError, match="expected names and tensors"):
            import_official(saved(tmp_path / "other.pth", content), rotary=True)


def test_foreign_files_of_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prior.safetensors"
    write_weights(path, {"a": torch.ones(3)}, {"kind": PRIOR, "format": 3})
    with pytest.raises(InputError, match="holds diffusionfm-prior of format 3; expected diffusionfm-encoder"):
        load_encoder(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match="encoder's weights .* cannot be read"):
        load_encoder(path)
