"""Tokenizers by model name: nano, a local directory, a hub name, or one you registered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Tokenizer = Any  # transformers takes seconds to import

_registered: dict[str, Callable[[], Tokenizer]] = {}
_cache: dict[tuple[str, bool], Tokenizer] = {}
_lock = threading.RLock()


def get_tokenizer(model_name: str, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of a model, the same object every time.

    Some models (Kimi) bring their tokenizer as Python code, which runs only with
    trust_remote_code=True. ConfigurationError where there is no such tokenizer.
    """
    with _lock:
        if model_name in _registered:
            key = (model_name, False)
            if key not in _cache:
                _cache[key] = _registered[model_name]()
            return _cache[key]
        key = (model_name, trust_remote_code)
        if key not in _cache:
            _cache[key] = _load(model_name, trust_remote_code)
        return _cache[key]


def register_tokenizer(name: str, factory: Callable[[], Tokenizer]) -> None:
    """Let `get_tokenizer(name)` call `factory` (once). Registering again replaces."""
    with _lock:
        _registered[name] = factory
        _cache.pop((name, False), None)


def unregister_tokenizer(name: str) -> None:
    """Forget a registered tokenizer; ConfigurationError if there is none."""
    with _lock:
        if name not in _registered:
            raise ConfigurationError(f"no tokenizer {name!r} is registered")
        del _registered[name]
        _cache.pop((name, False), None)


def is_tokenizer_registered(name: str) -> bool:
    return name in _registered


def _load(model_name: str, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    path = os.path.expanduser(models.load_path(model_name))
    if models.is_local_path(path) and not os.path.isdir(path):
        raise ConfigurationError(f"model_name={model_name!r}: there is no directory {path}")
    models.check_files(path, "tokenizer_config.json")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # what is raised depends on hub, network and file format
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            f"model_name={model_name!r}: its tokenizer cannot be loaded ({reason})"
            + models.access_hint(model_name)
        ) from error
