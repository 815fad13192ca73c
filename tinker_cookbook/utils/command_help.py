"""`--help`: every key of a program in a table that can be read."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

import chz

from tinker_cookbook.utils.command_line import (
    Parameter,
    Request,
    check_known_keys,
    errors_in_one_line,
    parameters,
    read_request,
)
from tinker_cookbook.utils.command_types import alternatives, type_text


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
    check_known_keys(request, known)
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 140)
    lines = [f"usage: {_program()} [config=FILE.yaml] [key=value ...]"]
    if about:
        lines += ["", *textwrap.wrap(about, width)]
    for alias, key in request.aliases.items():
        relation = "another name of" if request.is_plain(key) else "short for"
        lines += ["", f"{alias} is {relation} {key}."]
    for title, names in _groups(request, known).items():
        lines += ["", title]
        for name in names:
            lines += _entry(request.spell(name), known[name], width)
    for name in known:
        lines += _keys_by_class(request, name, known, width)
    return "\n".join(lines)


def _groups(request: Request, known: Mapping[str, Parameter]) -> dict[str, list[str]]:
    """Keys by the class that defines them: own class, its bases, then nested objects."""
    classes = request.config_class.__mro__
    owners: dict[str, str] = {}
    for cls in reversed(classes):
        for name in inspect.get_annotations(cls):
            owners[name] = _class_title(cls)
    titles = list(dict.fromkeys(_class_title(cls) for cls in classes))
    groups: dict[str, list[str]] = {title: [] for title in titles}
    for name, parameter in known.items():
        if any(key.startswith(f"{name}.") for key in known) and not parameter.choices:
            continue  # an object of one class: its keys say it all
        head, dot, _ = name.rpartition(".")
        title = _object_title(request.spell(head), known[head]) if dot else owners[name]
        groups.setdefault(title, []).append(name)
    return {title: names for title, names in groups.items() if names}


def _keys_by_class(
    request: Request, name: str, known: Mapping[str, Parameter], width: int
) -> list[str]:
    """The names of the keys that come with each class that `name` may be set to, while none is."""
    if any(key.startswith(f"{name}.") for key in known):
        return []
    classes = {k: cls for k, cls in known[name].choices.items() if chz.is_chz(cls)}
    keys = {choice: list(chz.chz_fields(cls)) for choice, cls in classes.items()}
    if not any(keys.values()):
        return []
    short = request.spell(name)
    shared = [key for key in min(keys.values(), key=len) if all(key in k for k in keys.values())]
    # one that has keys of its own and is no base of the others
    example = max(keys, key=lambda k: (not classes[k].__subclasses__(), len(keys[k])))
    lines = ["", f"keys of {short}, by class ({short}={example} --help says what they mean)"]
    for choice, own in keys.items():
        besides = [f"{short}.{key}" for key in own if key not in shared]
        lines += _row(f"{short}={choice}", ", ".join(besides) or "-", width)
    if shared:
        lines += _row("all of them", ", ".join(f"{short}.{key}" for key in shared), width)
    return lines


def _row(name: str, text: str, width: int) -> list[str]:
    start = 2 + _NAME + 2
    first, *rest = textwrap.wrap(text, max(width - start, 30), break_on_hyphens=False)
    return [f"  {name:<{_NAME}}  {first}", *(" " * start + part for part in rest)]


def _object_title(key: str, parameter: Parameter) -> str:
    chosen = f" ({parameter.default})" if parameter.choices else ""
    return f"keys of {key}{chosen}"


def _class_title(cls: type) -> str:
    module = cls.__module__
    if module == "__main__":
        return "keys of this program"
    return f"keys of {module.removeprefix('tinker_cookbook.')}"


_NAME, _TYPE, _DEFAULT = 29, 10, 10  # columns; what is longer pushes the rest to the next line


def _entry(name: str, parameter: Parameter, width: int) -> list[str]:
    start = 2 + _NAME + 2 + _TYPE + 2 + _DEFAULT + 2
    kind, doc = _kind(parameter)
    line = f"  {name:<{_NAME}}  {kind:<{_TYPE}}  {parameter.default or 'required':<{_DEFAULT}}  "
    doc_lines = textwrap.wrap(doc, max(width - start, 30), break_on_hyphens=False)
    first = doc_lines.pop(0) if doc_lines and len(line) <= start else ""
    return [(line + first).rstrip(), *(" " * start + part for part in doc_lines)]


def _kind(parameter: Parameter) -> tuple[str, str]:
    """Type and meaning as shown: long lists of choices move from the type to the meaning."""
    kind = type_text(parameter.type)
    if parameter.default == "None":
        kind = kind.removesuffix(" | None")
    choices, word = list(parameter.choices), "class"
    if not choices and len(kind) > _TYPE and len(alternatives(kind)) > 1:
        choices, word = alternatives(kind), "choice"
    if not choices:
        return kind, parameter.doc
    return word, f"{parameter.doc} [{', '.join(choices)}]".strip()


def _program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return f"python {sys.argv[0]}" if sys.argv and sys.argv[0] else "python"
