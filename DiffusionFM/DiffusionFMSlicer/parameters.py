"""The module's state, kept in a parameter node so that it is saved with the scene.

Every setting is a field of a job's dataclass in `DiffusionFMLib.settings`; nothing is listed twice here.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import Field, dataclass, fields
from typing import Any, TypeVar

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.overlays.kinds import OVERLAYS
from DiffusionFMLib.physics import TRACKED
from DiffusionFMLib.settings import ComputeSettings, EncodeSettings, FitSettings, Settings, TrackSettings, option

S = TypeVar("S", bound=Settings)

SCAN, MASK, SEED_MASK = "Scan", "Mask", "SeedMask"
"""Roles of the node references."""

FROM_SCENE = ("dwi", "mask", "seed_mask", "t1w", "series")
"""Settings that the export fills in: in the panel they are nodes, or the choice at opening."""


@dataclass(frozen=True)
class PanelSettings(TrackSettings, EncodeSettings):
    """Everything the panel offers: its jobs' settings, and what only a viewer needs."""

    tracts: bool = option(False, "Also compute streamlines.")
    tubes: bool = option(False, "Show a part of the streamlines as tubes: slower to turn.")
    feature: str = option(
        next(iter(OVERLAYS)),
        "What to lay over the slices; those that passed the test come first.",
        choices=tuple(OVERLAYS),
    )
    block: int = option(0, "Which block of the encoder; 0 is the mean of all.", minimum=0, maximum=99)
    head: int = option(0, "Which attention head; 0 is the mean of all.", minimum=0, maximum=99)
    follow: bool = option(
        False,
        "Ask again wherever the crosshair goes: hold Shift and move the mouse in a slice.",
    )


PANEL: dict[str, Field[Any]] = {f.name: f for f in fields(PanelSettings)}
"""Fields by name, with help, range and choices in their metadata."""


class Parameters:
    """Typed view of a parameter node.

    Parameters
    ----------
    node : vtkMRMLScriptedModuleNode
        As `ScriptedLoadableModuleLogic.getParameterNode` gives it.
    """

    def __init__(self, node: Any) -> None:
        self.node = node

    def get(self, name: str) -> Any:
        """Value of a setting; its default when the node holds none, or one that no longer fits."""
        text = self.node.GetParameter(name)
        if text:
            # a scene of another version may hold what no longer fits: its other settings still count
            with contextlib.suppress(ValueError, SettingsError):
                return getattr(PanelSettings(**{name: json.loads(text)}), name)
        # the default method is the model's
        return getattr(PanelSettings(model=self.get("model")), name) if name == "method" else PANEL[name].default

    def set(self, name: str, value: Any) -> None:
        """Set a setting.

        Raises
        ------
        SettingsError
            If it is of the wrong type or out of range.
        """
        value = getattr(PanelSettings(**{name: value}), name)
        self.node.SetParameter(name, json.dumps(value))

    def reference(self, role: str) -> Any:
        """The node of a role, or None."""
        return self.node.GetNodeReference(role)

    def setReference(self, role: str, node: Any) -> None:
        """Set the node of a role; None clears it."""
        self.node.SetNodeReferenceID(role, node.GetID() if node is not None else None)

    def settings(self, **inputs: str) -> FitSettings:
        """Settings of the job that the panel asks for: `TrackSettings` with tracts on, where the model allows it.

        Parameters
        ----------
        **inputs : str
            Paths of what the module exported, by the setting's name.
        """
        kind = TrackSettings if self.get("tracts") and self.get("model") in TRACKED else FitSettings
        return self._settings(kind, inputs)

    def encodeSettings(self, **inputs: str) -> EncodeSettings:
        """Settings of the encoder's job; `inputs` as in `settings`."""
        return self._settings(EncodeSettings, inputs)

    def _settings(self, kind: type[S], inputs: dict[str, str]) -> S:
        values = {f.name: self.get(f.name) for f in fields(kind) if f.name not in FROM_SCENE}
        return kind.from_dict({**values, **inputs})


def advancedFields(kind: type[Settings]) -> list[Field[Any]]:
    """Settings of a job that belong into its folded part."""
    return [f for f in fields(kind) if f.metadata["advanced"]]


def tractFields() -> list[Field[Any]]:
    """Settings that only tracking has."""
    return _beyond(TrackSettings, FitSettings)


def encodeFields() -> list[Field[Any]]:
    """Settings that only the encoder has."""
    return _beyond(EncodeSettings, ComputeSettings)


def _beyond(kind: type[Settings], base: type[Settings]) -> list[Field[Any]]:
    known = {f.name for f in fields(base)}
    return [f for f in fields(kind) if f.name not in known and f.name not in FROM_SCENE]
