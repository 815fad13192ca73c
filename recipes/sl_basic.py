"""Supervised fine-tuning, the first recipe: nano learns to write numbers in words.

    ./scripts/run recipes.sl_basic                                    nano, no key needed
    ./scripts/run recipes.sl_basic dataset_path=my.jsonl              your conversations
    ./scripts/run recipes.sl_basic model_name=Qwen/Qwen3-8B data=NoRobots
    ./scripts/run recipes.sl_basic config=configs/sl_basic/qwen3-8b-1xh100.yaml

The bundled conversations ask "Write 47 in words." and answer "forty-seven": 70 numbers to train
on, 30 held out. Each line of a JSONL file of yours is `{"messages": [{"role": ..., "content": ...},
...]}`; every assistant message is trained on.
"""

from __future__ import annotations

from pathlib import Path

import chz

from tinker_cookbook.cli_utils import cli
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import ALIASES, ChatConfig, resolve
from tinker_cookbook.supervised.data import JsonlChats, NoRobots
from tinker_cookbook.supervised.exact_match import ExactMatch
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset

DATA = Path(__file__).parent / "data"


@chz.chz
class NumberWords(ChatDatasetBuilder):
    """70 bundled conversations that write a number in words, and 30 others for the test."""

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        return JsonlChats(
            common_config=self.common_config,
            path=number_words("train"),
            test_path=number_words("held_out"),
        )()


def number_words(split: str) -> str:
    return str(DATA / f"number_words_{split}.jsonl")


@chz.chz
class CLI(ChatConfig):
    num_epochs: int | None = chz.field(
        default=None, doc="passes over the data (None: 30 over the bundled numbers, else 1)"
    )
    eval_every: int = chz.field(default=20, doc="steps (0: only before and after training)")


async def main(config: CLI) -> None:
    bundled = config.model_name == "nano"
    config = resolve(config, "sl", NumberWords() if bundled else NoRobots())
    numbers = isinstance(config.dataset_builder, NumberWords)
    if config.num_epochs is None:
        config = chz.replace(config, num_epochs=30 if numbers else 1)
    if numbers and not config.evaluator_builders:
        config = chz.replace(config, evaluator_builders=[exact_match(config, s) for s in SPLITS])
    await train.main(config, recipe="sl_basic")


SPLITS = {"train": "seen", "held_out": "held_out"}


def exact_match(config: CLI, split: str) -> ExactMatch:
    assert config.renderer_name is not None
    return ExactMatch(
        path=number_words(split),
        name=SPLITS[split],
        model_name=config.model_name,
        renderer_name=config.renderer_name,
    )


if __name__ == "__main__":
    cli(main, CLI, ALIASES)
