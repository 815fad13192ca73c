"""Convert configuration objects to plain JSON data: equal configurations give equal text.

A configuration that refers to something outside itself, such as a local file, can describe its
content: its class defines `identity() -> Mapping[str, Plain]` (equal for equal content; for a file,
say, the number of rows and the sha256). The result is stored under "identity". If one of its keys
is also a field of the object, it replaces that field wherever configurations are compared
(`comparable`):

    JsonlChats(path="a.jsonl", batch_size=8)
    -> {"class": "tinker_cookbook.supervised.data:JsonlChats", "path": "a.jsonl", "batch_size": 8,
        "identity": {"path": {"rows": 16, "sha256": "9f86..."}}}

so that a moved file counts as the same data, and another file of the same name does not. An empty
mapping means that nothing outside matters. Classes are recorded by module and name here; the
content of their source files is in `utils/code_identity.py`.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import inspect
import os
import sys
from collections.abc import Mapping, Set
from typing import Any, Protocol, TypeGuard, overload

import chz

from tinker_cookbook.utils.json_types import Json, Plain

IDENTITY = "identity"
CLASS = "class"  # "module:Name"
REPR = "repr"  # for an object that is neither a chz object nor a dataclass
PARTIAL = "partial"
PACKAGE = "tinker_cookbook"

_KNOWN_MODULES = {*sys.stdlib_module_names, "numpy", "torch"} - {"__main__"}


def plain(value: Any, *, identities: bool = True) -> Any:
    """Convert `value` to plain data: dict, list, str, int, float, bool or None.

    chz objects and dataclasses become {"class": "module:name", **fields}, with "identity" if their
    class has that method (see above), classes and functions become "module:name", paths become
    strings, numpy and torch scalars become numbers. Any other object becomes its repr, or its class
    name if the repr contains an address; {"class": ..., "repr": ...} unless its class belongs to
    Python or an array library.

    identities=False: do not call `identity`, which may take long for large data.
    """
    inner = functools.partial(plain, identities=identities)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, enum.Enum):
        return inner(value.value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type):
        return _reference(value)
    if _is_function(value):
        return _function(value, identities)
    if chz.is_chz(value):
        names = {name: field.x_name for name, field in chz.chz_fields(value).items()}
        return _tagged(value, {k: inner(getattr(value, x)) for k, x in names.items()}, identities)
    if dataclasses.is_dataclass(value):
        names = [f.name for f in dataclasses.fields(value)]
        return _tagged(value, {name: inner(getattr(value, name)) for name in names}, identities)
    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inner(v) for v in value]
    if isinstance(value, Set):
        return sorted((inner(v) for v in value), key=repr)
    if isinstance(value, functools.partial):
        arguments = {"args": value.args, "keywords": value.keywords}
        return {PARTIAL: inner(value.func), **inner(arguments)}
    if isinstance(value, datetime.date):
        return value.isoformat()
    if hasattr(value, "model_dump"):  # pydantic: the SDK's types
        return _tagged(value, inner(value.model_dump()), identities)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # numpy or torch scalar
        return inner(value.item())
    if _has_identity(value):
        return _tagged(value, {}, identities)
    text = repr(value)
    if " at 0x" in text or len(text) > 1000:
        text = type(value).__qualname__
    known = type(value).__module__.partition(".")[0] in _KNOWN_MODULES
    return text if known else _tagged(value, {REPR: text}, identities)


@overload
def comparable(value: Mapping[str, Json]) -> dict[str, Json]: ...
@overload
def comparable(value: Json) -> Json: ...
def comparable(value: Mapping[str, Json] | Json) -> Json:
    """Plain data for comparison: fields replaced by their "identity" are left out, and classes of
    this package appear by name alone, since they may move between modules from version to version.
    """
    if isinstance(value, Mapping):
        identity = value.get(IDENTITY)
        known = identity if isinstance(identity, Mapping) else {}
        kept = {k: comparable(v) for k, v in value.items() if k not in known}
        if CLASS in kept:
            kept[CLASS] = lasting_name(kept[CLASS])
        return kept
    return [comparable(v) for v in value] if isinstance(value, list) else value


def without_identities(value: Json) -> Json:
    """Plain data as `plain(..., identities=False)` gives it."""
    if isinstance(value, Mapping):
        return {key: without_identities(v) for key, v in value.items() if key != IDENTITY}
    return [without_identities(v) for v in value] if isinstance(value, list) else value


def lasting_name(reference: Any) -> Any:
    """The name alone for a class of this package; any other reference unchanged."""
    if str(reference).startswith(f"{PACKAGE}."):
        return reference.partition(":")[2]
    return reference


def module_name(name: str) -> str:
    """The import name of a module; for __main__, the name given to `python -m`."""
    if name == "__main__":
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        name = spec.name.removesuffix(".__main__") if spec is not None else name
    # recipes.X and tinker_cookbook.recipes.X must give the same text
    return name.removeprefix("tinker_cookbook.") if ".recipes." in name else name


class _Named(Protocol):
    """A function or method."""

    __qualname__: str
    __module__: str


def _is_function(value: object) -> TypeGuard[_Named]:
    return callable(value) and hasattr(value, "__qualname__") and hasattr(value, "__module__")


def _function(value: _Named, identities: bool) -> Json:
    """module:name, plus the bound object of a method or the variables of a closure."""
    owner = getattr(value, "__self__", None)
    if inspect.ismethod(value) and not isinstance(owner, type):
        return {"method": _reference(value), "self": plain(owner, identities=identities)}
    try:
        variables = inspect.getclosurevars(value).nonlocals if inspect.isfunction(value) else {}
    except ValueError:  # a closure variable that is not set yet
        variables = {}
    settings = {
        key: plain(each, identities=identities)
        for key, each in variables.items()
        if isinstance(each, _SETTINGS)
    }
    return {"function": _reference(value), **settings} if settings else _reference(value)


_SETTINGS = (bool, int, float, str, list, tuple, dict, enum.Enum)


def _reference(value: _Named | type) -> str:
    return f"{module_name(value.__module__ or 'builtins')}:{value.__qualname__}"


class _HasIdentity(Protocol):
    def identity(self) -> Mapping[str, Plain]: ...


def _tagged(value: object, fields: Mapping[str, Json], identities: bool) -> dict[str, Json]:
    tagged = {CLASS: _reference(type(value)), **fields}
    if identities and _has_identity(value) and (known := plain(value.identity())):
        tagged[IDENTITY] = known
    return tagged


def _has_identity(value: object) -> TypeGuard[_HasIdentity]:
    return callable(getattr(type(value), IDENTITY, None))
