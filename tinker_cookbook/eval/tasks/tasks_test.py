"""Local tasks: their samples, scores and errors, with replies that are given."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Epochs, Task, eval_async
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessage, Model, ModelOutput, ModelUsage, get_model

from tinker_cookbook.eval.tasks import LOCAL, load
from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.math_problems.boxed_prompt import ONE_SHOT, REQUEST
from tinker_cookbook.nano.tasks import held_out_pair


def scripted(reply: Callable[[str], str]) -> Model:
    """A model whose reply is a function of the last message."""

    def output(input: list[ChatMessage], *rest: Any) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", reply(input[-1].text))
        output.usage = ModelUsage()  # else its tokens are counted with a tokenizer of the hub
        return output

    return get_model("mockllm/model", custom_outputs=output)


async def evaluate(task: Task, reply: Callable[[str], str], tmp_path: Path, **keys: Any) -> EvalLog:
    (log,) = await eval_async(task, model=scripted(reply), log_dir=str(tmp_path / "logs"), **keys)
    assert log.status == "success", log.error
    return log


def metric(log: EvalLog, name: str = "accuracy", score: int = 0) -> float:
    assert log.results is not None
    return log.results.scores[score].metrics[name].value


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def inputs(task: Task) -> list[Sample]:
    return list(task.dataset)


@pytest.mark.parametrize("name", LOCAL)
def test_names_are_those_of_the_functions(name: str) -> None:
    assert load(name).__name__ == name


async def test_gsm8k(tmp_path: Path) -> None:
    answers = {"A?": "18", "B?": "1,200", "C?": "3"}
    path = write_rows(
        tmp_path / "test.jsonl",
        [{"question": q, "answer": f"so\n#### {a}"} for q, a in answers.items()],
    )
    replies = {"A?": "It is \\boxed{18.0}", "B?": "\\boxed{1200} dollars", "C?": "3"}
    task = load("gsm8k")(path=str(tmp_path))
    log = await evaluate(task, lambda text: replies[text.removesuffix(REQUEST)], tmp_path)
    assert metric(log) == pytest.approx(2 / 3)  # the last has no box
    assert metric(log, "stderr") == pytest.approx(statistics.stdev([1, 1, 0]) / math.sqrt(3))
    assert [sample.target for sample in inputs(task)] == ["18", "1200", "3"]
    shown = inputs(load("gsm8k")(path=path, one_shot=True))[0].input
    wanted = [*(message["content"] for message in ONE_SHOT), "A?" + REQUEST]
    assert [message.text for message in shown] == wanted


def test_wrong_columns_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "A?", "solution": "#### 1"}])
    with pytest.raises(DataFormatError, match=r"no column 'question'; found 'prompt', 'solution'"):
        load("gsm8k")(path=path)


def test_real_files(shared_data: Path) -> None:
    counts = {
        "gsm8k": (shared_data / "datasets/gsm8k", 1319),
        "math500": (shared_data / "datasets/math", 500),
        "aime2024": (shared_data / "datasets/aime", 30),
        "aime2025": (shared_data / "datasets/aime", 30),
    }
    for name, (path, count) in counts.items():
        assert len(inputs(load(name)(path=str(path)))) == count


async def test_known_answers_of_math500_are_right(shared_data: Path, tmp_path: Path) -> None:
    task = load("math500")(path=str(shared_data / "datasets/math"))
    known = {sample.input[-1].text: sample.target for sample in inputs(task)[:40]}  # type: ignore[union-attr]
    log = await evaluate(task, lambda text: f"\\boxed{{{known[text]}}}", tmp_path, limit=40)
    assert metric(log) == 1.0


async def test_pass_at_k_and_its_standard_error(tmp_path: Path) -> None:
    """Against the formula of Chen et al. 2021, 1 - C(n - c, k) / C(n, k)."""
    path = write_rows(
        tmp_path / "aime2026.jsonl",
        [{"problem": f"{n}?", "answer": f"0{n}"} for n in range(3)],
    )
    right, calls = {0: 0, 1: 2, 2: 5}, {0: 0, 1: 0, 2: 0}

    def reply(text: str) -> str:
        number = int(text[0])
        calls[number] += 1
        return f"\\boxed{{{number if calls[number] <= right[number] else 999}}}"

    task = load("aime2026")(path=path)
    log = await evaluate(task, reply, tmp_path, epochs=Epochs(6, ["pass_at_1", "pass_at_4"]))
    assert calls == {0: 6, 1: 6, 2: 6}
    for score, k in enumerate((1, 4)):
        values = [1 - math.comb(6 - c, k) / math.comb(6, k) for c in right.values()]
        assert metric(log, score=score) == pytest.approx(statistics.fmean(values))
        error = statistics.stdev(values) / math.sqrt(3)
        assert metric(log, "stderr", score) == pytest.approx(error)


async def test_nano_tasks(tmp_path: Path) -> None:
    def add(text: str) -> str:
        a, b = (int(word.rstrip("?")) for word in text.split() if word.rstrip("?").isdigit())
        return f"<think>\n1\n</think>\n\n{a + b + (a % 2)}"

    task = load("nano_sums")()
    pairs = [[int(part) for part in str(sample.id).split("+")] for sample in inputs(task)]
    assert all(held_out_pair(*pair) for pair in pairs) and len(pairs) > 900
    log = await evaluate(task, add, tmp_path, limit=50)
    assert metric(log) == pytest.approx(statistics.fmean(a % 2 == 0 for a, _ in pairs[:50]))

    words = load("nano_number_words")()
    known = {sample.input: sample.target for sample in inputs(words)}
    log = await evaluate(words, lambda text: str(known[text]).replace("-one", "-two"), tmp_path)
    wrong = sum("-one" in str(target) for target in known.values())
    assert len(known) == 30 and metric(log) == pytest.approx(1 - wrong / 30)
