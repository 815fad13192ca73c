"""The checkpoint that a key of a program means."""

from __future__ import annotations

import json
from pathlib import Path

from tinker_cookbook.checkpoint_utils import load_checkpoints_file
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.service import CHECKPOINTS_FILE, locate_checkpoint


def checkpoint_path(path: str, key: str, base_url: str | None = None) -> str:
    """Resolve a tinker:// path, a run directory (its last checkpoint, saved for training or for
    sampling) or a PEFT adapter directory. CheckpointError for anything else."""
    directory = Path(path).expanduser()
    if not (directory / CHECKPOINTS_FILE).is_file():
        return locate_checkpoint(path, "sampler_weights", key, base_url)
    paths = [each.sampler_path or each.state_path for each in load_checkpoints_file(directory)]
    last = next((each for each in reversed(paths) if each), None)
    if last is None:
        raise CheckpointError(f"{key}={path}: that run has no checkpoint yet")
    return last


def server_of_run(path: str) -> str | None:
    """The base_url of a run directory, for a run whose checkpoints are on a server; else None."""
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_bytes())
        base_url = config.get("base_url")
    except (OSError, ValueError, AttributeError):
        return None
    return base_url if isinstance(base_url, str) else None
