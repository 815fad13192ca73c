"""Directories in place of tinker:// paths: a run directory, or a PEFT adapter.

load_checkpoint_path=~/tinker-runs/sl_basic-nano-1a2b3c4d     the run's last checkpoint
model_path=adapters/mine                                      contains adapter_config.json
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from tinker_cookbook import models
from tinker_cookbook.exceptions import CheckpointError, DataFormatError
from tinker_cookbook.utils import jsonl

SCHEME = "tinker://"
CHECKPOINTS_FILE = "checkpoints.jsonl"
_ADAPTER_CONFIG = "adapter_config.json"
_RECORD_KEYS = {"weights": "state_path", "sampler_weights": "sampler_path"}

Use = Literal["weights", "sampler_weights"]


def locate(path: str, use: Use, key: str = "model_path") -> str:
    """Resolve a path to a tinker:// path, or to the absolute path of a PEFT adapter.

    use: the kind of checkpoint, for training or for sampling. key: the config key, for errors.
    CheckpointError if the path is neither a tinker:// path nor such a directory.
    """
    if path.startswith(SCHEME):
        return path
    directory = Path(path).expanduser()
    if (directory / CHECKPOINTS_FILE).is_file():
        return _last_checkpoint(directory, use, key)
    if (directory / _ADAPTER_CONFIG).is_file():
        return str(directory.absolute())
    raise CheckpointError(
        f"{key}={path}: {_describe_path(directory)}; expected {SCHEME}<run>/<kind>/<name>, a run"
        f" directory (with {CHECKPOINTS_FILE}) or a PEFT adapter directory"
        f" (with {_ADAPTER_CONFIG})"
    )


def same_model(one: str, other: str) -> bool:
    """Whether two names mean the same base model: equal names, the same directory, or a hub name
    and a local copy."""
    one, other = models.published_name(one), models.published_name(other)
    if one == other:
        return True
    if all(name.startswith(("/", "~", ".")) for name in (one, other)):
        return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
    # Otherwise compare only the last part: an adapter stores the name or path that its model had
    # where it was trained, which may be another machine.
    return _base_name(one) == _base_name(other)


def is_copy(name: str, original: str) -> bool:
    """Whether a name can mean a copy of a base model: `same_model`, or a longer name that is not
    another published model's, such as gpt-oss-20b-bf16."""
    if same_model(name, original):
        return True
    published = {_base_name(known) for known in models.TABLE}
    copy = _base_name(models.published_name(name))
    return copy.startswith(_base_name(original)) and copy not in published


def _last_checkpoint(directory: Path, use: Use, key: str) -> str:
    file = directory / CHECKPOINTS_FILE
    try:
        records = [line.value for line in jsonl.read_lines(file)]
    except DataFormatError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    path_key = _RECORD_KEYS[use]
    paths = [record[path_key] for record in records if path_key in record]
    if not paths:
        raise CheckpointError(f"{key}={directory}: that run has no checkpoint with {path_key} yet")
    return str(paths[-1])


def _describe_path(directory: Path) -> str:
    if not directory.exists():
        return "no such directory"
    if directory.is_file():
        return "it is a file"
    if (directory / "run.json").is_file():
        return "it is a run in the store, with its weights in sampler_weights/ and weights/"
    if (directory / "config.json").is_file() and (directory / "metrics.jsonl").is_file():
        return "that run has no checkpoint yet"
    if (directory / "config.json").is_file() and any(directory.glob("*.safetensors")):
        return "it is a complete model: set model_name= to it"
    return "that directory is neither a run nor an adapter"


def _base_name(name: str) -> str:
    """The last part of a model's hub name, directory or path in the hub's cache, in lower case."""
    cached = re.search(r"models--[^/]*--([^/]+)/snapshots/", name)
    path = models.load_path(name)
    return (cached[1] if cached else Path(path).name).lower()
