"""The evaluation program: results, resume with the missing samples, errors of one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import chz
import pytest
from inspect_ai.log import list_eval_logs, read_eval_log

from tinker_cookbook import nano
from tinker_cookbook.eval import inspect_model
from tinker_cookbook.eval.run_inspect_evals import Config, run
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, EvalError, RunFinished
from tinker_cookbook.service import connect

SUMS = "tinker_cookbook.eval.testing:sums"


def config(directory: Path, **keys: Any) -> Config:
    keys = {"tasks": [SUMS], "max_tokens": 8, "temperature": 0.0, "display": "none", **keys}
    return Config(log_path=str(directory / "run"), **keys)


def rows(directory: Path) -> list[dict]:
    lines = (directory / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


async def test_results_are_rows_and_logs(tmp_path: Path) -> None:
    tasks = [SUMS, "tinker_cookbook.eval.running_test:two_scores"]
    metrics = await run(config(tmp_path, tasks=tasks, task_args={"count": "3"}, num_samples=2))
    assert metrics["sums/num_samples"] == 6 and metrics["two_scores/num_samples"] == 2
    assert 0 <= metrics["sums/pass@1"] <= metrics["sums/pass@2"] <= 1
    first, second, last = rows(tmp_path)
    assert (first["task"], second["task"]) == ("sums", "two_scores")
    assert {key: last[key] for key in metrics} == metrics
    logs = [read_eval_log(info) for info in list_eval_logs(str(tmp_path / "run" / "inspect"))]
    assert {log.eval.task: log.status for log in logs} == {
        "sums": "success",
        "two_scores": "success",
    }
    assert {log.eval.model for log in logs} == {"tinker-cookbook/nano"}
    settings = logs[0].plan.config
    assert (settings.temperature, settings.max_tokens, settings.seed) == (0, 8, 0)
    with pytest.raises(RunFinished, match="a finished run of 2 tasks"):
        again = config(tmp_path, tasks=tasks, task_args={"count": "3"}, num_samples=2)
        await run(chz.replace(again, behavior_if_log_dir_exists="skip"))


async def test_the_same_command_runs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that failed, as after a server's outage, are tried again, and those alone."""
    asked: list[str] = []
    generate = inspect_model.TinkerSamplingAPI.generate

    async def count(self: Any, input: Any, *rest: Any, **more: Any) -> Any:
        asked.append(input[-1].text)
        return await generate(self, input, *rest, **more)

    async def fail_twice(self: Any, input: Any, *rest: Any, **more: Any) -> Any:
        if input[-1].text in ("How much is 1 + 2?", "How much is 4 + 5?"):
            raise RuntimeError("the server is away")
        return await count(self, input, *rest, **more)

    monkeypatch.setattr(inspect_model.TinkerSamplingAPI, "generate", fail_twice)
    with pytest.raises(EvalError, match=r"2 of 6 samples failed .* the server is away"):
        await run(config(tmp_path))
    assert len(asked) == 4 and not (tmp_path / "run" / "metrics.jsonl").exists()

    asked.clear()
    monkeypatch.setattr(inspect_model.TinkerSamplingAPI, "generate", count)
    resumed = await run(config(tmp_path))
    assert sorted(asked) == ["How much is 1 + 2?", "How much is 4 + 5?"]
    assert resumed["sums/failed"] == 0 and resumed["sums/num_samples"] == 6

    whole = await run(config(tmp_path / "whole"))
    assert resumed == whole


async def test_failures_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = inspect_model.TinkerSamplingAPI.generate

    async def fail(self: Any, input: Any, *rest: Any, **more: Any) -> Any:
        if input[-1].text == "How much is 1 + 2?":
            raise RuntimeError("too hard")
        return await generate(self, input, *rest, **more)

    monkeypatch.setattr(inspect_model.TinkerSamplingAPI, "generate", fail)
    with pytest.raises(EvalError, match="allow_failures=true leaves them out"):
        await run(config(tmp_path))
    metrics = await run(config(tmp_path, allow_failures=True))
    assert metrics["sums/failed"] == 1
    assert rows(tmp_path)[-1]["sums/failed"] == 1


async def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    await run(config(tmp_path))
    (log,) = (tmp_path / "run" / "inspect").glob("*.eval")
    log.write_bytes(log.read_bytes()[:100])
    (tmp_path / "run" / "metrics.jsonl").unlink()
    with pytest.raises(EvalError, match=rf"{log.name} is damaged .*: remove it, and the same"):
        await run(config(tmp_path))
    log.unlink()
    assert (await run(config(tmp_path)))["sums/num_samples"] == 6


async def test_the_base_model_is_the_checkpoints_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained by a relative path, evaluated elsewhere."""
    shutil.copytree(Path(nano.__file__).parent, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    client = connect().create_lora_training_client("mine", rank=2, seed=0).result()
    saved = client.save_weights_for_sampler("x").result().path
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    one = await run(config(tmp_path, model_path=saved, task_args={"count": "2"}))
    assert one["sums/num_samples"] == 2
    read = json.loads((tmp_path / "run" / "config.json").read_text())
    assert read["model_name"] == str(tmp_path / "mine")
    with pytest.raises(EvalError, match=r"was trained on '.*mine', not on 'nano': set model_name="):
        await run(config(tmp_path / "b", model_path=saved, model_name="nano"))


async def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"tasks": ["gsm9k"]}, ConfigurationError, "tasks=gsm9k is unknown"),
        ({"tasks": []}, ConfigurationError, "tasks is empty"),
        ({"model_path": str(tmp_path / "absent")}, CheckpointError, "model_path="),
        ({"renderer_name": "qwen33"}, EvalError, "qwen33"),
    ]
    for keys, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            await run(config(tmp_path, **keys))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="k=8: pass@k needs 1 to num_samples=2"):
        config(tmp_path, num_samples=2, k=[8])
    with pytest.raises(ConfigurationError, match="k=1,4: pass@k needs num_samples=4 or more"):
        config(tmp_path, k=[1, 4])
    with pytest.raises(ConfigurationError, match=r"'cuont' \(did you mean count\?\)"):
        await run(config(tmp_path, task_args={"cuont": "3"}))
    with pytest.raises(ConfigurationError, match=r"no task has an argument 'pth'"):
        await run(config(tmp_path, tasks=["gsm8k"], task_args={"pth": "x"}))  # before any download
    with pytest.raises(ConfigurationError, match=r"lies in .*, the data of the tasks: set another"):
        await run(config(tmp_path, tasks=["gsm8k"], task_args={"path": str(tmp_path)}))
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ConfigurationError, match=r"need the package inspect_ai: .* install .*eval"):
        await run(config(tmp_path))
