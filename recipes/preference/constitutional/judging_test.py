from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.preference.constitutional.judging import JudgedPairs, PairJudge, summary_lines
from recipes.preference.constitutional.revisions_test import completer
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.preference.preference_datasets import (
    ComparisonBuilderFromJsonl,
    HubComparisons,
)
from tinker_cookbook.preference.prompted_judge import PromptedPreferenceModel
from tinker_cookbook.preference.types import Comparison
from tinker_cookbook.renderers import Message, get_text_content
from tinker_cookbook.testing import Asked, ScriptedEngine
from tinker_cookbook.tokenizer_utils import get_tokenizer

PROMPT = [Message(role="user", content="What is 1 + 2?")]


class Judge(PromptedPreferenceModel):
    """Prefers the longer reply, by 0.2 for each character."""

    def __init__(self) -> None:
        """Without a client."""

    async def __call__(self, comparison: Comparison) -> float:
        a, b = (
            len(get_text_content(each[0]))
            for each in (comparison.completion_A, comparison.completion_B)
        )
        return (b - a) / 5


async def judge_pairs(tmp_path: Path, *replies: str, **keys: float) -> list[dict[str, object]]:
    """The rows of a policy that writes these replies in turn."""
    script, tokenizer = iter(replies), get_tokenizer("nano")

    def write(asked: Asked) -> list[int]:
        return tokenizer.encode(next(script))

    policy = await completer(ScriptedEngine(reply=write), tmp_path, max_tokens=10)
    judges = {"longer": Judge(), "longest": Judge()}
    judge = PairJudge(policy, "instruct", judges, keys.get("min_preference", 0.1), seed=0)
    return [{"index": index, **await judge(index, PROMPT)} for index in range(len(replies) // 2)]


async def test_labels_and_ties(tmp_path: Path) -> None:
    end = "<|im_end|>"
    rows = await judge_pairs(
        tmp_path,
        *(f"33{end}", f"3{end}"),
        *(f"3{end}", f"333{end}"),
        *(f"3{end}", f"3{end}"),
        *(f"3{end}", end),
        *(f"3{end}", "1234567890123"),
        *(f"1{end}", f"2{end}"),
    )
    assert [row["label"] for row in rows] == ["A", "B", "Tie", "Tie", "Tie", "Tie"]
    assert [row["tie"] for row in rows] == [
        *(None, None, "identical", "empty", "truncated", "near tie")
    ]
    assert [row["preference"] for row in rows] == pytest.approx([-0.2, 0.4, 0, 0, 0, 0])
    assert {row["principle"] for row in rows} == {"longer", "longest"}
    assert summary_lines(rows) == [
        "comparisons: 6 prompts, 2 pairs, 1 identical, 1 empty, 1 truncated, 1 near tie",
        "mean |preference| of the pairs: 0.30; A preferred in 1",
    ]


async def test_the_threshold(tmp_path: Path) -> None:
    replies = ("33<|im_end|>", "3<|im_end|>")
    for threshold, label in ((0.2, "A"), (0.21, "Tie")):
        (row,) = await judge_pairs(tmp_path, *replies, min_preference=threshold)
        assert row["label"] == label
    (row,) = await judge_pairs(tmp_path, "1<|im_end|>", "2<|im_end|>", min_preference=0.0)
    assert (row["label"], row["tie"]) == ("Tie", "near tie")


async def test_the_rows_are_a_data_set_of_comparisons(tmp_path: Path) -> None:
    end = "<|im_end|>"
    rows = await judge_pairs(tmp_path, *(f"3{end}", f"333{end}"), *(f"1{end}", f"2{end}"))
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for builder in (
        HubComparisons(path=str(path), test_size=0),
        ComparisonBuilderFromJsonl(train_path=str(path)),
    ):
        split, _ = builder.open_splits()
        read = [split.read(split.rows[index], "row") for index in range(2)]
        labeled = {each.labeled.label: each.labeled for each in read if each is not None}
        assert labeled["B"].chosen == [{"role": "assistant", "content": "333"}]
        assert labeled["B"].comparison.prompt_conversation == PROMPT
        assert labeled.keys() == {"B", "Tie"}


async def test_only_pairs_that_are_no_ties_are_trained_on(tmp_path: Path) -> None:
    end = "<|im_end|>"
    rows = await judge_pairs(tmp_path, *[f"3{end}", f"333{end}", f"1{end}", f"2{end}"] * 10)
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, test = JudgedPairs(path=str(path)).open_splits()
    assert test is not None and (len(train.rows), len(test.rows)) == (9, 1)
    for split in (train, test):
        for index in range(len(split.rows)):
            parsed = split.read(split.rows[index], "row")
            assert parsed is not None and parsed.labeled.label == "B" and len(parsed.notes) == 1
    ties = [{**row, "index": index} for index, row in enumerate(rows[1::2])]
    path.write_text("".join(json.dumps(row) + "\n" for row in ties))
    with pytest.raises(
        DataValidationError, match=r"all 10 pairs are ties .*; lower min_preference"
    ):
        JudgedPairs(path=str(path)).open_splits()
