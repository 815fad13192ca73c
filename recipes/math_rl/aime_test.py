"""AIME: its copies on the hub and on disk, and the program, with a scripted model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from recipes.math_rl import aime
from recipes.math_rl.aime_data import DEFAULT, HUB, YEARS, Aime, aime_answer, chosen_years
from recipes.math_rl.pass_at_k import pass_at_k
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import (
    AllTrajectoriesFailedError,
    ConfigurationError,
    DataFormatError,
)
from tinker_cookbook.math_problems import problem_rows
from tinker_cookbook.renderers import get_renderer
from tinker_cookbook.rl.transcripts import read_rollouts
from tinker_cookbook.testing import (
    Asked,
    SampleRequest,
    ScriptedEngine,
    scripted_service,
    scripted_text,
)
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.ml_log import read_metrics

NANO: dict[str, Any] = {"model_name_for_tokenizer": "nano", "renderer_name": "qwen3_instruct"}


def write(path: Path, answers: list[Any]) -> Path:
    rows = [{"problem": f"Which number is {a}?", "answer": a} for a in answers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("025", "25"),
        ("0", "0"),
        ("000", "0"),
        (r"336^\circ", "336"),
        (r"336^{\circ}", "336"),
        (r"$336^\circ$", "336"),
        ("336°", "336"),
        (" 70. ", "70"),
        ("70.0", "70"),
        ("999", "999"),
        ("70.5", "70.5"),
        ("-3", "-3"),
        ("x", "x"),
    ],
)
def test_answers(written: str, answer: str) -> None:
    assert aime_answer(written) == answer


@pytest.mark.parametrize("answer", ["70.5", "-3", "1000", "x", "²"])
def test_answers_that_cannot_be(answer: str, tmp_path: Path) -> None:
    file = write(tmp_path / "aime2024.jsonl", ["7", answer])
    with pytest.raises(DataFormatError, match=r"answer of problem 2 is .* from 0 to 999"):
        Aime(**NANO, path=str(file)).problems()


def test_real_problems(shared_data: Path) -> None:
    path = str(shared_data / "datasets" / "aime")
    for year, first in (("2024", "204"), ("2025", "70")):
        found = Aime(**NANO, path=path, year=year).test_set(8)
        assert len(found.problems) == 30 and found.problems[0].answer == first
        assert found.group_size == 8 and found.name == f"aime{year}"
        assert all(str(int(each.answer)) == each.answer for each in found.problems)
    assert chosen_years(path, ()) == ("2024", "2025")
    with pytest.raises(ConfigurationError, match="for evaluation only"):
        asyncio.run(Aime(**NANO, path=path)())


ROWS = {  # as the data cards have them: (rows, answer of the first)
    "HuggingFaceH4/aime_2024": [{"id": 60, "problem": "?", "solution": "s", "answer": "025"}],
    "Maxwell-Jia/AIME_2024": [{"ID": "2024-I-1", "Problem": "?", "Answer": 25}],
    "math-ai/aime24": [{"id": 1, "problem": "?", "solution": r"So \boxed{025}.", "url": "u"}],
    "math-ai/aime25": [{"problem": "?", "answer": "25", "id": "1"}],
    "opencompass/AIME2025": [{"question": "?", "answer": r"25^\circ"}],
    "MathArena/aime_2025": [{"problem_idx": 1, "problem": "?", "answer": 25, "problem_type": []}],
    "MathArena/aime_2026": [{"problem_idx": 1, "problem": "?", "answer": 25}],
}


@pytest.mark.parametrize("name", HUB)
def test_copies_on_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = str(tmp_path / "copy.parquet")
    datasets.Dataset.from_list(ROWS[name]).to_parquet(table)
    asked: list[tuple[str, str | None, str]] = []

    def load(path: str, configuration: str | None, split: str, **_: Any) -> Rows:
        asked.append((path, configuration, split))
        return open_rows(table)

    monkeypatch.setattr(problem_rows, "open_rows", load)
    year = HUB[name].year
    by_name = Aime(**NANO, path=name, year=year).problems()
    assert [(each.question, each.answer) for each in by_name] == [("?", "25")] * len(asked)
    assert {split for _, _, split in asked} == {"test" if name[:3] in ("mat", "ope") else "train"}
    parts = [configuration for _, configuration, _ in asked]
    assert parts == (["AIME2025-I", "AIME2025-II"] if name[:3] == "ope" else [None])
    if name == DEFAULT[year]:
        assert Aime(**NANO, year=year).problems() == by_name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["path=other.jsonl"], "path=other.jsonl is one set of problems, and no year= is set"),
        (["path=org/other", "year=2024,2025"], "one set of problems, and year=2024,2025 are 2"),
        (["path=MathArena/aime_2026", "year=2025"], "has the problems of 2026, not of 2025"),
        (["path={}/aime2024.jsonl", "year=2025"], "has the problems of 2024, not of 2025"),
        (["path={}", "year=2026"], "has the problems of 2024, not of 2026"),
        (["path={}", "year=2024,2024"], "a year is given twice"),
        (["path={}", "num_samples=0"], "num_samples=0: expected 1 or more"),
        (["path={}", "num_samples=2", "k=1,4"], "k=4: expected 1 to num_samples=2"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path / "aime2024.jsonl", ["1"])
    with pytest.raises(ConfigurationError, match=message):
        asyncio.run(aime.main(parse(aime.CLI, [word.format(tmp_path) for word in words])))
    assert not list(tmp_path.glob("*/config.json"))


def test_years() -> None:
    assert chosen_years("hub", ()) == YEARS == ("2024", "2025", "2026")
    assert chosen_years("hub", ("2026",)) == ("2026",)
    assert chosen_years("MathArena/aime_2026", ()) == ("2026",)
    assert chosen_years("org/other", ("2025",)) == ("2025",)


class Scripted:
    """A model that answers by prompt and seed alone: right where the seed is even, and the replies
    to some prompts never come in this process."""

    def __init__(self, store: Path, silent: Collection[str] = ()) -> None:
        self.silent, self.asked = silent, []
        engine = ScriptedEngine(scripted_text("nano", self.text), delay=self.delay)
        service = scripted_service(engine, store)
        self.client = service.create_sampling_client(base_model="nano").result()

    def text(self, asked: Asked) -> str:
        number = self.number(asked.request)
        if number in self.silent:
            raise ConnectionError("the service is gone")
        self.asked.append(number)
        right = (asked.request.seed or 0) % 2 == 0
        return rf"\boxed{{{number if right else 1234}}}<|im_end|>"

    def delay(self, request: SampleRequest) -> float:
        number = self.number(request)  # replies come in another order than they were asked for
        return 0.2 if number in self.silent else int(number) % 3 / 100  # others are graded before

    def number(self, request: SampleRequest) -> str:
        text = str(get_tokenizer("nano").decode(request.prompt.tolist()))
        return text.partition("number is ")[2].partition("?")[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "aime2024.jsonl", ["025", "70", "113"])
    write(tmp_path / "aime2026.jsonl", [204, 8])
    return tmp_path


def run(
    data: Path, model: Scripted, monkeypatch: pytest.MonkeyPatch, *words: str
) -> dict[str, Any]:
    """The last row of the run in data/run (or log_path=)."""

    async def completer_from(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            sampling_client=model.client,
            renderer=get_renderer("qwen3_instruct", get_tokenizer("nano")),
        )

    monkeypatch.setattr(aime, "completer_from", completer_from)
    given = [f"path={data}", "num_samples=4", f"log_path={data / 'run'}", *words]
    asyncio.run(aime.main(parse(aime.CLI, given)))
    return read_metrics(data / "run")[-1]


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def test_the_directory_of_an_evaluation(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Scripted(data)
    last = run(data, model, monkeypatch)
    directory = data / "run"
    for name in ("config.json", "code.diff", "logs.log", "metrics.jsonl"):
        assert (directory / name).is_file()
    rows = read_metrics(directory)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert sorted(row["group"] for row in rows[:5]) == [0, 1, 2, 3, 4]
    assert {row["problem"] for row in rows[:5]} >= {"aime2024, problem 3", "aime2026, problem 2"}

    replies = read_rollouts(directory / "iteration_000000/eval_aime_rollout_summaries.jsonl")
    assert len(replies) == 5 * 4
    right: dict[int, int] = dict.fromkeys(range(5), 0)
    for record in replies:
        (step,) = record["steps"]
        assert step["ac_text"].startswith(r"\boxed{") and len(step["logprobs"]) == step["ac_len"]
        graded = step["metrics"]["correct"] == 1.0
        assert graded == ("1234" not in step["ac_text"]) == bool(record["total_reward"])
        right[record["group_idx"]] += graded
        year, problem = record["tags"]
        assert (
            step["logs"]["reference"]
            == {
                "aime2024": {"problem 1": "25", "problem 2": "70", "problem 3": "113"},
                "aime2026": {"problem 1": "204", "problem 2": "8"},
            }[year][problem]
        )
    assert 0 < sum(right.values()) < 20
    for row in rows[:5]:
        assert row["num_correct"] == right[row["group"]] and row["num_replies"] == 4
    for year, groups in (("aime2024", (0, 1, 2)), ("aime2026", (3, 4))):
        for k in (1, 2, 4):
            values = [pass_at_k(4, right[group], k) for group in groups]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            assert last[f"{year}/pass@{k}"] == pytest.approx(mean)
            assert last[f"{year}/pass@{k}_stderr"] == pytest.approx((variance / len(values)) ** 0.5)
    page = (directory / "iteration_000000/eval_aime.html").read_text()
    assert "20 rollouts in 5 groups" in page and "problem 3" in page and "aime2026/pass@4" in page
    said = capsys.readouterr().out
    assert "problem 5/5" in said and "aime2024: 3 problems, 4 replies each: pass@1 0." in said
    assert " ± " in said and "finished: 5 problems in" in said


def test_what_is_finished_is_not_sampled_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run(data, Scripted(data), monkeypatch, f"log_path={data / 'run'}")
    (data / "run").rename(data / "whole")
    with pytest.raises(ConnectionError):
        run(data, Scripted(data, {"70", "8"}), monkeypatch)
    rows = read_metrics(data / "run")
    assert len(rows) == 3
    file = data / "run/iteration_000000/eval_aime_rollout_summaries.jsonl"
    with file.open("ab") as half:  # killed while it wrote the next problem
        line = json.loads(file.read_bytes().splitlines()[0])
        half.write(json.dumps(line | {"group_idx": 4}).encode() + b'\n{"group_idx": 4, "st')
    model = Scripted(data)
    last = run(data, model, monkeypatch)
    assert sorted(model.asked) == ["70"] * 4 + ["8"] * 4
    assert without_time(last) == without_time(expected)
    assert len(read_rollouts(file)) == 20
    assert "resuming" in capsys.readouterr().out
    assert read_metrics(data / "run")[:3] == rows

    model = Scripted(data)  # finished: the same command is a new evaluation, beside it
    run(data, model, monkeypatch)
    assert len(model.asked) == 20 and (data / "run-2/iteration_000000/eval_aime.html").is_file()
    with pytest.raises(ConfigurationError, match="run with a different config: temperature"):
        run(data, model, monkeypatch, "temperature=0.5")


def test_only_the_page_is_missing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(data, Scripted(data), monkeypatch)
    lines = (data / "run/metrics.jsonl").read_text().splitlines(keepends=True)
    (data / "run/metrics.jsonl").write_text("".join(lines[:-1]))
    (data / "run/iteration_000000/eval_aime.html").unlink()
    model = Scripted(data)
    assert without_time(run(data, model, monkeypatch)) == without_time(expected)
    assert model.asked == []
    assert (data / "run/iteration_000000/eval_aime.html").is_file()


def test_replies_that_cannot_be_graded(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some: wrong, and counted. All: no figure at all."""
    from recipes.math_rl.boxed_env import MathEnv

    calls: list[str] = []

    def check_answer(self: Any, sample_str: str) -> bool:
        calls.append(sample_str)
        if len(calls) <= 3 or "all" in broken:
            raise RuntimeError("no grader")
        return True

    broken: set[str] = set()
    monkeypatch.setattr(MathEnv, "check_answer", check_answer)
    last = run(data, Scripted(data), monkeypatch, "year=2024")
    assert last["aime2024/failed"] == 3 and last["aime2024/correct"] == pytest.approx(9 / 12)
    said = capsys.readouterr().out
    assert "3 could not be graded and count as wrong" in said and "no grader" in said
    broken.add("all")
    with pytest.raises(AllTrajectoriesFailedError, match="none of the replies to 3 problems"):
        run(data, Scripted(data), monkeypatch, "year=2024")
