"""Upload an exported directory to the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tinker_cookbook.exceptions import ConfigurationError, WeightsError
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.weights.model_card import CARD_FILE, Format, generate_model_card

_ADAPTER_CONFIG, _MODEL_CONFIG = "adapter_config.json", "config.json"


class Upload(NamedTuple):
    """What would be uploaded. card: the text of README.md. files: name -> bytes. warnings: what a
    user of the repository would miss."""

    repo_id: str
    directory: Path
    card: str
    files: dict[str, int]
    warnings: list[str]


def publish_to_hf_hub(
    *,
    model_path: str,
    repo_id: str,
    private: bool = True,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload an exported directory as a model repository, made if it does not exist; returns its
    URL.

    token: of the hub (None: HF_TOKEN or the login). ConfigurationError if the directory is no
    export, WeightsError if the hub refuses.
    """
    upload = prepare_upload(model_path, repo_id)
    return send(upload, private, token, commit_message)


def prepare_upload(model_path: str, repo_id: str) -> Upload:
    """Check the directory, and write its README.md if it has none."""
    directory = Path(model_path).expanduser().absolute()
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ConfigurationError(f"repo_id={repo_id!r}: expected OWNER/NAME")
    format = _format_of(directory, model_path)
    names = (file.relative_to(directory) for file in sorted(directory.rglob("*")))
    files = {
        name.as_posix(): (directory / name).stat().st_size
        for name in names
        if (directory / name).is_file() and not any(part.startswith(".") for part in name.parts)
    }
    card_file = directory / CARD_FILE
    card = (
        card_file.read_text(encoding="utf-8")
        if card_file.is_file()
        else _plain_card(directory, format)
    )
    files.setdefault(CARD_FILE, len(card.encode()))
    return Upload(repo_id, directory, card, files, _warnings(directory, format))


def send(upload: Upload, private: bool, token: str | None, commit_message: str | None) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = huggingface_hub.HfApi(token=token)
    try:
        # in the order of what can be refused: the name and the right to write first
        url = api.create_repo(upload.repo_id, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=upload.repo_id,
            folder_path=str(upload.directory),
            repo_type="model",
            commit_message=commit_message or f"Upload {upload.directory.name}",
            ignore_patterns=[".*", CARD_FILE],
        )
        api.upload_file(
            repo_id=upload.repo_id,
            path_or_fileobj=upload.card.encode(),
            path_in_repo=CARD_FILE,
            repo_type="model",
            commit_message="Model card",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise WeightsError(
            f"{upload.repo_id} could not be published: {first_line(error)}; check the name, the"
            " network and HF_TOKEN, and run the same command again"
        ) from error
    return str(url)


def _format_of(directory: Path, model_path: str) -> Format:
    if (directory / _ADAPTER_CONFIG).is_file():
        return "peft"
    if (directory / _MODEL_CONFIG).is_file() and any(directory.glob("model*.safetensors")):
        return "merged"
    raise ConfigurationError(
        f"model_path={model_path} is no exported directory (there is neither {_ADAPTER_CONFIG} nor"
        f" {_MODEL_CONFIG} with weights); make one with tinker_cookbook.weights.export"
    )


def _plain_card(directory: Path, format: Format) -> str:
    """The card of a directory that has none: what its files tell."""
    config = _read_json(directory / (_ADAPTER_CONFIG if format == "peft" else _MODEL_CONFIG))
    base = config.get("base_model_name_or_path") or config.get("_name_or_path") or "unknown"
    return generate_model_card(
        title=directory.name,
        base_model=str(base),
        format=format,
        dtype=config.get("dtype"),
        rank=config.get("r"),
    )


def _warnings(directory: Path, format: Format) -> list[str]:
    if format == "merged":
        return []
    base = str(_read_json(directory / _ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if base.startswith(("/", "~", ".")):
        return [
            f"base_model_name_or_path={base} is a directory of this machine, so nobody else can"
            " load the adapter by its name alone: set it to the model's hub name in"
            f" {_ADAPTER_CONFIG}, or publish a merged model"
        ]
    return []


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file} must hold a JSON object")
    return content
