"""The IFEval task through Inspect, with replies that are given."""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task, eval_async
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score

from tinker_cookbook.eval.ifeval import language
from tinker_cookbook.eval.tasks import ifeval as module
from tinker_cookbook.eval.tasks.ifeval import METRICS, ifeval
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError

QUOTED, NO_COMMA = "startend:quotation", "punctuation:no_comma"
WORDS = "length_constraints:number_words"
ROWS: list[dict[str, Any]] = [
    {"key": 10, "prompt": "A?", "instruction_id_list": [NO_COMMA], "kwargs": [{}]},
    {
        "key": 11,
        "prompt": "B?",
        "instruction_id_list": [QUOTED, NO_COMMA, WORDS],
        "kwargs": [{"num_words": None}, {}, {"num_words": 2, "relation": "at least"}],
    },
    {"key": 12, "prompt": "C?", "instruction_id_list": [QUOTED, QUOTED], "kwargs": [{}, {}]},
]
REPLIES = {"A?": "yes", "B?": "*yes, and no*", "C?": '*"yes"*'}
STRICT, LOOSE = [[1], [0, 0, 1], [0, 0]], [[1], [0, 0, 1], [1, 1]]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


async def evaluate(task: Task, reply: Callable[[str], str], tmp_path: Path, **keys: Any) -> EvalLog:
    def output(input: list[ChatMessage], *rest: Any) -> ModelOutput:
        output = ModelOutput.from_content("mockllm/model", reply(input[-1].text))
        output.usage = ModelUsage()  # else its tokens are counted with a tokenizer of the hub
        return output

    model = get_model("mockllm/model", custom_outputs=output)
    (log,) = await eval_async(task, model=model, log_dir=str(tmp_path / "logs"), **keys)
    assert log.status == "success", log.error
    return log


def values(log: EvalLog) -> dict[str, float]:
    assert log.results is not None and len(log.results.scores) == 1
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


async def test_four_metrics_and_their_standard_errors(tmp_path: Path) -> None:
    log = await evaluate(ifeval(write(tmp_path / "x.jsonl", ROWS)), REPLIES.__getitem__, tmp_path)
    found = values(log)
    assert list(found) == [key for name in METRICS for key in (name, f"{name}_stderr")]
    for name, followed in (("strict", STRICT), ("loose", LOOSE)):
        prompts = [float(all(prompt)) for prompt in followed]
        assert found[f"prompt_{name}"] == pytest.approx(statistics.fmean(prompts))
        error = statistics.stdev(prompts) / math.sqrt(3)
        assert found[f"prompt_{name}_stderr"] == pytest.approx(error)
        share = sum(map(sum, followed)) / 6
        assert found[f"instruction_{name}"] == pytest.approx(share)
        clusters = [sum(prompt) - len(prompt) * share for prompt in followed]
        error = math.sqrt(sum(c * c for c in clusters) * 3 / 2) / 6
        assert found[f"instruction_{name}_stderr"] == pytest.approx(error)
    assert log.samples is not None and [sample.id for sample in log.samples] == [10, 11, 12]
    assert log.samples[1].scores is not None
    (score,) = log.samples[1].scores.values()
    assert score.metadata is not None and score.metadata["instructions"] == [
        {"instruction_id": QUOTED, "strict": False, "loose": False},
        {"instruction_id": NO_COMMA, "strict": False, "loose": False},
        {"instruction_id": WORDS, "strict": True, "loose": True},
    ]


async def test_epochs_are_averaged(tmp_path: Path) -> None:
    asked = 0

    def reply(text: str) -> str:
        nonlocal asked
        asked += 1
        return "yes" if asked == 1 else "yes, no"

    task = ifeval(write(tmp_path / "x.jsonl", ROWS[:1]))
    found = values(await evaluate(task, reply, tmp_path, epochs=4))
    assert found["prompt_strict"] == found["instruction_strict"] == 0.25


