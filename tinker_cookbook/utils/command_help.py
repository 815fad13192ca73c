"""`--help`: the keys that people set first, examples, and the names of the rest by group.
`--help all`: every key of a program with its type, default and meaning.
"""

from __future__ import annotations

import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence

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

MAX_EXAMPLES = 2


def help_text(
    config_class: type,
    argv: Sequence[str] = (),
    aliases: Mapping[str, str] | None = None,
    first_keys: Sequence[str] = (),
    docstring: str = "",
    width: int | None = None,
) -> str:
    """The help of a program, wrapped to at most 140 columns; examples stand as they are written.

    argv: its other words choose classes, whose keys are then explained: `data=JsonlChats --help`.
    first_keys: the keys to explain first, by their names or aliases; of the others only names and
    defaults are listed, unless argv holds the word `all`. Without first_keys, all are explained.
    docstring: its first paragraph describes the program, its first two command lines are examples.
    """
    everything = "all" in argv or not first_keys
    request = read_request(config_class, [word for word in argv if word != "all"], aliases)
    with errors_in_one_line(request):
        known = parameters(request.blueprint())
    check_known_keys(request, known)
    width = min(width or shutil.get_terminal_size((100, 24)).columns, 140)
    lines = [f"usage: {_program()} [config=FILE.yaml] [key=value ...]"]
    if description := docstring.split("\n\n")[0]:
        lines += ["", *textwrap.wrap(" ".join(description.split()), width)]
    if examples := _examples(docstring):
        lines += ["", "examples", *(f"  {line}" for line in examples)]
    for relation, names in _aliases_by_relation(request).items():
        lines += ["", *textwrap.wrap(f"{relation}: {', '.join(names)}", width)]
    groups = _groups(request, known)
    if everything:
        return "\n".join([*lines, *_all_keys(request, groups, known, width)])
    first = [request.aliases.get(key, key) for key in first_keys]
    lines += ["", "keys to set first"]
    for name in first:
        lines += _entry(request.spell(name), known[name], width)
    lines += ["", "other keys and their defaults (--help all explains them)"]
    details: list[str] = []
    for title, names in groups.items():
        if any(name.startswith(f"{key}.") for key in request.chosen(known) for name in names):
            details += _explained(request, title, names, known, width)
            continue
        words = [_with_default(request.spell(n), known[n]) for n in names if n not in first]
        if words:
            lines += _row(title.removeprefix("keys of "), " ".join(words), width, _GROUP)
    return "\n".join([*lines, *details])


def _aliases_by_relation(request: Request) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, key in request.aliases.items():
        relation = "other names" if request.is_plain(key) else "short names"
        found.setdefault(relation, []).append(f"{alias} ({key})")
    return found


def _examples(docstring: str) -> list[str]:
    """The docstring's first commands, with their remarks."""
    commands = re.findall(r"^ *((?:\./scripts/run|python -m) \S.*)$", docstring, re.MULTILINE)
    return commands[:MAX_EXAMPLES]


def _with_default(name: str, parameter: Parameter) -> str:
    if not parameter.default:
        return f"{name} (required)"
    return name if parameter.default == "None" else f"{name}={parameter.default}"


def _all_keys(
    request: Request, groups: Mapping[str, list[str]], known: Mapping[str, Parameter], width: int
) -> list[str]:
    lines: list[str] = []
    for title, names in groups.items():
        lines += _explained(request, title, names, known, width)
    for name in known:
        lines += _keys_by_class(request, name, known, width)
    return lines


def _explained(
    request: Request, title: str, names: Iterable[str], known: Mapping[str, Parameter], width: int
) -> list[str]:
    lines = ["", title]
    for name in names:
        lines += _entry(request.spell(name), known[name], width)
    return lines


def _groups(request: Request, known: Mapping[str, Parameter]) -> dict[str, list[str]]:
    """Keys by the package that defines them: the program's own, those it inherits, then those of
    nested objects."""
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
        lines += _row(f"{short}={choice}", ", ".join(besides) or "-", width, _NAME)
    if shared:
        lines += _row("all of them", ", ".join(f"{short}.{key}" for key in shared), width, _NAME)
    return lines


def _row(name: str, text: str, width: int, column: int) -> list[str]:
    start = 2 + column + 2
    parts = textwrap.wrap(text, max(width - start, 30), break_on_hyphens=False)
    first = parts.pop(0) if len(name) <= column else ""
    return [f"  {name:<{column}}  {first}".rstrip(), *(" " * start + part for part in parts)]


def _object_title(key: str, parameter: Parameter) -> str:
    chosen = f" ({parameter.default})" if parameter.choices else ""
    return f"keys of {key}{chosen}"


def _class_title(cls: type) -> str:
    module = cls.__module__
    if module == "__main__":
        return "keys of this program"
    package = module.removeprefix("tinker_cookbook.").partition(".")[0]
    return f"keys of {package if module.startswith('tinker_cookbook.') else module}"


# widths of the columns; a longer entry pushes the rest of its row to the next line
_NAME, _TYPE, _DEFAULT = 29, 10, 10
_GROUP = 12
_MIN_MEANING, _NARROW_INDENT = 38, 6


def _entry(name: str, parameter: Parameter, width: int) -> list[str]:
    start = 2 + _NAME + 2 + _TYPE + 2 + _DEFAULT + 2
    kind, doc = _kind(parameter)
    line = f"  {name:<{_NAME}}  {kind:<{_TYPE}}  {parameter.default or 'required':<{_DEFAULT}}  "
    # a narrow terminal has no room for a fourth column
    indent = start if width >= start + _MIN_MEANING else _NARROW_INDENT
    doc_lines = textwrap.wrap(doc, width - indent, break_on_hyphens=False)
    first = doc_lines.pop(0) if doc_lines and indent == start and len(line) <= start else ""
    return [(line + first).rstrip(), *(" " * indent + part for part in doc_lines)]


def _kind(parameter: Parameter) -> tuple[str, str]:
    """Type and meaning as shown: a long list of choices moves from the type to the meaning."""
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
