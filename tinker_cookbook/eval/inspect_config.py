"""Inspect's generation settings: which of them our models follow; all others are refused."""

from __future__ import annotations

from inspect_ai.model import GenerateConfig

from tinker_cookbook.exceptions import ConfigurationError

CACHE_REASON = "Inspect's cache does not tell checkpoints of a model apart"

# Those that `generate` follows, and those that Inspect itself acts on before or after it.
_SUPPORTED = {
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_seqs",
    "seed",
    "num_choices",
    "logprobs",
    "top_logprobs",
    "max_retries",
    "timeout",
    "attempt_timeout",
    "stream_idle_timeout",
    "max_connections",
    "adaptive_connections",
    "system_message",
    "max_tool_output",
    "internal_tools",
    "cache_prompt",
    "reasoning_history",
    "fail_on_refusal",
}
# Values of other settings that change nothing, which some tasks set.
_WITHOUT_EFFECT = {
    "cache": (False,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "best_of": (1,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "batch": (False,),
    "extra_headers": ({},),
    "extra_body": ({},),
    "reasoning_effort": ("none",),
}
_REASON = {
    "cache": CACHE_REASON,
    "reasoning_effort": "choose a renderer with or without reasoning by renderer_name",
    "effort": "choose a renderer with or without reasoning by renderer_name",
    "reasoning_tokens": "limit the whole reply by max_tokens",
    "response_schema": "the sampler has no constrained decoding",
    "batch": "requests are batched without it",
}


def check_config(config: GenerateConfig) -> None:
    """Raise ConfigurationError for a setting that would be ignored, or is out of its range."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        if value is None or key in _SUPPORTED or value in _WITHOUT_EFFECT.get(key, ()):
            continue
        hint = f" ({_REASON[key]})" if key in _REASON else ""
        raise ConfigurationError(f"{key}={value!r} is not supported by tinker-cookbook{hint}")
    if config.top_logprobs and not config.logprobs:
        raise ConfigurationError(f"top_logprobs={config.top_logprobs} needs logprobs=true")
    if config.num_choices is not None and config.num_choices < 1:
        raise ConfigurationError(f"num_choices={config.num_choices}: expected 1 or more")
    if config.max_tokens is not None and config.max_tokens < 1:
        raise ConfigurationError(f"max_tokens={config.max_tokens}: expected 1 or more")
    if "" in (config.stop_seqs or ()):
        raise ConfigurationError("stop_seqs contains an empty string, which would stop at once")
