"""A preference that needs no model, the shorter reply wins, and one prompt to learn it on."""

from __future__ import annotations

import chz

from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder, ComparisonRows
from tinker_cookbook.preference.comparison_rows import Row
from tinker_cookbook.preference.envs import PairwisePreferenceRLDatasetBuilder
from tinker_cookbook.preference.types import (
    Comparison,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelBuilder,
)
from tinker_cookbook.renderers import Message, get_text_content
from tinker_cookbook.training.fields import COUNT


class ShorterReplies(PreferenceModel):
    """Prefers the reply with fewer characters; equally long ones tie.

    Characters rather than tokens, since a judge reads messages, whatever tokenizer wrote them.
    """

    async def __call__(self, comparison: Comparison) -> float:
        a, b = map(count_characters, (comparison.completion_A, comparison.completion_B))
        return float((a > b) - (a < b))


def count_characters(completion: list[Message]) -> int:
    return sum(len(get_text_content(message)) for message in completion)


@chz.chz
class ShorterRepliesBuilder(PreferenceModelBuilder):
    """Builder of ShorterReplies, which has no settings."""

    def __call__(self) -> PreferenceModel:
        return ShorterReplies()


@chz.chz
class ConstantPrompt(ComparisonDatasetBuilder):
    """One prompt, many times; the comparisons have no completions."""

    prompt: str = chz.field(default="Who are you?", doc="the user's message")
    num_prompts: int = chz.field(default=1024, doc="times that it is repeated", metadata=COUNT)

    def get_train_and_test_datasets(self) -> ComparisonRows:
        return [{"prompt": self.prompt}] * self.num_prompts, None

    def example_to_labeled_comparison(self, example: Row) -> LabeledComparison | None:
        prompt = [Message(role="user", content=str(example["prompt"]))]
        return LabeledComparison(Comparison(prompt, [], []), "Tie")


@chz.chz
class Shorter(PairwisePreferenceRLDatasetBuilder):
    """Replies to a constant prompt, of which the shorter ones win."""

    comparison_builder: ConstantPrompt = chz.field(
        default_factory=ConstantPrompt, doc="the prompt, and how often it is repeated"
    )
    preference_model_builder: PreferenceModelBuilder = chz.field(
        default_factory=ShorterRepliesBuilder, doc="preference model that compares the replies"
    )
