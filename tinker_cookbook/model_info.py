"""Facts about models (from models.py) under the function names of the Tinker cookbook."""

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
    """The attributes of a known model or a local directory; ConfigurationError if unknown."""
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
    return _models_of_organization("meta-llama")


def get_qwen_info() -> dict[str, ModelAttributes]:
    return _models_of_organization("Qwen")


def get_deepseek_info() -> dict[str, ModelAttributes]:
    return _models_of_organization("deepseek-ai")


def get_gpt_oss_info() -> dict[str, ModelAttributes]:
    return _models_of_organization("openai")


def get_moonshot_info() -> dict[str, ModelAttributes]:
    return _models_of_organization("moonshotai")


def get_nvidia_info() -> dict[str, ModelAttributes]:
    raise ConfigurationError(
        "there is no table of NVIDIA's models; call get_model_attributes with a hub name or a local"
        " directory"
    )


def _models_of_organization(organization: str) -> dict[str, ModelAttributes]:
    """The organization's models in the table, keyed by name without the organization."""
    return {
        name.partition("/")[2]: get_model_attributes(name)
        for name, row in models.TABLE.items()
        if row.organization == organization
    }


def get_recommended_renderer_names(model_name: str) -> list[str]:
    """The renderers that fit, best first; empty if they cannot be inferred."""
    return list(models.lookup(model_name).renderers)


def get_recommended_renderer_name(model_name: str) -> str:
    """The best renderer; raises ConfigurationError if it cannot be inferred."""
    return models.recommended_renderer(model_name)


def warn_if_renderer_not_recommended(model_name: str, renderer_name: str | None) -> None:
    """Log a warning if a renderer is not known to fit the model.

    Silent for unknown models, and for `template` with a chat model, which uses the model's own chat
    template.
    """
    if renderer_name is None:
        return
    try:
        info = models.lookup(model_name)
    except ConfigurationError:
        return
    suitable = (*info.renderers, "template") if info.is_chat else info.renderers
    if info.renderers and renderer_name not in suitable:
        logger.warning(
            "renderer_name=%s is not known to fit %s, which expects %s",
            renderer_name,
            model_name,
            " or ".join(info.renderers),
        )
