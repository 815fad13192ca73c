"""Words of a command line, and YAML files of the same keys, to a chz config; errors in one line."""

from __future__ import annotations

import collections.abc
import difflib
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import chz
import yaml
from chz.blueprint import (
    Castable,
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
    Reference,
)

from tinker_cookbook.exceptions import ConfigurationError, TinkerCookbookError

C = TypeVar("C")
CHZ_ERRORS = (
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
)


def parse(
    config_class: type[C], argv: Sequence[str], aliases: Mapping[str, str] | None = None
) -> C:
    """The config that these words describe. Raises ConfigurationError, in one line, if none."""
    request = read_request(config_class, argv, aliases)
    with errors_in_one_line(request):
        blueprint = request.blueprint()
        refuse_unknown_keys(request, parameters(blueprint))
        return blueprint.make()


class Source(NamedTuple):
    """A group of keys with the text of their values; file: where they came from, "" for argv."""

    file: str
    keys: dict[str, str]

    def where(self) -> str:
        return f" in {self.file}" if self.file else ""


class Request(NamedTuple):
    """What the user asked for: keys and values, in the order in which they apply."""

    config_class: type
    sources: list[Source]
    aliases: Mapping[str, str]

    def spell(self, key: str) -> str:
        """The key with its alias, which is what the user knows it by."""
        for alias, long in self.aliases.items():
            if key == long or key.startswith(f"{long}."):
                return alias + key.removeprefix(long)
        return key

    def blueprint(self, without: str | None = None) -> chz.Blueprint:
        """All words, or all but those that give a value to the key `without`."""
        blueprint = chz.Blueprint(self.config_class)
        for source in self.sources:
            layer = {
                key.removesuffix("@"): Reference(value) if key.endswith("@") else Castable(value)
                for key, value in source.keys.items()
                if without is None or not _matches(key, without)
            }
            blueprint.apply(layer, layer_name=source.file or "command line")
        return blueprint


def read_request(
    config_class: type, argv: Sequence[str], aliases: Mapping[str, str] | None = None
) -> Request:
    """Splits the words and reads the file of `config=`; keys are not checked yet."""
    aliases = aliases or {}
    words: dict[str, str] = {}
    files: list[str] = []
    for word in argv:
        if word in ("--help", "-h"):
            continue
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"{word!r} is not key=value; --help lists the keys")
        if key.startswith("-"):
            raise ConfigurationError(f"{word!r}: write {word.lstrip('-')} without hyphens")
        if key == "config":
            files.append(value)
        else:
            words[_canonical(key, aliases)] = value
    if len(files) > 1:
        raise ConfigurationError(f"config= is given twice ({', '.join(files)}); give one")
    sources = [Source(name, _read_yaml(name, aliases)) for name in files]
    return Request(config_class, [*sources, Source("", words)], aliases)


def _matches(key: str, path: str) -> bool:
    """Whether the key of a word, perhaps with `...` for any levels, means the field at `path`."""
    parts = [re.escape(part) for part in key.removesuffix("@").split("...")]
    start = "" if parts[0] else r"(.*\.)?"
    return re.fullmatch(start + r"\.(.*\.)?".join(p for p in parts if p), path) is not None


def _canonical(key: str, aliases: Mapping[str, str]) -> str:
    head, dot, rest = key.partition(".")
    return aliases.get(head, head) + dot + rest