def test_errors_of_prompts_of_one_size() -> None:
    """The clustered error is then that of the mean over prompts."""
    metric = module.ifeval_metrics()
    shares = [0.0, 0.5, 1.0, 1.0, 0.5]
    scores = [
        SampleScore(
            score=Score(value=dict.fromkeys(METRICS, share)),
            sample_metadata={"instruction_id_list": [QUOTED, NO_COMMA]},
        )
        for share in shares
    ]
    found = metric(scores)  # type: ignore[arg-type]
    assert isinstance(found, dict)
    assert found["instruction_loose"] == pytest.approx(0.6)
    error = statistics.stdev(shares) / math.sqrt(5)
    assert found["instruction_loose_stderr"] == pytest.approx(error)
    assert metric(scores[:1])["prompt_strict_stderr"] == 0  # type: ignore[index, arg-type]
    assert math.isnan(metric([])["prompt_strict"])  # type: ignore[index, arg-type]


async def test_scoring_leaves_the_event_loop_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    real = module.verdicts

    def slow(requirements: Any, reply: str) -> Any:
        threads.add(threading.current_thread())
        time.sleep(0.5)
        return real(requirements, reply)

    async def longest_pause() -> None:
        nonlocal pause
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            pause = max(pause, time.perf_counter() - before)

    monkeypatch.setattr(module, "verdicts", slow)
    state = type("State", (), {})()
    state.metadata, state.output = ROWS[0], type("Output", (), {"completion": "yes"})()
    pause = 0.0
    watch = asyncio.create_task(longest_pause())
    await asyncio.sleep(0)
    score = await module.followed_instructions()(state, None)  # type: ignore[arg-type]
    watch.cancel()
    assert score is not None and score.as_dict()["prompt_strict"] == 1
    assert threads.isdisjoint({threading.main_thread()}) and pause < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction_id_list": ["startend:quote"]}, "x.jsonl:2: unknown instruction 'startend:q"),
        ({"instruction_id_list": [[WORDS]]}, "x.jsonl:2: unknown instruction \\['length"),
        ({"instruction_id_list": [WORDS]}, "x.jsonl:2: length_constraints:number_words lacks"),
        (
            {"instruction_id_list": []},
            "x.jsonl:2: 'instruction_id_list' is \\[\\]; expected a list",
        ),
        ({"kwargs": "[{}]"}, "x.jsonl:2: 'kwargs' is '\\[{}\\]'; expected a list"),
        ({"kwargs": ["{}"]}, "x.jsonl:2: kwargs of punctuation:no_comma are '{}'; expected an obj"),
        ({"prompt": " "}, "x.jsonl:2: 'prompt' is ' '; expected text"),
    ],
)
def test_wrong_rows_are_named_at_start_up(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "x.jsonl", [ROWS[0], {**ROWS[0], **change}])
    with pytest.raises(DataFormatError, match=message) as raised:
        ifeval(path)
    assert "\n" not in str(raised.value)


def test_without_langdetect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At start-up, whatever the rows are."""
    monkeypatch.setitem(sys.modules, "langdetect", None)
    language._created.cache_clear()
    with pytest.raises(ConfigurationError, match="IFEval needs langdetect"):
        ifeval(write(tmp_path / "x.jsonl", ROWS))


def test_wrong_paths_and_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"path=\./none: no such file or directory"):
        ifeval("./none")
    path = write(tmp_path / "x.jsonl", [{"prompt": "A?"}])
    with pytest.raises(DataFormatError, match="no column 'instruction_id_list'; found 'prompt'; e"):
        ifeval(path)


async def test_tables_have_every_argument_in_each_row(tmp_path: Path) -> None:
    import datasets

    path = str(tmp_path / "x.parquet")
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    task = ifeval(path)
    metadata = task.dataset[1].metadata
    assert metadata is not None and metadata["kwargs"][1] == {"num_words": None, "relation": None}
    found = values(await evaluate(task, REPLIES.__getitem__, tmp_path))
    assert found["instruction_strict"] == pytest.approx(2 / 6)


def test_real_data(shared_data: Path) -> None:
    task = ifeval(str(shared_data / "datasets/ifeval/input_data.jsonl"))
    assert len(task.dataset) == 541
    lengths = [len((sample.metadata or {})["kwargs"]) for sample in task.dataset]
    assert sum(lengths) == 834
