"""Pairs for DPO: tokens, weights, truncation, what is left out, and the order of batches."""

import json
import random
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
import tinker

from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder, ComparisonRows
from tinker_cookbook.preference.dpo_datasets import (
    DPODatasetBuilderFromComparisons,
    render_pair,
)
from tinker_cookbook.preference.objective import check_pairs
from tinker_cookbook.preference.preference_datasets import (
    ComparisonBuilderFromJsonl,
    HubComparisons,
)
from tinker_cookbook.preference.types import Comparison, LabeledComparison
from tinker_cookbook.renderers import Message, Renderer, get_renderer
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.service.api import SamplingClient
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import EvaluatorBuilder, SamplingClientEvaluator

RENDERERS = ["role_colon", "qwen3_instruct"]
TOKENIZER = get_tokenizer("nano")
Pair = dict[str, Any]


def common(**changes: Any) -> ChatDatasetBuilderCommonConfig:
    keys: dict[str, Any] = {"model_name_for_tokenizer": "nano", "renderer_name": "qwen3_instruct"}
    return ChatDatasetBuilderCommonConfig(
        **{**keys, "max_length": None, "batch_size": 2, **changes}
    )


def renderer_of(name: str) -> Renderer:
    return get_renderer(name, TOKENIZER, model_name="nano")


