"""The ``qt`` module of Slicer's Python, on top of PySide6.

Slicer wraps Qt with PythonQt, where a meta-property is an attribute (``button.text = "Apply"``, ``if box.checked``),
signals also connect by their signature (``button.connect("clicked(bool)", f)``), and a misspelt attribute is an
error. Each class is made from PySide6's on first use, so that code written for PySide6 keeps working next to it.

What it leaves out: emitting a signal by calling it (use ``emit``), and PythonQt's ``delete``. Objects that Qt itself
creates, such as the buttons of a message box, have PySide6's plain classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtTest, QtUiTools, QtWidgets

# Qt asks for these through C++ overrides of the same name, which an attribute would break.
_OVERRIDDEN = {"sizeHint", "minimumSizeHint"}
_PLAIN = {
    "QObject",
    "QCoreApplication",
    "QGuiApplication",
    "QApplication",
    "QUiLoader",
    "QStyle",
    "QScreen",
    "QClipboard",
    "QThread",
}
_SOURCES = (QtWidgets, QtGui, QtCore, QtUiTools, QtTest)
_made: dict[type, type] = {}


class PropertyAttribute:
    """A Qt meta-property as an attribute.

    Parameters
    ----------
    name : str
        Name of the property.
    base : type
        The PySide6 class that has it.
    """

    def __init__(self, name: str, base: type) -> None:
        self.name = name
        self.base = base
        capital = name[0].upper() + name[1:]
        # PySide6 has no converter for many an enumeration's property, yet all have accessor methods
        self._get = getattr(base, f"is{capital}", None) or self._accessor(name)
        self._set = getattr(base, f"set{capital}", None)

    def _accessor(self, name: str) -> Callable[..., Any] | None:
        found = inspect.getattr_static(self.base, name, None)
        is_static = isinstance(found, staticmethod) or name == "singleShot"
        return None if is_static else getattr(self.base, name, None)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            # QTimer.singleShot is a property and, on the class, a function
            return getattr(self.base, self.name, self)
        self._checkAlive(instance, "read")
        if self._get is not None:
            return self._get(instance)
        return instance.property(self.name)

    def _checkAlive(self, instance: Any, verb: str) -> None:
        # PySide6's own check comes too late for a method that is called on its class
        if not shiboken6.isValid(instance):
            msg = f"Trying to {verb} property '{self.name}' of a destroyed {type(instance).__name__} object"
            raise ValueError(msg)

    def __set__(self, instance: Any, value: Any) -> None:
        self._checkAlive(instance, "set")
        if self.name == "icon" and isinstance(value, QtGui.QPixmap):
            value = QtGui.QIcon(value)
        refusal = f"Property '{self.name}' of {type(instance).__name__} does not accept {value!r}"
        if self._set is not None:
            try:
                self._set(instance, value)
            except TypeError as error:
                raise AttributeError(refusal) from error
        elif not instance.setProperty(self.name, value):
            raise AttributeError(refusal)


class _Meta(type(QtCore.QObject)):  # type: ignore[misc]
    """Makes ``isinstance(widget, qt.QWidget)`` hold for every widget, also one that Qt created."""

    def __instancecheck__(cls, instance: Any) -> bool:
        base = cls.__dict__.get("_pyside")
        return isinstance(instance, base) if base is not None else super().__instancecheck__(instance)


def _signal(instance: Any, signature: str) -> Any:
    return getattr(instance, signature.partition("(")[0].strip())


def _connect(self: Any, signal: str, receiver: Any, slot: str | None = None) -> bool:
    target = receiver if slot is None else getattr(receiver, slot.partition("(")[0])
    _signal(self, signal).connect(target)
    return True


def _disconnect(self: Any, signal: str, receiver: Any = None, slot: str | None = None) -> bool:
    if receiver is None:
        _signal(self, signal).disconnect()
    else:
        _signal(self, signal).disconnect(receiver if slot is None else getattr(receiver, slot.partition("(")[0]))
    return True


def _set_attribute(self: Any, name: str, value: Any) -> None:
    kind = type(self)
    known = inspect.getattr_static(kind, name, None)
    if isinstance(known, QtCore.Property):
        kind._pyside.__setattr__(self, name, value)
    elif hasattr(known, "__set__"):
        known.__set__(self, value)
    elif "_pyside" in kind.__dict__ and not (kind._opaque and name.startswith("_")):
        # PythonQt refuses these too: such a slip must fail here and not first in Slicer
        if name in (bytes(n).decode() for n in self.dynamicPropertyNames()):
            self.setProperty(name, value)
        elif isinstance(value, QtCore.QObject) and QtCore.QObject.objectName(value) == name:
            # PySide6's loader of .ui files makes attributes of named children, PythonQt's does not
            return
        elif known is not None:
            msg = f"Slot '{name}' can not be overwritten on {kind.__name__} object"
            raise AttributeError(msg)
        else:
            msg = (
                f"'{name}' does not exist on {kind.__name__} and creating new attributes on C++ objects is not allowed"
            )
            raise AttributeError(msg)
    else:
        kind._pyside.__setattr__(self, name, value)


def pythonqt(base: type, name: str | None = None) -> type:
    """The PythonQt-style subclass of a PySide6 class, or of an own one derived from such.

    Parameters
    ----------
    base : type
        A class derived from QObject. Its ``Property`` members stay as they are.
    name : str or None
        Name of the class in Slicer, where it differs.
    """
    if base in _made:
        return _made[base]
    own = {key for kind in base.__mro__ for key, member in vars(kind).items() if isinstance(member, QtCore.Property)}
    body: dict[str, Any] = {
        "__module__": "qt",
        "__doc__": base.__doc__,
        "__setattr__": _set_attribute,
        "_pyside": base,
        "_opaque": not base.__module__.startswith("PySide6"),
        # Shiboken looks these two up in the class itself
        "connect": _connect,
        "disconnect": _disconnect,
        "className": lambda self: type(self).__name__ if type(self)._opaque else self.metaObject().className(),
        "name": property(lambda self: self.objectName, lambda self, value: self.setObjectName(value)),
    }
    if hasattr(base, "exec"):
        body["exec_"] = lambda self, *args: base.exec(self, *args)
    meta = base.staticMetaObject  # type: ignore[attr-defined]
    signals = {bytes(meta.method(i).name()).decode() for i in range(meta.methodCount()) if _is_signal(meta.method(i))}
    for index in range(meta.propertyCount()):
        attribute = meta.property(index).name()
        if attribute not in own and attribute not in signals and attribute not in _OVERRIDDEN:
            body[attribute] = PropertyAttribute(attribute, base)
    made = _Meta(name or base.__name__, (base,), body)
    _made[base] = made
    return made


def _is_signal(method: Any) -> bool:
    return method.methodType() == QtCore.QMetaMethod.MethodType.Signal


def _path_alone(name: str) -> Any:
    # PySide6 returns (path, filter), PythonQt the path alone
    return staticmethod(lambda *args, **named: getattr(QtWidgets.QFileDialog, name)(*args, **named)[0])


def _file_dialog() -> type:
    made = pythonqt(QtWidgets.QFileDialog)
    for name in ("getOpenFileName", "getOpenFileNames", "getSaveFileName"):
        type.__setattr__(made, name, _path_alone(name))
    return made


def provide(name: str, kind: type) -> None:
    """Let an own class stand for one of Qt's; for modules that are built on this one."""
    globals()[name] = kind


_SPECIAL = {"QFileDialog": _file_dialog}
Signal, Slot, Property = QtCore.Signal, QtCore.Slot, QtCore.Property


def __getattr__(name: str) -> Any:
    """Make a class when it is first asked for."""
    found = _SPECIAL[name]() if name in _SPECIAL else _plain(name)
    is_wrapped = isinstance(found, type) and issubclass(found, QtCore.QObject) and name not in _PLAIN
    globals()[name] = pythonqt(found) if is_wrapped and "_pyside" not in vars(found) else found
    return globals()[name]


def _plain(name: str) -> Any:
    for source in _SOURCES:
        if name[:1] in "Qq" and hasattr(source, name):
            return getattr(source, name)
    msg = f"module 'qt' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(
        {name for source in _SOURCES for name in dir(source) if name.startswith("Q")} | {"Signal", "Slot", "Property"}
    )
