"""The bundled chat data: "Write 47 in words." -> "forty-seven".

70 numbers for training, 30 held out, with the epochs and evaluators that suit the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import chz

from tinker_cookbook.supervised.data import JsonlChats
from tinker_cookbook.supervised.exact_match import ExactMatch
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset
from tinker_cookbook.training.evaluators import EvaluatorBuilder
from tinker_cookbook.utils.json_types import Plain

NUM_EPOCHS = 30
_DATA = Path(__file__).parent / "data"
_METRIC_PREFIXES = {"train": "seen", "held_out": "held_out"}  # split -> prefix of exact_match


def path(split: str) -> str:
    """The JSONL file of a split, "train" or "held_out"."""
    return str(_DATA / f"number_words_{split}.jsonl")


@chz.chz
class NumberWords(ChatDatasetBuilder):
    """70 bundled conversations about writing numbers in words; 30 others for evaluation."""

    def _jsonl_files(self) -> JsonlChats:
        return JsonlChats(
            common_config=self.common_config, path=path("train"), test_path=path("held_out")
        )

    def identity(self) -> Mapping[str, Plain]:
        return self._jsonl_files().identity()

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        return self._jsonl_files()()

    def default_num_epochs(self) -> int:
        return NUM_EPOCHS

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [
            ExactMatch(
                path=path(split),
                name=name,
                model_name=self.config.model_name_for_tokenizer,
                renderer_name=self.config.renderer_name,
            )
            for split, name in _METRIC_PREFIXES.items()
        ]
