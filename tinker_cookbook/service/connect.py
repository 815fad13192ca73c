"""`connect`: the only way in which recipes and tools get an engine."""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinker_cookbook.engine import EngineConfig
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.misc_utils import runs_path

if TYPE_CHECKING:
    from tinker_cookbook.engine.scheduler import Engine
    from tinker_cookbook.service.api import ServiceClient

# one engine per configuration, so that all callers in a process share the loaded models
_ENGINES: dict[EngineConfig, Engine] = {}
_LOCK = threading.Lock()


class _Place(NamedTuple):
    """Where the models of a run are."""

    base_url: str | None
    engine: EngineConfig | None


_RUN: ContextVar[_Place | None] = ContextVar("the run of this task", default=None)


def connect_run(base_url: str | None, engine: EngineConfig) -> ServiceClient:
    """`connect` for a run; until its task ends, `connect()` without arguments gives the same
    service, so that judges, teachers and baselines use the models that the run has loaded."""
    _RUN.set(_Place(base_url, None if base_url else engine))
    return connect(base_url, engine)


def connect(
    base_url: str | None = None,
    engine: EngineConfig | None = None,
    store_dir: str | Path | None = None,
    user_metadata: dict[str, str] | None = None,
) -> ServiceClient:
    """A client of the Tinker API. Without arguments: that of the run, see `connect_run`.

    Without a URL: an in-process engine, started on first use and shared by all callers with the
    same `engine` settings, with checkpoints under `store_dir` (default: `default_store_dir()`).
    With a URL: the SDK's own client for that server. Engine and store are the server's then:
    setting them here raises ConfigurationError.
    """
    if base_url is None and engine is None and store_dir is None:
        base_url, engine = _RUN.get() or _Place(None, None)
    if base_url is not None:
        if engine is not None and engine != EngineConfig():
            raise ConfigurationError(
                f"engine.* keys have no effect with base_url={base_url}, whose server has its own;"
                " drop either"
            )
        if store_dir is not None:
            raise ConfigurationError(
                f"store_dir={store_dir} has no effect with base_url={base_url}: drop either"
            )
        from tinker_cookbook.service.remote import RemoteServiceClient

        return RemoteServiceClient(base_url, user_metadata)
    from tinker_cookbook.service.local import LocalServiceClient
    from tinker_cookbook.service.store import Store

    store = Store(store_dir if store_dir is not None else default_store_dir())
    return LocalServiceClient(_engine(engine or EngineConfig()), store, user_metadata)


def default_store_dir() -> Path:
    """$TINKER_COOKBOOK_STORE_DIR, else `store` in the runs directory."""
    if configured := os.environ.get("TINKER_COOKBOOK_STORE_DIR"):
        return Path(configured).expanduser()
    return runs_path("store")


def _engine(config: EngineConfig) -> Engine:
    import atexit

    from tinker_cookbook.engine.scheduler import Engine

    with _LOCK:
        if config not in _ENGINES:
            _ENGINES[config] = Engine(config)
            # a thread that is still inside torch while the interpreter shuts down can crash it
            atexit.register(_ENGINES[config].close)
        return _ENGINES[config]
