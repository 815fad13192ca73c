"""Parse a command line and config files into a chz config; errors are one line."""

from __future__ import annotations

import difflib
import enum
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin

import chz
from chz.blueprint import (
    Castable,
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
    Reference,
)

from tinker_cookbook.exceptions import ConfigurationError, TinkerCookbookError
from tinker_cookbook.utils import foreign_keys
from tinker_cookbook.utils.command_types import (
    alternatives,
    choices,
    class_with,
    expected_text,
    is_object,
    type_text,
)
from tinker_cookbook.utils.command_words import Misread, misread
from tinker_cookbook.utils.command_yaml import read_yaml
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.private_apis import blueprint_parameters
from tinker_cookbook.utils.run_config import RunConfig
from tinker_cookbook.utils.run_config import read as read_run

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
    """Build the config. Raises ConfigurationError, in one line, for wrong words."""
    request = read_request(config_class, argv, aliases)
    with errors_in_one_line(request):
        blueprint = request.blueprint()
        known = parameters(blueprint)
        check_known_keys(request, known)
        _check_not_empty(request, known)
        config = blueprint.make()
        for source in request.sources:
            if source.run is not None:
                source.run.check(config, request.given(known))
        return config


class Source(NamedTuple):
    """Keys with the text of their values (or objects, if they come from a run). file: the config
    file, "" for argv; written: the user's spelling of each key; run: set if the file is config.json
    of a run."""

    file: str
    keys: dict[str, Any]
    written: Mapping[str, str] = types.MappingProxyType({})
    run: RunConfig | None = None

    def where(self) -> str:
        return f" in {self.file}" if self.file else ""


class Request(NamedTuple):
    """The parsed command line: sources of keys and values, later ones override earlier ones."""

    config_class: type
    sources: list[Source]
    aliases: Mapping[str, str]

    def spell(self, key: str) -> str:
        """The key as the user wrote it; else with the alias of its object: the alias used elsewhere
        on the command line, or the first."""
        written = [source.written for source in self.sources]
        for each in reversed(written):
            if key in each:
                return each[key]
        names = {
            alias: long
            for alias, long in self.aliases.items()
            if (key == long or key.startswith(f"{long}.")) and not self.is_plain(long)
        }
        words = [word for each in written for word in each.values()]
        in_use = [alias for alias in names if any(word.startswith(f"{alias}.") for word in words)]
        for alias in [*in_use, *names]:
            return alias + key.removeprefix(names[alias])
        return key

    def is_plain(self, key: str) -> bool:
        """Whether the key holds a value and not an object, so an alias is just another name."""
        holder, _, name = key.rpartition(".")
        cls: Any = self.config_class
        for part in filter(None, holder.split(".")):
            cls = chz.chz_fields(cls)[part].final_type
            if not chz.is_chz(cls):
                return False  # its keys depend on the class that is chosen
        field = chz.chz_fields(cls).get(name)
        return field is not None and not is_object(field.final_type)

    def given(self, known: Iterable[str]) -> list[str]:
        """The known keys that the command line sets, as opposed to a config file."""
        return [path for path in known if any(_matches(k, path) for k in self.sources[-1].keys)]

    def chosen(self, known: Mapping[str, Parameter]) -> list[str]:
        """The objects whose class or keys the command line sets."""
        words = self.sources[-1].keys
        return [p for p in known if any(k == p or k.startswith(f"{p}.") for k in words)]

    def blueprint(self, without: str | None = None) -> chz.Blueprint:
        """The blueprint of all words, or of all except those that set the key `without`."""
        blueprint = chz.Blueprint(self.config_class)
        for source in self.sources:
            layer = {
                key.removesuffix("@"): _argument(key, value)
                for key, value in source.keys.items()
                if without is None or not _matches(key, without)
            }
            blueprint.apply(layer, layer_name=source.file or "command line")
        return blueprint


