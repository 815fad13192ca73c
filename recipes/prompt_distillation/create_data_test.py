from __future__ import annotations

import json
from pathlib import Path

import chz
import pytest

from recipes.prompt_distillation.create_data import CLI, DataPlan, main
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.distillation.teacher_samples import samples_file
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service import EngineConfig

SMALL = CLI(num_questions=4, num_samples=2, engine=EngineConfig(deterministic=True))


async def test_replies_follow_the_prompt_that_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also, a file that was cut off in the middle of a row is completed to the same bytes."""
    path = tmp_path / "new" / "replies.jsonl"
    config = chz.replace(SMALL, output_file=str(path))
    await main(config)
    whole = path.read_bytes()
    rows = samples_file(path).rows()
    assert len(rows) == 8 and all(row["problem"] is None for row in rows)
    for row in rows:
        question, reply = row["messages"]
        assert question["role"] == "user" and "iron" not in question["content"]
        assert reply["content"].startswith("iron: ")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"replies of nano to 4 questions of reply_rule: {path}"
    assert "8 samples, 8 usable" in out
    assert out[-1] == (
        "train on them: ./scripts/run recipes.prompt_distillation.train model_name=nano"
        f" dataset_path={path} task=reply_rule"
    )

    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    await main(config)
    assert path.read_bytes() == whole
    assert "resuming at 3 of 8" in capsys.readouterr().out
    # more questions extend the file; other settings do not mix with it
    await main(chz.replace(config, num_questions=5))
    assert path.read_bytes().startswith(whole) and len(samples_file(path).rows()) == 10
    for key, value in (("temperature", 1.0), ("seed", 1), ("num_samples", 1), ("max_tokens", 9)):
        with pytest.raises(ConfigurationError, match=f"made with other settings: .*{key} was"):
            await main(chz.replace(config, num_questions=5, **{key: value}))


async def test_a_prompt_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt, questions = tmp_path / "rules.txt", tmp_path / "asked.jsonl"
    prompt.write_text("The name of the user is Anna. Keep your replies short.")
    questions.write_text(json.dumps({"messages": [{"role": "user", "content": "Hi!"}]}) + "\n")
    path = tmp_path / "replies.jsonl"
    config = chz.replace(
        SMALL,
        prompt=str(prompt),
        questions=str(questions),
        output_file=str(path),
        temperature=0.0,
    )
    await main(config)
    assert [row["messages"][0]["content"] for row in samples_file(path).rows()] == ["Hi!"] * 2
    assert " task=" not in capsys.readouterr().out  # nobody knows the right replies
    prompt.write_text("The name of the user is Ben.")
    with pytest.raises(ConfigurationError, match="made with other settings: prompt was"):
        await main(config)


def test_the_directory_is_named_after_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path))
    path = DataPlan.prepare(CLI()).path
    assert path.name == "samples.jsonl" and path.parent.parent == tmp_path
    assert path.parent.name.startswith("prompt_distillation_data-nano-")
    same = ("num_questions=9", "engine.num_threads=1", "prompt=reply_rule", "max_tokens=48")
    assert {DataPlan.prepare(parse(CLI, [words])).path for words in same} == {path}
    others = ("seed=1", "temperature=1", "num_samples=2", "prompt=bakery")
    assert len({DataPlan.prepare(parse(CLI, [words])).path for words in others} | {path}) == 5


def test_defaults_follow_the_teacher() -> None:
    assert DataPlan.prepare(CLI()).config.max_tokens == 48
    plan = DataPlan.prepare(CLI(teacher_model="Qwen/Qwen3-8B"))
    assert plan.config.max_tokens == 1000 and plan.config.temperature == 0.15
    assert plan.config.num_samples == 1
    assert plan.task == "reply_rule" and plan.teacher.base_model == "Qwen/Qwen3-8B"
    plan = DataPlan.prepare(CLI(model_name="Qwen/Qwen3-8B"))
    assert plan.task == "languages" and plan.config.num_samples == 16
    assert DataPlan.prepare(CLI(prompt="bakery", questions="reply_rule")).task is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prompt=bakry", "prompt='bakry' is unknown; set one of reply_rule, bakery, languages"),
        ("prompt=missing.txt", r"prompt=missing\.txt: no such file"),
        ("questions=missing.jsonl", r"questions=missing\.jsonl: no such file"),
        (f"prompt={__file__}", "a prompt of your own needs questions="),
        ("teacher_checkpoint=missing", "teacher_checkpoint=missing"),
        ("num_samples=0", "num_samples=0: expected 1 or more"),
        ("temperature=-1", "temperature=-1.0: expected 0 or more"),
        ("num_question=2", "num_question"),
    ],
)
def test_bad_keys(words: str, message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        DataPlan.prepare(parse(CLI, words.split()))
    assert len(str(error.value).splitlines()) == 1
