"""Settings of the engine: not what is computed, but where, how precisely, how much at once."""

from __future__ import annotations

from typing import Literal

import chz

from tinker_cookbook.exceptions import ConfigurationError


@chz.chz
class EngineConfig:
    device: str = chz.field(
        default="auto",
        doc='torch device, e.g. "cpu" or "cuda:0"; "auto" takes the GPU if there is one',
    )
    dtype: Literal["auto", "float32", "bfloat16"] = chz.field(
        default="auto",
        doc='precision of the base model; "auto": float32 below 50 M parameters, else bfloat16',
    )
    tokens_per_pass: int = chz.field(
        default=8192,
        doc="tokens that pass through the model at once (training, prefill); memory grows with it",
    )
    head_chunk: int = chz.field(
        default=256, doc="tokens whose logits over the vocabulary exist at once"
    )
    kv_tokens: int = chz.field(
        default=65536, doc="tokens of key/value cache that sampling may hold at once"
    )
    prefix_tokens: int = chz.field(
        default=16384,
        doc="of kv_tokens, those that may stay with prompts and samples that are finished, for"
        " requests that begin with the same tokens; 0: none",
    )
    max_rows: int = chz.field(default=256, doc="sequences that are decoded at once")
    packed_weights: bool = chz.field(
        default=True,
        doc="bfloat16 on a CPU: sampling keeps a second copy of the model's weights in the layout"
        " of the kernels; the same bits, faster, twice the memory of the weights",
    )
    deterministic: bool = chz.field(
        default=False,
        doc="a sampling request with a seed gets the same bits whatever runs beside it (slower)",
    )

    @chz.validate
    def _positive(self) -> None:
        for key in ("tokens_per_pass", "head_chunk", "kv_tokens", "max_rows"):
            value = getattr(self, key)
            if value < 1:
                raise ConfigurationError(f"engine.{key}={value} must be at least 1")
        if self.prefix_tokens < 0:
            raise ConfigurationError(
                f"engine.prefix_tokens={self.prefix_tokens} must be at least 0; 0 keeps nothing"
            )