def _argument(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return Reference(value) if key.endswith("@") else Castable(value)


def read_request(
    config_class: type, argv: Sequence[str], aliases: Mapping[str, str] | None = None
) -> Request:
    """Split the words and read the `config=` file; keys are not checked yet."""
    aliases = aliases or {}
    words: list[tuple[str, str]] = []
    files: list[str] = []
    for number, word in enumerate(argv):
        if word in ("--help", "-h"):
            continue
        key, equals, value = word.partition("=")
        if key.endswith("."):
            raise ConfigurationError(f"{word!r}: the name of a key is missing after the dot")
        if not equals or not key or key.startswith("-"):
            request = Request(config_class, [_source("", words, aliases)], aliases)
            _refuse_word(request, misread(argv, number))
        if key == "config":
            files.append(value)
        else:
            words.append((key, value))
    if len(files) > 1:
        raise ConfigurationError(f"config= is given twice ({', '.join(files)}); give one")
    given = _source("", words, aliases)
    sources = [_file_source(name, config_class, given, aliases) for name in files]
    return Request(config_class, [*sources, given], aliases)


def _refuse_word(request: Request, word: Misread) -> NoReturn:
    """Raise ConfigurationError for a word that is not key=value, with the likely correction."""
    known = _known_so_far(request)
    named = [*known, *request.aliases]
    key, value = word.key, word.value
    said = f"{word.shown!r}: write "
    if key.startswith("no_") and _canonical(key[3:], request.aliases) in known:
        raise ConfigurationError(f"{said}{key[3:]}=False")
    if _canonical(key, request.aliases) in named or key == "config":
        if value is None:
            value = "True" if key in known and known[key].type is bool else "..."
        raise ConfigurationError(f"{said}{key}={value}{word.without}")
    if (other := _other_name(request, key, known)) is not None:
        if value is not None and other.key and not other.note and not other.example:
            raise ConfigurationError(f"{said}{other.key}={value}{word.without}")
        raise ConfigurationError(f"{word.shown!r}: {other}")
    if key and (nearest := _nearest(key, named)):
        meant = f"{request.spell(nearest)}={'...' if value is None else value}"
        raise ConfigurationError(f"{word.shown!r}: did you mean {meant}?")
    raise ConfigurationError(f"{word.shown!r} is not key=value; --help lists the keys")


def _known_so_far(request: Request) -> Mapping[str, Parameter]:
    """The existing keys; with those of the chosen classes, if the words are valid."""
    try:
        return parameters(request.blueprint())
    except (*CHZ_ERRORS, TinkerCookbookError):
        return parameters(chz.Blueprint(request.config_class))


def _other_name(
    request: Request, key: str, known: Mapping[str, Parameter]
) -> foreign_keys.Advice | None:
    choices = {path: parameter.choices for path, parameter in known.items()}
    return foreign_keys.advice(key, choices, request.spell)


def _file_source(
    name: str, config_class: type, given: Source, aliases: Mapping[str, str]
) -> Source:
    run = read_run(name, config_class)
    if run is None:
        return _source(name, read_yaml(name), aliases)
    # a class given on the command line replaces the stored one together with its keys
    pairs = [
        (key, value)
        for key, value in run.keys(config_class)
        if not any(key.startswith(f"{each}.") for each in given.keys)
    ]
    return _source(name, pairs, {})._replace(run=run)


def _source(file: str, pairs: Iterable[tuple[str, Any]], aliases: Mapping[str, str]) -> Source:
    source = Source(file, {}, written := {})
    for name, value in pairs:
        key = _canonical(name, aliases)
        if written.get(key, name) != name:
            raise ConfigurationError(
                f"{written[key]}={source.keys[key]} and {name}={value}{source.where()} are two"
                " names of one key: give one"
            )
        if file and key in written:
            raise ConfigurationError(f"{file} gives {name!r} twice")
        source.keys[key], written[key] = value, name
    return source


def _matches(key: str, path: str) -> bool:
    """Whether a key, possibly with `...` for any number of levels, matches the field at `path`."""
    parts = [re.escape(part) for part in key.removesuffix("@").split("...")]
    start = "" if parts[0] else r"(.*\.)?"
    return re.fullmatch(start + r"\.(.*\.)?".join(p for p in parts if p), path) is not None


def _canonical(key: str, aliases: Mapping[str, str]) -> str:
    head, dot, rest = key.partition(".")
    return aliases.get(head, head) + dot + rest


def check_known_keys(request: Request, known: Mapping[str, Parameter]) -> None:
    """Raise ConfigurationError for the first key that matches no field."""
    for source in request.sources:
        for key in source.keys:
            if any(_matches(key, path) for path in known):
                continue
            asked = key.strip(".").removesuffix("@")
            _refuse_key_of_no_class(request, source, asked, known)
            name = request.spell(key)
            if (other := _other_name(request, name, known)) is not None:
                raise ConfigurationError(f"unknown key {name!r}{source.where()}; {other}")
            possible = [path for path in [*known, *request.aliases] if f"{path}." not in asked]
            nearest = _nearest(asked, possible)
            hint = "--help lists the keys"
            if (holder := asked.rpartition(".")[0]) in known and not known[holder].choices:
                hint = f"{request.spell(holder)} is a value, without keys of its own"
            if nearest:
                hint = f"did you mean {request.spell(nearest)!r}?"
            raise ConfigurationError(f"unknown key {name!r}{source.where()}; {hint}")


def _check_not_empty(request: Request, known: Mapping[str, Parameter]) -> None:
    """Raise ConfigurationError for an empty text value, the trace of an unset shell variable: an
    empty path, for instance, would mean the working directory."""
    for source in request.sources:
        if source.run is not None:  # the stored run ran with this value
            continue
        for key in (key for key, value in source.keys.items() if not value):
            for path in (path for path in known if _matches(key, path)):
                is_text = set(alternatives(type_text(known[path].type))) <= {"str", "None"}
                if is_text and known[path].default != "''":
                    raise ConfigurationError(
                        f"{request.spell(key)}= is empty{source.where()}; give a value, or leave"
                        " the key out"
                    )


def _refuse_key_of_no_class(
    request: Request, source: Source, key: str, known: Mapping[str, Parameter]
) -> None:
    """Raise ConfigurationError if the key belongs to an object whose class is not chosen yet."""
    head, _, rest = key.partition(".")
    if head not in known or any(path.startswith(f"{head}.") for path in known):
        return
    if name := class_with(known[head].choices, rest.partition(".")[0]):
        short, given = request.spell(head), f"{request.spell(key)}={source.keys[key]}"
        raise ConfigurationError(
            f"{given}{source.where()}: {short}= must name a class first, e.g."
            f" {short}={name} {given}"
        )


def _nearest(key: str, known: Sequence[str]) -> str | None:
    # a foreign key that happens to resemble one of ours does not mean it
    alike = 1.0 if foreign_keys.meaning(key) else 0.6
    close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=alike)
    if close:
        return close[0]
    last = key.rpartition(".")[2]  # the right name at the wrong level
    return next((path for path in known if path.rpartition(".")[2] == last), None)


