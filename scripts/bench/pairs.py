"""Batches of preference pairs as token ids: random ones, or real ones rendered for a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from basis import forward_flops, random_sequences, training_flops

from tinker_cookbook import model_info
from tinker_cookbook.preference.dpo_datasets import DPODatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import HubComparisons
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig


@dataclass
class Pairs:
    """Each prompt with a chosen and a rejected reply."""

    prompts: list[list[int]]
    chosen: list[list[int]]
    rejected: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt with a reply: chosen, rejected, chosen, rejected, ..."""
        triples = zip(self.prompts, self.chosen, self.rejected)
        return [len(prompt) + len(reply) for prompt, *replies in triples for reply in replies]

    @property
    def tokens(self) -> int:
        """Number of tokens, the basis of tokens/s: a prompt counts once per reply."""
        return sum(self.lengths)

    def flops(self, facts: dict[str, int], shared: bool, reference: bool) -> float:
        """Model FLOPs of a training step, plus a forward pass with `reference`.

        shared: the prompt of a pair is computed once.
        """
        total = 0.0
        for index, prompt in enumerate(self.prompts):
            lengths = self.lengths[2 * index : 2 * index + 2]
            prefix = len(prompt) if shared else 0
            total += training_flops(facts, lengths, prefix)
            total += forward_flops(facts, lengths, prefix) if reference else 0
        return total

    def write(self, path: Path) -> str:
        path.write_text(json.dumps(asdict(self)))
        return str(path)

    @classmethod
    def read(cls, path: str) -> Pairs:
        return cls(**json.loads(Path(path).read_text()))


def random_pairs(prompts: Sequence[int], replies: Sequence[int], vocab_size: int) -> Pairs:
    """Random tokens. replies: two lengths per prompt; they are shuffled."""
    drawn = random_sequences(replies, vocab_size, seed=2)
    np.random.default_rng(3).shuffle(drawn)  # type: ignore[arg-type]
    return Pairs(random_sequences(prompts, vocab_size, seed=1), drawn[::2], drawn[1::2])


def rendered_pairs(dataset: str, model: str, count: int, max_length: int) -> Pairs:
    """The first `count` pairs of a data set in shuffled order, with the model's chat template."""
    common = ChatDatasetBuilderCommonConfig(
        model_name_for_tokenizer=model,
        renderer_name=model_info.get_recommended_renderer_name(model),
        max_length=max_length,
        batch_size=count,
    )
    builder = DPODatasetBuilderFromComparisons(
        common_config=common, comparison_builder=HubComparisons(path=dataset)
    )
    train, _ = builder()
    sequences = [from_datum(datum) for datum in train.get_batch(0)]
    starts = [int(np.flatnonzero(sequence.loss_mask)[0]) for sequence in sequences]
    tokens = [sequence.tokens.tolist() for sequence in sequences]
    replies = [each[start:] for each, start in zip(tokens, starts)]
    prompts = [each[:start] for each, start in zip(tokens[::2], starts[::2])]
    return Pairs(prompts, replies[::2], replies[1::2])
