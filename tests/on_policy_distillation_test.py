"""On-policy distillation as a user runs it: teachers, killing, resuming, mistakes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from recipes.distillation import (
    nano_teachers,
    on_policy_distillation,
    on_policy_multi_teacher,
)
from recipes.distillation.prompt_data import prompts_of
from recipes.math_rl.arithmetic import Arithmetic
from tests.programs import Programs
from tests.runs import Run, assert_same_result, assert_stopped, train_teacher
from tinker_cookbook.distillation.datasets import DistillationDatasetConfig, PromptOnlyEnv
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.exceptions import ConfigurationError, TinkerCookbookError
from tinker_cookbook.rl.config import KLReferenceConfig
from tinker_cookbook.rl.problem_config import ProblemConfig
from tinker_cookbook.rl.testing import rows_of
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.training import run_directory
from tinker_cookbook.training.resolve import set_unset_fields


def located(path: str) -> TeacherConfig:
    return TeacherConfig(load_checkpoint_path=path)


SINGLE = "recipes.distillation.on_policy_distillation"
MULTI = "recipes.distillation.on_policy_multi_teacher"
STEPS = 5
KEYS = (
    *("group_size=4", "max_tokens=12", "lora_rank=4", f"max_steps={STEPS}", "save_every=2"),
    *("eval_every=3", "engine.deterministic=True"),
)


@pytest.fixture(scope="module")
def directory(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose store has the weights of `teacher`."""
    directory = tmp_path_factory.mktemp("distillation")
    train_teacher(programs, directory)
    return directory


def words_of(recipe: str, teacher: Path) -> tuple[str, ...]:
    if recipe == SINGLE:
        data = ("groups_per_batch=3", "data=Arithmetic", "data.test_size=4")
        return (*KEYS, *data, f"teacher_checkpoint={teacher}")
    words = list[str]()
    for number, (data, groups) in enumerate((("Arithmetic", 2), ("WhoHas", 1))):
        words += [
            f"datasets.{number}.dataset_builder={data}",
            f"datasets.{number}.dataset_builder.test_size=4",
            f"datasets.{number}.groups_per_batch={groups}",
            f"datasets.{number}.teacher_config.load_checkpoint_path={teacher}",
        ]
    return (*KEYS, *words)


@pytest.mark.parametrize("recipe", [SINGLE, MULTI])
def test_killed_or_stopped_equals_uninterrupted(
    programs: Programs, directory: Path, recipe: str
) -> None:
    words, label = words_of(recipe, directory / "teacher"), recipe.rpartition(".")[2]
    whole, broken = (
        Run(programs, directory, recipe, *words, name=f"{label}-{number}") for number in range(2)
    )
    printed = whole.finish()
    assert "teacher=tinker://sl_basic-nano-" in printed and "teacher KL" in printed
    if recipe == SINGLE:
        assert broken.end_at(3, signal.SIGKILL)[0] == -signal.SIGKILL
    else:
        assert_stopped(broken.end_at(3, signal.SIGINT), STEPS)
    broken.finish()
    assert_same_result(whole, broken)
    *rows, final = whole.rows()
    assert [row["step"] for row in rows] == list(range(STEPS)) and "test/env/all/correct" in final
    assert rows[0]["teacher_kl"] > 0.1  # the teacher writes words
    assert len({row["teacher_kl"] for row in rows}) == STEPS
    for number in range(2):
        assert (f"teacher_kl/dataset_{number}" in rows[0]) == (recipe == MULTI)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": located("nowhere")}, "teacher_checkpoint=nowhere"),
        ({"dataset_builder": Arithmetic()}, "no teacher: set teacher_model= to a model with the"),
        ({"teacher": TeacherConfig(base_model="nano")}, "the teacher is nano itself, from which"),
        ({"model_name": "Qwen/Qwen3-8B"}, "no teacher: set teacher_model= to a model with the"),
        ({"dataset": "tulu3", "dataset_builder": Arithmetic()}, "dataset=tulu3 and data= both"),
        ({"dataset": "no.jsonl"}, r"data\.path=no\.jsonl: no such file"),
        ({"advantage": "grpo"}, "advantage has no effect in distillation"),
        (
            {"kl_reference_config": KLReferenceConfig(base_model="nano")},
            "kl_reference_config has no",
        ),
        (
            {"renderer_name": "role_colon"},
            "uses qwen3_instruct, which renders a question with other",
        ),
    ],
)
async def test_a_mistake(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict, message: str
) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(directory / "runs"))
    if not keys.keys() & {"teacher", "dataset_builder", "model_name"}:
        keys["teacher"] = located(str(directory / "teacher"))
    with pytest.raises(TinkerCookbookError, match=message):
        await on_policy_distillation.main(
            on_policy_distillation.CLI(log_path=str(tmp_path), **keys)
        )
    assert not any(tmp_path.iterdir())


