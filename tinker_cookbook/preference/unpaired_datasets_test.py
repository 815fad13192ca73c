"""Labeled completions for KTO: rows, labels on their way to a loss, and what is left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch

from tinker_cookbook.exceptions import DataFormatError, DataValidationError
from tinker_cookbook.preference.preference_datasets import (
    ComparisonBuilderFromJsonl,
    HubComparisons,
)
from tinker_cookbook.preference.unpaired_datasets import (
    KTODatasetBuilder,
    KTODatasetBuilderFromComparisons,
    add_label,
    label_of,
    parse_unpaired,
    remove_label,
)
from tinker_cookbook.sequences import from_datum
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig, SupervisedDataset
from tinker_cookbook.tokenizer_utils import get_tokenizer

TOKENIZER = get_tokenizer("nano")
ROW = {"prompt": "q", "completion": "a", "label": True}


def common(**changes: Any) -> ChatDatasetBuilderCommonConfig:
    keys: dict[str, Any] = {"model_name_for_tokenizer": "nano", "renderer_name": "qwen3_instruct"}
    keys |= {"max_length": None, "batch_size": 2}
    return ChatDatasetBuilderCommonConfig(**{**keys, **changes})


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(datum: tinker.Datum) -> tuple[str, bool]:
    """The trained text of a datum, without the end of the turn, and its label."""
    sequence = from_datum(datum)
    text = TOKENIZER.decode(sequence.tokens[sequence.loss_mask].tolist())
    return text.removesuffix("<|im_end|>"), label_of(datum)


def every(dataset: SupervisedDataset) -> list[tuple[str, bool]]:
    return [trained(d) for index in range(len(dataset)) for d in dataset.get_batch(index)]


@pytest.mark.parametrize(
    ("label", "is_good"),
    [(True, True), (False, False), (1, True), (0, False), ("True", True), ("false ", False)],
)
def test_labels(label: Any, is_good: bool) -> None:
    row = {"prompt": [{"role": "human", "content": "q"}], "completion": "a", "label": label}
    found = parse_unpaired({**row, "system": "Be kind.", "id": 3})
    assert found.prompt == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "q"},
    ]
    assert found.completion == [{"role": "assistant", "content": "a"}]
    assert found.is_good is is_good
    assert found.notes == {("role", "human read as user"): 1, ("row", "id"): 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": "good"}, "'label' must be true or false, found \"good\""),
        ({"label": -1}, "'label' must be true or false, found -1"),
        ({"label": None}, "found 'prompt', 'completion'; expected the keys prompt, completion"),
        ({"completion": " "}, "'completion': the completion is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"history": [["a", "b"]]}, "'history' together with 'prompt' and 'completion'"),
    ],
)
def test_malformed_rows(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataFormatError) as error:
        parse_unpaired({**ROW, **changes}, "rows.jsonl:3")
    assert str(error.value).startswith(f"rows.jsonl:3: {reason}")


def test_a_file_of_completions(tmp_path: Path) -> None:
    rows = [{**ROW, "completion": f"a{i}", "label": i % 3 == 0, "id": i} for i in range(6)]
    path = write(tmp_path / "rows.jsonl", [*rows, {**ROW, "label": "?"}])
    train, test = KTODatasetBuilder(path=path, common_config=common())()
    assert test is None and len(train) == 3
    expected = {(f"a{i}", i % 3 == 0) for i in range(6)}
    orders = []
    for epoch in (0, 1):
        train.set_epoch(epoch)
        orders.append(every(train))
        assert len(orders[-1]) == 6 and set(orders[-1]) == expected
    assert orders[0] != orders[1]
    assert train.report is not None and train.report.complete
    assert train.report.lines()[1:] == [
        f"{path}: 1 completion skipped: {path}:7: 'label' must be true or false, found \"?\"",
        f"{path}: dropped keys: id (6 rows)",
    ]


def test_held_out_completions_and_unknown_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**ROW, "completion": f"a{i}"} for i in range(10)])
    train, test = KTODatasetBuilder(path=path, common_config=common(), test_size=4)()
    assert test is not None and (len(train), len(test)) == (3, 1)
    assert sorted(every(train) + every(test)) == [(f"a{i}", True) for i in range(10)]
    other = write(tmp_path / "other.jsonl", [{"prompt": "q", "chosen": "a"}])
    with pytest.raises(
        DataFormatError, match=r"other\.jsonl:1: found 'prompt', 'chosen'; expected"
    ):
        KTODatasetBuilder(path=other, common_config=common())()


@pytest.mark.parametrize("suffix", ["jsonl", "json"])  # rendered up front, or when first used
def test_completions_of_comparisons(tmp_path: Path, suffix: str) -> None:
    pairs = [{"prompt": "q", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]
    rows = [
        *({"comparison": stored(pair), "label": "A", "score": 5} for pair in pairs),
        {"comparison": stored(pairs[0]), "label": "Tie"},
        {"comparison": stored(pairs[0]), "label": "?"},
    ]
    path = write(tmp_path / f"rows.{suffix}", rows)
    train, _ = KTODatasetBuilderFromComparisons(
        common_config=common(batch_size=12), comparison_builder=HubComparisons(path=path)
    )()
    seen = every(train)
    assert Counter(seen) == Counter(
        [*((f"yes {i}", True) for i in range(4)), *((f"no {i}", False) for i in range(4))]
    )
    assert [good for _, good in seen] != [True, False] * 4  # one by one, not in pairs
    report = train.report
    assert report is not None and report.complete
    assert (report.num_conversations, report.num_examples, report.num_skipped) == (12, 8, 2)
    assert report.lines()[2:5] == [
        f"{path}: 5 rows of comparison/label, read as comparisons",
        f"{path}: 1 tie dropped",
        f"{path}: dropped keys: score (4 rows)",
    ]


def stored(pair: dict[str, str]) -> dict[str, str]:
    return {
        "prompt_conversation": pair["prompt"],
        "completion_A": pair["chosen"],
        "completion_B": pair["rejected"],
    }


def test_truncated_completions_are_counted(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "completion": "a " * 40}, {**ROW, "prompt": "q " * 40}]
    path = write(tmp_path / "rows.jsonl", rows)
    train, _ = KTODatasetBuilder(path=path, common_config=common(max_length=30))()
    report = train.report
    assert report is not None and (report.num_truncated, report.num_skipped) == (2, 1)
    assert report.lines()[1].startswith(f"{path}: 2 completions longer than max_length=30")
    assert max(datum.model_input.length for datum in train.get_batch(0)) == 29


def test_a_custom_loss_reads_the_labels(tmp_path: Path) -> None:
    """The engine hands the datums to the loss as they are, labels included."""
    rows = [{**ROW, "completion": f"a{i}", "label": i % 2 == 0} for i in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    train, _ = KTODatasetBuilder(path=path, common_config=common(batch_size=4))()
    client = connect(None, EngineConfig(device="cpu")).create_lora_training_client("nano", rank=2)
    batch = train.get_batch(0)
    seen: list[bool] = []

    def loss(
        data: list[tinker.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        seen.extend(map(label_of, data))
        signs = [1 if label_of(datum) else -1 for datum in data]
        return -sum(s * lp.sum() for s, lp in zip(signs, logprobs)), {}  # type: ignore

    client.forward_backward_custom(batch, loss).result()
    assert seen == [label_of(datum) for datum in batch] and sorted(seen) == [False] * 2 + [True] * 2
    plain = [remove_label(datum) for datum in batch]
    client.forward_backward(plain, "cross_entropy").result()
    with pytest.raises(DataValidationError, match="needs 'label', found"):
        label_of(plain[0])
    assert label_of(add_label(plain[0], True)) and not label_of(add_label(plain[0], False))


def test_llama_factory(shared_data: Path) -> None:
    path = shared_data / "datasets" / "llamafactory-demo" / "dpo_en_demo.json"
    train, _ = KTODatasetBuilderFromComparisons(
        common_config=common(batch_size=16, max_length=400),
        comparison_builder=ComparisonBuilderFromJsonl(train_path=str(path)),
    )()
    report = train.report
    assert report is not None and report.complete and report.num_conversations == 600
    assert report.num_examples + report.num_skipped == 600 and report.num_examples > 200
    labels = Counter(label_of(d) for index in range(len(train)) for d in train.get_batch(index))
    assert min(labels.values()) > 100