def pairs(count: int) -> list[Pair]:
    return [{"prompt": f"q{i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(count)]


@chz.chz
class InMemory(ComparisonDatasetBuilder):
    """Rows in memory, rendered when a batch needs them unless `small`."""

    rows: list[Pair]
    small: bool = True

    def data_name(self) -> str:
        return "pairs"

    def renders_up_front(self) -> bool:
        return self.small

    def get_train_and_test_datasets(self) -> ComparisonRows:
        return self.rows, None


def data(rows: list[Pair], small: bool = True, **changes: Any) -> SupervisedDataset:
    builder = DPODatasetBuilderFromComparisons(
        common_config=common(**changes), comparison_builder=InMemory(rows=rows, small=small)
    )
    return builder()[0]


def trained_text(datum: tinker.Datum) -> str:
    sequence = from_datum(datum)
    return TOKENIZER.decode(sequence.tokens[sequence.loss_mask].tolist())


def pair_names(batch: list[tinker.Datum]) -> list[tuple[str, str]]:
    """The trained texts of each pair, without the end of the turn."""
    texts = [trained_text(datum).removesuffix("<|im_end|>") for datum in batch]
    return list(zip(texts[::2], texts[1::2]))


# One pair


@pytest.mark.parametrize("name", RENDERERS)
def test_a_pair_shares_the_tokens_that_the_policy_samples_from(name: str) -> None:
    renderer = renderer_of(name)
    prompt = [
        Message(role="system", content="Be kind."),
        Message(role="user", content="What is 1 + 1?"),
        Message(role="assistant", content="2"),
        Message(role="user", content="And 2 + 2?"),
    ]
    replies = [[Message(role="assistant", content=text)] for text in ("It is 4.", "5")]
    rendered = render_pair(LabeledComparison(Comparison(prompt, *replies), "B"), renderer, None)
    prompt_tokens = renderer.build_generation_prompt(prompt).to_ints()
    assert rendered.skipped == [] and len(rendered.datums) == 2
    for datum, text in zip(rendered.datums, ("5", "It is 4.")):  # B is preferred
        sequence = from_datum(datum)
        start = len(prompt_tokens)
        assert sequence.tokens[:start].tolist() == prompt_tokens
        assert sequence.loss_mask.tolist() == [False] * start + [True] * (len(sequence) - start)
        assert set(sequence.weights[start:].tolist()) == {1.0}  # token sums
        message, termination = renderer.parse_response(sequence.tokens[start:].tolist())
        assert message["content"] == text and (termination.is_clean or name == "role_colon")


def test_only_the_last_message_of_a_completion_is_trained() -> None:
    prompt = [Message(role="user", content="q")]
    chosen = [
        Message(role="assistant", content="first"),
        Message(role="user", content="more"),
        Message(role="assistant", content="last"),
    ]
    rejected = [Message(role="assistant", content="no")]
    labeled = LabeledComparison(Comparison(prompt, chosen, rejected), "A")
    rendered = render_pair(labeled, renderer_of("qwen3_instruct"), None)
    assert pair_names(rendered.datums) == [("last", "no")]


def test_pairs_that_differ_before_the_trained_message_are_left_out() -> None:
    """The loss refuses a batch with such a pair."""
    longer = [{"role": "assistant", "content": "well"}, {"role": "assistant", "content": "yes"}]
    rows = [*pairs(3), {"prompt": "q", "chosen": longer, "rejected": "no"}]
    dataset, _ = DPODatasetBuilderFromComparisons(
        common_config=common(batch_size=3), comparison_builder=InMemory(rows=rows)
    )()
    batch = dataset.get_batch(0)
    assert len(batch) == 6 and dataset.report is not None
    assert dataset.report.skipped == [
        "row 3: chosen and rejected have different messages before their last one"
    ]
    check_pairs(batch)


def test_truncation_on_the_right() -> None:
    prompt = [Message(role="user", content="q")]
    replies = [[Message(role="assistant", content=text)] for text in ("a b c d e f g h", "x")]
    renderer = renderer_of("qwen3_instruct")
    labeled = LabeledComparison(Comparison(prompt, *replies), "A")
    full = [from_datum(datum) for datum in render_pair(labeled, renderer, None).datums]
    start = len(renderer.build_generation_prompt(prompt).to_ints())
    limit = start + 3
    rendered = render_pair(labeled, renderer, limit)
    cut = [from_datum(datum) for datum in rendered.datums]
    assert [len(sequence) for sequence in cut] == [limit, len(full[1])]
    assert np.array_equal(cut[0].tokens, full[0].tokens[:limit])
    assert rendered.truncated and rendered.num_lost == len(full[0]) - limit
    gone = render_pair(labeled, renderer, start)
    assert gone.datums == [] and gone.skipped == [
        f"chosen: the trained part begins after max_length={start} of {len(full[0])} tokens"
    ]


def test_a_pair_without_a_difference_is_skipped() -> None:
    prompt = [Message(role="user", content="q")]
    renderer = renderer_of("qwen3_instruct")
    limit = len(renderer.build_generation_prompt(prompt).to_ints()) + 2
    replies = [[Message(role="assistant", content=f"a b c {end}")] for end in "xy"]
    labeled = LabeledComparison(Comparison(prompt, *replies), "A")
    assert len(render_pair(labeled, renderer, None).datums) == 2
    rendered = render_pair(labeled, renderer, limit)
    assert rendered.datums == [] and rendered.skipped == [
        f"chosen and rejected have the same tokens up to max_length={limit}"
    ]


def test_a_pair_that_a_renderer_does_not_continue_from_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    renderer = renderer_of("qwen3_instruct")
    prompt = [Message(role="user", content="q")]
    replies = [[Message(role="assistant", content=text)] for text in ("x", "y")]
    other = renderer.build_generation_prompt([Message(role="user", content="other")])
    monkeypatch.setattr(renderer, "build_generation_prompt", lambda messages: other)
    rendered = render_pair(LabeledComparison(Comparison(prompt, *replies), "A"), renderer, None)
    assert rendered.datums == [] and rendered.skipped == [
        "chosen: this renderer does not render it as a continuation of the prompt"
    ]


# Batches


@pytest.mark.parametrize("small", [True, False])
def test_batches_interleave_whole_pairs(small: bool) -> None:
    dataset = data(pairs(5), small)
    assert len(dataset) == 2
    for epoch in range(3):
        dataset.set_epoch(epoch)
        batches = [pair_names(dataset.get_batch(index)) for index in range(2)]
        assert [len(batch) for batch in batches] == [2, 2]
        seen = [pair for batch in batches for pair in batch]
        assert len(set(seen)) == 4
        assert all(chosen == rejected.replace("no", "yes") for chosen, rejected in seen)


def test_batches_depend_on_seed_epoch_and_index_alone() -> None:
    def epoch(dataset: SupervisedDataset, number: int) -> list[list[tuple[str, str]]]:
        dataset.set_epoch(number)
        return [pair_names(dataset.get_batch(index)) for index in (2, 0, 1)]

    first = data(pairs(7), small=True)
    epochs = [epoch(first, number) for number in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    random.seed(5)
    np.random.seed(5)
    for small in (True, False):
        again = data(pairs(7), small)
        assert [epoch(again, number) for number in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
    builder = DPODatasetBuilderFromComparisons(
        common_config=common(), comparison_builder=InMemory(rows=pairs(7)), shuffle_seed=1
    )
    assert epoch(builder()[0], 0) != epochs[0]


def test_the_test_set_is_one_batch_in_order(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(5)))
    builder = ComparisonBuilderFromJsonl(train_path=str(path), test_path=str(path))
    train, test = DPODatasetBuilderFromComparisons(
        common_config=common(), comparison_builder=builder
    )()
    assert test is not None and (len(train), len(test)) == (2, 1)
    assert pair_names(test.get_batch(0)) == [(f"yes {i}", f"no {i}") for i in range(5)]


# Nothing is dropped silently

LONG = {"prompt": "word " * 50, "chosen": "yes", "rejected": "no"}
ODD_ROWS = [
    *pairs(2),
    {"comparison": None, "prompt": "q", "chosen": "same", "rejected": "same"},
    {"prompt": "q", "chosen": "yes", "rejected": "no " * 60},
    LONG,
    {"prompt": "q", "chosen": [{"role": "robot", "content": "x"}], "rejected": "no"},
    {"prompt": "q", "chosen": "yes", "rejected": ""},
]


def check_report(dataset: SupervisedDataset) -> None:
    report = dataset.report
    assert report is not None and report.complete
    assert (report.num_conversations, report.num_examples) == (7, 6)
    assert (report.num_truncated, report.num_skipped) == (2, 4)
    lines = report.lines()
    assert lines[0].startswith("pairs: 7 pairs, 6 examples, ")
    assert lines[1].startswith("pairs: 2 pairs longer than max_length=40, truncated on the right; ")
    assert lines[2].startswith("pairs: 4 pairs skipped: ")
    assert sorted(report.skipped) == [
        "row 2: 'chosen' and 'rejected' are equal",
        f"row 4: chosen: the trained part begins after max_length=40 of {LENGTH_OF_LONG} tokens",
        "row 5: 'chosen' ends with a message of role 'robot'; expected an assistant message at its"
        " end",
        "row 6: 'rejected': the completion is empty",
    ]
    assert report.num_loss_tokens == sum(
        int(from_datum(datum).num_loss_tokens) for datum in every_datum(dataset)
    )


LENGTH_OF_LONG = (
    renderer_of("qwen3_instruct")
    .build_supervised_example(
        [Message(role="user", content="word " * 50), Message(role="assistant", content="yes")]
    )[0]
    .length
)


def every_datum(dataset: SupervisedDataset) -> list[tinker.Datum]:
    return [datum for index in range(len(dataset)) for datum in dataset.get_batch(index)]


def test_pairs_that_are_left_out_are_counted_before_training() -> None:
    dataset = data(ODD_ROWS, max_length=40, batch_size=1)
    check_report(dataset)
    assert len(dataset) == 3 and len(every_datum(dataset)) == 6


def test_pairs_that_are_left_out_are_counted_when_first_used() -> None:
    dataset = data(ODD_ROWS, small=False, max_length=40, batch_size=7)
    assert dataset.report is not None and dataset.report.lines()[:2] == [
        "pairs: 7 pairs, rendered when first used",
        "pairs: rows of prompt/chosen/rejected, read as comparisons",
    ]
    assert len(dataset.get_batch(0)) == 6
    check_report(dataset)


def test_ties_are_dropped_and_counted() -> None:
    rated = {"context": "q", "response1": "one", "response2": "two"}
    rows = [{**rated, "overall_preference": n, "domain": "code"} for n in (-1, 0, 2, 0, 0)]
    dataset = data(rows, batch_size=1)
    assert sorted(pair_names(every_datum(dataset))) == [("one", "two"), ("two", "one")]
    report = dataset.report
    assert report is not None and report.num_skipped == 0
    assert report.lines()[1:] == [
        "pairs: 5 rows of context/response1/response2/overall_preference, read as comparisons",
        "pairs: 3 ties dropped",
        "pairs: dropped keys: domain (5 rows)",
    ]


@pytest.mark.parametrize("small", [True, False])
def test_data_without_a_single_pair_is_refused(small: bool) -> None:
    tie = {"comparison": {"prompt_conversation": "q", "completion_A": "x", "completion_B": "y"}}
    rows = [{**tie, "label": "Tie"}, {**tie, "label": "C"}]
    with pytest.raises(DataValidationError) as error:
        data(rows, small).get_batch(0)
    assert str(error.value).startswith("pairs: ")
    assert str(error.value).endswith(
        ': row 1: \'label\' must be "A", "B" or "Tie", found "C"; 1 tie dropped'
    )


def test_malformed_rows_of_a_file_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [*pairs(2), {"prompt": "q", "chosen": "same", "rejected": "same"}]
    path.write_text("\n" + "\n\n".join(json.dumps(row) for row in rows))
    for comparisons in (
        ComparisonBuilderFromJsonl(train_path=str(path)),
        HubComparisons(path=str(path)),
    ):
        dataset, _ = DPODatasetBuilderFromComparisons(
            common_config=common(), comparison_builder=comparisons
        )()
        assert dataset.report is not None
        assert dataset.report.skipped == [f"{path}:6: 'chosen' and 'rejected' are equal"]
        assert len(dataset.get_batch(0)) == 4


def test_the_comparisons_choose_epochs_and_evaluators() -> None:
    class Measured(SamplingClientEvaluator):
        async def __call__(self, sampling_client: SamplingClient) -> dict[str, float]:
            return {}

    @chz.chz
    class WithDefaults(InMemory):
        def default_num_epochs(self) -> int:
            return 3

        def default_evaluator_builders(
            self, config: ChatDatasetBuilderCommonConfig
        ) -> list[EvaluatorBuilder]:
            return [Measured] if config.renderer_name == "role_colon" else []

    for comparisons, epochs, evaluators in (
        (InMemory(rows=pairs(1)), 1, []),
        (WithDefaults(rows=pairs(1)), 3, [Measured]),
    ):
        builder = DPODatasetBuilderFromComparisons(
            common_config=common(renderer_name="role_colon"), comparison_builder=comparisons
        )
        assert builder.default_num_epochs() == epochs
        assert builder.default_evaluator_builders() == evaluators


def test_other_modes_of_training_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="train_on_what=all_assistant_messages: prefere"):
        data(pairs(2), train_on_what="all_assistant_messages")
    assert len(data(pairs(2), train_on_what="last_assistant_message")) == 1


# Real files


@pytest.mark.parametrize("renderer_name", RENDERERS)
def test_llama_factory(shared_data: Path, renderer_name: str) -> None:
    path = shared_data / "datasets" / "llamafactory-demo" / "dpo_en_demo.json"
    builder = ComparisonBuilderFromJsonl(train_path=str(path))
    dataset, _ = DPODatasetBuilderFromComparisons(
        common_config=common(renderer_name=renderer_name, batch_size=16, max_length=500),
        comparison_builder=builder,
    )()
    report = dataset.report
    assert report is not None and report.complete and report.num_conversations == 300
    assert report.num_examples == 2 * (300 - report.num_skipped) > 300
    batch = dataset.get_batch(3)
    assert len(batch) == 32
    for chosen, rejected in zip(batch[::2], batch[1::2]):
        a, b = from_datum(chosen), from_datum(rejected)
        start = int(np.argmax(a.loss_mask))
        assert start == int(np.argmax(b.loss_mask)) > 0
        assert np.array_equal(a.tokens[:start], b.tokens[:start])
        assert max(len(a), len(b)) <= 500


def test_hh_rlhf(shared_data: Path) -> None:
    path = shared_data / "datasets" / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    dataset, _ = DPODatasetBuilderFromComparisons(
        common_config=common(batch_size=64, max_length=400),
        comparison_builder=HubComparisons(path=str(path), test_size=0),
    )()
    report = dataset.report
    assert report is not None and len(dataset) == 36
    batch = dataset.get_batch(0)
    assert report.num_conversations == 64 and len(batch) == report.num_examples
    assert len(batch) == 2 * (64 - report.num_skipped) > 100
    assert len(dataset.get_batch(0)) == len(batch)
    assert report.num_conversations == 64  # each row is counted once
