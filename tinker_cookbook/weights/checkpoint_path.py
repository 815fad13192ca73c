"""The checkpoint that a key of a program means."""

from __future__ import annotations

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
