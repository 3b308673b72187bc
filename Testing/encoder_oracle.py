"""D-RoPE as its formulas are written, in double precision and without any thought of speed: what tests compare with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.gradients import GradientTable


def protocol(counts: dict[float, int], seed: int = 0) -> GradientTable:
    """Random directions on some shells."""
    rng = np.random.default_rng(seed)
    bvals = np.concatenate([np.full(count, bval) for bval, count in counts.items()])
    bvecs = rng.normal(size=(len(bvals), 3))
    return GradientTable(bvals, bvecs / np.linalg.norm(bvecs, axis=1, keepdims=True) * (bvals > 50)[:, None])


def plain_distance(b: tuple[float, float], g: tuple[np.ndarray, np.ndarray]) -> float:
    """Distance of two volumes."""
    rho = [0.0 if bval < 50 else bval / 1000 for bval in b]
    alpha = 0.0 if min(b) < 50 else math.acos(min(1.0, abs(float(g[0] @ g[1]))))
    return math.sqrt(0.5 * (rho[0] - rho[1]) ** 2 + alpha**2)


def plain_distances(gtab: GradientTable) -> np.ndarray:
    """Distance of all pairs."""
    pairs = list(zip(gtab.bvals, gtab.bvecs, strict=True))
    return np.array([[0.0 if a is b else plain_distance((a[0], b[0]), (a[1], b[1])) for b in pairs] for a in pairs])


def plain_frequencies(dim: int, layout: str) -> Tensor:
    """Frequency of each entry of a head."""
    half = dim // 2
    place = [e // 2 if layout == "paper" else e % half for e in range(dim)]
    return torch.tensor([0.3 ** (-2 * n / dim) for n in place], dtype=torch.float64)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, distances: np.ndarray, layout: str) -> Tensor:
    """Attention of q, k, v, shape (..., N, d), with every turned k written out; in the precision of q."""
    dim = q.shape[-1]
    angle = torch.as_tensor(distances)[..., None] * plain_frequencies(dim, layout)
    swapped = torch.empty_like(k)
    swapped[..., 0::2], swapped[..., 1::2] = -k[..., 1::2], k[..., 0::2]
    turned = angle.cos().to(q.dtype) * k[..., None, :, :] + angle.sin().to(q.dtype) * swapped[..., None, :, :]
    scores = (q[..., :, None, :] * turned).sum(-1) / math.sqrt(dim)
    return scores.softmax(-1) @ v


def plain_encoder(
    weights: dict[str, Tensor],
    patches: Tensor,
    positions: Tensor,
    gtab: GradientTable,
    shape: EncoderShape,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Tokens, shape (T, S, C), and class token, shape (C,), of one slab, straight from a state dictionary.

    Tokens that are `hidden`, shape (T, S), are never there.
    """
    seen = torch.ones(patches.shape[:2], dtype=torch.bool) if hidden is None else ~hidden
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = patches.double() @ w["patch_mlp.weight"].T + w["patch_mlp.bias"]
    x = x + _plain_embedding(w, positions.double(), gtab, shape)
    cls = w["cls_token"][0, 0]
    for number in range(shape.blocks):
        x, cls = _plain_block(w, f"blocks.{number}.", x, cls, gtab, shape, seen)
    return _norm(w, "ln", x), _norm(w, "ln", cls)


