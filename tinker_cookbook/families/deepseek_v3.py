"""DeepSeek-V3: latent attention (MLA), grouped experts plus a shared one, first layers dense."""

from __future__ import annotations

from tinker_cookbook.families.family import (
    CHOSEN_EXPONENT,
    PLAIN_TRANSCRIPT,
    ChatFormat,
    Family,
    ModelInfo,
    published,
)

_RENDERERS = ("deepseekv3", "deepseekv3_disable_thinking", "deepseekv3_thinking")


def _model(name: str, renderers: tuple[str, ...]) -> ModelInfo:
    return published(
        f"deepseek-ai/{name}",
        "deepseek_v3",
        "3",
        "671B-A37B",
        7168,
        131_072,
        renderers,
        CHOSEN_EXPONENT,
    )


DEEPSEEK_V3 = Family(
    name="deepseek_v3",
    title="DeepSeek-V3.1",
    model_type="deepseek_v3",
    models=(_model("DeepSeek-V3.1", _RENDERERS), _model("DeepSeek-V3.1-Base", PLAIN_TRANSCRIPT)),
    tinker_names={"DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3.1"},
    exponent=CHOSEN_EXPONENT,
    attention_layers=(
        "q_proj",  # smaller relatives have it instead of q_a_proj and q_b_proj
        "o_proj",
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
    ),
    experts=True,
    attention=("latent",),
    norm="DeepseekV3RMSNorm",
    mlp="DeepseekV3MLP",
    unreadable="8-bit weights in blocks that do not evenly divide every layer",
    # The templates of V3 and R1 lack this string: they use another format.
    chat_formats=(ChatFormat(_RENDERERS, has=("<｜Assistant｜></think>",)),),
)
