"""Download a base model's files before the engine loads it.

Downloads run on threads of their own, because all users share the engine's thread: a download, or a
hub that does not respond, would block everyone.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.error_text import first_line

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"


def fetch(base_model: str) -> Future[None]:
    """A future that is done when the model's files are on this machine.

    It is done at once for nano, a local directory and a cached model; other models are downloaded.
    ConfigurationError if the download fails.
    """
    ready: Future[None] = Future()
    if not isinstance(base_model, str):
        kind = type(base_model).__name__
        ready.set_exception(ConfigurationError(f"base_model is of type {kind}; expected a name"))
        return ready
    path = models.load_path(base_model)
    if models.is_local_path(path) or _is_cached(path):
        ready.set_result(None)
        return ready

    def download() -> None:
        try:
            _download(path)
        except BaseException as error:  # any kind: the caller waits for the future
            ready.set_exception(error)
        else:
            ready.set_result(None)

    threading.Thread(target=download, name=f"fetch {path}", daemon=True).start()
    return ready


def _download(name: str) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    models.check_files(name)

    def download(file: str) -> str | None:
        try:
            return huggingface_hub.hf_hub_download(name, file)
        except EntryNotFoundError:  # the engine reports a file that it needs
            return None

    try:
        for file in ("config.json", "generation_config.json"):
            download(file)
        _has_weights(download)
    except Exception as error:  # what is raised depends on hub, network and disk
        reason = first_line(error)
        raise ConfigurationError(
            f"model_name={name!r}: its files could not be downloaded ({reason})"
            + models.access_hint(name)
        ) from error


def _is_cached(name: str) -> bool:
    return _cached(name, "config.json") is not None and _has_weights(partial(_cached, name))


def _cached(name: str, file: str) -> str | None:
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(name, file)
    except ValueError:  # not a valid name on the hub
        return None
    return found if isinstance(found, str) else None


def _has_weights(get: Callable[[str], str | None]) -> bool:
    """Whether `get` finds all weight files: a single file, or every shard in the index."""
    index = get(INDEX_FILE)
    if index is None:
        return get(SINGLE_FILE) is not None
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return None not in [get(file) for file in sorted(shards)]
