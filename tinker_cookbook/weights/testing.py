"""Helpers for tests of exports: trained checkpoints, and logprobs by our engine and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import tinker
import torch
from tinker import types

from tinker_cookbook.service import EngineConfig, connect

TOKENS = [5, 17, 200, 33, 81, 6, 299, 14, 3, 120, 77, 250, 41, 9, 180, 66]
ENGINE = EngineConfig(device="cpu", dtype="float32")


def train(model: str, steps: int = 2, **keys: Any) -> str:
    """Train an adapter on TOKENS, with steps large enough to matter; returns its tinker:// path."""
    client = connect(engine=ENGINE).create_lora_training_client(
        base_model=model, **{"rank": 4, "seed": 1, **keys}
    )
    tokens = np.array(TOKENS)
    weights = np.random.default_rng(3).normal(size=len(tokens) - 1).astype(np.float32)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs=cast(Any, {"target_tokens": tokens[1:], "weights": weights}),
    )
    for _ in range(steps):
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=0.05)).result()
    return client.save_weights_for_sampler("x").result().path


def our_logprobs(path: str | None = None, base_model: str | None = None) -> np.ndarray:
    """Logprobs of TOKENS[1:] by our engine."""
    client = connect(engine=ENGINE).create_sampling_client(model_path=path, base_model=base_model)
    return np.array(client.compute_logprobs(tinker.ModelInput.from_ints(TOKENS)).result()[1:])


def load_model(directory: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model, with plain Python for its experts."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, experts_implementation="eager"
    )


@torch.no_grad()
def model_logprobs(model: Any) -> np.ndarray:
    logits = model(torch.tensor([TOKENS])).logits[0, :-1].log_softmax(-1)
    return logits.gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0].numpy()
