"""Tokenizers by model name: nano, a local directory, a hub name, or one you registered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import model_directory
from tinker_cookbook.utils.error_text import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Tokenizer = Any  # transformers takes seconds to import

_registered: dict[str, Callable[[], Tokenizer]] = {}
_cache: dict[tuple[str, bool], Tokenizer] = {}
_lock = threading.RLock()
TRUST = "TINKER_COOKBOOK_TRUST_REMOTE_CODE"  # environment variable


def get_tokenizer(model_name: str, trust_remote_code: bool | None = None) -> Tokenizer:
    """The tokenizer of a model, the same object every time.

    Some models (Kimi) bring their tokenizer as Python code, which runs only with
    trust_remote_code=True. None: what the environment variable TINKER_COOKBOOK_TRUST_REMOTE_CODE
    says, 1 or 0; without it, no. ConfigurationError where there is no such tokenizer, or one
    without a vocabulary, which would encode any text as nothing.
    """
    with _lock:
        if model_name not in _registered:
            model_name = models.loaded_name(model_name)
        if model_name in _registered:
            key = (model_name, False)
            if key not in _cache:
                _cache[key] = _registered[model_name]()
            return _cache[key]
        trust_remote_code = _trusted() if trust_remote_code is None else trust_remote_code
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


def get_registered_tokenizer_names() -> list[str]:
    return sorted(_registered)


def _trusted() -> bool:
    value = os.environ.get(TRUST, "")
    if value not in ("", "0", "1"):
        raise ConfigurationError(f"{TRUST}={value!r}: expected 1 or 0")
    return value == "1"


def _brings_code(path: str, error: Exception) -> bool:
    """Whether a tokenizer that could not be loaded is code of the model's own. transformers says so
    only where it knows no tokenizer of its own for the family."""
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        return "trust_remote_code" in str(error) or "auto_map" in get_tokenizer_config(path)
    except (OSError, ValueError):  # the files are bad, which the error tells
        return False


class _WithVocabulary(Protocol):
    def get_vocab(self) -> dict[str, int]: ...

    def get_added_vocab(self) -> dict[str, int]: ...


def _has_vocabulary(tokenizer: _WithVocabulary) -> bool:
    """transformers makes tokenizers of some families from nothing: special tokens, no others."""
    return len(set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())) > 1


def _without_vocabulary(model_name: str, path: str) -> ConfigurationError:
    lack = (
        f"{path} holds no tokenizer.json (nor {', '.join(model_directory.VOCABULARY_FILES[1:])})"
        if model_directory.lacks_tokenizer(path)
        else "the vocabulary among its files is empty"
    )
    return ConfigurationError(
        f"model_name={model_name!r}: there is no tokenizer to encode text with, for {lack}; put"
        " the files of the model's tokenizer there, such as those of the model it was trained from"
    )


def _load(model_name: str, trust_remote_code: bool) -> Tokenizer:
    from transformers import AutoTokenizer

    path = models.load_path(model_name)
    if models.is_local_path(path) and not os.path.isdir(path):
        raise ConfigurationError(f"model_name={model_name!r}: there is no directory {path}")
    models.check_files(model_name, "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # what is raised depends on hub, network and file format
        if not trust_remote_code and _brings_code(path, error):
            raise ConfigurationError(
                f"model_name={model_name!r}: its tokenizer is Python code among the model's files,"
                f" which runs only if you trust it: set {TRUST}=1 in the environment, or give"
                " another tokenizer with tokenizer_utils.register_tokenizer"
            ) from error
        if model_directory.lacks_tokenizer(path) and not _brings_code(path, error):
            raise _without_vocabulary(model_name, path) from error
        reason = first_line(error)
        raise ConfigurationError(
            f"model_name={model_name!r}: its tokenizer cannot be loaded ({reason})"
            + models.access_hint(model_name)
        ) from error
    if not _has_vocabulary(tokenizer):
        raise _without_vocabulary(model_name, path)
    return tokenizer
