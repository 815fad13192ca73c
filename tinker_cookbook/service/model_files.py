"""The files of a base model, on this machine before the engine's thread wants them.

That thread serves everybody: nobody's download, and no hub that does not answer, may hold it up.
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

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"


def fetch(base_model: str) -> Future[None]:
    """Done at once for nano, a local directory and what is in the cache; else once it was
    downloaded, in a thread of its own. ConfigurationError where the model cannot be had."""
    ready: Future[None] = Future()
    if not isinstance(base_model, str):
        kind = type(base_model).__name__
        ready.set_exception(ConfigurationError(f"base_model is of type {kind}; expected a name"))
        return ready
    path = models.load_path(base_model)
    if models.is_local_path(path) or _complete(path):
        ready.set_result(None)
        return ready

    def run() -> None:
        try:
            _download(path)
        except BaseException as error:  # whatever it is, somebody waits for it
            ready.set_exception(error)
        else:
            ready.set_result(None)

    threading.Thread(target=run, name=f"fetch {path}", daemon=True).start()
    return ready


def _download(name: str) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    models.check_files(name)

    def download(file: str) -> str | None:
        try:
            return huggingface_hub.hf_hub_download(name, file)
        except EntryNotFoundError:  # the engine says what it cannot do without
            return None

    try:
        for file in ("config.json", "generation_config.json"):
            download(file)
        _have_weights(download)
    except Exception as error:  # what is raised depends on hub, network and disk
        reason = first_line(error)
        raise ConfigurationError(
            f"model_name={name!r}: its files cannot be downloaded ({reason})"
            + models.access_hint(name)
        ) from error


def _complete(name: str) -> bool:
    return _cached(name, "config.json") is not None and _have_weights(partial(_cached, name))


def _cached(name: str, file: str) -> str | None:
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(name, file)
    except ValueError:  # not a name that the hub takes
        return None
    return found if isinstance(found, str) else None


def _have_weights(get: Callable[[str], str | None]) -> bool:
    """Whether `get` has a file for all of the weights: one, or those that an index names."""
    index = get(INDEX)
    if index is None:
        return get(WHOLE) is not None
    shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    return None not in [get(file) for file in sorted(shards)]
