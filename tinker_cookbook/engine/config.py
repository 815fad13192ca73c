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
    tokens_per_pass: int | None = chz.field(
        default=None,
        doc="tokens that pass through the model at once (training, prefill); memory grows with it;"
        " rows that share a beginning stay together up to twice as many; None: 2048 on a CPU,"
        " 16384 on a GPU, less where memory is short",
    )
    checkpointing: Literal["auto", "always", "never"] = chz.field(
        default="auto",
        doc="activation checkpointing: a third more time, much less memory; auto: pass by pass,"
        " where memory would not suffice",
    )
    head_chunk: int = chz.field(
        default=256, doc="tokens whose logits over the vocabulary exist at once"
    )
    kv_tokens: int | None = chz.field(
        default=None,
        doc="tokens of keys and values that sampling may hold at once; None: 65536 on a CPU,"
        " 524288 on a GPU, less where memory is short",
    )
    prefix_tokens: int | None = chz.field(
        default=None,
        doc="of kv_tokens, those that may stay with prompts and samples that are finished, for"
        " requests that begin with the same tokens; None: a quarter; 0: none",
    )
    adapter_gib: float | None = chz.field(
        default=None,
        doc="GiB for adapters in training with their gradients and optimizers; beyond it idle ones"
        " are parked, a GPU's in CPU memory, a CPU's on disk; as many for adapters being sampled"
        " from, which are not parked but refused; None: a quarter of what is free",
    )
    max_rows: int = chz.field(default=256, doc="sequences that are decoded at once")
    deterministic: bool = chz.field(
        default=False,
        doc="a sampling request with a seed gets the same bits whatever runs beside it (slower)",
    )

    @chz.validate
    def _positive(self) -> None:
        for key in ("tokens_per_pass", "head_chunk", "kv_tokens", "max_rows"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigurationError(f"engine.{key}={value} must be at least 1")
        if self.adapter_gib is not None and not self.adapter_gib > 0:
            raise ConfigurationError(f"engine.adapter_gib={self.adapter_gib} must be above 0")
        if self.prefix_tokens is not None and self.prefix_tokens < 0:
            raise ConfigurationError(
                f"engine.prefix_tokens={self.prefix_tokens} must be at least 0; 0 keeps nothing"
            )
