"""Comparisons, their swaps, and the preferred completion."""

from pathlib import Path

import pytest

from tinker_cookbook import models
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError
from tinker_cookbook.preference.reward_model import RewardModel, RewardModelBuilder
from tinker_cookbook.preference.types import (
    CheckpointedPreferenceModelBuilder,
    Comparison,
    Label,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelBuilder,
    PreferenceModelBuilderFromChatRenderer,
    PreferenceModelFromChatRenderer,
)
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.qwen3 import Qwen3DisableThinkingRenderer, Qwen3InstructRenderer
from tinker_cookbook.service import connect

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


@pytest.fixture
def weights_path() -> str:
    """Sampler weights of a run with the renderer qwen3_disable_thinking."""
    training = connect().create_lora_training_client(
        "nano", rank=4, user_metadata={"renderer_name": "qwen3_disable_thinking"}
    )
    return training.result().save_weights_for_sampler("rm").result().path


def test_a_checkpoint_is_loaded_with_the_renderer_of_its_run(weights_path: str) -> None:
    keys = {"model_name": "nano", "rm_weights_path": weights_path}
    model = PreferenceModelBuilderFromChatRenderer(**keys)()
    assert isinstance(model, PreferenceModelFromChatRenderer)
    assert model.context_window == models.context_length("nano")
    assert isinstance(model.comparison_renderer.convo_renderer, Qwen3DisableThinkingRenderer)
    scorer = RewardModelBuilder(**keys, renderer_name="qwen3_instruct")()
    assert isinstance(scorer, RewardModel)
    assert scorer.context_window == models.context_length("nano")
    assert isinstance(scorer.reward_renderer.labels.renderer, Qwen3InstructRenderer)


def test_weights_of_a_preference_model_are_checked(weights_path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"rm_weights_path={tmp_path}: "):
        RewardModelBuilder(model_name="nano", rm_weights_path=str(tmp_path))()
    with pytest.raises(ConfigurationError, match="begins more than one of the replies"):
        RewardModelBuilder(model_name="nano", rm_weights_path=weights_path, renderer_name="qwen3")()
    with pytest.raises(ConfigurationError, match="is an abstract base class"):
        CheckpointedPreferenceModelBuilder(model_name="nano", rm_weights_path=weights_path)()
