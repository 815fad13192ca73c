"""gpt-oss: attention sinks, sliding windows in every other layer, biases, clamped-swish experts."""

from __future__ import annotations

from tinker_cookbook.families.family import CHOSEN_EXPONENT, ChatFormat, Family, published

_RENDERERS = (
    "gpt_oss_no_sysprompt",
    "gpt_oss_low_reasoning",
    "gpt_oss_medium_reasoning",
    "gpt_oss_high_reasoning",
)

GPT_OSS = Family(
    name="gpt_oss",
    title="gpt-oss",
    model_type="gpt_oss",
    models=tuple(
        published(
            f"openai/gpt-oss-{name}",
            "gpt_oss",
            "1",
            size,
            2880,
            131_072,
            _RENDERERS,
            CHOSEN_EXPONENT,
        )
        for name, size in (("20b", "21B-A3.6B"), ("120b", "117B-A5.1B"))
    ),
    exponent=CHOSEN_EXPONENT,
    experts=True,
    attention=("sinks", "sliding_window"),
    # No norm and mlp: its norm multiplies by the weight before rounding, and its experts compute
    # another product than silu(gate) * up.
    chat_formats=(ChatFormat(_RENDERERS, has=("<|channel|>",)),),
)
