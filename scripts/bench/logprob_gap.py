"""How far the sampler's logprobs are from the trainer's, and both from a float32 model.

    ./scripts/bench/run logprob_gap model=DIRECTORY         e.g. that of scripts/real_model
    ./scripts/bench/run logprob_gap                         the random model of 150 M parameters

Replies are sampled at temperature 1 from the base model, decoded together, and scored by one
training forward. gap: |sampler - trainer| in nats per token, mean and largest. KL: the mean of
exp(d) - 1 - d with d = trainer - sampler, an estimate of KL(sampler || trainer) per token (Schulman
2020, http://joschu.net/blog/kl-approx.html). distance: mean |trainer - float32| on the same tokens.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import basis
import chz
import numpy as np
from rich.console import Console
from rich.table import Table

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.engine.base_model import BaseModel
from tinker_cookbook.engine.config import EngineConfig
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import SampleRequest, TrainSequence
from tinker_cookbook.engine.testing import sample_all
from tinker_cookbook.engine.torch_sampler import TorchSampler
from tinker_cookbook.engine.trainer import AdapterTrainer
from tinker_cookbook.tokenizer_utils import get_tokenizer

QUESTIONS = (
    "What is the capital of France?",
    "Tom has 12 apples and gives 5 to Anna. How many apples are left?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
)


@chz.chz
class Config:
    model: str = chz.field(default="150m", doc='"150m": a random Qwen3; or a name or directory')
    samples: int = chz.field(default=4, doc="replies per question")
    tokens: int = chz.field(default=48, doc="tokens per reply at most")
    seed: int = chz.field(default=0, doc="seed of the replies")


class Measure(NamedTuple):
    name: str
    engine: EngineConfig


MEASURES = (
    Measure("bf16", EngineConfig(dtype="bfloat16", exact_logits=0, float32_residual=False)),
    Measure(
        "bf16, exact_logits",
        EngineConfig(dtype="bfloat16", exact_logits=32, float32_residual=False),
    ),
    Measure(
        "bf16, exact_logits, float32_residual",
        EngineConfig(dtype="bfloat16", exact_logits=32, float32_residual=True),
    ),
    Measure("fp32", EngineConfig(dtype="float32")),
)


class Scores(NamedTuple):
    """sampled, trained: logprobs [N] of all sampled tokens. rows: the sequences. starts: the index
    of the first sampled token among the targets of each. seconds: of sampling."""

    sampled: np.ndarray
    trained: np.ndarray
    rows: list[TrainSequence]
    starts: list[int]
    seconds: float


def main(config: Config) -> None:
    path = basis.model_path(config.model)
    reference = _trainer(path, MEASURES[-1])
    table = Table("", "gap, mean", "gap, max", "KL", "distance to fp32", "tokens/s")
    for measure in MEASURES:
        scores = _score(_trainer(path, measure), _prompts(path, config.model), config)
        d = scores.trained - scores.sampled
        distance = np.abs(scores.trained - _logprobs(reference, scores.rows, scores.starts))
        table.add_row(
            measure.name,
            f"{np.abs(d).mean():.4f}",
            f"{np.abs(d).max():.3f}",
            f"{(np.exp(d) - 1 - d).mean():.2e}",
            f"{distance.mean():.4f}",
            f"{len(d) / scores.seconds:.0f}",
        )
    Console(width=110).print(table)


def _trainer(path: str, measure: Measure) -> AdapterTrainer:
    return AdapterTrainer(BaseModel(path, measure.engine), LoraSpec(rank=1))


def _prompts(path: str, model: str) -> list[np.ndarray]:
    if model == "150m":  # it has no tokenizer
        rng = np.random.default_rng(0)
        return [rng.integers(0, 32_000, 40) for _ in QUESTIONS]
    tokenizer = get_tokenizer(path)
    return [
        np.array(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
        )
        for question in QUESTIONS
    ]


def _score(trainer: AdapterTrainer, prompts: list[np.ndarray], config: Config) -> Scores:
    sampler = TorchSampler(trainer.base, EngineConfig())
    requests = [
        SampleRequest(
            prompt, num_samples=config.samples, max_tokens=config.tokens, seed=config.seed
        )
        for prompt in prompts
    ]
    started = time.perf_counter()
    results = sample_all(sampler, requests, trainer.adapter)
    seconds = time.perf_counter() - started
    rows, starts, sampled = [], [], []
    for prompt, result in zip(prompts, results, strict=True):
        for reply in result.sequences:
            text = np.concatenate([prompt, reply.tokens]).astype(np.int64)
            weights = np.ones(len(text) - 1, np.float32)
            rows.append(TrainSequence(text[:-1], text[1:], {"weights": weights}))
            starts.append(len(prompt) - 1)
            sampled += reply.logprobs
    return Scores(np.array(sampled), _logprobs(trainer, rows, starts), rows, starts, seconds)


def _logprobs(trainer: AdapterTrainer, rows: list[TrainSequence], starts: list[int]) -> np.ndarray:
    logprobs = trainer.forward(rows, "cross_entropy", None).logprobs
    return np.concatenate([each[start:] for each, start in zip(logprobs, starts, strict=True)])


if __name__ == "__main__":
    cli(main, Config)
