"""Kimi-K2: the DeepSeek-V3 architecture under a `model_type` that transformers does not know."""

from __future__ import annotations

from dataclasses import replace

from tinker_cookbook.families.deepseek_v3 import DEEPSEEK_V3
from tinker_cookbook.families.family import (
    CHOSEN_EXPONENT,
    OWN_TEMPLATE,
    PLAIN_TRANSCRIPT,
    ChatFormat,
    ModelInfo,
    published,
)

# Only the thinking model uses this format: replies of the other models have no think block.
_RENDERERS = ("kimi_k2",)


def _model(kind: str, context_length: int, renderers: tuple[str, ...]) -> ModelInfo:
    return published(
        f"moonshotai/Kimi-K2-{kind}",
        "kimi_k2",
        "K2",
        "1T-A32B",
        7168,
        context_length,
        renderers,
        CHOSEN_EXPONENT,
    )


KIMI_K2 = replace(
    DEEPSEEK_V3,
    name="kimi_k2",
    title="Kimi-K2",
    model_type="kimi_k2",
    transformers_type="deepseek_v3",
    models=(
        _model("Base", 131_072, PLAIN_TRANSCRIPT),
        _model("Instruct", 131_072, OWN_TEMPLATE),
        _model("Instruct-0905", 262_144, OWN_TEMPLATE),
        _model("Thinking", 262_144, _RENDERERS),
    ),
    tinker_names={},
    unreadable="8-bit weights in blocks that do not evenly divide every layer, or 4-bit weights"
    " (Thinking)",
    chat_formats=(ChatFormat(_RENDERERS, has=("<|im_middle|>", "<think>")),),
    note="""\
The published tokenizer of these models is Python code in their repositories, which does not run by
default. If you trust it, set `TINKER_COOKBOOK_TRUST_REMOTE_CODE=1` in the environment. Otherwise
register another tokenizer in Python: `tokenizer_utils.register_tokenizer(model_name, factory)`.""",
)
