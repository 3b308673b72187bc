"""Types of parameters: how each is checked, and kept as text in a node."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Annotated, Any, Union, get_args, get_origin

import slicer

_UNIONS = (Union, types.UnionType)
_CONTAINERS = (list, tuple, dict)


class Validator:
    """Base of what can be said about a parameter in ``Annotated[type, ...]``."""

    def validate(self, value: Any) -> None:
        """Check a value.

        Raises
        ------
        ValueError
            If it is not allowed.
        """


class NotNone(Validator):
    """A value is needed."""

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value is None:
            msg = "Value must not be None"
            raise ValueError(msg)


class WithinRange(Validator):
    """A number from ``minimum`` to ``maximum``, both included."""

    def __init__(self, minimum: float, maximum: float) -> None:
        if minimum > maximum:
            msg = f"Minimum {minimum} is larger than maximum {maximum}"
            raise ValueError(msg)
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value is not None and not self.minimum <= value <= self.maximum:
            msg = f"Value must be within range [{self.minimum}, {self.maximum}], got {value}"
            raise ValueError(msg)


class Minimum(Validator):
    """A number not below ``minimum``."""

    def __init__(self, minimum: float) -> None:
        self.minimum = minimum

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value is not None and value < self.minimum:
            msg = f"Value must be at least {self.minimum}, got {value}"
            raise ValueError(msg)


class Maximum(Validator):
    """A number not above ``maximum``."""

    def __init__(self, maximum: float) -> None:
        self.maximum = maximum

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value is not None and value > self.maximum:
            msg = f"Value must be at most {self.maximum}, got {value}"
            raise ValueError(msg)


class Choice(Validator):
    """One of some values."""

    def __init__(self, choices: Iterable[Any]) -> None:
        self.choices = list(choices)

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value not in self.choices:
            msg = f"Value must be one of {self.choices}, got {value!r}"
            raise ValueError(msg)


class Exclude(Validator):
    """None of some values."""

    def __init__(self, excluded: Iterable[Any]) -> None:
        self.excluded = list(excluded)

    def validate(self, value: Any) -> None:
        """Check a value."""
        if value in self.excluded:
            msg = f"Value must not be one of {self.excluded}, got {value!r}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Default:
    """Value of a parameter that was never set."""

    value: Any


@dataclass(frozen=True)
class Decimals:
    """Decimals that the widget of a number shows."""

    value: int


@dataclass(frozen=True)
class SingleStep:
    """Step of the widget of a number."""

    value: float


_NO_DEFAULT = object()
_ZEROS: dict[type, Any] = {str: "", bool: False, int: 0, float: 0.0}


class Parameter:
    """One typed attribute of a parameter node wrapper.

    Parameters
    ----------
    name : str
    hint : type
        As in the class body, with `Annotated` where it has that.
    default : object
        From the class body, if it is there.

    Raises
    ------
    TypeError
        If no parameter can have the type.
    ValueError
        If the default is not allowed.
    """

    def __init__(self, name: str, hint: Any, default: Any = _NO_DEFAULT) -> None:
        self.name = name
        self.notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        self.type = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        self.optional = get_origin(self.type) in _UNIONS and type(None) in get_args(self.type)
        if self.optional:
            self.type = next(t for t in get_args(self.type) if t is not type(None))
        self.container = get_origin(self.type) or self.type
        self.isNode = isinstance(self.type, type) and issubclass(self.type, slicer.vtkMRMLNode)
        if not (self.isNode or self._isPlain() or self.container in _CONTAINERS):
            msg = f"Parameter '{name}' has a type that cannot be kept in a parameter node: {hint}"
            raise TypeError(msg)
        self.default = self._default(default)

    def _isPlain(self) -> bool:
        return isinstance(self.type, type) and (self.type in _ZEROS or issubclass(self.type, (Enum, PurePath)))

    def note(self, kind: type) -> Any:
        """The annotation of a kind, or None."""
        return next((n for n in self.notes if isinstance(n, kind)), None)

    def _default(self, default: Any) -> Any:
        noted = self.note(Default)
        value = noted.value if default is _NO_DEFAULT and noted is not None else default
        if value is not _NO_DEFAULT:
            if self.isNode and value is not None:
                msg = f"Parameter '{self.name}' is a node, its default can only be None"
                raise ValueError(msg)
            return value if value is None and self.isNode else self.check(value)
        if self.isNode or self.optional:
            return None
        choice, span = self.note(Choice), self.note(WithinRange)
        if choice is not None:
            return choice.choices[0]
        if issubclass(self.container, Enum):
            return next(iter(self.container))
        zero = _ZEROS[self.type] if self.type in _ZEROS else self.container()
        return span.minimum if span is not None and not span.minimum <= zero <= span.maximum else zero

    def check(self, value: Any) -> Any:
        """The value in the parameter's type.

        Raises
        ------
        TypeError
            If it is of another type.
        ValueError
            If it is None where that is not allowed, or a note forbids it.
        """
        if value is None:
            if not (self.isNode or self.optional):
                msg = f"Parameter '{self.name}' must not be None"
                raise ValueError(msg)
            return None
        if self.type is float and isinstance(value, int):
            value = float(value)
        if isinstance(self.container, type) and issubclass(self.container, PurePath) and isinstance(value, str):
            value = self.container(value)
        if not isinstance(value, self.container):
            msg = f"Parameter '{self.name}' must be {self.container.__name__}, got {type(value).__name__}"
            raise TypeError(msg)
        for note in self.notes:
            if isinstance(note, Validator):
                note.validate(value)
        return value

    # --- in a node ------------------------------------------------------------------------------------------------

    def isIn(self, node: Any) -> bool:
        """Whether a node has a value for it."""
        return self.isNode or self.name in node.GetParameterNames()

    def read(self, node: Any) -> Any:
        """Value in a node; the default when there is none."""
        if self.isNode:
            return node.GetNodeReference(self.name)
        return self._fromText(node.GetParameter(self.name)) if self.isIn(node) else self.default

    def write(self, node: Any, value: Any) -> None:
        """Put a value into a node."""
        value = self.check(value)
        if self.isNode:
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        else:
            node.SetParameter(self.name, self._toText(value))

    def _toText(self, value: Any) -> str:
        if self.optional or self.container in _CONTAINERS:
            return json.dumps(value, default=str)
        if isinstance(value, Enum):
            return value.name
        return str(value)

    def _fromText(self, text: str) -> Any:
        if self.optional or self.container in _CONTAINERS:
            value = json.loads(text)
            return value if value is None else self.container(value)
        if self.type is bool:
            return text.lower() == "true"
        if issubclass(self.container, Enum):
            return self.container[text]
        return (Path if self.container is PurePath else self.container)(text)
