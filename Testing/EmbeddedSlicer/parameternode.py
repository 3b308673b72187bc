"""``slicer.parameterNodeWrapper``: typed attributes over a vtkMRMLScriptedModuleNode, tied to widgets.

Values are kept in the node, as text and node references, so that they are saved with the scene. What it leaves out:
parameter packs, custom serializers, lists and dicts that notice changes inside of them (assign a new one), and nodes
inside of containers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import vtk

from EmbeddedSlicer.parametergui import Connection, widgetsByParameter
from EmbeddedSlicer.parametertypes import (
    Choice,
    Decimals,
    Default,
    Exclude,
    Maximum,
    Minimum,
    NotNone,
    Parameter,
    SingleStep,
    Validator,
    WithinRange,
)

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "Maximum",
    "Minimum",
    "NotNone",
    "SingleStep",
    "Validator",
    "WithinRange",
    "parameterNodeWrapper",
]


_OBSERVING: dict[int, Callable[..., None]] = {}
"""Observers of nodes, kept until their node goes.

A node lives in the scene while nothing in Python holds it; what observes it is then garbage to Python's collector, yet
still called: a crash.
"""


def _keepAlive(node: Any, observer: Callable[..., None]) -> None:
    key = id(observer)
    _OBSERVING[key] = observer
    node.AddObserver(vtk.vtkCommand.DeleteEvent, lambda *_: _OBSERVING.pop(key))


class _Attribute:
    """Reads and writes one parameter."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter

    def __get__(self, wrapper: Any, owner: type | None = None) -> Any:
        return self if wrapper is None else self.parameter.read(wrapper.parameterNode)

    def __set__(self, wrapper: Any, value: Any) -> None:
        self.parameter.write(wrapper.parameterNode, value)


class _Wrapper:
    """What the decorator adds to a class."""

    allParameters: dict[str, Parameter] = {}

    def __init__(self, parameterNode: Any) -> None:
        if parameterNode is None:
            msg = "parameterNode must not be None"
            raise ValueError(msg)
        self.parameterNode = parameterNode
        self._connections: dict[int, list[Connection]] = {}
        was = parameterNode.StartModify()
        for parameter in self.allParameters.values():
            if not parameter.isIn(parameterNode):
                parameter.write(parameterNode, parameter.default)
        parameterNode.EndModify(was)

    def default(self, name: str) -> Any:
        """Default of a parameter."""
        return self.allParameters[name].default

    def dataType(self, name: str) -> Any:
        """Type of a parameter."""
        return self.allParameters[name].type

    def getValue(self, name: str) -> Any:
        """Value of a parameter."""
        return self.allParameters[name].read(self.parameterNode)

    def setValue(self, name: str, value: Any) -> None:
        """Set a parameter."""
        self.allParameters[name].write(self.parameterNode, value)

    # --- as the node --------------------------------------------------------------------------------------------------

    def StartModify(self) -> int:
        """Hold back modified events."""
        return self.parameterNode.StartModify()

    def EndModify(self, was: int) -> int:
        """Let modified events through again."""
        return self.parameterNode.EndModify(was)

    def Modified(self) -> None:
        """Send a modified event."""
        self.parameterNode.Modified()

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        """Observe the node."""
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        """Stop observing the node."""
        self.parameterNode.RemoveObserver(tag)

    # --- widgets ------------------------------------------------------------------------------------------------------

    def connectGui(self, gui: Any) -> int:
        """Tie every widget below ``gui`` that has the dynamic property ``SlicerParameterName`` to that parameter.

        Returns
        -------
        int
            For `disconnectGui`.
        """
        return self.connectParametersToGui(widgetsByParameter(gui))

    def connectParametersToGui(self, widgets: Mapping[str, Any]) -> int:
        """Tie widgets to parameters by name.

        Returns
        -------
        int
            For `disconnectGui`.

        Raises
        ------
        ValueError
            If there is no such parameter, or its type cannot be shown by the widget.
        """
        unknown = [name for name in widgets if name not in self.allParameters]
        if unknown:
            msg = f"Not parameters of {type(self).__name__}: {', '.join(unknown)}"
            raise ValueError(msg)
        connections = [Connection(self, self.allParameters[name], widget) for name, widget in widgets.items()]

        def show(*_: Any) -> None:
            for connection in connections:
                connection.show()

        show()
        tag = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show)
        self._connections[tag] = connections
        _keepAlive(self.parameterNode, show)
        return tag

    def disconnectGui(self, tag: int) -> None:
        """Untie the widgets of a `connectGui`."""
        self.parameterNode.RemoveObserver(tag)
        for connection in self._connections.pop(tag):
            connection.close()


def parameterNodeWrapper(kind: type) -> type:
    """Class decorator: its annotated attributes become parameters in the node that instances are made from.

    Raises
    ------
    TypeError, ValueError
        If a type or default cannot be.
    """
    parameters = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        given = (kind.__dict__[name],) if name in kind.__dict__ else ()
        parameters[name] = Parameter(name, hint, *given)
    body = {name: member for name, member in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    body |= {name: _Attribute(parameter) for name, parameter in parameters.items()}
    return type(kind.__name__, (_Wrapper, *kind.__bases__), {**body, "allParameters": parameters})
