"""Read a model's small files: config.json, tokenizer_config.json and chat_template.jinja, from a
directory or, for a model on the hub, from the hub's cache.

Raises ConfigurationError with the key and the value found for files that cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinker_cookbook import families
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import hub_reach
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.json_types import Json

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# files that hold a tokenizer's vocabulary, by kind of tokenizer
VOCABULARY_FILES = (
    "tokenizer.json",
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("vocab.json", "vocab.txt", "tekken.json"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class ModelConfig(NamedTuple):
    """config.json of a text model, or of the text model inside a vision-language model."""

    model_type: str
    vocab_size: int  # 0: not given
    hidden_size: int | None
    context_length: int | None  # max_position_embeddings
    is_moe: bool
    is_vl: bool


def lacks_tokenizer(path: str | Path) -> bool:
    """Whether the directory contains no file that could hold a tokenizer's vocabulary."""
    path = Path(path)
    return path.is_dir() and not any((path / file).is_file() for file in VOCABULARY_FILES)


def of_hub(model_name: str) -> Path | None:
    """The directory with the small files of a hub model, downloaded if not in the cache; None if
    there is no config.json."""
    config = _hub_file(model_name, "config.json")
    if config is None:
        return None
    # pin the revision: another one would be stored in another directory
    revision = config.parent.name
    for name in ("tokenizer_config.json", "chat_template.jinja"):  # many models lack one
        _hub_file(model_name, name, revision)
    return config.parent


def _hub_file(model_name: str, file: str, revision: str | None = None) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        cached = huggingface_hub.try_to_load_from_cache(model_name, file, revision=revision)
        if cached is not None:  # if not a path, the cache has recorded that there is no such file
            return Path(cached) if isinstance(cached, str) else None
        if hub_reach.problem(model_name, file):
            return None
        return Path(huggingface_hub.hf_hub_download(model_name, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None


def config(directory: Path) -> ModelConfig:
    """The config of a model; the text_config of a vision-language model takes precedence."""
    path = directory / "config.json"
    outer = _read_json(path)
    text = outer.get("text_config")
    if not isinstance(text, dict | None):
        raise ConfigurationError(f"{path}: text_config={text!r}, expected an object")
    found = {**outer, **(text or {})}
    if not isinstance(model_type := found.get("model_type", "unknown"), str):
        raise ConfigurationError(f"{path}: model_type={model_type!r}, expected a string")
    return ModelConfig(
        model_type,
        vocab_size=_whole(found, "vocab_size", path) if "vocab_size" in found else 0,
        hidden_size=_whole_or_none(found, "hidden_size", path),
        context_length=_whole_or_none(found, "max_position_embeddings", path),
        is_moe=any(found.get(key) for key in _EXPERTS),
        is_vl="vision_config" in found,
    )


def _whole_or_none(config: Mapping[str, Json], key: str, path: Path) -> int | None:
    return None if config.get(key) is None else _whole(config, key, path)


def _whole(config: Mapping[str, Json], key: str, path: Path) -> int:
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{path}: {key}={value!r}, expected a whole number of at least 1")
    return value


def transformers_config(path: str) -> PretrainedConfig:
    """config.json as a transformers config, also for a model_type that transformers knows by
    another name. Raises OSError or ValueError if it cannot be loaded."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    raw, _ = PretrainedConfig.get_config_dict(path)
    family = families.of_model_type(raw.get("model_type"))
    try:
        if family is not None and (known := family.transformers_type):
            return CONFIG_MAPPING[known].from_dict({**raw, "model_type": known})
        return AutoConfig.from_pretrained(path)
    except (StrictDataclassError, KeyError) as error:  # invalid values, missing keys
        raise ValueError(one_line(error)) from error


def chat_template(directory: Path) -> str | None:
    """The chat template of a model; "" if it has none, None if it has no tokenizer."""
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            return template.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{template} cannot be read as text: {error}") from error
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return None
    found = _read_json(file).get("chat_template") or ""
    text = _template_for_chatting(found)
    if text is None:
        raise ConfigurationError(
            f"{file}: chat_template={str(found)[:60]}, expected a string or a list of"
            ' objects {"name": ..., "template": ...} with strings'
        )
    return text


def _template_for_chatting(found: Json) -> str | None:
    """The template named "default", if the file holds several by name."""
    if isinstance(found, str):
        return found
    if not isinstance(found, list):
        return None
    default = ""
    for one in found:
        if not isinstance(one, dict):
            return None
        name, template = one.get("name"), one.get("template")
        if not isinstance(name, str) or "template" not in one:
            return None
        if name == "default":
            if not isinstance(template, str):
                return None
            default = template
    return default


def end_token(directory: Path) -> str | None:
    """The end-of-sequence token that tokenizer_config.json names."""
    file = directory / "tokenizer_config.json"
    token = _read_json(file).get("eos_token") if file.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _read_json(path: Path) -> dict[str, Json]:
    try:
        content: Json = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} must hold a JSON object")
    return content
