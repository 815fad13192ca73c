"""`--help`: every key of a program in a table that can be read."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tinker_cookbook.utils.command_line import (
    Parameter,
    errors_in_one_line,
    parameters,
    read_request,
    refuse_unknown_keys,
    type_text,
)


def help_text(
    config_class: type,
    argv: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    about: str = "",
    width: int | None = None,
) -> str:
    """All keys as a table: name, type, default, meaning; the program's own keys first.

    Words in `argv` are taken into account: `data=JsonlChats --help` lists that class's keys.
    """
    request = read_request(config_class, argv, aliases)
    with errors_in_one_line(request):
        known = parameters(request.blueprint())
    refuse_unknown_keys(request, known)
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 140)
    groups = _groups(config_class, known)
    lines = [f"usage: {_program()} [config=FILE.yaml] [key=value ...]"]
    if about:
        lines += ["", *textwrap.wrap(about, width)]
    for alias, key in (aliases or {}).items():
        lines += ["", f"{alias} is short for {key}"]
    for title, names in groups.items():
        lines += ["", title]
        for name in names:
            lines += _entry(name, known[name], width)
    return "\n".join(lines)


def _groups(config_class: type, known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Keys by the class that defines them: own class, its bases, then nested objects."""
    owners: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        for name in inspect.get_annotations(cls):
            owners[name] = _class_title(cls)
    titles = list(dict.fromkeys(_class_title(cls) for cls in config_class.__mro__))
    groups: dict[str, list[str]] = {title: [] for title in titles}
    for name in known:
        head, dot, _ = name.rpartition(".")
        title = f"keys of {head}" if dot else owners.get(name, titles[0])
        groups.setdefault(title, []).append(name)
    return {title: names for title, names in groups.items() if names}


def _class_title(cls: type) -> str:
    module = cls.__module__
    if module == "__main__":
        return "keys of this program"
    return f"keys of {module.removeprefix('tinker_cookbook.')}"


_NAME, _TYPE, _DEFAULT = 26, 18, 14  # columns; what is longer pushes the rest to the next line


def _entry(name: str, parameter: Parameter, width: int) -> list[str]:
    line = "  "
    for text, column in (
        (name, _NAME),
        (type_text(parameter.type), _TYPE),
        (parameter.default or "(required)", _DEFAULT),
    ):
        line += f"{text:<{column}}  "
    start = 2 + _NAME + _TYPE + _DEFAULT + 6
    doc = textwrap.wrap(parameter.doc, max(width - start, 30)) or [""]
    if len(line) > start:
        return [line.rstrip(), *(" " * start + part for part in doc if part)]
    return [(line + doc[0]).rstrip(), *(" " * start + part for part in doc[1:])]


def _program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {sys.argv[0]}" if sys.argv and sys.argv[0] else "python"
