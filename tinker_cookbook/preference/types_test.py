"""Comparisons, their swaps, and the preferred completion."""

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.types import (
    Comparison,
    Label,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelBuilder,
)
from tinker_cookbook.renderers import Message

PROMPT = [Message(role="user", content="q")]
GOOD, BAD = [Message(role="assistant", content="good")], [Message(role="assistant", content="bad")]


@pytest.mark.parametrize(("label", "swapped"), [("A", "B"), ("B", "A"), ("Tie", "Tie")])
def test_a_swap_keeps_the_preference(label: Label, swapped: Label) -> None:
    labeled = LabeledComparison(Comparison(PROMPT, GOOD, BAD), label)
    assert labeled.swap() == LabeledComparison(Comparison(PROMPT, BAD, GOOD), swapped)
    assert labeled.swap().swap() == labeled
    assert (labeled.chosen, labeled.rejected) == (labeled.swap().chosen, labeled.swap().rejected)


def test_chosen_and_rejected() -> None:
    comparison = Comparison(PROMPT, GOOD, BAD)
    found = {
        label: (
            LabeledComparison(comparison, label).chosen,
            LabeledComparison(comparison, label).rejected,
        )
        for label in ("A", "B", "Tie")
    }
    assert found == {"A": (GOOD, BAD), "B": (BAD, GOOD), "Tie": (None, None)}


async def test_a_preference_model_is_a_class_to_derive_from() -> None:
    class Longer(PreferenceModel):
        async def __call__(self, comparison: Comparison) -> float:
            a, b = comparison.completion_A[0]["content"], comparison.completion_B[0]["content"]
            return float((len(b) > len(a)) - (len(b) < len(a)))

    assert await Longer()(Comparison(PROMPT, GOOD, BAD)) == -1
    assert await Longer()(Comparison(PROMPT, GOOD, BAD).swap()) == 1
    with pytest.raises(ConfigurationError, match="choose a preference model"):
        PreferenceModelBuilder()()
