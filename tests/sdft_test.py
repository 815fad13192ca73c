"""The recipe for self-distillation as a user runs it: data by name, resuming, what nano learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chz
import pytest

from recipes.distillation.student import describe_student
from recipes.sdft import train as recipe
from recipes.sdft.datasets import demonstrations_of
from recipes.sdft.nano_facts import NanoFacts, draw_facts
from recipes.sdft.sciknoweval import ChosenLetters, SciKnowEval
from recipes.sdft.toolalpaca import SameCalls, ToolAlpaca
from tests.programs import Programs
from tinker_cookbook import models
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.distillation.demonstrations import DemonstrationChats
from tinker_cookbook.distillation.sdft_defaults import SDFT_DEFAULTS
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import get_text_content
from tinker_cookbook.supervised.chat_config import resolve_chat_config
from tinker_cookbook.training.run_identity import RunIdentity
from tinker_cookbook.utils import jsonl


def rows(log_path: Path) -> list[dict[str, Any]]:
    lines = (log_path / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
        for line in lines
    ]


def test_data_by_name_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("{}\n")
    assert demonstrations_of("nano_facts") == NanoFacts()
    assert demonstrations_of("sciknoweval") == SciKnowEval()
    assert demonstrations_of("toolalpaca") == ToolAlpaca()
    assert demonstrations_of(str(path)) == DemonstrationChats(path=str(path))
    with pytest.raises(ConfigurationError, match="dataset='facts' is unknown; set nano_facts, sci"):
        demonstrations_of("facts")
    with pytest.raises(ConfigurationError, match=r"dataset=no\.jsonl: no such file"):
        demonstrations_of("no.jsonl")


def test_nano_may_be_given_as_a_directory() -> None:
    assert recipe.data_of(recipe.CLI(model_name=models.load_path("nano"))) == NanoFacts()
    assert recipe.data_of(recipe.CLI(model_name="Qwen/Qwen3-8B")) == SciKnowEval()


async def test_two_names_for_the_data() -> None:
    with pytest.raises(ConfigurationError, match=r"nano_facts and dataset_path=x\.jsonl both name"):
        await recipe.main(recipe.CLI(dataset="nano_facts", dataset_path="x.jsonl"))


def test_the_defaults_and_the_tinker_cookbooks_keys() -> None:
    words = ["model_name=Qwen/Qwen3-8B", "groups_per_batch=16", "group_size=2", "topk=10"]
    config = parse(recipe.CLI, words, recipe.ALIASES)
    assert (config.batch_size, config.group_size, config.topk) == (16, 2, 10)
    config = recipe.CLI(model_name="Qwen/Qwen3-8B")
    resolved = resolve_chat_config(config, SDFT_DEFAULTS, NanoFacts()).config
    assert (resolved.group_size, resolved.batch_size, resolved.learning_rate) == (1, 32, 2e-5)
    assert (resolved.max_tokens, resolved.topk, resolved.lora_rank) == (2048, 20, 128)
    assert (resolved.reverse, resolved.teacher_sync_every) == (False, None)
    assert resolved.skip_first_tokens == 3


def evaluated_tokens(config: recipe.CLI) -> int | None:
    (build,) = recipe.resolve(config).config.evaluator_builders
    assert isinstance(build, ChosenLetters | SameCalls)
    return build.data.eval_max_tokens


def test_replies_in_the_evaluation_may_be_as_long_as_in_training() -> None:
    config = recipe.CLI(model_name="Qwen/Qwen3-8B")
    assert evaluated_tokens(config) == 2048
    assert evaluated_tokens(chz.replace(config, dataset="toolalpaca")) == 2048
    assert evaluated_tokens(chz.replace(config, max_tokens=99)) == 99
    for limit in (None, 7):
        data = SciKnowEval(eval_max_tokens=limit)
        chosen = chz.replace(config, max_tokens=99, dataset_builder=data)
        assert evaluated_tokens(chosen) == (limit or 99)


def test_a_stored_config_follows_max_tokens_again(tmp_path: Path) -> None:
    config = recipe.CLI(model_name="Qwen/Qwen3-8B", max_tokens=99, dataset_builder=SciKnowEval())
    file = tmp_path / "config.json"
    file.write_text(jsonl.encode(RunIdentity(recipe.resolve(config).config, "sdft").config_json))
    for words, tokens in (([], 99), (["max_tokens=50"], 50)):
        assert evaluated_tokens(parse(recipe.CLI, [f"config={file}", *words])) == tokens


def test_held_out_questions_are_about_facts_that_are_seen() -> None:
    facts = draw_facts(0)
    questions = [{get_text_content(c.messages[0]) for c in chats} for chats in facts]
    answers = [{get_text_content(c.messages[1]) for c in chats} for chats in facts]
    assert [len(each) for each in questions] == [70, 35] and not questions[0] & questions[1]
    assert answers[0] == answers[1] and len(answers[0]) == 35


def test_a_resumed_program_has_the_rows_of_an_uninterrupted_one(
    programs: Programs, tmp_path: Path
) -> None:
    words = (
        "batch_size=8", "num_epochs=1", "save_every=2", "eval_every=3", "sample_replies=0",
        "teacher_sync_every=2", "lora_rank=8", "engine.num_threads=1", "display=plain",
        "data=NanoFacts", "lr_schedule=constant",
    )  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for log_path, more in ((whole, "max_steps=6"), (parts, "max_steps=3"), (parts, "max_steps=6")):
        done = programs.run("recipes.sdft.train", f"log_path={log_path}", more, *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == describe_student(log_path)
    assert [row["step"] for row in rows(whole)] == list(range(7))
    assert [{**row, "progress": 0} for row in rows(parts)] == [
        {**row, "progress": 0} for row in rows(whole)
    ]


@pytest.mark.slow
async def test_nano_learns_facts_and_keeps_its_sums(tmp_path: Path) -> None:
    await recipe.main(recipe.CLI(log_path=str(tmp_path / "run"), display="none"))
    first, *_, last = [row for row in rows(tmp_path / "run") if "held_out/exact_match" in row]
    assert first["held_out/exact_match"] == 0 and last["held_out/exact_match"] >= 0.9
    assert last["sums/exact_match"] >= first["sums/exact_match"] - 0.05
