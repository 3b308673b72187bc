"""What tokens are made of: patches, their places, and the protocol's directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.encoder.drope import RotaryTables, volume_distances
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.gradients import GradientTable

WAVELENGTHS: Final = 10000.0
"""Sines and cosines of places have frequencies from 1 down to nearly its inverse."""


def patch_rows(signal: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Patches in rows, shape (B, T, S, voxels), of volumes, shape (B, T, X, Y, Z); z runs fastest in both."""
    b, t, *edges = signal.shape
    (x, p), (y, q), (z, r) = ((edge // step, step) for edge, step in zip(edges, patch, strict=True))
    blocks = signal.reshape(b, t, x, p, y, q, z, r)
    return blocks.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(b, t, x * y * z, p * q * r)


def from_patch_rows(rows: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """The inverse of `patch_rows`, for a grid of so many patches along each axis."""
    b, t = rows.shape[:2]
    (x, y, z), (p, q, r) = grid, patch
    blocks = rows.reshape(b, t, x, y, z, p, q, r).permute(0, 1, 2, 5, 3, 6, 4, 7)
    return blocks.reshape(b, t, x * p, y * q, z * r)


def patch_centres(grid: tuple[int, int, int], patch: tuple[int, int, int], start: NDArray[np.intp]) -> Tensor:
    """Voxel index of each patch's centre, shape (S, 3), in the volume where the first patch begins at `start`."""
    sides = zip(start, patch, grid, strict=True)
    axes = [first + step * np.arange(count) + (step - 1) / 2 for first, step, count in sides]
    return torch.as_tensor(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3), dtype=torch.float32)


def sines_and_cosines(places: Tensor, width: int) -> Tensor:
    """Features of places, shape (..., 3) to (..., width): for x, y, z each, sines and then cosines."""
    count = width // 6
    omega = WAVELENGTHS ** (-torch.arange(count, device=places.device, dtype=places.dtype) / count)
    angles = places[..., None] * omega
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def direction_features(gtab: GradientTable, kind: str) -> NDArray[np.float64]:
    """What the network is told of each volume besides distances, shape (T, F).

    ``polar`` is the paper's (rho, theta, phi), rho in ms/um2, which changes with a direction's sign; ``even`` is rho
    and the six products of two components, which do not. A b0 has zeros.
    """
    rho = np.where(gtab.b0_mask, 0.0, gtab.bvals / 1000)[:, None]
    x, y, z = gtab.bvecs.T
    if kind == "even":
        return np.column_stack([rho, x * x, y * y, z * z, x * y, x * z, y * z])
    theta = np.where(gtab.b0_mask, 0.0, np.arccos(np.clip(z, -1, 1)))
    return np.column_stack([rho, theta, np.arctan2(y, x)])


@dataclass(frozen=True, eq=False)
class EncoderProtocol:
    """The volumes of a scan, as the network sees them.

    Parameters
    ----------
    features : Tensor, shape (T, F)
        See `direction_features`.
    tables : RotaryTables or None
        None for a network without D-RoPE.
    """

    features: Tensor
    tables: RotaryTables | None

    @classmethod
    def of(
        cls,
        gtab: GradientTable,
        shape: EncoderShape,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        attention: str = "auto",
    ) -> EncoderProtocol:
        """Of a gradient table whose directions are in the frame that the network was trained in.

        Parameters
        ----------
        gtab : GradientTable
        shape : EncoderShape
        dtype : torch.dtype
            Of attention; see `RotaryTables.of`.
        device : torch.device, optional
        attention : {"auto", "products", "torch-compile", "triton"}
            What it is computed by; see `RotaryTables`.

        Raises
        ------
        ProtocolError
            If a volume above b0 has no direction.
        """
        tables = None
        if shape.rotary:
            distances = volume_distances(gtab)
            tables = RotaryTables.of(distances, shape.head, shape.layout, dtype, device, attention=attention)
        kept = torch.float64 if dtype is torch.float64 else torch.float32
        features = torch.as_tensor(direction_features(gtab, shape.directions), dtype=kept, device=device)
        return cls(features, tables)

    def __len__(self) -> int:
        return len(self.features)

    def subset(self, volumes: Tensor) -> EncoderProtocol:
        """Some of the volumes."""
        return EncoderProtocol(self.features[volumes], None if self.tables is None else self.tables.subset(volumes))
