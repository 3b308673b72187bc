"""The diffusion transformer: attention over directions at each place, then over places within each direction.

Pre-norm blocks with a class token, of arXiv 2603.25977. Modules have the names of the public code's checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from DiffusionFMLib.encoder.attention import rotary_attention, rotary_weights
from DiffusionFMLib.encoder.embedding import EncoderProtocol, from_patch_rows, sines_and_cosines
from DiffusionFMLib.encoder.shape import DIRECTION_FEATURES, EncoderShape

START_SD: Final = 0.02
"""Of class and mask tokens before training."""

CONV_CHANNELS: Final = 8
"""Inside the decoder's last convolutions."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the encoder makes of slabs.

    Parameters
    ----------
    tokens : Tensor, shape (B, T, S, C)
    cls : Tensor, shape (B, C)
        The slab's representation.
    """

    tokens: Tensor
    cls: Tensor


@dataclass(frozen=True, eq=False)
class Visible:
    """Which tokens are seen, so that others take no time: of each direction as many as of that with most.

    Parameters
    ----------
    hidden : Tensor, shape (B, T, S), bool
    where : Tensor, shape (B, T, V), int64
        Places that are computed.
    padding : Tensor, shape (B, T, V), bool, or None
        Those of them that are hidden too; None if there are none.
    """

    hidden: Tensor
    where: Tensor
    padding: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor) -> Visible:
        """All that is not hidden."""
        count = max(1, int((~hidden).sum(-1).max()))
        where = hidden.to(torch.uint8).argsort(dim=-1, stable=True)[..., :count]
        padding = hidden.gather(-1, where)
        return cls(hidden, where, padding if bool(padding.any()) else None)

    def taken(self, x: Tensor) -> Tensor:
        """Tokens of all places, shape (B, T, S, C), where they are computed, (B, T, V, C)."""
        return x.gather(2, self.where[..., None].expand(-1, -1, -1, x.shape[-1]))

    def put(self, x: Tensor) -> Tensor:
        """The inverse; 0 at all other places."""
        full = x.new_zeros(*self.hidden.shape, x.shape[-1])
        return full.scatter(2, self.where[..., None].expand_as(x), x)


class DiffusionTransformer(nn.Module):
    """Encoder, and the decoder that it is trained with.

    Parameters
    ----------
    shape : EncoderShape
    """

    def __init__(self, shape: EncoderShape) -> None:
        super().__init__()
        self.shape = shape
        c = shape.hidden
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c))
        self.patch_mlp = nn.Linear(shape.patch_voxels, c)
        self.qpos_embed = nn.Linear(DIRECTION_FEATURES[shape.directions], c // 2)
        self.blocks = nn.ModuleList(Block(c, shape.heads, shape.mlp) for _ in range(shape.blocks))
        self.ln = nn.LayerNorm(c)
        if shape.decoder_blocks:
            self.mask_tokens = nn.Parameter(torch.zeros(1, 1, c))
            self.decoder_embed = nn.Linear(c, c)
            decoder = (Block(c, shape.heads, shape.decoder_mlp) for _ in range(shape.decoder_blocks))
            self.decoder_blocks = nn.ModuleList(decoder)
            self.ln2 = nn.LayerNorm(c)
            self.decoder_pred = nn.Sequential(nn.Linear(c, shape.patch_voxels))
            layers: list[nn.Module] = [nn.Conv3d(1, CONV_CHANNELS, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv3d(CONV_CHANNELS, CONV_CHANNELS, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv3d(CONV_CHANNELS, 1, 3, padding=1), *([nn.ReLU()] if shape.last_relu else [])]
            self.decoder_conv = nn.Sequential(*layers)
        self.apply(_start)
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith(("token", "tokens")):
                nn.init.normal_(parameter, std=START_SD)

    def embedding(self, positions: Tensor, protocols: Sequence[EncoderProtocol]) -> Tensor:
        """Where and along which direction tokens are, shape (B, T, S, C)."""
        half = self.shape.hidden // 2
        features = torch.stack([protocol.features for protocol in protocols])
        directions = self.qpos_embed(features)
        places = sines_and_cosines(positions / self.shape.position_divisor, half).to(directions.dtype)
        size = (len(features), features.shape[1], positions.shape[1], half)
        return torch.cat([places[:, None].expand(size), directions[:, :, None].expand(size)], -1)

    def tokens(self, patches: Tensor, positions: Tensor, protocols: Sequence[EncoderProtocol]) -> Tensor:
        """What the first block is given, shape (B, T, S, C); see `forward`."""
        x = self.patch_mlp(patches) + self.embedding(positions, protocols)
        # under automatic precision, the sum over all blocks is not to be kept in half of it
        return x.to(self.cls_token.dtype)

    def forward(
        self,
        patches: Tensor,
        positions: Tensor,
        protocols: Sequence[EncoderProtocol],
        hidden: Tensor | None = None,
    ) -> Encoded:
        """Encode slabs.

        Parameters
        ----------
        patches : Tensor, shape (B, T, S, voxels of a patch)
            See `embedding.patch_rows`; signal over the mean b0.
        positions : Tensor, shape (B, S, 3), voxels
            Centres of the patches, in the whole volume.
        protocols : sequence of B EncoderProtocol, of T volumes each
        hidden : Tensor, shape (B, T, S), bool, optional
            Tokens that no other sees. What becomes of them is not to be used.
        """
        x = self.tokens(patches, positions, protocols)
        visible = None if hidden is None else Visible.of(hidden)
        if visible is not None:
            x = visible.taken(x)
        cls = self.cls_token[0].expand(len(x), -1)
        for block in self.blocks:
            x, cls = block(x, cls, protocols, visible)
        x = self.ln(x)
        return Encoded(x if visible is None else visible.put(x), self.ln(cls))

    @torch.no_grad()
    def encode(self, patches: Tensor, positions: Tensor, protocol: EncoderProtocol, tokens_at_once: int) -> Encoded:
        """What `forward` makes of one slab, shape (T, S, voxels of a patch), in pieces of so many tokens."""
        x = self.tokens(patches[None], positions[None], [protocol])
        cls = self.cls_token[0]
        for block in self.blocks:
            cls = block.in_pieces(x, cls, protocol, tokens_at_once)  # type: ignore[operator]
        return Encoded(self.ln(x), self.ln(cls))

    def decode(
        self,
        encoded: Encoded,
        positions: Tensor,
        protocols: Sequence[EncoderProtocol],
        grid: tuple[int, int, int],
        masked: Tensor | None = None,
        where: Tensor | None = None,
    ) -> Tensor:
        """The signal of slabs again, shape (B, T, X, Y, Z).

        Parameters
        ----------
        encoded : Encoded
            Tokens of the grid; those that are `masked` may hold anything.
        positions : Tensor, shape (B, S, 3), voxels
        protocols : sequence of B EncoderProtocol
        grid : tuple of int
            Patches along each axis.
        masked : Tensor, shape (B, T, S), bool, optional
            Tokens to be made up for.
        where : Tensor, shape (S,), int, optional
            Places in the grid, flat, where not all of them have tokens; the signal of the others starts from zero.
        """
        x, cls = self.decoder_embed(encoded.tokens), self.decoder_embed(encoded.cls)
        if masked is not None:
            x = torch.where(masked[..., None], self.mask_tokens.to(x.dtype), x)
        x = x + self.embedding(positions, protocols)
        for block in self.decoder_blocks:
            x, cls = block(x, cls, protocols)
        rows = self.decoder_pred(self.ln2(x))
        if where is not None:
            empty = rows.new_zeros(*rows.shape[:2], grid[0] * grid[1] * grid[2], rows.shape[3])
            rows = empty.index_copy(2, where, rows)
        signal = from_patch_rows(rows, grid, self.shape.patch)
        volumes = self.decoder_conv(signal.flatten(0, 1)[:, None])
        return volumes.view(signal.shape)


class Block(nn.Module):
    """Attention over directions and over places, each with a perceptron after it."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1_diffusion, self.norm2_diffusion = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm1_space, self.norm2_space = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn_diffusion, self.attn_space = Attention(width, heads), Attention(width, heads)
        self.mlp_diffusion, self.mlp_space = Perceptron(width, mlp), Perceptron(width, mlp)

    def forward(
        self, x: Tensor, cls: Tensor, protocols: Sequence[EncoderProtocol], visible: Visible | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens, shape (B, T, S, C), of those that are visible, and class tokens, shape (B, C)."""
        x, told = self.over_places(self.over_directions(x, protocols, visible), cls, visible)
        return x, self.after_mean(told.mean(1))

    def in_pieces(self, x: Tensor, cls: Tensor, protocol: EncoderProtocol, tokens_at_once: int) -> Tensor:
        """The same for one slab, shape (1, T, S, C), which is overwritten; returns the class token.

        Places do not see each other in the first half of a block, nor directions in the second.
        """
        _, t, s, _ = x.shape
        for part in _pieces(s, tokens_at_once // t):
            x[:, :, part] = self.over_directions(x[:, :, part], [protocol])
        told = []
        for part in _pieces(t, tokens_at_once // s):
            x[:, part], each = self.over_places(x[:, part], cls)
            told.append(each)
        return self.after_mean(torch.cat(told, 1).mean(1))

    def over_directions(
        self, x: Tensor, protocols: Sequence[EncoderProtocol], visible: Visible | None = None
    ) -> Tensor:
        """The first half."""
        x = x + self.attn_diffusion.over_directions(self.norm1_diffusion(x), protocols, visible)
        return x + self.mlp_diffusion(self.norm2_diffusion(x))

    def over_places(self, x: Tensor, cls: Tensor, visible: Visible | None = None) -> tuple[Tensor, Tensor]:
        """The second half; the class token sees each direction apart, shape (B, T, C)."""
        rows = with_class(x, cls)
        padding = None if visible is None else visible.padding
        rows = rows + self.attn_space.over_places(self.norm1_space(rows), padding)
        told, x = rows[:, :, 0], rows[:, :, 1:]
        return x + self.mlp_space(self.norm2_space(x)), told

    def after_mean(self, cls: Tensor) -> Tensor:
        """The class token after the mean over directions."""
        return cls + self.mlp_space(self.norm2_space(cls))


class Attention(nn.Module):
    """Projections of an attention, over either axis."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, shape (..., H, d), of tokens, shape (..., C)."""
        return self._parts(self.qkv(x))

    def _parts(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, v

    def to_directions(self, x: Tensor, protocol: EncoderProtocol) -> Tensor:
        """Attention over the directions at each place, shape (S, H, T, T); x has shape (1, T, S, C)."""
        q, k, _ = (part[0].permute(1, 2, 0, 3) for part in self.projected(x))
        if protocol.tables is not None:
            return rotary_weights(q, k, protocol.tables)
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)

    def to_places(self, x: Tensor) -> Tensor:
        """Attention of class token and places, shape (T, H, 1 + S, 1 + S); x holds both, shape (1, T, 1 + S, C)."""
        q, k, _ = (part[0].transpose(1, 2) for part in self.projected(x))
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)

    def over_directions(
        self, x: Tensor, protocols: Sequence[EncoderProtocol], visible: Visible | None = None
    ) -> Tensor:
        """Each place attends over the directions; shape (B, T, S, C)."""
        qkv, hidden = self.qkv(x), None
        if visible is not None:
            # other places are seen in other directions
            qkv, hidden = visible.put(qkv), visible.hidden.transpose(1, 2)
        q, k, v = (part.permute(0, 2, 3, 1, 4) for part in self._parts(qkv))
        tables = [protocol.tables for protocol in protocols if protocol.tables is not None]
        if not tables:
            seen = None if hidden is None else ~hidden[:, :, None, None]
            out = functional.scaled_dot_product_attention(q, k, v, seen)
        else:
            unseen = [None] * len(tables) if hidden is None else hidden
            each = [rotary_attention(*sample) for sample in zip(q, k, v, tables, unseen, strict=True)]
            out = torch.stack(each) if len(each) > 1 else each[0][None]
        tokens = out.permute(0, 3, 1, 2, 4).flatten(-2)
        return self.out_proj(tokens if visible is None else visible.taken(tokens))

    def over_places(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Class token and places attend to each other within a direction; shape (B, T, 1 + S, C)."""
        q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in self.projected(x))
        # the class token is always seen
        seen = None if padding is None else ~functional.pad(padding, (1, 0)).flatten(0, 1)[:, None, None]
        out = functional.scaled_dot_product_attention(q, k, v, seen)
        return self.out_proj(out.transpose(1, 2).flatten(-2).unflatten(0, x.shape[:2]))


class Perceptron(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, inside)
        self.linear2 = nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens, shape (..., C)."""
        return self.linear2(functional.gelu(self.linear1(x)))


def with_class(x: Tensor, cls: Tensor) -> Tensor:
    """Class token, shape (B, C), before the places of each direction, shape (B, T, S, C) to (B, T, 1 + S, C)."""
    b, t, _, c = x.shape
    return torch.cat([cls[:, None, None].expand(b, t, 1, c).to(x.dtype), x], 2)


def _start(module: nn.Module) -> None:
    """Weights before training."""
    if isinstance(module, nn.Linear):
        # by the layer's own width: with one value for all, narrow networks begin with next to nothing in their tokens
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _pieces(count: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
