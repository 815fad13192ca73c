"""Facts about models under the names users know; the facts themselves are in models.py."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelAttributes:
    organization: str  # "" for nano and local directories
    version_str: str
    size_str: str
    is_chat: bool
    recommended_renderers: tuple[str, ...]
    is_vl: bool = False
    is_audio_in: bool = False


def get_model_attributes(model_name: str) -> ModelAttributes:
    """Works for local directories, too. ConfigurationError for a model that cannot be resolved."""
    info = models.lookup(model_name)
    return ModelAttributes(
        organization=info.organization,
        version_str=info.version_str,
        size_str=info.size_str,
        is_chat=info.is_chat,
        recommended_renderers=info.renderers,
        is_vl=info.is_vl,
    )


def get_llama_info() -> dict[str, ModelAttributes]:
    return _of_organization("meta-llama")


def get_qwen_info() -> dict[str, ModelAttributes]:
    return _of_organization("Qwen")


def get_deepseek_info() -> dict[str, ModelAttributes]:
    return _of_organization("deepseek-ai")


def get_gpt_oss_info() -> dict[str, ModelAttributes]:
    return _of_organization("openai")


def get_moonshot_info() -> dict[str, ModelAttributes]:
    return _of_organization("moonshotai")


def get_nvidia_info() -> dict[str, ModelAttributes]:
    raise ConfigurationError(
        "nothing is known of NVIDIA's models by name; get_model_attributes tells what it can of a"
        " hub name or a local directory"
    )


def _of_organization(organization: str) -> dict[str, ModelAttributes]:
    """The models of the table by their names without the organization."""
    return {
        name.partition("/")[2]: get_model_attributes(name)
        for name, row in models.TABLE.items()
        if row.organization == organization
    }


def get_recommended_renderer_names(model_name: str) -> list[str]:
    """The renderers that fit, best first; empty where none can be told."""
    return list(models.lookup(model_name).renderers)


def get_recommended_renderer_name(model_name: str) -> str:
    """The best renderer. ConfigurationError, asking for renderer_name=, where none can be told."""
    return models.recommended_renderer(model_name)


def warn_if_renderer_not_recommended(model_name: str, renderer_name: str | None) -> None:
    """Log a warning if a renderer is not among those that fit the model.

    Nothing is said of models that cannot be resolved, and of `template` with a chat model: it is in
    that model's own words.
    """
    if renderer_name is None:
        return
    try:
        info = models.lookup(model_name)
    except ConfigurationError:
        return
    fitting = (*info.renderers, "template") if info.is_chat else info.renderers
    if info.renderers and renderer_name not in fitting:
        logger.warning(
            "renderer_name=%s is not known to fit %s, which expects %s",
            renderer_name,
            model_name,
            " or ".join(info.renderers),
        )