def test_a_mistake_is_one_line(programs: Programs) -> None:
    done = programs.run(SINGLE, "model_name=Qwen/Qwen3-8B", "kl_penalty_coef=0", timeout=60)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "kl_penalty_coef=0" in done.stderr


async def test_own_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("One?\nTwo?\n")
    keys = {"model_name_for_tokenizer": "nano", "renderer_name": "qwen3_instruct", "seed": 0}
    data, test = await set_unset_fields(
        prompts_of(str(file)), {**keys, "group_size": 2, "groups_per_batch": 2}
    )()
    assert test is None and len(data) == 1
    envs = [(await group.make_envs())[0] for group in data.get_batch(0)]
    questions = {env.messages[-1]["content"] for env in envs if isinstance(env, PromptOnlyEnv)}
    assert questions == {"One?", "Two?"}
    assert prompts_of("tulu3").dataset_name == "tulu3"


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ((), r"datasets\.1\.teacher_config names no teacher"),
        (("nano",), "the teacher is nano itself"),
    ],
)
async def test_a_mistake_with_several_teachers(
    tmp_path: Path, teachers: tuple[str], message: str
) -> None:
    bases = [TeacherConfig(base_model=base) for base in ("nano", *teachers)]
    datasets = [
        DistillationDatasetConfig(
            dataset_builder=Arithmetic(test_size=0), teacher_config=base, groups_per_batch=1
        )
        for base in [*bases, TeacherConfig()][:2]
    ]
    config = on_policy_multi_teacher.CLI(dataset_configs=datasets, log_path=str(tmp_path))
    with pytest.raises(TinkerCookbookError, match=message):
        await on_policy_multi_teacher.main(config)


async def test_runs_that_start_at_once_share_nanos_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr(nano_teachers, "_DATA", {"sums": Arithmetic(num_batches=1, test_size=1)})
    monkeypatch.setattr(run_directory, "LOCK_POLL_SECONDS", 0.02)
    student = ProblemConfig(display="none", engine=EngineConfig(num_threads=1))
    first, second = await asyncio.gather(
        *(nano_teachers.train_teacher("sums", student) for _ in range(2))
    )
    assert first == second and len(list(tmp_path.glob("nano-teacher-sums-*"))) == 1
    (store,) = (tmp_path / "store" / "runs").iterdir()
    shutil.rmtree(store)
    with pytest.raises(ConfigurationError, match=r"; delete /.* to train nano's teacher again"):
        await nano_teachers.train_teacher("sums", student)
    assert "waiting for another process" in capsys.readouterr().out


@pytest.mark.slow
def test_nano_becomes_as_good_as_its_teacher(programs: Programs, tmp_path: Path) -> None:
    """The default: within 5 points of the teacher, a reverse KL of at most 0.02, and fewer sampled
    tokens than the teacher's own training took."""
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(tmp_path)}
    done = programs.run(SINGLE, f"log_path={tmp_path}/run", env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    (directory,) = tmp_path.glob("nano-teacher-sums-*")
    teacher, student = rows_of(directory), rows_of(tmp_path / "run")
    correct = "test/env/all/correct"
    assert student[0][correct] < 0.6 and student[-1][correct] > teacher[-1][correct] - 0.05
    assert student[0]["teacher_kl"] > 0.4 and student[19]["teacher_kl"] <= 0.02
    tokens = [
        sum(row.get("env/all/total_ac_tokens", 0) for row in rows) for rows in (student, teacher)
    ]
    assert tokens[0] < tokens[1] / 2


@pytest.mark.slow
def test_nano_becomes_as_good_as_both_teachers(programs: Programs, tmp_path: Path) -> None:
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(tmp_path)}
    done = programs.run(MULTI, f"log_path={tmp_path}/run", env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    first, *_, last = [row for row in rows_of(tmp_path / "run") if "test/env/all/correct" in row]
    for task, name, before in (("sums", "arithmetic", 0.6), ("who_has", "who_has", 0.4)):
        (teacher,) = tmp_path.glob(f"nano-teacher-{task}-*")
        reached = rows_of(teacher)[-1]["test/env/all/correct"]
        key = f"test/env/{name}/correct"
        assert first[key] < before and last[key] > reached - 0.05
