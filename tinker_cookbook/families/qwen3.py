"""Qwen3, the dense models: norms on queries and keys, no biases."""

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
_CODER = "<function="  # Qwen3-Coder writes calls in another form
CHAT_FORMATS = (
    ChatFormat(HYBRID, has=("<|im_start|>", "enable_thinking"), lacks=(_CODER,)),
    ChatFormat(THINKING, has=("<|im_start|>", "<think>"), lacks=(_CODER,)),
    ChatFormat(INSTRUCT, has=("<|im_start|>",), lacks=(_CODER,)),
)
# A chat model ends its turns with <|im_end|>, a base model its documents with this. That is in the
# files, while a directory's name is up to who made it (checkpoint-500, a snapshot of the cache).
BASE_END_TOKEN = "<|endoftext|>"
NOTE = """\
`Thinking-2507`: the models' own template opens the reply's reasoning in the prompt, which ends in
`<think>` and a newline. `qwen3` leaves these to the model, so its prompt is shorter by them, and in
training they are a part of the reply. `renderer_name=template` follows the template."""


def models(
    family: str, sizes: Mapping[str, int], bases: Sequence[str], of_july: Sequence[str]
) -> tuple[ModelInfo, ...]:
    """The rows of one family: `sizes` -> hidden size, those with a base model, and those that came
    again in July 2025, as two models."""

    def row(size: str, suffix: str, renderers: tuple[str, ...], context: int) -> ModelInfo:
        name = f"Qwen/Qwen3-{size}{suffix}"
        return published(name, family, "3", size, sizes[size], context, renderers, QWEN_EXPONENT)

    return (
        *(row(size, "", HYBRID, 40_960) for size in sizes),
        *(row(size, "-Base", PLAIN_TRANSCRIPT, 32_768) for size in bases),
        *(row(size, "-Instruct-2507", INSTRUCT, 262_144) for size in of_july),
        *(row(size, "-Thinking-2507", THINKING, 262_144) for size in of_july),
    )


def tinker_names(of_july: Sequence[str]) -> Mapping[str, str]:
    names = (f"Qwen/Qwen3-{size}-Instruct" for size in of_july)
    return {name: f"{name}-2507" for name in names}


_BASES = ("0.6B", "1.7B", "4B", "8B", "14B")
_SIZES = {"0.6B": 1024, "1.7B": 2048, "4B": 2560, "8B": 4096, "14B": 5120, "32B": 5120}

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    model_type="qwen3",
    models=models("qwen3", _SIZES, _BASES, ("4B",)),
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
