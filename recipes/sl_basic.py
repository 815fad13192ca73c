"""Supervised fine-tuning, the first recipe: nano learns to write numbers in words.

    ./scripts/run recipes.sl_basic                                    nano, all defaults
    ./scripts/run recipes.sl_basic dataset_path=my.jsonl              your conversations
    ./scripts/run recipes.sl_basic model_name=Qwen/Qwen3-8B data=NoRobots
    ./scripts/run recipes.sl_basic config=configs/sl_basic/qwen3-8b-1xh100.yaml

The bundled conversations ask "Write 47 in words." and answer "forty-seven": 70 numbers to train
on, 30 held out. In a JSONL file of yours each line is `{"messages": [{"role": ..., "content": ...},
...]}` or has another of the forms in docs/chats.md; every assistant message is trained. For data of
your own, the run prints replies to three prompts before and after training.

Without keys, seeds 0, 1 and 2 (29 November 2026, 2 CPU cores, one thread: 20 to 24 s of CPU time):

| step | loss | held-out nll | seen numbers right | held-out right |
|---|---|---|---|---|
| 0 | 8.22, 8.11, 8.37 | 9.20 | 0 of 70 | 0 of 30 |
| 20 | 0.19, 0.24, 0.21 | 0.62, 0.66, 0.61 | 60, 57, 57 | 8, 4, 3 |
| 40 | 0.005, 0.006, 0.005 | 0.06, 0.09, 0.08 | 70, 70, 70 | 29, 28, 29 |
| 60 | 0.002, 0.003, 0.002 | 0.04, 0.06, 0.03 | 70, 70, 70 | 29, 28, 30 |

(The loss of row 60 is that of step 59, the last one.) Other learning rates: docs/choosing.md.
"""

from __future__ import annotations

import chz
from chz.blueprint import Reference

from recipes.number_words import NumberWords
from tinker_cookbook.cli_utils import cli
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.chat_config import (
    ALIASES,
    FIRST_KEYS,
    ChatConfig,
    resolve_chat_config,
)
from tinker_cookbook.supervised.data import NoRobots
from tinker_cookbook.supervised.defaults import SL_DEFAULTS
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig


@chz.chz
class CLI(ChatConfig):
    eval_every: int = chz.field(
        default=20, doc="steps between evaluations (0: only before and after training)"
    )


async def main(config: CLI) -> None:
    bundled = config.model_name == "nano"
    resolved = resolve_chat_config(config, SL_DEFAULTS, NumberWords() if bundled else NoRobots())
    await train.run(resolved, recipe="sl_basic")


def build_config_blueprint() -> chz.Blueprint[train.Config]:
    """The run without keys, for programs that apply keys of their own and call `train.main`. It
    does not count the right answers."""
    config = resolve_chat_config(CLI(), SL_DEFAULTS, NumberWords()).config
    common = "dataset_builder.common_config"
    return chz.Blueprint(train.Config).apply(
        {
            "dataset_builder": NumberWords,
            common: ChatDatasetBuilderCommonConfig,
            f"{common}.model_name_for_tokenizer": Reference("model_name"),
            f"{common}.renderer_name": Reference("renderer_name"),
            f"{common}.batch_size": config.batch_size,
            f"{common}.max_length": config.max_length,
            "model_name": config.model_name,
            "renderer_name": config.renderer_name,
            "num_epochs": config.num_epochs,
            "eval_every": config.eval_every,
        }
    )


if __name__ == "__main__":
    cli(main, CLI, ALIASES, FIRST_KEYS)