class _YamlLoader(yaml.SafeLoader):
    """Scalars stay as written, except null: 1e-4 means the same as on the command line.

    (YAML 1.1 would read 1e-4 as a string, `no` as false and 012 as ten.)
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key != "<<" and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(name: str, aliases: Mapping[str, str]) -> dict[str, str]:
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise ConfigurationError(f"config={name} cannot be read: {reason}") from None
    try:
        content = yaml.load(text, _YamlLoader)
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ConfigurationError(f"{name}{line} is not YAML: {e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise ConfigurationError(f"{name} is not YAML: {one_line(e)}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigurationError(f"{name} must hold keys and values, but it holds a {found}")
    keys: dict[str, str] = {}
    for key, value in _dotted(content, ""):
        key = _canonical(key, aliases)
        if key in keys:
            raise ConfigurationError(f"{name} gives {key!r} twice")
        keys[key] = value
    return keys


def _dotted(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Leaves of nested mappings and lists as (dotted key, text as on the command line)."""
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from _dotted(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from _dotted(inner, f"{path}.{i}")
    elif isinstance(value, dict | list):
        yield path, ""  # chz reads the empty text as an empty list or dict
    else:
        yield path, "None" if value is None else str(value)


def refuse_unknown_keys(request: Request, known: Mapping[str, Parameter]) -> None:
    """Raises ConfigurationError for the first key that no field answers to."""
    for source in request.sources:
        for key in source.keys:
            if any(_matches(key, path) for path in known):
                continue
            nearest = _nearest(key.strip(".").removesuffix("@"), known)
            hint = "--help lists the keys"
            if nearest:
                hint = f"did you mean {request.spell(nearest)!r}?"
            name = request.spell(key)
            raise ConfigurationError(f"unknown key {name!r}{source.where()}; {hint}")


def _nearest(key: str, known: Mapping[str, Any]) -> str | None:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    last = key.rpartition(".")[2]  # right name, wrong level
    return next((path for path in known if path.rpartition(".")[2] == last), None)


class Parameter(NamedTuple):
    type: Any
    default: str  # as shown, "" if there is none
    doc: str


def parameters(blueprint: chz.Blueprint) -> dict[str, Parameter]:
    """Every key that exists under the classes chosen so far, in the order of the fields."""
    # chz offers these only as the text of its own help; the version is pinned and a test
    # compares the two
    found = blueprint._make_lazy()
    chosen = found.meta_factory_value
    return {
        path: Parameter(
            type=param.type,
            default=_default(param, chosen.get(path)),
            doc=" ".join((param.doc or "").split()),
        )
        for path, param in found.all_params.items()
        if path
    }


_EMPTY: dict[Any, str] = {list: "[]", tuple: "()", dict: "{}"}


def _default(param: Any, chosen: Any) -> str:
    if chosen is not None:
        return getattr(chosen, "__name__", str(chosen))
    if param.default is None:
        return ""
    if param.default.factory in _EMPTY:
        return _EMPTY[param.default.factory]
    text = param.default.to_help_str()
    if isinstance(param.default.value, enum.Enum):
        text = str(param.default.value.value)
    return text.rpartition(":")[2].removesuffix("()") if text.endswith("()") else text.strip("'")


@contextmanager
def errors_in_one_line(request: Request) -> Iterator[None]:
    """Turns what chz and the config's validators raise into a ConfigurationError of one line."""
    try:
        yield
    except TinkerCookbookError:
        raise
    except MissingBlueprintArg as e:
        keys = [request.spell(key) for key in str(e).rpartition(": ")[2].split(", ")]
        raise ConfigurationError(f"missing {', '.join(keys)}; --help says what to give") from None
    except InvalidBlueprintArg as e:
        raise ConfigurationError(_explain_value(str(e), request)) from None
    except (ConstructionException, ExtraneousBlueprintArg) as e:
        raise ConfigurationError(one_line(e)) from None
    except ValueError as e:  # a validator's verdict on a value
        raise ConfigurationError(one_line(e)) from e
    except TypeError as e:
        if not _raised_by_chz(e):
            raise
        raise ConfigurationError(one_line(e)) from e


def _explain_value(text: str, request: Request) -> str:
    match = re.match(r"Could not interpret argument (.+) provided for param '([^']*)'", text)
    if match is None:
        return one_line(text)
    value, key = match.groups()
    sources = [s for s in request.sources if any(_matches(k, key) for k in s.keys)]
    where = sources[-1].where() if sources else ""
    try:
        expected_type = parameters(request.blueprint(without=key))[key].type
    except (*CHZ_ERRORS, KeyError):  # more than one value is wrong
        return f"{request.spell(key)}={value}{where} has the wrong type; --help lists the types"
    choices = subclasses(expected_type) or type_text(expected_type).split(" | ")
    return f"{request.spell(key)}={value}{where}: expected {' or '.join(choices)}"


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def _raised_by_chz(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("chz.")


def type_text(t: Any) -> str:
    """A type as users read it: `float | None`, `linear | cosine`, `list[str]`, `ChatBuilder`."""
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


def subclasses(t: Any) -> list[str]:
    """Names of the classes to choose from for a field of this type; [] if there is no choice."""
    bases = [a for a in (typing.get_args(t) or (t,)) if isinstance(a, type) and chz.is_chz(a)]
    found: dict[str, None] = {}
    below = [cls for base in bases for cls in base.__subclasses__()]
    while below:
        cls = below.pop(0)
        if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found[cls.__name__] = None
        below += cls.__subclasses__()
    return list(found)
