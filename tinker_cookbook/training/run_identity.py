"""What makes a run that run: its config as plain data, of which the keys that may change are no
part. It names the directory, and is compared with what a directory holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tinker_cookbook.checkpoint_utils import CheckpointRecord
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.config import LoopConfig
from tinker_cookbook.training.fields import may_change
from tinker_cookbook.training.run_directory import holds_run
from tinker_cookbook.utils import code_identity, jsonl, ml_log
from tinker_cookbook.utils.misc_utils import runs_path
from tinker_cookbook.utils.plain_data import CLASS, comparable, plain
from tinker_cookbook.utils.run_config import CONFIG_CLASS, RECIPE, USER_CODE

T = TypeVar("T")
Content = dict[str, Any]  # of config.json, as JSON gives it

# these say how long a run is to be; a finished run is continued if one of them changed
LENGTH_KEYS = ("max_steps", "num_epochs")

_EVALUATORS = ("evaluator_builders", "infrequent_evaluator_builders")
_SHOWN = 4  # differences that an error or a remark names
_ABSENT = object()


def keys_that_may_change(config: object) -> frozenset[str]:
    """Dotted names: what the config's own fields say (`fields.may_change`), and for any config
    those of `LoopConfig`, whose names mean the same in a loop that does not inherit it."""
    return frozenset((*LENGTH_KEYS, *may_change(LoopConfig), *may_change(config)))


class RunIdentity:
    """The config of a run, and what of it binds the run."""

    def __init__(self, config: object, recipe: str) -> None:
        fields = plain(config)
        about = {CONFIG_CLASS: fields.pop(CLASS, None)}
        if code := code_identity.user_code(fields | about):  # the program's own file included
            about[USER_CODE] = code
        self.recipe = recipe
        self.content: Content = {RECIPE: recipe, **fields, **about}  # of config.json
        self.free = keys_that_may_change(config)
        self._config = config

    def get(self, key: str, default: T) -> T:
        """An optional key of the config, as it was given."""
        if isinstance(self._config, Mapping):
            return self._config.get(key, default)
        return getattr(self._config, key, default)

    def length(self) -> dict[str, int | None]:
        return {key: self.content[key] for key in LENGTH_KEYS if key in self.content}

    def fixed(self, content: Content) -> Content:
        """The part of a config that must be the same for a run to go on. A program of the user's
        own is part of it: two copies of a recipe may differ in all that matters."""
        fixed = without(comparable(content), {*self.free, CONFIG_CLASS, USER_CODE})
        program = content.get(CONFIG_CLASS)
        return fixed | ({CONFIG_CLASS: program} if code_identity.modules([program]) else {})

    def directory(self) -> Path:
        """log_path, or the directory in the runs directory that is named by what is fixed."""
        log_path = self.get("log_path", None)
        if log_path is not None and not str(log_path).strip():
            raise ConfigurationError(
                "log_path= is empty; give a directory, or leave the key out for one in the runs"
                " directory"
            )
        if log_path is not None:
            return Path(log_path).expanduser().absolute()
        path = self._named_by(self.fixed(self.content))
        # before classes were known with their modules, the names of directories were others
        fixed = {k: v for k, v in self.fixed(self.content).items() if k != CONFIG_CLASS}
        older = self._named_by(code_identity.without_modules(fixed))
        return older if holds_run(older) and not holds_run(path) else path

    def _named_by(self, fixed: Content) -> Path:
        model = str(self.get("model_name", None) or "").rstrip("/").rpartition("/")[2]
        text = json.dumps(fixed, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = "-".join(part for part in (self.recipe, model, digest) if part)
        return runs_path(re.sub(r"[^\w.+-]+", "_", name))

    def check_same_config(self, path: Path) -> None:
        """ConfigurationError, with what differs, where a directory holds the run of another
        config."""
        try:
            there, here = self._both(path)
        except (OSError, ValueError):
            raise ConfigurationError(
                f"{path} holds a run, but {ml_log.CONFIG_FILE} cannot be read; set another "
                "log_path, or behavior_if_log_dir_exists=delete"
            ) from None
        found = differences(self.fixed(there), self.fixed(here))
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ConfigurationError(
                f"{path} holds a run of another config: {'; '.join(found[:_SHOWN])}{more}; set"
                " another log_path, or behavior_if_log_dir_exists=delete"
            )

    def other_code(self, path: Path, contents: str, resume: CheckpointRecord | None) -> list[str]:
        """What to know of a run that goes on with edited code, or with other evaluations.

        ConfigurationError where the steps to come would be done by other code than those done.
        """
        there, here = self._both(path)
        binding = code_identity.modules(self.fixed(self.content))
        code, before = self.content.get(USER_CODE, {}), there.get(USER_CODE, {})
        edited = code_identity.edited(before, {m: code[m] for m in code if m in binding})
        names = ", ".join(edited)
        if edited and resume and self.get("behavior_if_log_dir_exists", None) != "resume":
            raise ConfigurationError(
                f"{path} holds {contents}, and {names} is not what it began with; restore it, set"
                " another log_path, or say behavior_if_log_dir_exists=resume to go on with the"
                " code as it is now, or =delete to start over"
            )
        remarks = (
            [f"{names} is not what it was: steps from here on are done by it"] if names else []
        )
        if CONFIG_CLASS not in there and code:
            unknown = ", ".join(sorted(code))
            remarks += [f"an earlier version began this run, unaware of the code of {unknown}"]
        evaluators = differences(_evaluators(there), _evaluators(here))
        evaluators += code_identity.edited(before, {m: code[m] for m in code if m not in binding})
        if evaluators and resume:
            remarks += [f"other evaluations from here on: {'; '.join(evaluators[:_SHOWN])}"]
        return remarks

    def changes_of_length(self, path: Path) -> list[str]:
        """How long the run in a directory was to be, where that is another length now."""
        there = stored(path)
        return [
            f"{key} was {there.get(key)} and is {value} now"
            for key, value in self.length().items()
            if there.get(key) != value
        ]

    def _both(self, path: Path) -> tuple[Content, Content]:
        """The config in a directory, and this one in the same form."""
        there, here = stored(path), json.loads(jsonl.encode(self.content))
        if CONFIG_CLASS not in there:  # written before modules were known
            here = code_identity.without_modules(
                {key: value for key, value in here.items() if key != CONFIG_CLASS}
            )
        return there, here


def stored(directory: Path) -> Content:
    """The config.json of a run."""
    return json.loads((directory / ml_log.CONFIG_FILE).read_bytes())


def _evaluators(content: Content) -> Content:
    return {key: value for key, value in comparable(content).items() if key in _EVALUATORS}


def without(content: Content, names: Collection[str]) -> Content:
    """A nested config without the keys of these dotted names."""
    kept: Content = {}
    for key, value in content.items():
        if key in names:
            continue
        inner = {name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}.")}
        kept[key] = without(value, inner) if inner and isinstance(value, dict) else value
    return kept


def differences(there: object, here: object, path: str = "") -> list[str]:
    """The dotted keys in which two plain configurations differ, each with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        found: list[str] = []
        for key in dict.fromkeys([*here, *there]):
            inner = f"{path}.{key}" if path else key
            found += differences(there.get(key, _ABSENT), here.get(key, _ABSENT), inner)
        return found
    if there == here and isinstance(there, bool) == isinstance(here, bool):
        return []
    return [f"{path} is {_show(there)} there and {_show(here)} here"]


def _show(value: object) -> str:
    if value is _ABSENT:
        return "not set"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
