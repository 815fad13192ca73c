"""The config of a stage, and programs that skip and resume their stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.testing import ScriptedEngine, scripted_service
from tinker_cookbook.training.config import LoopConfig, ProgramConfig
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.stages import (
    finished_stage,
    program_directory,
    run_stage,
    stage_config,
)


@chz.chz
class Stage(LoopConfig):
    num_epochs: int = 1


@chz.chz
class Program(ProgramConfig):
    first: Stage = chz.field(default_factory=Stage)


def stage_of(directory: Path = Path("runs"), /, **keys: Any) -> Stage:
    """The first stage of a program whose keys are `keys`, those in `first` excepted."""
    program = Program(**keys)
    return stage_config(program, "first", program.first, directory)


def test_a_stage_takes_the_keys_of_its_program() -> None:
    shared: dict[str, Any] = {
        "model_name": "Qwen/Qwen3-8B",
        "renderer_name": "qwen3_instruct",
        "max_steps": 7,
        "seed": 3,
        "base_url": "http://127.0.0.1:1",
        "engine": EngineConfig(tokens_per_pass=128),
        "display": "plain",
        "wandb_project": "project",
        "wandb_name": "name",
    }
    not_tested = {"log_path", "behavior_if_log_dir_exists"}
    assert {*shared, *not_tested} == set(chz.chz_fields(ProgramConfig))
    stage = stage_of(first=Stage(learning_rate=0.5, num_epochs=2), **shared)
    expected = shared | {"wandb_name": "name-first"}
    assert {key: getattr(stage, key) for key in shared} == expected
    assert (stage.learning_rate, stage.num_epochs) == (0.5, 2)


def test_wandb_names_tell_the_stages_apart(tmp_path: Path) -> None:
    directory = tmp_path / "program"
    assert stage_of(directory, wandb_project="p", wandb_name="n").wandb_name == "n-first"
    assert stage_of(directory, wandb_project="p").wandb_name == "program-first"
    assert stage_of(directory).wandb_name is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_name", "other"),
        ("seed", 1),
        ("log_path", "elsewhere"),
        ("behavior_if_log_dir_exists", "delete"),
        ("base_url", "http://127.0.0.1:1"),
        ("engine", EngineConfig(tokens_per_pass=128)),
        ("display", "plain"),
        ("wandb_project", "project"),
        ("wandb_name", "name"),
    ],
)
def test_a_shared_key_on_a_stage_is_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as caught:
        stage_of(first=Stage(**{key: value}))
    message = str(caught.value)
    assert message == f"first.{key}={value}: all stages share {key}; set {key}="


def test_the_value_of_the_program_may_be_repeated() -> None:
    """On the command line `...seed=1` sets it in the program and in all stages."""
    assert stage_of(seed=1, first=Stage(seed=1)).seed == 1
    with pytest.raises(ConfigurationError, match=r"first\.seed=2: all stages share seed"):
        stage_of(seed=1, first=Stage(seed=2))


@pytest.mark.parametrize(
    ("key", "own", "shared"), [("max_steps", 3, 9), ("renderer_name", "a", "b")]
)
def test_keys_that_a_stage_may_set_for_itself(key: str, own: object, shared: object) -> None:
    assert getattr(stage_of(**{key: shared}, first=Stage(**{key: own})), key) == own
    assert getattr(stage_of(**{key: shared}), key) == shared
    assert getattr(stage_of(first=Stage(**{key: own})), key) == own


def test_directories_of_the_stages(tmp_path: Path) -> None:
    program = Program(log_path=str(tmp_path / "run"))
    assert program_directory(program, "recipe") == tmp_path / "run"
    assert stage_of(tmp_path / "run").log_path == str(tmp_path / "run" / "first")
    named = [program_directory(Program(seed=seed), "recipe") for seed in (0, 0, 1)]
    assert named[0] == named[1] != named[2]
    assert named[0].name.startswith("recipe-nano-")


@pytest.mark.parametrize(
    ("given", "of_stage"),
    [(None, "skip"), ("delete", "delete"), ("resume", "resume"), ("raise", "raise")],
)
def test_what_happens_to_directories_in_use(given: Any, of_stage: str) -> None:
    assert stage_of(behavior_if_log_dir_exists=given).behavior_if_log_dir_exists == of_stage


class Loop:
    """Two steps, each with a checkpoint; records the steps that it does."""

    def __init__(self, store: Path) -> None:
        self.service = scripted_service(ScriptedEngine(), store)
        self.steps: list[int] = []

    async def run(self, stage: Stage, crash_at: int | None = None) -> None:
        client = await self.service.create_lora_training_client("nano", rank=4)
        rest_client = self.service.create_rest_client()
        with Journal(stage, recipe="stage", total_steps=2, rest_client=rest_client) as journal:
            for step in range(journal.start_step, 2):
                if step == crash_at:
                    raise TrainingError("crashed")
                self.steps.append(step)
                with journal.step(step) as row:
                    row["value"] = step
                await journal.finish(journal.submit_save(client, step + 1, final=step == 1))


async def test_a_finished_stage_is_skipped_and_an_unfinished_one_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop, directory = Loop(tmp_path / "store"), tmp_path / "run"
    stage = stage_of(directory, display="plain", first=Stage(save_every=1))
    assert finished_stage(directory / "first") is None
    with pytest.raises(TrainingError, match="crashed"):
        await run_stage("the first stage", loop.run(stage, crash_at=1))
    assert finished_stage(directory / "first") is None and loop.steps == [0]
    await run_stage("the first stage", loop.run(stage))
    record = finished_stage(directory / "first")
    assert record is not None and record.batch == 2 and loop.steps == [0, 1]
    capsys.readouterr()
    await run_stage("the first stage", loop.run(stage))
    assert loop.steps == [0, 1]
    assert capsys.readouterr().out == (
        f"the first stage\n{directory / 'first'} holds a finished run of 2 steps: nothing to do\n"
    )


async def test_delete_starts_a_stage_anew(tmp_path: Path) -> None:
    loop, directory = Loop(tmp_path / "store"), tmp_path / "run"
    keys: dict[str, Any] = {"display": "plain", "first": Stage(save_every=1)}
    await run_stage("", loop.run(stage_of(directory, **keys)))
    again = stage_of(directory, behavior_if_log_dir_exists="delete", **keys)
    await run_stage("", loop.run(again))
    assert loop.steps == [0, 1, 0, 1]
    assert finished_stage(directory / "first") is not None
    assert not (tmp_path / "run" / "first-2").exists()


@pytest.mark.parametrize("behavior", ["resume", "ask"])
async def test_resume_skips_a_finished_stage(tmp_path: Path, behavior: Any) -> None:
    """Running it again in a new directory would be in vain: later stages read from the first."""
    loop, directory = Loop(tmp_path / "store"), tmp_path / "run"
    stage = Stage(save_every=1)
    await run_stage("", loop.run(stage_of(directory, display="plain", first=stage)))
    again = stage_of(directory, behavior_if_log_dir_exists=behavior, display="plain", first=stage)
    await run_stage("", loop.run(again))
    assert loop.steps == [0, 1] and not (directory / "first-2").exists()
