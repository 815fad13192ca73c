"""Run identity: the config of a run, without the keys that a resumed run may change.

It names the default run directory and is compared with the config.json of an existing one.
"""

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
from tinker_cookbook.training.fields import iter_changeable_fields
from tinker_cookbook.training.run_directory import holds_run
from tinker_cookbook.utils import code_identity, jsonl, ml_log
from tinker_cookbook.utils.misc_utils import runs_path
from tinker_cookbook.utils.plain_data import CLASS, comparable, plain
from tinker_cookbook.utils.run_config import CONFIG_CLASS, RECIPE, USER_CODE

T = TypeVar("T")
ConfigJson = dict[str, Any]  # config.json, parsed

# the keys that set the length of a run: raising one of them continues a finished run
LENGTH_KEYS = ("max_steps", "num_epochs")

_EVALUATOR_KEYS = ("evaluator_builders", "infrequent_evaluator_builders")
_MAX_DIFFERENCES = 4  # listed in one message
_ABSENT = object()


def changeable_keys(config: object) -> frozenset[str]:
    """The dotted names of the keys that a resumed run may change: the fields marked
    MAY_CHANGE in the config and in LoopConfig, even if the loop does not inherit from that."""
    fields = (*iter_changeable_fields(LoopConfig), *iter_changeable_fields(config))
    return frozenset((*LENGTH_KEYS, *fields))