class Parameter(NamedTuple):
    type: Any
    default: str  # as text; "" if there is none
    doc: str
    choices: Mapping[str, type]  # classes by name, {} if there is no choice


def parameters(blueprint: chz.Blueprint) -> dict[str, Parameter]:
    """All keys that exist under the classes chosen so far, in field order."""
    params, chosen = blueprint_parameters(blueprint)
    return {
        path: Parameter(
            type=param.type,
            default=_default(param, chosen.get(path)),
            doc=" ".join((param.doc or "").split()),
            choices=choices(param.type, param.meta_factory),
        )
        for path, param in params.items()
        if path
    }


_EMPTY: dict[type, str] = {list: "[]", tuple: "()", dict: "{}"}


def _default(param: Any, chosen: Any) -> str:
    if chosen is not None:
        return getattr(chosen, "__name__", str(chosen))
    if param.default is None:
        return ""
    if param.default.factory in _EMPTY:
        return _EMPTY[param.default.factory]
    if param.default.value == "":
        return "''"
    text = param.default.to_help_str()
    if isinstance(param.default.value, enum.Enum):
        text = str(param.default.value.value)
    return text.rpartition(":")[2].removesuffix("()") if text.endswith("()") else text.strip("'")


@contextmanager
def errors_in_one_line(request: Request) -> Iterator[None]:
    """Turn exceptions of chz and of validators into one-line ConfigurationErrors."""
    try:
        yield
    except TinkerCookbookError:
        raise
    except MissingBlueprintArg as e:
        keys = [request.spell(key) for key in str(e).rpartition(": ")[2].split(", ")]
        raise ConfigurationError(f"missing {', '.join(keys)}; --help says what to give") from None
    except InvalidBlueprintArg as e:
        raise ConfigurationError(_explain_value(str(e), request)) from None
    except KeyError as e:  # a key@= refers to a key without a value
        if not _raised_by_chz(e):
            raise
        raise ConfigurationError(f"{one_line(e)}: a key@= needs a key with a value") from None
    except SyntaxError as e:  # in the module that a value module:Name refers to
        where = f"{e.filename}:{e.lineno}: " if e.filename else ""
        raise ConfigurationError(f"{where}{type(e).__name__}: {e.msg}") from None
    except (ConstructionException, ExtraneousBlueprintArg) as e:
        raise ConfigurationError(one_line(e)) from None
    except ValueError as e:  # raised by a validator
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
    given = f"{request.spell(key)}={value}{where}"
    if missing := _missing_name(text):
        return f"{given}: {missing}"
    try:
        known = parameters(request.blueprint(without=key))
        expected = known.get(key) or _of_dict(known[key.rpartition(".")[0]])
    except (*CHZ_ERRORS, KeyError):  # several values are wrong
        return f"{given} has the wrong type; --help lists the types"
    own = [request.spell(path) for path in known if path.startswith(f"{key}.")]
    if own and not expected.choices and is_object(expected.type):
        return f"{given}: it has keys of its own instead, such as {'=, '.join(own[:3])}="
    near = difflib.get_close_matches(value.strip("'\""), expected.choices, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    names = " or ".join(expected.choices) or expected_text(expected.type)
    if re.fullmatch(r"'[\w.]+:\w+'", value):  # importable, but of the wrong type
        names += f", or module:name of another {type_text(expected.type).removesuffix(' | None')}"
    return f"{given}: expected {names}{meant}"


def _of_dict(parameter: Parameter) -> Parameter:
    """The parameter of a value inside a dict. Raises KeyError if the type is not a dict."""
    kinds = [a for a in (parameter.type, *get_args(parameter.type)) if get_origin(a) is dict]
    if not kinds:
        raise KeyError
    return parameter._replace(type=get_args(kinds[0])[1], choices={})


def _missing_name(text: str) -> str | None:
    """Which part of module:Name chz could not import, in a few words."""
    if match := re.search(r"Could not import module '(.+)' \((\w+: (.*))\)", text):
        module, error, reason = match.groups()
        absent = re.fullmatch("No module named '(.+)'", reason)
        if absent and f"{module}.".startswith(f"{absent[1]}."):
            return f"no module {absent[1]!r} in the working directory or installed"
        return f"module {module!r} cannot be imported: {error}"
    match = re.search(r"module '(.+)' has no attribute '(.+)'", text)
    return match and f"module {match[1]!r} has no {match[2]!r}"


def _raised_by_chz(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("chz.")
