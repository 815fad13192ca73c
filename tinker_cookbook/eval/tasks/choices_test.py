"""MMLU-Pro and GPQA through Inspect, on rows of their shapes."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage, get_model

from tinker_cookbook.eval.tasks import gpqa as gpqa_module
from tinker_cookbook.eval.tasks.gpqa import gpqa
from tinker_cookbook.eval.tasks.mmlu_pro import mmlu_pro
from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError


def mmlu_row(number: int, category: str = "math", num_options: int = 10) -> dict[str, Any]:
    index = number % num_options
    return {
        "question_id": 70 + number,
        "question": f"What is {number}?",
        "options": [f"text {i} of {number}" for i in range(num_options)],
        "answer": "ABCDEFGHIJ"[index],
        "answer_index": index,
        "cot_content": f"A: Let's think. The answer is ({'ABCDEFGHIJ'[index]}).",
        "category": category,
        "src": "made",
    }


def gpqa_row(number: int) -> dict[str, Any]:
    return {
        "Record ID": f"rec{number}",
        "Question": f"Why {number}?\nSay it.",
        "Correct Answer": f"right {number}\n",
        **{f"Incorrect Answer {i}": f"wrong {i}, {number}" for i in (1, 2, 3)},
        "Explanation": "so",
        "Subdomain": "Optics",
        "High-level domain": "Physics",
    }


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


async def evaluate(task: Task, reply: Callable[[str], str], tmp_path: Path) -> EvalLog:
    def output(input: list[ChatMessage], *rest: Any) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", reply(input[-1].text))
        output.usage = ModelUsage()  # else its tokens are counted with a tokenizer of the hub
        return output

    model = get_model("mockllm/model", custom_outputs=output)
    (log,) = await eval_async(task, model=model, log_dir=str(tmp_path / "logs"))
    assert log.status == "success", log.error
    return log


def values(log: EvalLog) -> dict[str, float]:
    assert log.results is not None and len(log.results.scores) == 1
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


def texts(sample: Sample) -> list[str]:
    assert isinstance(sample.input, list)
    return [message.text for message in sample.input]


def target_text(sample: Sample) -> str:
    assert sample.choices is not None and isinstance(sample.target, str)
    return sample.choices["ABCDEFGHIJ".index(sample.target)]


async def test_mmlu_pro(tmp_path: Path) -> None:
    rows = [
        mmlu_row(0),
        mmlu_row(1),
        mmlu_row(2, "computer science", 4),
        mmlu_row(13, "law", 3),
    ]
    replies = {0: "Hm.\nAnswer: A", 1: "\\boxed{C}", 2: "The answer is (C).", 13: "A dog, maybe."}
    task = mmlu_pro(write(tmp_path / "x.jsonl", rows))

    def reply(prompt: str) -> str:
        found = re.search(r"Question: What is (\d+)\?\n\nA\) text 0 of \1\nB\) text 1", prompt)
        assert found is not None
        return replies[int(found[1])]

    found = values(await evaluate(task, reply, tmp_path))
    assert found == {
        "accuracy": 0.5,
        "stderr": pytest.approx(statistics.stdev([1, 0, 1, 0]) / math.sqrt(4)),
        "accuracy/math": 0.5,
        "accuracy/computer science": 1.0,
        "accuracy/law": 0.0,
    }
    samples = sorted(task.dataset, key=lambda sample: int(str(sample.id)))
    assert [sample.target for sample in samples] == ["A", "B", "C", "B"]
    assert [sample.id for sample in samples] == [70, 71, 72, 83]
    assert samples[2].metadata == {"category": "computer science"}
    assert "J) text 9 of 0" in texts(samples[0])[0] and "D)" not in texts(samples[3])[0]


def test_the_first_questions_of_mmlu_pro_are_of_all_subjects(tmp_path: Path) -> None:
    rows = [mmlu_row(n, f"subject {n // 50}") for n in range(200)]
    samples = list(mmlu_pro(write(tmp_path / "x.jsonl", rows)).dataset)
    assert len({(sample.metadata or {})["category"] for sample in samples[:20]}) == 4


def test_mmlu_pro_seed_shuffles_options(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [mmlu_row(n) for n in range(200)])
    in_order, first, again, other = (
        list(mmlu_pro(path, seed=seed).dataset) for seed in (None, 0, 0, 1)
    )
    assert [s.choices for s in first] == [s.choices for s in again]
    assert sum(a.choices == b.choices for a, b in zip(first, other)) < 5
    assert [target_text(s) for s in first] == [target_text(s) for s in in_order]
    assert all(sorted(a.choices or []) == sorted(b.choices or []) for a, b in zip(first, in_order))


def test_mmlu_pro_subject_and_shots(tmp_path: Path) -> None:
    categories = ["math", "law"]
    write(tmp_path / "d/test.jsonl", [mmlu_row(n, categories[n % 2]) for n in range(6)])
    shots = [mmlu_row(n, categories[n % 2]) for n in range(20, 30)]
    file = write(tmp_path / "d/validation.jsonl", shots)
    samples = list(mmlu_pro(str(tmp_path / "d"), subject="Law", num_shots=2).dataset)
    samples.sort(key=lambda sample: int(str(sample.id)))
    assert [sample.id for sample in samples] == [71, 73, 75]
    prompt, reply, _, second, question = texts(samples[0])
    assert "What is 21?" in prompt and "What is 1?" in question
    assert reply == "Let's think. The answer is (B).\nAnswer: B" and second.endswith("Answer: D")
    path = str(tmp_path / "d/test.jsonl")
    assert len(texts(next(iter(mmlu_pro(path, num_shots=5, examples=file).dataset)))) == 11
    with pytest.raises(ConfigurationError, match=r"subject='art': no such category; found law, ma"):
        mmlu_pro(path, subject="art")
    with pytest.raises(ConfigurationError, match=r"no split validation; set examples=FILE"):
        mmlu_pro(path, num_shots=1)
    with pytest.raises(ConfigurationError, match=r"num_shots=6: category '\w+' has 5 examples"):
        mmlu_pro(path, num_shots=6, examples=file)
    for keys in ({"num_shots": -1}, {"num_shots": "two"}, {"seed": "x"}, {"seed": 0.5}):
        with pytest.raises(ConfigurationError, match=r"^(num_shots|seed)=\S+: expected a "):
            mmlu_pro(path, **keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": ["a"], "answer": "A"}, "found 1 options; expected a list of 2 to 26"),
        ({"options": "a, b"}, "found 'a, b'; expected a list"),
        ({"options": ["a", " "]}, "option B is ' '; expected text"),
        ({"answer": "K"}, "'answer' is 'K'; expected a letter from A to J, for there are 10"),
        ({"answer": "BC"}, "'answer' is 'BC'; expected a letter"),
        ({"answer": 1}, "'answer' is 1; expected a letter"),
        ({"answer_index": 2}, "'answer_index' is 2, but 'answer' is 'B', whose index is 1"),
        ({"answer_index": None}, "'answer_index' is None"),
        ({"answer_index": True}, "'answer_index' is True"),
        ({"question": ""}, "'question' is ''; expected text"),
        ({"category": None}, "'category' is None; expected text"),
    ],
)
def test_wrong_rows_of_mmlu_pro(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "x.jsonl", [mmlu_row(0), {**mmlu_row(1), **change}])
    with pytest.raises(DataFormatError, match=re.escape(f"x.jsonl:2: {message}")) as raised:
        mmlu_pro(path)
    assert "\n" not in str(raised.value)


def test_wrong_columns_and_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "d/test.jsonl", [{"question": "A?", "choices": []}])
    with pytest.raises(DataFormatError, match=r"no column 'options'; found 'question', 'choices'"):
        mmlu_pro(path)
    with pytest.raises(DataFormatError, match=r"no column 'Question'; found 'question', 'choices'"):
        gpqa(path)
    with pytest.raises(ConfigurationError, match=r"no split 'validation'; found test"):
        mmlu_pro(str(tmp_path / "d"), split="validation")


async def test_gpqa(tmp_path: Path) -> None:
    rows = [gpqa_row(number) for number in range(400)]
    path = write(tmp_path / "x.jsonl", rows)
    task = gpqa(path)
    samples = list(task.dataset)
    counts = Counter(str(sample.target) for sample in samples)
    assert set(counts) == set("ABCD") and min(counts.values()) > 70  # 100 on average
    assert [target_text(sample) for sample in samples] == [f"right {n}" for n in range(400)]
    assert samples[3].id == "rec3"
    assert samples[3].metadata == {"domain": "Physics", "category": "Optics"}
    # the order is that of the row, whatever other rows there are
    (alone,) = gpqa(write(tmp_path / "y.jsonl", rows[7:8])).dataset
    assert alone.choices == samples[7].choices
    other = list(gpqa(path, seed=1).dataset)
    assert sum(a.choices == b.choices for a, b in zip(samples, other)) < 60  # 1 of 24 on average
    task = gpqa(write(tmp_path / "z.jsonl", rows[:20]))
    found = values(await evaluate(task, lambda prompt: "Answer: A", tmp_path))
    right = statistics.fmean(sample.target == "A" for sample in samples[:20])
    assert found["accuracy"] == pytest.approx(right) and list(found) == ["accuracy", "stderr"]


def test_gpqa_of_csv(tmp_path: Path) -> None:
    """The format of its repository."""
    file = tmp_path / "gpqa_diamond.csv"
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, gpqa_row(0))
        writer.writeheader()
        writer.writerows([gpqa_row(0), {**gpqa_row(1), "Incorrect Answer 2": ""}])
    with pytest.raises(DataFormatError, match=r"gpqa_diamond.csv:\d+: option C is None"):
        gpqa(str(file))
    file.write_text(file.read_text().replace(",,", ",no,"))
    assert [target_text(sample) for sample in gpqa(str(file)).dataset] == ["right 0", "right 1"]


def test_gpqa_of_an_unknown_subset() -> None:
    with pytest.raises(ConfigurationError, match=r"subset='gpqa': expected one of gpqa_diamond, "):
        gpqa(subset="gpqa")


def test_gpqa_is_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: Any, **keys: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError(
            "Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.\nYou must log in."
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    monkeypatch.setattr("tinker_cookbook.utils.hub.ask", lambda *args: None)
    with pytest.raises((ConfigurationError, DataError)) as raised:
        gpqa()
    message = str(raised.value)
    assert "\n" not in message and "accept its terms at https://huggingface.co/datasets/" in message
    assert "hf auth login" in message and gpqa_module.HUB in message