class RunIdentity:
    """A run's config, and the part of it that must not change on resume."""

    def __init__(self, config: object, recipe: str) -> None:
        fields = plain(config)
        metadata = {CONFIG_CLASS: fields.pop(CLASS, None)}
        # includes the user's own script, if it defines the config class
        if code := code_identity.user_code(fields | metadata):
            metadata[USER_CODE] = code
        self.recipe = recipe
        self.config_json: ConfigJson = {RECIPE: recipe, **fields, **metadata}
        self.changeable = changeable_keys(config)
        self._config = config

    def get(self, key: str, default: T) -> T:
        """The value of an optional config key, before its conversion to plain data."""
        if isinstance(self._config, Mapping):
            return self._config.get(key, default)
        return getattr(self._config, key, default)

    def run_length(self) -> dict[str, int | None]:
        return {key: self.config_json[key] for key in LENGTH_KEYS if key in self.config_json}

    def immutable_part(self, config_json: ConfigJson) -> ConfigJson:
        """The part of a config that must match for a run to be resumed.

        The config class is part of it if the user wrote it, because two copies of a recipe with the
        same keys may still train differently.
        """
        immutable = drop_keys(comparable(config_json), {*self.changeable, CONFIG_CLASS, USER_CODE})
        config_class = config_json.get(CONFIG_CLASS)
        if code_identity.modules([config_class]):
            immutable[CONFIG_CLASS] = config_class
        return immutable

    def directory(self) -> Path:
        """log_path, or else a directory named after recipe, model and the immutable part."""
        log_path = self.get("log_path", None)
        if log_path is not None and not str(log_path).strip():
            raise ConfigurationError(
                "log_path= is empty; set it to a directory, or omit it to use the default run"
                " directory"
            )
        if log_path is not None:
            return Path(log_path).expanduser().absolute()
        immutable = self.immutable_part(self.config_json)
        path = self._default_directory(immutable)
        # Earlier versions stored classes without their modules, so their hash and name differ.
        # Resume such a run in place, unless a run of this version exists under the new name.
        unqualified = {k: v for k, v in immutable.items() if k != CONFIG_CLASS}
        legacy_path = self._default_directory(code_identity.without_modules(unqualified))
        return legacy_path if holds_run(legacy_path) and not holds_run(path) else path

    def _default_directory(self, immutable: ConfigJson) -> Path:
        model = str(self.get("model_name", None) or "").rstrip("/").rpartition("/")[2]
        text = json.dumps(immutable, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = "-".join(part for part in (self.recipe, model, digest) if part)
        return runs_path(re.sub(r"[^\w.+-]+", "_", name))

    def check_same_config(self, path: Path) -> None:
        """Raise ConfigurationError, listing the differences, if the config in `path` differs."""
        try:
            saved, current = self._load_saved_and_current(path)
        except (OSError, ValueError):
            raise ConfigurationError(
                f"{path} holds a run, but its {ml_log.CONFIG_FILE} is not readable; set another "
                "log_path, or behavior_if_log_dir_exists=delete"
            ) from None
        found = differences(self.immutable_part(saved), self.immutable_part(current))
        if found:
            shown = "; ".join(found[:_MAX_DIFFERENCES])
            hidden = len(found) - _MAX_DIFFERENCES
            more = f"; and {hidden} more" if hidden > 0 else ""
            raise ConfigurationError(
                f"{path} holds a run with a different config: {shown}{more}; set another log_path,"
                " or behavior_if_log_dir_exists=delete"
            )

    def check_code(
        self, path: Path, description: str, resume: CheckpointRecord | None
    ) -> list[str]:
        """Compare the user's code with that of the run in `path`; returns notices for the user.

        Raises ConfigurationError if code that training runs has changed since the run was last
        started or resumed: the remaining steps would mix two versions in one run.
        behavior_if_log_dir_exists=resume says that the user wants that. Before the first checkpoint
        nothing would be mixed, and evaluators do not affect training, so both cases give a notice
        only.
        """
        saved, current = self._load_saved_and_current(path)
        # Modules named in the immutable part are training code; all others belong to evaluators.
        training_modules = code_identity.modules(self.immutable_part(self.config_json))
        code, saved_code = self.config_json.get(USER_CODE, {}), saved.get(USER_CODE, {})
        edited = code_identity.edited(
            saved_code, {module: code[module] for module in code if module in training_modules}
        )
        names = ", ".join(edited)
        if edited and resume and self.get("behavior_if_log_dir_exists", None) != "resume":
            raise ConfigurationError(
                f"{path} holds {description}, and {names} changed since it was last started or"
                " resumed; restore it, set another log_path, or set"
                " behavior_if_log_dir_exists=resume to resume with the edited code, or =delete to"
                " start over"
            )
        notices = [f"{names} changed: the remaining steps run the edited code"] if names else []
        if CONFIG_CLASS not in saved and code:
            unknown = ", ".join(sorted(code))
            notices += [f"an older tinker_cookbook started this run without recording {unknown}"]
        changes = differences(_evaluators(saved), _evaluators(current))
        changes += code_identity.edited(
            saved_code, {module: code[module] for module in code if module not in training_modules}
        )
        if changes and resume:
            notices += [f"evaluators changed: {'; '.join(changes[:_MAX_DIFFERENCES])}"]
        return notices

    def run_length_changes(self, path: Path) -> list[str]:
        """The run-length keys that differ from those of the run in `path`, with both values."""
        saved = load_saved_config(path)
        return [
            f"{key} was {saved.get(key)} and is {value} now"
            for key, value in self.run_length().items()
            if saved.get(key) != value
        ]

    def _load_saved_and_current(self, path: Path) -> tuple[ConfigJson, ConfigJson]:
        """The config saved in a directory and the current one, in the same format."""
        # JSON turns tuples into lists, so the current config needs the same round trip.
        saved, current = load_saved_config(path), json.loads(jsonl.encode(self.config_json))
        if CONFIG_CLASS not in saved:  # saved by an earlier version, without modules
            current = code_identity.without_modules(
                {key: value for key, value in current.items() if key != CONFIG_CLASS}
            )
        return saved, current


def load_saved_config(directory: Path) -> ConfigJson:
    return json.loads((directory / ml_log.CONFIG_FILE).read_bytes())


def _evaluators(config_json: ConfigJson) -> ConfigJson:
    return {k: v for k, v in comparable(config_json).items() if k in _EVALUATOR_KEYS}


def drop_keys(config_json: ConfigJson, names: Collection[str]) -> ConfigJson:
    """A nested config without the keys with these dotted names."""
    remaining: ConfigJson = {}
    for key, value in config_json.items():
        if key in names:
            continue
        nested = {name.removeprefix(f"{key}.") for name in names if name.startswith(f"{key}.")}
        remaining[key] = drop_keys(value, nested) if nested and isinstance(value, dict) else value
    return remaining


def differences(saved: object, current: object, path: str = "") -> list[str]:
    """The dotted keys in which two plain configs differ, each with both values."""
    if isinstance(saved, dict) and isinstance(current, dict):
        found: list[str] = []
        for key in dict.fromkeys([*current, *saved]):
            inner = f"{path}.{key}" if path else key
            found += differences(saved.get(key, _ABSENT), current.get(key, _ABSENT), inner)
        return found
    # True == 1 in Python, but not as a setting
    if saved == current and isinstance(saved, bool) == isinstance(current, bool):
        return []
    return [f"{path} was {_show(saved)} and is {_show(current)} now"]


def _show(value: object) -> str:
    if value is _ABSENT:
        return "not set"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
