"""Qwen3, dense: norms on queries and keys, no biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tinker_cookbook.families.family import (
    PLAIN_TRANSCRIPT,
    QWEN_EXPONENT,
    ChatFormat,
    Family,
    ModelInfo,
    published,
)

HYBRID = ("qwen3", "qwen3_disable_thinking")
INSTRUCT = ("qwen3_instruct",)
THINKING = ("qwen3",)
_CODER = "<function="  # Qwen3-Coder, which writes tool calls in another format
CHAT_FORMATS = (
    ChatFormat(HYBRID, has=("<|im_start|>", "enable_thinking"), lacks=(_CODER,)),
    ChatFormat(THINKING, has=("<|im_start|>", "<think>"), lacks=(_CODER,)),
    ChatFormat(INSTRUCT, has=("<|im_start|>",), lacks=(_CODER,)),
)
# The files of base models contain the chat template too. They differ in the end-of-sequence token:
# <|im_end|> for chat models, this for base models. The name of a directory is no evidence, as it
# can be anything (checkpoint-500, a snapshot in the hub's cache).
BASE_END_TOKEN = "<|endoftext|>"
NOTE = """\
`Thinking-2507`: the chat template of these models puts the opening `<think>` and a newline at the
end of the prompt. The `qwen3` renderer leaves these to the model: they are part of the reply, and
trained. `renderer_name=template` follows the template."""


def build_models(
    family: str, sizes: Mapping[str, int], bases: Sequence[str], july_2025: Sequence[str]
) -> tuple[ModelInfo, ...]:
    """The published models of one family.

    sizes: size -> hidden size. bases: sizes with a base model. july_2025: sizes that were released
    again in July 2025, as separate Instruct and Thinking models.
    """

    def build(size: str, suffix: str, renderers: tuple[str, ...], context: int) -> ModelInfo:
        name = f"Qwen/Qwen3-{size}{suffix}"
        return published(name, family, "3", size, sizes[size], context, renderers, QWEN_EXPONENT)

    return (
        *(build(size, "", HYBRID, 40_960) for size in sizes),
        *(build(size, "-Base", PLAIN_TRANSCRIPT, 32_768) for size in bases),
        *(build(size, "-Instruct-2507", INSTRUCT, 262_144) for size in july_2025),
        *(build(size, "-Thinking-2507", THINKING, 262_144) for size in july_2025),
    )


def tinker_names(july_2025: Sequence[str]) -> Mapping[str, str]:
    names = (f"Qwen/Qwen3-{size}-Instruct" for size in july_2025)
    return {name: f"{name}-2507" for name in names}


_BASES = ("0.6B", "1.7B", "4B", "8B", "14B")
_SIZES = {"0.6B": 1024, "1.7B": 2048, "4B": 2560, "8B": 4096, "14B": 5120, "32B": 5120}

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    model_type="qwen3",
    models=build_models("qwen3", _SIZES, _BASES, ("4B",)),
    tinker_names=tinker_names(("4B",)),
    exponent=QWEN_EXPONENT,
    relatives=("qwen",),
    attention=("sliding_window",),
    norm="Qwen3RMSNorm",
    mlp="Qwen3MLP",
    chat_formats=CHAT_FORMATS,
    base_end_token=BASE_END_TOKEN,
    note=NOTE,
)
