"""The registry of renderers by name, to which users can add their own.

    register_renderer("my_format", lambda tokenizer, image_processor: MyRenderer(tokenizer))

On a command line, a renderer can be given by module and name without registering it:
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
# Prefixes of renderer names that other cookbooks have and that are not supported here.
_UNSUPPORTED_PREFIXES = (
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
    """Make `renderer_name=name` work in this process, replacing an earlier registration.

    Raises ConfigurationError for the name of a built-in renderer. Other processes (data workers)
    must register it too: a pickled renderer holds only its names.
    """
    if name in _BUILT_IN:
        raise ConfigurationError(f"renderer name {name!r} is built in; choose another name")
    _registry[name] = factory


def unregister_renderer(name: str) -> None:
    """Remove a registered renderer. Raises ConfigurationError if it is unknown or built in."""
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
    """The factory of a renderer. Raises ConfigurationError for an unknown name."""
    if ":" in name:
        return _import_factory(name)
    if name not in _registry:
        near = difflib.get_close_matches(name, _registry, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        if name.startswith(_UNSUPPORTED_PREFIXES):  # the closest name is a different format
            hint = " (renderer_name=template uses the tokenizer's own chat template)"
        raise ConfigurationError(
            f"renderer_name={name!r} is not a registered renderer{hint}"
            f"; registered: {', '.join(get_registered_renderer_names())}. "
            "Add others with tinker_cookbook.renderers.register_renderer"
        )
    return _registry[name]


def _import_factory(name: str) -> RendererFactory:
    module_name, _, attribute = name.partition(":")
    try:
        factory = attrgetter(attribute)(importlib.import_module(module_name))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"renderer_name={name}: cannot be imported: {error}") from error
    if isinstance(factory, type) and issubclass(factory, Renderer):
        return lambda tokenizer, _: factory(tokenizer)
    if not callable(factory):
        raise ConfigurationError(
            f"renderer_name={name}: expected a subclass of Renderer, or a function of "
            f"(tokenizer, image processor) that returns one, found {factory!r:.60}"
        )
    return cast(RendererFactory, factory)


def get_renderer(
    name: str,
    tokenizer: Tokenizer,
    image_processor: Any = None,
    model_name: str | None = None,
) -> Renderer:
    """Create the renderer `name` for a tokenizer.

    `name`: a registered name, or module:Name of a Renderer class or a RendererFactory.
    `model_name`: the model whose tokenizer unpickling loads; by default the name that the tokenizer
    was loaded by. Raises ConfigurationError, with the known names, for an unknown name.
    """
    factory = renderer_factory(name)
    renderer = factory(tokenizer, image_processor)
    model_name = model_name or getattr(tokenizer, "name_or_path", None)
    renderer.origin = Origin(name, model_name) if model_name else None
    renderer.remake = renderer_from_origin
    return renderer


def renderer_from_origin(origin: Origin) -> Renderer:
    """Create a renderer again when it is unpickled."""
    return get_renderer(
        origin.renderer_name, get_tokenizer(origin.model_name), model_name=origin.model_name
    )
