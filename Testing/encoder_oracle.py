"""D-RoPE as its formulas are written, in double precision and without any thought of speed: what tests compare with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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
