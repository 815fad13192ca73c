"""Renderers by name: one dict, open to users.

    register_renderer("my_format", lambda tokenizer, image_processor: MyRenderer(tokenizer))

or, where there is no Python to put this into, by module and name:
renderer_name=my_module:MyRenderer.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers.base import Origin, Renderer
from tinker_cookbook.renderers.deepseek_v3 import (
    DeepSeekV3Renderer,
    DeepSeekV3ThinkingRenderer,
)
from tinker_cookbook.renderers.gpt_oss import GptOssRenderer
from tinker_cookbook.renderers.kimi_k2 import KimiK2Renderer
from tinker_cookbook.renderers.llama3 import Llama3Renderer
from tinker_cookbook.renderers.qwen3 import (
    Qwen3DisableThinkingRenderer,
    Qwen3InstructRenderer,
    Qwen3Renderer,
)
from tinker_cookbook.renderers.role_colon import RoleColonRenderer
from tinker_cookbook.renderers.template import TemplateRenderer
from tinker_cookbook.tokenizer_utils import Tokenizer, get_tokenizer

RendererFactory = Callable[[Tokenizer, Any], Renderer]
"""(tokenizer, image processor or None) -> Renderer"""

_BUILT_IN: dict[str, RendererFactory] = {
    "role_colon": lambda tokenizer, _: RoleColonRenderer(tokenizer),
    "llama3": lambda tokenizer, _: Llama3Renderer(tokenizer),
    "qwen3": lambda tokenizer, _: Qwen3Renderer(tokenizer),
    "qwen3_disable_thinking": lambda tokenizer, _: Qwen3DisableThinkingRenderer(tokenizer),
    "qwen3_instruct": lambda tokenizer, _: Qwen3InstructRenderer(tokenizer),
    "gpt_oss_no_sysprompt": lambda tokenizer, _: GptOssRenderer(tokenizer),
    "gpt_oss_low_reasoning": lambda tokenizer, _: GptOssRenderer(tokenizer, "low"),
    "gpt_oss_medium_reasoning": lambda tokenizer, _: GptOssRenderer(tokenizer, "medium"),
    "gpt_oss_high_reasoning": lambda tokenizer, _: GptOssRenderer(tokenizer, "high"),
    "template": lambda tokenizer, _: TemplateRenderer(tokenizer),
    "deepseekv3": lambda tokenizer, _: DeepSeekV3Renderer(tokenizer),
    "deepseekv3_disable_thinking": lambda tokenizer, _: DeepSeekV3Renderer(tokenizer),
    "deepseekv3_thinking": lambda tokenizer, _: DeepSeekV3ThinkingRenderer(tokenizer),
    "kimi_k2": lambda tokenizer, _: KimiK2Renderer(tokenizer),
}
# Formats that users know from elsewhere and that are not here, by how their names begin.
_LEFT_OUT = (
    "deepseekv4",
    "glm5",
    "kimi_k25",
    "kimi_k26",
    "nemotron",
    "qwen3_5",
    "qwen3_8",
    "qwen3_vl",
    "tml_v0",
)
_registry: dict[str, RendererFactory] = dict(_BUILT_IN)


def register_renderer(name: str, factory: RendererFactory) -> None:
    """Make `renderer_name=name` work everywhere in this process. Registering again replaces.

    ConfigurationError for the name of a built-in renderer. For renderers in other processes (data
    workers), register there too: a pickled renderer is only its names.
    """
    if name in _BUILT_IN:
        raise ConfigurationError(f"renderer name {name!r} is built in; choose another name")
    _registry[name] = factory


def unregister_renderer(name: str) -> None:
    """Forget a registered renderer; ConfigurationError if there is none or it is built in."""
    if name in _BUILT_IN:
        raise ConfigurationError(f"renderer {name!r} is built in and cannot be unregistered")
    if name not in _registry:
        raise ConfigurationError(f"no renderer {name!r} is registered")
    del _registry[name]


def is_renderer_registered(name: str) -> bool:
    return name in _registry


def get_registered_renderer_names() -> list[str]:
    return sorted(_registry)


def renderer_factory(name: str) -> RendererFactory:
    """What makes the renderer of that name; ConfigurationError where nothing does."""
    if ":" in name:
        return _imported(name)
    if name not in _registry:
        near = difflib.get_close_matches(name, _registry, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        if name.startswith(_LEFT_OUT):  # the nearest name would be another format
            hint = " (renderer_name=template writes what the tokenizer's own chat template writes)"
        raise ConfigurationError(
            f"renderer_name={name!r} is not a registered renderer{hint}"
            f"; registered: {', '.join(get_registered_renderer_names())}. "
            "Others can be added with tinker_cookbook.renderers.register_renderer"
        )
    return _registry[name]


def _imported(name: str) -> RendererFactory:
    module_name, _, attribute = name.partition(":")
    try:
        made_by = attrgetter(attribute)(importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"renderer_name={name}: cannot be imported: {error}") from error
    if isinstance(made_by, type) and issubclass(made_by, Renderer):
        return lambda tokenizer, _: made_by(tokenizer)
    if not callable(made_by):
        raise ConfigurationError(
            f"renderer_name={name}: expected a class derived from Renderer, or a function of "
            f"(tokenizer, image processor) that makes one, found {made_by!r:.60}"
        )
    return cast(RendererFactory, made_by)


def get_renderer(
    name: str,
    tokenizer: Tokenizer,
    image_processor: Any = None,
    model_name: str | None = None,
) -> Renderer:
    """The renderer of that name over a tokenizer. ConfigurationError, with the names there are.

    `name`: a registered one, or module:Name of a Renderer class or of a RendererFactory.
    `model_name` is what pickling remembers; by default the name the tokenizer was loaded by.
    """
    factory = renderer_factory(name)
    renderer = factory(tokenizer, image_processor)
    model_name = model_name or getattr(tokenizer, "name_or_path", None)
    renderer.origin = Origin(name, model_name) if model_name else None
    renderer.remake = renderer_from_origin
    return renderer


def renderer_from_origin(origin: Origin) -> Renderer:
    """What unpickling calls."""
    return get_renderer(
        origin.renderer_name, get_tokenizer(origin.model_name), model_name=origin.model_name
    )
