"""Facts about a model from its configuration files, without loading the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_cookbook.engine.requests import ModelFacts

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def model_facts(path: str, config: PretrainedConfig) -> ModelFacts:
    """Facts about the model at this path or hub name; `config` is its config.json."""
    return ModelFacts(
        model_type=config.model_type,
        context_length=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        eos_tokens=_eos_tokens(path, config),
        tied=bool(config.tie_word_embeddings),
    )


def _eos_tokens(path: str, config: PretrainedConfig) -> frozenset[int]:
    """End-of-text tokens of generation_config.json, or else of config.json."""
    from transformers import GenerationConfig

    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # the model has no generation_config.json
        eos = None
    if eos is None:
        eos = config.eos_token_id
    if eos is None:
        return frozenset()
    # Some files list ids outside the vocabulary, which can never be sampled.
    tokens = [eos] if isinstance(eos, int) else eos
    return frozenset(token for token in tokens if 0 <= token < config.vocab_size)
