"""Prompts of a file or of any data set, for on-policy distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import chz

from recipes.prompts import NANO_SUMS, Conversation, load_prompts
from tinker_cookbook.distillation.datasets import PROMPTS, PromptOnlyDatasetBuilder
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain

_ALL = 10**9


@chz.chz
class Prompts(PromptOnlyDatasetBuilder):
    """The prompts of a file, a directory or a hub data set, in any format of `recipes.prompts`."""

    path: str = chz.field(
        doc="a text file with one prompt per line, or a file, a directory or a hub data set of"
        " prompts or conversations, whose last reply is dropped"
    )

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of local files; nothing for names on the hub."""
        return path_identity(self.path)

    def name(self) -> str:
        return "prompts"

    def load_prompts(self) -> Sequence[Conversation]:
        model = self.needed("model_name_for_tokenizer", self.model_name_for_tokenizer)
        return load_prompts(self.path, "data.path", _ALL, 0, model)


def prompts_of(name: str) -> PromptOnlyDatasetBuilder:
    """The prompts that `dataset=name` stands for: deepmath, tulu3, or a path."""
    if name == NANO_SUMS:
        raise ConfigurationError(f"dataset={name} has no end: set data=Arithmetic")
    return PromptOnlyDatasetBuilder(dataset_name=name) if name in PROMPTS else Prompts(path=name)
