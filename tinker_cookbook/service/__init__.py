"""The Tinker API over an engine in this process, or over the SDK where a URL is given."""

from collections.abc import Mapping

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.service.checkpoint_dirs import CHECKPOINTS_FILE, Use, locate
from tinker_cookbook.service.connect import connect, default_store_dir

__all__ = [
    "CHECKPOINTS_FILE",
    "EngineConfig",
    "check_loss",
    "connect",
    "default_store_dir",
    "locate_checkpoint",
]


def locate_checkpoint(path: str, use: Use, key: str, base_url: str | None = None) -> str:
    """What a key of a run names, as it is written into config.json: a tinker:// path (of the last
    checkpoint where it is the directory of a run), or the directory of a PEFT adapter.

    CheckpointError: anything else, or an adapter where the server of base_url is to read it.
    """
    if base_url is None:
        return locate(path, use, key)
    from tinker_cookbook.service.remote import remote_path

    return remote_path(path, use, key)


def check_loss(loss_fn: str, loss_fn_config: Mapping[str, float] | None) -> None:
    """Raises ConfigurationError for a loss or a setting of it that the engine does not have."""
    from tinker_cookbook.engine.losses import get_loss

    get_loss(loss_fn, loss_fn_config)
