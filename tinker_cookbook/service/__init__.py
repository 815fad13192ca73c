"""The Tinker API over an engine in this process, or over the SDK where a URL is given."""

from collections.abc import Mapping

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.service.connect import connect, default_store_dir

__all__ = ["EngineConfig", "check_loss", "connect", "default_store_dir"]


def check_loss(loss_fn: str, loss_fn_config: Mapping[str, float] | None) -> None:
    """Raises ConfigurationError for a loss or a setting of it that the engine does not have."""
    from tinker_cookbook.engine.losses import get_loss

    get_loss(loss_fn, loss_fn_config)
