"""The files of a base model: its directory, and the small files that an export takes along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, WeightsDownloadError, WeightsError
from tinker_cookbook.utils import model_directory
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.utils.json_types import Json

CONFIG_FILE = "config.json"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_TOKENIZER = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "*.tiktoken", "tiktoken.model", "spiece.model"),
    *("sentencepiece.bpe.model", "tekken.json", "tokenization_*.py"),
)
_MODEL = ("generation_config.json", "configuration_*.py", "modeling_*.py", "LICENSE*")


def base_directory(base_model: str, weights: bool) -> Path:
    """The directory of a model's files, downloaded if it is a hub name and not in the cache.

    weights: with its weights, not only config and tokenizer. WeightsDownloadError if it cannot be
    downloaded, ConfigurationError if it is no model.
    """
    path = models.load_path(base_model)
    if models.is_local_path(path):
        directory = Path(path).expanduser().absolute()
        if not (directory / CONFIG_FILE).is_file():
            raise ConfigurationError(
                f"base_model={base_model}: there is no {directory / CONFIG_FILE}; set base_model="
                " to the directory or hub name of the model that the adapter was trained on"
            )
        return directory
    import huggingface_hub

    models.check_files(base_model)
    wanted = [CONFIG_FILE, *_TOKENIZER, *_MODEL, *(_WEIGHTS if weights else ())]
    try:
        return Path(huggingface_hub.snapshot_download(path, allow_patterns=wanted))
    except Exception as error:  # what is raised depends on hub, network and disk
        raise WeightsDownloadError(
            f"base_model={base_model}: its files could not be downloaded ({first_line(error)})"
            + models.access_hint(base_model)
        ) from error


def read_config(directory: Path) -> dict[str, Json]:
    """The raw config.json of a model whose weights can be merged.

    WeightsError if they are quantized.
    """
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise WeightsError(
            f"{directory} has weights quantized with {method!r}, into which an adapter cannot be"
            " merged: set base_model= to a copy in bfloat16, or use format=peft"
        )
    return config


def is_tied(directory: Path) -> bool:
    """Whether the unembedding is the input embedding."""
    try:
        return bool(model_directory.transformers_config(str(directory)).tie_word_embeddings)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{directory / CONFIG_FILE} cannot be read: {first_line(error)}"
        ) from error


def copy_tokenizer(directory: Path, output: Path) -> None:
    """Copy the files of the tokenizer, with the chat template."""
    _copy(directory, output, _TOKENIZER)


def copy_small_files(directory: Path, output: Path) -> None:
    """Copy everything but config.json and the weights: tokenizer, generation config, code of
    models that bring their own, licence."""
    _copy(directory, output, (*_TOKENIZER, *_MODEL))


def _copy(directory: Path, output: Path, patterns: tuple[str, ...]) -> None:
    for file in sorted({file for pattern in patterns for file in directory.glob(pattern)}):
        if file.is_file():  # in the hub's cache they are links
            shutil.copyfile(file, output / file.name)
        elif file.name == "chat_templates":  # additional templates, one file each
            shutil.copytree(file, output / file.name)


def read_model_type(directory: Path) -> str:
    """model_type in config.json."""
    config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    return str(config.get("model_type"))
