"""The Tinker API over an engine in this process, or over the SDK where a URL is given."""

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.service.connect import connect, default_store_dir

__all__ = ["EngineConfig", "connect", "default_store_dir"]
