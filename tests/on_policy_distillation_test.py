"""On-policy distillation as a user runs it: teachers, killing, resuming, mistakes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.programs import Programs
from tests.runs import Run, assert_same_result, assert_stopped
from tinker_cookbook.rl.testing import rows_of

SINGLE = "recipes.distillation.on_policy_distillation"
MULTI = "recipes.distillation.on_policy_multi_teacher"
STEPS = 5
KEYS = (
    *("group_size=4", "max_tokens=12", "lora_rank=4", f"max_steps={STEPS}", "save_every=2"),
    *("eval_every=3", "engine.deterministic=True"),
)


def train_teacher(programs: Programs, directory: Path) -> Path:
    """A teacher in the store of the runs of this directory."""
    path = directory / "teacher"
    words = (f"log_path={path}", "max_steps=3", "lora_rank=4", "learning_rate=0.01", "eval_every=0")
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
    done = programs.run("recipes.sl_basic", *words, env=env)
    assert done.returncode == 0, done.stderr
    return path


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
    words = ["data=TeacherDatasets"]
    for number, (data, groups) in enumerate((("Arithmetic", 2), ("ShortSums", 1))):
        words += [
            f"datasets.{number}.dataset_builder={data}",
            f"datasets.{number}.dataset_builder.test_size=4",
            f"datasets.{number}.groups_per_batch={groups}",
            f"datasets.{number}.teacher_config.load_checkpoint_path={teacher}",
        ]
    return (*KEYS, *words)


@pytest.mark.parametrize("recipe", [SINGLE, MULTI])
def test_killed_and_stopped_equals_uninterrupted(
    programs: Programs, directory: Path, recipe: str
) -> None:
    words, label = words_of(recipe, directory / "teacher"), recipe.rpartition(".")[2]
    whole, broken = (
        Run(programs, directory, recipe, *words, name=f"{label}-{number}") for number in range(2)
    )
    printed = whole.finish()
    assert "teacher=tinker://sl_basic-nano-" in printed and "teacher KL" in printed
    assert broken.end_at(3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert_stopped(broken.end_at(4, signal.SIGINT), STEPS)
    broken.finish()
    assert_same_result(whole, broken)
    *rows, final = whole.rows()
    assert [row["step"] for row in rows] == list(range(STEPS)) and "test/env/all/correct" in final
    assert rows[0]["teacher_kl"] > 0.5  # the teacher writes words
    assert len({row["teacher_kl"] for row in rows}) == STEPS
    for number in range(2):
        assert (f"teacher_kl/dataset_{number}" in rows[0]) == (recipe == MULTI)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("teacher_checkpoint=nowhere",), "teacher.load_checkpoint_path=nowhere"),
        (
            ("teacher_model=nano", "load_checkpoint_path=", "data=Arithmetic"),
            "load_checkpoint_path=",
        ),
        (("data=Arithmetic",), "the teacher is nano itself, from which the student starts: set"),
        (("model_name=Qwen/Qwen3-8B",), "no teacher: set teacher_model= to a larger model"),
        (("teacher_checkpoint={teacher}", "advantage=grpo"), "advantage has no effect in"),
        (("teacher_checkpoint={teacher}", "kl_penalty_coef=0"), "kl_penalty_coef=0"),
        (
            ("teacher_checkpoint={teacher}", "renderer_name=role_colon"),
            "uses qwen3_instruct, which renders a question with other tokens; set",
        ),
    ],
)
def test_a_mistake_is_one_line(
    programs: Programs, directory: Path, words: tuple[str, ...], message: str
) -> None:
    words = tuple(word.format(teacher=directory / "teacher") for word in words)
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
    done = programs.run(SINGLE, *words, env=env, timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_another_teacher_is_another_run(programs: Programs, directory: Path) -> None:
    words = (*KEYS, "data=Arithmetic", "groups_per_batch=1", "max_steps=1", "data.test_size=0")
    run = Run(
        programs, directory, SINGLE, *words, f"teacher_checkpoint={directory}/teacher", name="a"
    )
    run.finish()
    base = Run(
        programs, directory, SINGLE, *words, f"load_checkpoint_path={directory}/teacher", name="a"
    )
    process = base.start()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "teacher" in err


@pytest.mark.slow
def test_nano_becomes_as_good_as_its_teacher(programs: Programs, tmp_path: Path) -> None:
    """The default: within 5 points of the teacher, a reverse KL of at most 0.02, and fewer sampled
    tokens than the teacher's own training took."""
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(tmp_path)}
    done = programs.run(SINGLE, f"log_path={tmp_path}/run", env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    teacher, student = rows_of(tmp_path / "nano-teacher-sums"), rows_of(tmp_path / "run")
    correct = "test/env/all/correct"
    assert student[0][correct] < 0.6 and student[-1][correct] > teacher[-1][correct] - 0.05
    assert student[0]["teacher_kl"] > 0.4 and student[19]["teacher_kl"] <= 0.02
    tokens = [
        sum(row.get("env/all/total_ac_tokens", 0) for row in rows) for rows in (student, teacher)
    ]
    assert tokens[0] < tokens[1] / 2
