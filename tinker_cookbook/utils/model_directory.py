"""What a model's small files say: config.json, tokenizer_config.json and chat_template.jinja, in a
directory or, for a model on the hub, in its cache.

ConfigurationError for files that cannot be read, with the key and the value found.
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


# What holds a tokenizer's vocabulary, by its kind
VOCABULARY_FILES = (
    "tokenizer.json",
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("vocab.json", "vocab.txt", "tekken.json"),
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class ModelConfig(NamedTuple):
    """config.json of a model of text, or of the text model that a model with vision has inside."""

    model_type: str
    vocab_size: int  # 0: not said
    hidden_size: int | None
    context_length: int | None  # max_position_embeddings
    is_moe: bool
    is_vl: bool


def lacks_tokenizer(path: str | Path) -> bool:
    """Whether this is a directory with no file that could hold a tokenizer's vocabulary."""
    path = Path(path)
    return path.is_dir() and not any((path / file).is_file() for file in VOCABULARY_FILES)


def of_hub(model_name: str) -> Path | None:
    """A directory with the small files of a hub model, each from the cache, else from the hub; None
    if there is no config.json."""
    config = _hub_file(model_name, "config.json")
    if config is None:
        return None
    # of the same revision, or they would lie in another directory
    revision = config.parent.name
    for name in ("tokenizer_config.json", "chat_template.jinja"):  # many models have only one
        _hub_file(model_name, name, revision)
    return config.parent


def _hub_file(model_name: str, file: str, revision: str | None = None) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        cached = huggingface_hub.try_to_load_from_cache(model_name, file, revision=revision)
        if cached is not None:  # if no path, then the cache knows that the model lacks the file
            return Path(cached) if isinstance(cached, str) else None
        if hub_reach.problem(model_name, file):
            return None
        return Path(huggingface_hub.hf_hub_download(model_name, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None


def config(directory: Path) -> ModelConfig:
    """What vision models nest, their text model, counts before what stands around it."""
    path = directory / "config.json"
    outer = _read_json(path)
    text = outer.get("text_config")
    if not isinstance(text, dict | None):
        raise ConfigurationError(f"{path}: text_config={text!r}, but should be an object")
    found = {**outer, **(text or {})}
    if not isinstance(model_type := found.get("model_type", "unknown"), str):
        raise ConfigurationError(f"{path}: model_type={model_type!r}, but should be a string")
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
        raise ConfigurationError(
            f"{path}: {key}={value!r}, but should be a whole number of at least 1"
        )
    return value


def transformers_config(path: str) -> PretrainedConfig:
    """config.json as transformers' own class, also under the name of a family that transformers
    has by another. OSError or ValueError where it cannot be had."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    raw, _ = PretrainedConfig.get_config_dict(path)
    family = families.of_model_type(raw.get("model_type"))
    try:
        if family is not None and (known := family.transformers_type):
            return CONFIG_MAPPING[known].from_dict({**raw, "model_type": known})
        return AutoConfig.from_pretrained(path)
    except (StrictDataclassError, KeyError) as error:  # values that do not fit, keys that lack
        raise ValueError(one_line(error)) from error


def chat_template(directory: Path) -> str | None:
    """The chat template among a model's files; "" if it has none, None if it has no tokenizer."""
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
            f"{file}: chat_template={str(found)[:60]}, but should be a string or a list of"
            ' objects {"name": ..., "template": ...} with strings'
        )
    return text


def _template_for_chatting(found: Json) -> str | None:
    """There may be several, by name; the one for chatting is called default."""
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
        raise ConfigurationError(f"{path} should hold a JSON object")
    return content
