"""A scan as the encoder sees it, from which overlays are made and questions about places answered."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.maps import ParameterMap
from DiffusionFMLib.overlays.attention import Attention
from DiffusionFMLib.overlays.features import Features
from DiffusionFMLib.overlays.kinds import ON_ATTENTION, OVERLAYS, UNPROVEN


@dataclass(frozen=True, eq=False)
class EncodedScan:
    """What is remembered of a scan.

    Parameters
    ----------
    acquisition : Acquisition
        As it was encoded.
    features : Features
    surprise : array, shape `Cells.grid`, float32, or None
        In standard deviations of the noise; None where it was not asked for, or the scan has too few directions.
    attention : Attention or None
        None where no overlay on it was asked for.
    influence : array, shape of the first pass's grid, float32, or None
        Change of FA; None where it was not asked for, or the scan has no FA.
    """

    acquisition: Acquisition
    features: Features
    surprise: NDArray[np.float32] | None = None
    attention: Attention | None = None
    influence: NDArray[np.float32] | None = None

    @property
    def names(self) -> list[str]:
        """Overlays that there are."""
        absent = set()
        if self.surprise is None:
            absent.add("surprise")
        if self.influence is None:
            absent.add("influence")
        if self.attention is None:
            absent |= ON_ATTENTION
        elif self.attention.geometry is None:
            absent.add("directions")
        return [name for name in OVERLAYS if name not in absent]

    @property
    def blocks(self) -> int:
        """Of the encoder, with attention of their own; 0 where it was not kept."""
        return len(self.attention.directions) if self.attention else 0

    @property
    def heads(self) -> int:
        """Of each block."""
        return self.attention.directions.shape[1] if self.attention else 0

    def maps(self, provenance: Mapping[str, Any]) -> Iterator[ParameterMap]:
        """All overlays that are not about a point, in the scan's grid; 0 outside the brain."""
        for name in self.names:
            overlay = OVERLAYS[name]
            if not overlay.of_point:
                data = self.features.cells.on_scan(self.cells(name))
                mask = self.acquisition.mask
                if mask is not None:
                    data = data * mask.reshape(*mask.shape, *[1] * (data.ndim - 3))
                told = provenance if overlay.standard else {**provenance, "unproven": UNPROVEN}
                yield ParameterMap(overlay.spec, data, self.acquisition.affine, told)

    def cells(
        self,
        name: str,
        ijk: tuple[int, int, int] | None = None,
        block: int | None = None,
        head: int | None = None,
    ) -> NDArray[np.float32]:
        """An overlay, shape (*grid, ...) of its cells; 0 in those without brain. See `OVERLAYS` for what each needs.

        Parameters
        ----------
        name : str
            One of `names`.
        ijk : tuple of int, optional
            Voxel of the scan.
        block, head : int, optional
            The mean of all where not given.

        Raises
        ------
        InputError
            If the voxel lies outside the brain.
        """
        found = self._of_patches(name, ijk, block, head)
        return found * self._brain.reshape(*self._brain.shape, *[1] * (found.ndim - 3))

    @cached_property
    def _brain(self) -> NDArray[np.bool_]:
        """Cells with brain in them."""
        cells, mask = self.features.cells, self.acquisition.mask
        return np.ones(cells.grid, bool) if mask is None else cells.touched(mask)

    def _of_patches(
        self, name: str, ijk: tuple[int, int, int] | None, block: int | None, head: int | None
    ) -> NDArray[np.float32]:
        """An overlay in all cells of patches that were encoded."""
        cells, attention = self.features.cells, self.attention
        if name == "pca":
            return self.features.components()
        if name == "similarity" and ijk is not None:
            return self.features.similarity(ijk)
        if name == "surprise" and self.surprise is not None:
            return self.surprise
        slabs = self.features.passes[0].slabs
        if name == "influence" and self.influence is not None:
            return cells.mean([(slabs, self.influence)])
        if name == "directions" and attention is not None:
            return cells.mean([(attention.slabs, attention.apart_from_geometry(block, head))])
        if name == "rollout" and attention is not None:
            return cells.mean([(attention.slabs, attention.rollout())])
        if name == "raw" and attention is not None and ijk is not None:
            patch = cells.patch_of(attention.slabs, ijk)
            return cells.mean([(attention.slabs, attention.of_point(patch, block, head))])
        msg = f"There is no overlay '{name}' of this scan{'' if ijk is None else f' at {ijk}'}."
        raise SettingsError(msg, f"Choose one of {', '.join(self.names)}; those about a place need one.")

    # --- questions --------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """What can be asked for, as plain JSON."""
        asked = [name for name in self.names if OVERLAYS[name].of_point or OVERLAYS[name].of_head]
        return {"encoded": True, "blocks": self.blocks, "heads": self.heads, "overlays": asked}

    def overlay(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """An overlay for a viewer: ``{"overlay", "ijk", "block", "head"}`` as in `cells`; plain JSON.

        Raises
        ------
        SettingsError
            If the question is wrong.
        InputError
            If the voxel lies outside the brain.
        """
        name = body.get("overlay")
        if name not in self.names:
            msg = f"There is no overlay {name!r} of this scan; there are {', '.join(self.names)}."
            raise SettingsError(msg, "Compute all overlays, or choose one of these.")
        values = self.cells(name, self._voxel(body.get("ijk"), optional=True), *self._head(body))
        return {
            "overlay": name,
            "shape": list(values.shape),
            "affine": self.features.cells.affine.tolist(),
            # Slicer's arrays run k, j, i
            "values": base64.b64encode(np.ascontiguousarray(np.swapaxes(values, 0, 2), "<f4").data).decode(),
            "window": list(OVERLAYS[name].spec.window),
        }

    def directions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What each direction is attended to at a voxel, and by geometry alone; plain JSON.

        Raises
        ------
        SettingsError
            If the question is wrong, or attention was not kept.
        InputError
            If the voxel lies outside the brain.
        """
        if self.attention is None or self.attention.geometry is None:
            msg = "Attention to directions was not kept of this scan."
            raise SettingsError(msg, "Compute all overlays.")
        voxel = self._voxel(body.get("ijk"))
        slabs = self.attention.slabs
        received, geometry = self.attention.received(self.features.cells.patch_of(slabs, voxel), *self._head(body))
        gtab = self.attention.gtab
        return {
            "bvals": gtab.bvals.tolist(),
            "bvecs": gtab.bvecs.tolist(),
            "attention": received.tolist(),
            "geometry": geometry.tolist(),
        }

    def _head(self, body: Mapping[str, Any]) -> tuple[int | None, int | None]:
        """Block and head of a question."""
        found = []
        for name, count in (("block", self.blocks), ("head", self.heads)):
            value = body.get(name)
            if value is not None and not (type(value) is int and 0 <= value < count):
                msg = f"The {name} is {value!r}; expected a whole number below {count}, or null for their mean."
                raise SettingsError(msg, "Correct the request.")
            found.append(value)
        return found[0], found[1]

    def _voxel(self, ijk: Any, optional: bool = False) -> Any:
        """Voxel of a question."""
        return None if optional and ijk is None else self.acquisition.checked_voxel(ijk)
