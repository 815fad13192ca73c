"""Accuracy and order consistency of judges whose verdicts are known, on held-out comparisons."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tinker_cookbook.preference.comparison_datasets import DatasetBuilderFromComparisons
from tinker_cookbook.preference.preference_datasets import (
    ChatDatasetBuilderFromComparisons,
    ComparisonBuilderFromJsonl,
)
from tinker_cookbook.preference.preference_model_evaluator import (
    PreferenceAccuracy,
    PreferenceAccuracyEvaluator,
)
from tinker_cookbook.preference.reward_model import RewardDatasetBuilderFromComparisons, RewardModel
from tinker_cookbook.preference.types import (
    Comparison,
    Label,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelFromChatRenderer,
)
from tinker_cookbook.renderers import Message, Renderer, get_renderer, get_text_content
from tinker_cookbook.service.api import SamplingClient
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig
from tinker_cookbook.testing import ScriptedEngine, scripted_service
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.plain_data import plain


def labeled(text_a: str, text_b: str, label: Label) -> LabeledComparison:
    prompt = [Message(role="user", content="?")]
    replies = [[Message(role="assistant", content=text)] for text in (text_a, text_b)]
    return LabeledComparison(Comparison(prompt, *replies), label)


COMPARISONS = [
    labeled("good", "bad", "A"),
    labeled("bad", "good", "B"),
    labeled("poor", "good", "B"),
    labeled("same", "same", "Tie"),
]


class Rule(PreferenceModel):
    """Judges by a function of both texts."""

    def __init__(self, prefer: Callable[[str, str], float]) -> None:
        self.prefer = prefer
        self.judged: list[tuple[str, str]] = []

    async def __call__(self, comparison: Comparison) -> float:
        texts = [
            get_text_content(completion[-1])
            for completion in (comparison.completion_A, comparison.completion_B)
        ]
        self.judged.append((texts[0], texts[1]))
        return self.prefer(*texts)


@pytest.fixture
def client(tmp_path: Path) -> SamplingClient:
    return (
        scripted_service(ScriptedEngine(), tmp_path)
        .create_sampling_client(base_model="nano")
        .result()
    )


@pytest.mark.parametrize(
    ("prefer", "accuracy", "consistency"),
    [
        (lambda a, b: -1.0, 0.5, 0),  # always A
        (lambda a, b: 0.0, 0.5, 0),  # always a tie
        (lambda a, b: (b == "good") - float(a == "good"), 1, 1),
        (lambda a, b: 0.1 * ((b == "good") - (a == "good")), 1, 1),  # only the side counts
        (lambda a, b: (a == "good") - float(b == "good"), 0, 1),
        # knows "bad" only: the third comparison is a tie in both orders
        (lambda a, b: (a == "bad") - float(b == "bad"), 2.5 / 3, 2 / 3),
        # a tie in one order, right in the other: 3/4 of a comparison
        (lambda a, b: 1.0 if b == "good" else 0.0, 0.75, 0),
    ],
)
async def test_judges_by_rule(
    client: SamplingClient,
    prefer: Callable[[str, str], float],
    accuracy: float,
    consistency: float,
) -> None:
    judge = Rule(prefer)
    renderer = get_renderer("qwen3_instruct", get_tokenizer("nano"))
    evaluator = PreferenceAccuracyEvaluator(lambda *_: judge, renderer, COMPARISONS)
    assert await evaluator(client) == pytest.approx(
        {"test/preference_accuracy": accuracy, "test/order_consistency": consistency}
    )
    assert len(judge.judged) == 6 and ("same", "same") not in judge.judged


def data(
    tmp_path: Path,
    test_rows: list[dict[str, str]] | None,
    kind: type[DatasetBuilderFromComparisons] = RewardDatasetBuilderFromComparisons,
) -> DatasetBuilderFromComparisons:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    row = {"prompt": "?", "chosen": "good", "rejected": "bad"}
    for path, rows in ((train, [row]), (test, test_rows or [])):
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return kind(
        comparison_builder=ComparisonBuilderFromJsonl(
            train_path=str(train), test_path=None if test_rows is None else str(test)
        ),
        common_config=ChatDatasetBuilderCommonConfig(
            model_name_for_tokenizer="nano",
            renderer_name="qwen3_instruct",
            batch_size=1,
            max_length=100,
        ),
    )


async def test_no_metric_without_a_test_split(client: SamplingClient, tmp_path: Path) -> None:
    (builder,) = data(tmp_path, None).default_evaluator_builders()
    assert await builder()(client) == {}


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        (RewardDatasetBuilderFromComparisons, RewardModel),
        (ChatDatasetBuilderFromComparisons, PreferenceModelFromChatRenderer),
    ],
)
async def test_the_test_split_of_the_data_without_what_training_skips(
    client: SamplingClient,
    tmp_path: Path,
    kind: type[DatasetBuilderFromComparisons],
    model: type[PreferenceModel],
) -> None:
    """Also of more than nano's context: asking for its verdict would end the run."""
    texts = ["good", "great " * 100, "great " * 3000, "fine", "best", "last"]
    rows = [{"prompt": "?", "chosen": text, "rejected": "bad"} for text in texts]
    builder = data(tmp_path, [*rows[:3], {"prompt": "no pair"}, *rows[3:]], kind)
    (evaluator,) = builder.default_evaluator_builders()
    assert isinstance(evaluator, PreferenceAccuracy) and evaluator.make_model is model
    judge = Rule(lambda a, b: 1.0)

    def make_model(renderer: Renderer, client: SamplingClient) -> PreferenceModel:
        assert type(renderer) is type(builder.renderer)
        return judge

    limited = PreferenceAccuracy(data=builder, make_model=make_model, num_comparisons=6)
    assert set(await limited()(client)) == {"test/preference_accuracy", "test/order_consistency"}
    assert judge.judged == [
        *(("good", "bad"), ("fine", "bad"), ("best", "bad")),
        *(("bad", "good"), ("bad", "fine"), ("bad", "best")),
    ]


def test_it_is_stored_in_config_json_by_the_name_of_its_model(tmp_path: Path) -> None:
    (builder,) = data(tmp_path, None).default_evaluator_builders()
    stored = plain(builder)
    assert stored["make_model"] == "tinker_cookbook.preference.reward_model:RewardModel"
