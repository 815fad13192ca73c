"""Read config.json of a run back, for `config=<run>/config.json`.

The file holds the resolved configuration (`plain_data.plain`): nested objects with their classes as
module:Name, and the defaults that were chosen. A config class may define
`drop_resolved_keys(config: dict) -> dict` to leave out values derived from other keys, so that
those other keys can be overridden. log_path and behavior_if_log_dir_exists are not reused.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import chz

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.command_types import choices, is_object
from tinker_cookbook.utils.command_yaml import dotted
from tinker_cookbook.utils.plain_data import CLASS, IDENTITY, PARTIAL, lasting_name, plain

RECIPE, CONFIG_CLASS, USER_CODE = "recipe", "config_class", "user_code"
_ABOUT = (RECIPE, CONFIG_CLASS, USER_CODE, IDENTITY, CLASS)
_OF_ITS_DIRECTORY = ("log_path", "behavior_if_log_dir_exists")


class RunConfig(typing.NamedTuple):
    """file: its name as the user gave it; content: the keys to reuse, as plain data."""

    file: str
    content: dict[str, Any]

    def keys(self, config_class: type) -> Iterator[tuple[str, Any]]:
        """Yield dotted keys with values as on the command line, else as objects."""
        return _keys(config_class, self.content, "", self.file)

    def check(self, config: Any, given: Iterable[str]) -> None:
        """Raise ConfigurationError if the config built from this file differs from it, apart from
        the keys in `given` (dotted patterns) that override it."""
        made = dict(_leaves(plain(config, identities=False)))
        for key, value in _leaves(self.content):
            aside = any(key == each or key.startswith(f"{each}.") for each in given)
            if not aside and (key not in made or made[key] != value):
                now = json.dumps(made[key]) if key in made else "not set"
                raise ConfigurationError(
                    f"{self.file}: {key}={json.dumps(value)} cannot be read back (it would be"
                    f" {now}); give {key.partition('.')[0]} as a key of its own, or start the run"
                    " from Python"
                )


def read(name: str, config_class: type) -> RunConfig | None:
    """Read the file; None if it is not config.json of a run. Raises ConfigurationError if it
    belongs to another program."""
    content = _json(name)
    if not isinstance(content, dict) or RECIPE not in content:
        return None
    if RECIPE in chz.chz_fields(config_class):  # this program has a key of that name itself
        return None
    here, there = plain(config_class), content.get(CONFIG_CLASS)
    if there is None:
        raise ConfigurationError(
            f"config={name} was written by an earlier version, or by a program without a config"
            " class, and does not name the modules of its classes; give its keys one by one"
        )
    if there != here:
        raise ConfigurationError(
            f"config={name} belongs to a run of {content[RECIPE]} ({there}), not {here}; pass it to"
            " that program"
        )
    taken = {k: v for k, v in content.items() if k not in (*_ABOUT, *_OF_ITS_DIRECTORY)}
    drop_resolved_keys = getattr(config_class, "drop_resolved_keys", dict)
    return RunConfig(name, drop_resolved_keys(taken))


def rebuild(value: Any, where: str) -> Any:
    """Rebuild the object from its plain data. Raises ConfigurationError if that is not possible."""
    if isinstance(value, Mapping) and PARTIAL in value:
        call = _imported(value[PARTIAL], where)
        arguments = [rebuild(each, where) for each in value["args"]]
        return functools.partial(
            call, *arguments, **{k: rebuild(v, where) for k, v in value["keywords"].items()}
        )
    if isinstance(value, Mapping) and CLASS in value:
        cls = _imported(value[CLASS], where)
        if chz.is_chz(cls):
            return _chz_object(cls, value, where)
        fields = {k: v for k, v in value.items() if k not in (CLASS, IDENTITY)}
        if dataclasses.is_dataclass(cls) and fields.keys() <= {f.name for f in _inits(cls)}:
            made = {k: rebuild(v, f"{where}.{k}") for k, v in fields.items()}
            return typing.cast(type, cls)(**made)
        raise ConfigurationError(
            f"{where} is a {value[CLASS]} that was created in Python; config.json does not hold its"
            " arguments; start the run from Python"
        )
    if isinstance(value, Mapping):
        return {k: rebuild(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [rebuild(each, f"{where}.{i}") for i, each in enumerate(value)]
    return value


def _chz_object(cls: type, value: Mapping[str, Any], where: str) -> Any:
    from chz.blueprint import Castable

    keys = {
        key: Castable(text) if isinstance(text, str) else text
        for key, text in _keys(cls, value, "", where)
    }
    return chz.Blueprint(cls).apply(keys).make()


def _keys(cls: type, fields: Mapping[str, Any], path: str, file: str) -> Iterator[tuple[str, Any]]:
    """Yield values as command-line text where chz can parse it, so that single keys can be
    overridden."""
    known = chz.chz_fields(cls) if chz.is_chz(cls) else {}
    for name, value in fields.items():
        if name in (CLASS, IDENTITY):
            continue
        key = f"{path}.{name}" if path else name
        kind = known[name].final_type if name in known else None
        yield from _key(kind, value, key, file)


def _key(kind: Any, value: Any, key: str, file: str) -> Iterator[tuple[str, Any]]:
    where = f"{file}: {key}"
    if isinstance(value, Mapping) and CLASS in value and is_object(kind):
        cls = _class(value[CLASS], kind, where)
        yield key, plain(cls)
        yield from _keys(cls, value, key, file)
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        item = _item_type(kind)
        if item is not None and is_object(item):
            for i, each in enumerate(value):
                yield from _key(item, each, f"{key}.{i}", file)
        else:
            yield key, [_callable_or_object(each, f"{where}.{i}") for i, each in enumerate(value)]
    elif isinstance(value, Mapping) and (CLASS in value or PARTIAL in value):
        yield key, rebuild(value, where)
    else:
        yield from dotted(value, key)


def _callable_or_object(value: Any, where: str) -> Any:
    return _imported(value, where) if isinstance(value, str) else rebuild(value, where)


def _item_type(kind: Any) -> Any:
    """The item type of a list type, possibly inside a union."""
    for each in (kind, *typing.get_args(kind)):
        if typing.get_origin(each) in (list, tuple) and typing.get_args(each):
            return typing.get_args(each)[0]
    return None


def _class(reference: str, kind: Any, where: str) -> type:
    """Import the class for a field of type `kind`; a class of this package may have moved."""
    try:
        return _imported(reference, where)
    except ConfigurationError:
        for cls in (*(typing.get_args(kind) or [kind]), *choices(kind).values()):
            if lasting_name(plain(cls)) == lasting_name(reference):
                return cls
        raise


def _imported(reference: str, where: str) -> Any:
    module, _, name = reference.partition(":")
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{where} is {reference}, which cannot be imported: {error}"
        ) from error


def _inits(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of plain data, without identities."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k not in _ABOUT or (k == CLASS and path)]
    elif isinstance(value, list):
        items = enumerate(value)
    if not isinstance(value, Mapping | list) or (path and not value):
        yield path, lasting_name(value) if path.endswith(f".{CLASS}") else value
    for key, inner in items:
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _json(name: str) -> Any:
    try:
        return json.loads(Path(name).expanduser().read_bytes())
    except (OSError, ValueError):
        return None
