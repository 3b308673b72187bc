"""Observations of VTK objects that end with the widget that made them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore


class Observers:
    """What a Qt object observes: neither keeps it alive nor outlives it.

    Parameters
    ----------
    owner : QObject
        Whose methods are called.
    """

    def __init__(self, owner: QtCore.QObject) -> None:
        self._tags: list[tuple[Any, int]] = []
        tags = self._tags
        owner.destroyed.connect(lambda *_: _release(tags))

    def add(self, observed: Any, event: Any, method: Callable[..., None]) -> tuple[Any, int]:
        """Call a bound method at an event.

        Parameters
        ----------
        observed : vtkObject
        event : int or str
        method : bound method
            One decorated with ``vtk.calldata_type`` receives that data.

        Returns
        -------
        tuple
            For `remove`.
        """
        weak = weakref.WeakMethod(method)

        def call(*arguments: Any) -> None:
            alive = weak()
            if alive is not None:
                alive(*arguments)

        if hasattr(method, "CallDataType"):
            call.CallDataType = method.CallDataType  # type: ignore[attr-defined]
        entry = observed, observed.AddObserver(event, call)
        self._tags.append(entry)
        return entry

    def remove(self, entry: tuple[Any, int]) -> None:
        """End one observation."""
        self._tags.remove(entry)
        entry[0].RemoveObserver(entry[1])

    def clear(self) -> None:
        """End every observation."""
        _release(self._tags)


def _release(tags: list[tuple[Any, int]]) -> None:
    while tags:
        observed, tag = tags.pop()
        observed.RemoveObserver(tag)
