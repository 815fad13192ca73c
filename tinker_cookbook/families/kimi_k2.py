"""Kimi-K2: DeepSeek-V3 with other sizes, under a `model_type` that transformers does not know."""

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

# The format of the thinking model: the others' replies have no think block
_RENDERERS = ("kimi_k2",)


def _row(kind: str, context_length: int, renderers: tuple[str, ...]) -> ModelInfo:
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
        _row("Base", 131_072, PLAIN_TRANSCRIPT),
        _row("Instruct", 131_072, OWN_TEMPLATE),
        _row("Instruct-0905", 262_144, OWN_TEMPLATE),
        _row("Thinking", 262_144, _RENDERERS),
    ),
    tinker_names={},
    unreadable="8-bit weights in blocks that do not divide every layer, or 4-bit ones (Thinking)",
    chat_formats=(ChatFormat(_RENDERERS, has=("<|im_middle|>", "<think>")),),
    note="""\
The published tokenizer of these models is Python code among their files, which does not run
unasked. Where you trust it, set `TINKER_COOKBOOK_TRUST_REMOTE_CODE=1` in the environment; or give
another tokenizer in Python, with `tokenizer_utils.register_tokenizer(model_name, factory)`.""",
)
