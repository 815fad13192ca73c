"""Common to all contestants: model, batch, optimizer settings, matrix-product peak, FLOPs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinker_cookbook import models
from tinker_cookbook.utils.misc_utils import runs_path

MODEL_150M = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
ADAM = {
    "lr": 1e-4,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.0,
}  # the same for every contestant


# -- the batch


@dataclass
class Batch:
    """Sequences of token ids.

    RL: the first `prompt` tokens are the prompt; the rest were sampled with `logprobs`, and each
    sequence has an advantage. SFT (prompt 0): every token but the first has a loss.
    """

    sequences: list[list[int]]
    prompt: int = 0
    logprobs: list[list[float]] | None = None
    advantages: list[float] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens without padding, the basis of tokens/s."""
        return sum(map(len, self.sequences))

    @property
    def first(self) -> int:
        """Position of the first token with a loss."""
        return max(self.prompt, 1)

    @property
    def loss_tokens(self) -> int:
        return sum(len(sequence) - self.first for sequence in self.sequences)

    def write(self, path: Path) -> str:
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    @classmethod
    def read(cls, path: str) -> Batch:
        return cls(**json.loads(Path(path).read_text()))


def random_sequences(lengths: Sequence[int], vocab_size: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def evenly_spaced_lengths(shortest: int, longest: int, count: int) -> list[int]:
    """`count` evenly spaced lengths from the shortest to the longest."""
    return np.linspace(shortest, longest, count).round().astype(int).tolist()


# -- the model


def model_path(model: str) -> str:
    """The argument for `from_pretrained`; creates the 150 M model if it does not exist."""
    if model != "150m":
        return models.load_path(model)
    path = runs_path("cache", "bench-150m")
    if not (path / "config.json").exists():
        make_model(MODEL_150M, path)
    return str(path)


def make_model(config: dict[str, Any], path: Path, dtype: str = "bfloat16") -> None:
    """Create a Qwen3 with random weights; a rename at the end makes it atomic."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(**config, pad_token_id=0), dtype=getattr(torch, dtype)
    )
    scratch = path.with_name(f".{path.name}.tmp")
    model.save_pretrained(scratch)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch.rename(path)


def shape_of(path: str, rank: int) -> dict[str, int]:
    """Sizes of a dense model and of an adapter on all its linear layers but the unembedding."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    adapted = [module for name, module in linear.items() if name != "lm_head"]
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return {
        "parameters": model.num_parameters(),
        "linear_parameters": sum(module.weight.numel() for module in linear.values()),
        "lora_parameters": rank * sum(m.in_features + m.out_features for m in adapted),
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "layers": config.num_hidden_layers,
        "attention_width": heads * head_size,
    }


# -- yardsticks


class MatrixProduct:
    """The peak of the machine for matrix products in the model's dtype, in TFLOP/s."""

    def __init__(self, dtype: str, device: str, size: int) -> None:
        import torch

        self.torch = torch
        shape = (size, size)
        self.a = torch.randn(shape, device=device).to(getattr(torch, dtype))
        self.b = torch.randn(shape, device=device).to(getattr(torch, dtype))
        self.measure()

    def measure(self, repeats: int = 3) -> dict[str, float]:
        best = float("inf")
        for _ in range(repeats):
            started = time.perf_counter()
            _ = self.a @ self.b
            if self.a.is_cuda:
                self.torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        return {"tflops": 2 * len(self.a) ** 3 / best / 1e12}


def training_flops(facts: dict[str, Any], lengths: Sequence[int], prefix: int = 0) -> float:
    """Model FLOPs of forward and backward over sequences whose shared prefix is computed once.

    Per token: 4 per weight of the linear layers and the unembedding (2 forward, 2 for the gradient
    of the activations; frozen weights have no gradient), and 6 per weight of the adapter.
    Attention: each query attends to the keys up to its own position; 4 * heads * head size per pair
    forward (scores and values), twice that backward.
    """
    tokens, pairs = _tokens_and_attention_pairs(lengths, prefix)
    dense = 4 * facts["linear_parameters"] + 6 * facts["lora_parameters"]
    return dense * tokens + 12 * facts["attention_width"] * facts["layers"] * pairs


def forward_flops(facts: dict[str, Any], lengths: Sequence[int], prefix: int = 0) -> float:
    """Model FLOPs of a forward pass of the base model over such sequences."""
    tokens, pairs = _tokens_and_attention_pairs(lengths, prefix)
    attention = 4 * facts["attention_width"] * facts["layers"] * pairs
    return 2 * facts["linear_parameters"] * tokens + attention


def _tokens_and_attention_pairs(lengths: Sequence[int], prefix: int) -> tuple[int, float]:
    own = [length - prefix for length in lengths]
    return sum(own) + prefix, prefix**2 / 2 + sum(n * prefix + n**2 / 2 for n in own)


def sampling_flops(
    facts: dict[str, Any], prompts: Sequence[int], samples: int, tokens: int
) -> float:
    """Model FLOPs of one prefill per prompt and `samples` completions of `tokens` tokens each."""
    generated = len(prompts) * samples * tokens
    dense = 2 * (facts["linear_parameters"] + facts["lora_parameters"])
    pairs = sum(p**2 / 2 + samples * (p * tokens + tokens**2 / 2) for p in prompts)
    attention = 4 * facts["attention_width"] * facts["layers"] * pairs
    return dense * (sum(prompts) + generated) + attention
