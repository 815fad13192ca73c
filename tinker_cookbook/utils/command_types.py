"""Types of config fields as text for users, and the names of classes they can be set to."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import chz
from chz.factories import MetaFactory

from tinker_cookbook.utils.private_apis import has_no_default


def type_text(t: Any) -> str:
    """A type as text for users: `float | None`, `linear | cosine`, `list[str]`, `ChatBuilder`."""
    origin, arguments = typing.get_origin(t), typing.get_args(t)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(a) for a in arguments)
    if origin is Literal:
        return " | ".join(str(a) for a in arguments)
    if t is type(None):
        return "None"
    if isinstance(t, type) and issubclass(t, enum.Enum):
        return " | ".join(str(member.value) for member in t)
    if origin is collections.abc.Callable:
        return "module:function"
    if origin is not None:
        inner = ", ".join("..." if a is ... else type_text(a) for a in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(t, "__name__", str(t)).removeprefix("typing.")


def alternatives(text: str) -> list[str]:
    """Split a text of `type_text` at its top-level alternatives."""
    return re.split(r" \| (?![^\[]*\])", text)


def choices(t: Any, meta_factory: MetaFactory | None = None) -> Mapping[str, type]:
    """The classes that a field of this type can be set to, by name; {} if there is no choice. A
    factory of the field may define `names`; else they are all subclasses of the type."""
    return getattr(meta_factory, "names", None) or _subclasses(t)


def _subclasses(t: Any) -> dict[str, type]:
    bases = [a for a in (typing.get_args(t) or (t,)) if isinstance(a, type) and chz.is_chz(a)]
    found: dict[str, type] = {}
    below = [cls for base in bases for cls in base.__subclasses__()]
    while below:
        cls = below.pop(0)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found.setdefault(cls.__name__, cls)
        below += cls.__subclasses__()
    return found


def class_with(choices: Mapping[str, type], field: str) -> str | None:
    """The class most likely meant by a user who sets the key `field`: preferably a leaf class, one
    that requires the key, one of the library rather than of a recipe, and one that requires few
    others."""

    def rank(name: str) -> tuple[bool, bool, bool, int]:
        cls = choices[name]
        fields = chz.chz_fields(cls)
        required = [key for key in fields if has_no_default(fields[key])]
        is_special = not cls.__module__.startswith("tinker_cookbook.")
        return bool(cls.__subclasses__()), field not in required, is_special, len(required)

    having = [k for k, cls in choices.items() if chz.is_chz(cls) and field in chz.chz_fields(cls)]
    return min(having, key=rank, default=None)


def expected_text(t: Any) -> str:
    """What may be written after `key=`: `float or None`; `2024 or 2025, or several with ...`."""
    origin, arguments = typing.get_origin(t), [a for a in typing.get_args(t) if a is not ...]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(expected_text(a) for a in arguments)
    if t is bool:
        return "True or False"
    if origin in (list, tuple, collections.abc.Sequence) and len(arguments) == 1:
        return f"{expected_text(arguments[0])}, or several separated by commas"
    return " or ".join(alternatives(type_text(t)))


def is_object(t: Any) -> bool:
    """Whether a value of this type may have keys of its own."""
    return any(isinstance(a, type) and chz.is_chz(a) for a in (typing.get_args(t) or (t,)))
