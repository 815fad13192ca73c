"""What a model's files say of it, without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_cookbook.engine.requests import ModelFacts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_facts(path: str, config: PretrainedConfig) -> ModelFacts:
    """Of the model at this path or hub name, whose config.json has been read."""
    return ModelFacts(
        model_type=config.model_type,
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        eos_tokens=_eos_tokens(path, config),
        tied=bool(config.tie_word_embeddings),
    )


def _eos_tokens(path: str, config: PretrainedConfig) -> frozenset[int]:
    """Those that generation_config.json names, else config.json; of them, the ones that the model
    has."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # there is no such file
        eos = None
    if eos is None:
        eos = config.eos_token_id
    if eos is None:
        return frozenset()
    named = [eos] if isinstance(eos, int) else eos
    return frozenset(token for token in named if 0 <= token < config.vocab_size)
