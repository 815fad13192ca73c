"""Directories in the place of tinker:// paths: the run directory of a recipe, or a PEFT adapter.

load_checkpoint_path=~/tinker-runs/sl_basic-nano-1a2b3c4d     its last checkpoint
model_path=adapters/mine                                      adapter_config.json is in there
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
    """What a checkpoint is loaded by: a tinker:// path, or the absolute path of a PEFT adapter.

    use: to train on the weights, or to sample from them. CheckpointError names `key` where the
    path is neither tinker:// nor such a directory.
    """
    if path.startswith(SCHEME):
        return path
    directory = Path(path).expanduser()
    if (directory / CHECKPOINTS_FILE).is_file():
        return _last(directory, use, key)
    if (directory / _ADAPTER_CONFIG).is_file():
        return str(directory.absolute())
    raise CheckpointError(
        f"{key}={path}: {_what_it_is(directory)}; expected {SCHEME}<run>/<kind>/<name>, the"
        f" directory of a run ({CHECKPOINTS_FILE} in it), or of a PEFT adapter"
        f" ({_ADAPTER_CONFIG} in it)"
    )


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one base model: equal, or a hub name and a copy in a directory."""
    one, other = models.published_name(one), models.published_name(other)
    if one == other:
        return True
    if all(name.startswith(("/", "~", ".")) for name in (one, other)):
        return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
    return _short(one) == _short(other)


def _last(directory: Path, use: Use, key: str) -> str:
    file = directory / CHECKPOINTS_FILE
    try:
        records = [line.value for line in jsonl.read_lines(file)]
    except DataFormatError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    found = [record[name] for record in records if (name := _RECORD_KEYS[use]) in record]
    if not found:
        raise CheckpointError(
            f"{key}={directory}: that run has no checkpoint with a {_RECORD_KEYS[use]} yet"
        )
    return str(found[-1])


def _what_it_is(directory: Path) -> str:
    if not directory.exists():
        return "no such directory"
    if directory.is_file():
        return "that is a file"
    if (directory / "run.json").is_file():
        return "that is a run in the store; its weights are in sampler_weights/ and weights/ there"
    if (directory / "config.json").is_file() and (directory / "metrics.jsonl").is_file():
        return "that run has no checkpoint yet"
    return "that directory is neither"


def _short(name: str) -> str:
    """The last part of a model's name, as hub names, directories and the hub's cache spell it."""
    cached = re.search(r"models--[^/]*--([^/]+)/snapshots/", name)
    path = models.load_path(name)
    return (cached[1] if cached else Path(path).name).lower()