def plain_decoder(
    weights: dict[str, Tensor],
    tokens: Tensor,
    cls: Tensor,
    positions: Tensor,
    gtab: GradientTable,
    shape: EncoderShape,
    grid: tuple[int, int, int],
) -> Tensor:
    """Signal, shape (T, X, Y, Z), of one slab."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x, cls = (value @ w["decoder_embed.weight"].T + w["decoder_embed.bias"] for value in (tokens, cls))
    x = x + _plain_embedding(w, positions.double(), gtab, shape)
    for number in range(shape.decoder_blocks):
        everything = torch.ones(x.shape[:2], dtype=torch.bool)
        x, cls = _plain_block(w, f"decoder_blocks.{number}.", x, cls, gtab, shape, everything)
    rows = _norm(w, "ln2", x) @ w["decoder_pred.0.weight"].T + w["decoder_pred.0.bias"]
    p, q, r = shape.patch
    signal = torch.zeros(len(rows), 1, grid[0] * p, grid[1] * q, grid[2] * r, dtype=torch.float64)
    for number, (i, j, k) in enumerate(np.ndindex(grid)):
        block = rows[:, number].reshape(-1, p, q, r)
        signal[:, 0, i * p : (i + 1) * p, j * q : (j + 1) * q, k * r : (k + 1) * r] = block
    for layer in (0, 2, 4):
        signal = torch.conv3d(signal, w[f"decoder_conv.{layer}.weight"], w[f"decoder_conv.{layer}.bias"], padding=1)
        if layer < 4 or shape.last_relu:
            signal = signal.clamp(min=0)
    return signal[:, 0]


def _plain_embedding(w: dict[str, Tensor], positions: Tensor, gtab: GradientTable, shape: EncoderShape) -> Tensor:
    """Shape (T, S, C), one number of it after the other."""
    half = shape.hidden // 2
    count = half // 6
    places = torch.zeros(len(positions), half, dtype=torch.float64)
    for axis in range(3):
        for i in range(count):
            angle = positions[:, axis] / shape.position_divisor * 10000 ** (-i / count)
            places[:, axis * 2 * count + i], places[:, (2 * axis + 1) * count + i] = angle.sin(), angle.cos()
    told = []
    for bval, (x, y, z) in zip(gtab.bvals, gtab.bvecs, strict=True):
        if shape.directions == "polar":
            angles = [0.0, 0.0] if bval <= 50 else [math.acos(z), math.atan2(y, x)]
            told.append([0.0 if bval <= 50 else bval / 1000, *angles])
        else:
            told.append([0.0 if bval <= 50 else bval / 1000, x * x, y * y, z * z, x * y, x * z, y * z])
    directions = torch.tensor(told, dtype=torch.float64) @ w["qpos_embed.weight"].T + w["qpos_embed.bias"]
    rows = [[torch.cat([place, direction]) for place in places] for direction in directions]
    return torch.stack([torch.stack(row) for row in rows])


def _plain_block(
    w: dict[str, Tensor], at: str, x: Tensor, cls: Tensor, gtab: GradientTable, shape: EncoderShape, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """One block, a place and then a direction at a time."""
    x = x.clone()
    for place in range(x.shape[1]):
        here = seen[:, place]
        own, those = x[here, place], gtab.subset(here.numpy())
        own = own + _plain_heads(w, f"{at}attn_diffusion", _norm(w, f"{at}norm1_diffusion", own), those, shape)
        x[here, place] = own + _perceptron(w, f"{at}mlp_diffusion", _norm(w, f"{at}norm2_diffusion", own))
    told = []
    for direction in range(len(x)):
        here = seen[direction]
        rows = torch.cat([cls[None], x[direction, here]])
        rows = rows + _plain_heads(w, f"{at}attn_space", _norm(w, f"{at}norm1_space", rows), None, shape)
        told.append(rows[0])
        x[direction, here] = rows[1:] + _perceptron(w, f"{at}mlp_space", _norm(w, f"{at}norm2_space", rows[1:]))
    cls = torch.stack(told).mean(0)
    return x, cls + _perceptron(w, f"{at}mlp_space", _norm(w, f"{at}norm2_space", cls))


def _plain_heads(
    w: dict[str, Tensor], at: str, rows: Tensor, gtab: GradientTable | None, shape: EncoderShape
) -> Tensor:
    c, dim = shape.hidden, shape.hidden // shape.heads
    out = []
    for head in range(shape.heads):
        parts = [w[f"{at}.qkv.weight"][n * c + head * dim : n * c + (head + 1) * dim] for n in range(3)]
        q, k, v = (rows @ part.T for part in parts)
        distances = np.zeros((len(rows), len(rows)))
        if gtab is not None and shape.rotary:
            distances = plain_distances(gtab)
        out.append(plain_attention(q, k, v, distances, shape.layout))
    return torch.cat(out, -1) @ w[f"{at}.out_proj.weight"].T + w[f"{at}.out_proj.bias"]


def _norm(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{at}.weight"] + w[f"{at}.bias"]


def _perceptron(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    inside = x @ w[f"{at}.linear1.weight"].T + w[f"{at}.linear1.bias"]
    inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
    return inside @ w[f"{at}.linear2.weight"].T + w[f"{at}.linear2.bias"]
