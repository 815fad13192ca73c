"""The Tinker API over an in-process engine, or over the SDK if base_url is set."""

from collections.abc import Mapping

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.service.checkpoint_dirs import CHECKPOINTS_FILE, Use, locate
from tinker_cookbook.service.connect import connect, connect_run, default_store_dir

__all__ = [
    "CHECKPOINTS_FILE",
    "EngineConfig",
    "check_loss",
    "connect",
    "connect_run",
    "default_store_dir",
    "locate_checkpoint",
]


def locate_checkpoint(path: str, use: Use, key: str, base_url: str | None = None) -> str:
    """Resolve a checkpoint path in a config, as stored in config.json: a run directory becomes the
    tinker:// path of its last checkpoint, a PEFT adapter directory an absolute path.

    CheckpointError for anything else, and for a local adapter if base_url is set.
    """
    if base_url is None:
        return locate(path, use, key)
    from tinker_cookbook.service.remote import remote_path

    return remote_path(path, use, key)


def check_loss(loss_fn: str, loss_fn_config: Mapping[str, float] | None) -> None:
    """Raise ConfigurationError for an unknown loss or loss setting."""
    from tinker_cookbook.engine.losses import get_loss

    get_loss(loss_fn, loss_fn_config)
