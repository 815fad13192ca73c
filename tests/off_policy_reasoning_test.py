"""Off-policy distillation as a user runs it: sampling and training killed and resumed, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.programs import Programs
from tests.runs import Run, assert_same_result, assert_stopped, train_teacher
from tinker_cookbook.rl.testing import rows_of

RECIPE = "recipes.distillation.off_policy_reasoning"
STEPS, PROMPTS, SAMPLES = 5, 70, 2
KEYS = (
    *("lora_rank=4", f"max_steps={STEPS}", "save_every=2", "eval_every=3", "batch_size=4"),
    *(f"num_samples={SAMPLES}", "max_tokens=12", "sample_replies=0", "engine.deterministic=True"),
)
TARGETS = {"hard": (), "soft": ("topk=20",)}


@pytest.fixture(scope="module")
def directory(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with prompts, whose store has the weights of `teacher`."""
    directory = tmp_path_factory.mktemp("off_policy")
    prompts = [f"What is {number} + 7?\n" for number in range(PROMPTS)]
    (directory / "prompts.txt").write_text("".join(prompts))
    train_teacher(programs, directory)
    return directory


def paths(directory: Path) -> tuple[str, ...]:
    """Prompts of a file and not nano's sums, since those are evaluated on 500 others."""
    return (f"prompts={directory}/prompts.txt", f"teacher_checkpoint={directory}/teacher")


def samples_in(directory: Path) -> list[Path]:
    return sorted((directory / "runs").glob("teacher-samples-nano-*/samples.jsonl"))


def kill_while_sampling(run: Run, directory: Path) -> int:
    """Kill it when it has written the first rows; how many there were then."""
    process = run.start()
    deadline = time.monotonic() + 100
    while not any(file.read_bytes() for file in samples_in(directory)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    (file,) = samples_in(directory)
    return len(file.read_text().splitlines())


def test_sampling_that_is_killed_goes_on(programs: Programs, directory: Path) -> None:
    words = (*KEYS, *paths(directory), "max_steps=1", "sampling_seed=1")
    broken, whole = (Run(programs, directory, RECIPE, *words, name=name) for name in "ab")
    assert 0 < kill_while_sampling(broken, directory) < PROMPTS * SAMPLES
    assert not broken.lines()
    broken.finish()
    (resumed,) = samples_in(directory)
    resumed = resumed.parent.rename(directory / "resumed") / resumed.name
    printed = whole.finish()
    (sampled,) = samples_in(directory)
    assert sampled.read_bytes() == resumed.read_bytes()
    tokens = sum(json.loads(line)["num_tokens"] for line in sampled.read_text().splitlines())
    assert f"teacher samples: {sampled}" in printed
    replies = f"{PROMPTS * SAMPLES} replies to {PROMPTS} prompts"
    assert f"teacher samples: {replies}, {tokens:,} sampled tokens;" in printed
    sampled.parent.rename(directory / "sampled")


@pytest.mark.parametrize("targets", TARGETS)
def test_killed_and_stopped_equals_uninterrupted(
    programs: Programs, directory: Path, targets: str
) -> None:
    """Training on the same samples."""
    words = (*KEYS, *paths(directory), *TARGETS[targets])
    whole, broken = (
        Run(programs, directory, RECIPE, *words, name=f"{targets}-{number}") for number in range(2)
    )
    assert broken.end_at(3, signal.SIGKILL)[0] == -signal.SIGKILL
    assert_stopped(broken.end_at(4, signal.SIGINT), STEPS)
    broken.finish()
    printed = whole.finish()
    assert_same_result(whole, broken)
    *rows, final = whole.rows()
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert final["test/nll"] < rows[0]["test/nll"]
    if targets == "soft":
        assert final["test/forward_kl"] < rows[0]["test/forward_kl"]
        assert 0 < rows[0]["left_out_mass"] < 0.05
    last = printed.splitlines()[-1]
    assert last.startswith(f"the student is {whole.log_path}: load_checkpoint_path= of any")


def test_runs_share_the_samples_and_a_run_keeps_its_teacher(
    programs: Programs, directory: Path
) -> None:
    words = (*KEYS, *paths(directory), "max_steps=1")
    Run(programs, directory, RECIPE, *words, name="first").finish()
    (file,) = samples_in(directory)
    before = file.stat().st_mtime_ns
    for name, key in (("second", "topk=5"), ("third", "seed=1")):
        Run(programs, directory, RECIPE, *words, key, name=name).finish()
    assert samples_in(directory) == [file] and file.stat().st_mtime_ns == before
    process = Run(programs, directory, RECIPE, *words, "topk=6", name="second").start()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "topk was 5 and is 6 now" in err
    # config= of a run samples anew with what is set beside it
    config = f"config={directory}/second/config.json"
    again = ("num_prompts=20", "num_samples=1", f"log_path={directory}/again")
    done = run(programs, directory, config, *again)
    assert done.returncode == 0, done.stderr
    assert "teacher samples: 20 replies to 20 prompts" in done.stdout
    assert len(samples_in(directory)) == 2


def run(
    programs: Programs, directory: Path, *words: str, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}
    return programs.run(RECIPE, *words, env=env, timeout=timeout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dataset={chats}", "topk=20"), "topk=20: soft targets need the teacher's probabilities"),
        (("teacher_checkpoint={teacher}", "temperature=0"), "temperature=0 gives the same reply 4"),
        (
            ("dataset={chats}", "teacher_checkpoint={teacher}"),
            "a teacher has no effect on replies that are hard targets: set topk=20",
        ),
        (("dataset={chats}", "dataset_path=x"), "and dataset_path=x both name the data"),
        (("dataset={chats}", "num_samples=2"), "num_samples=2 has no effect on traces"),
        (("dataset=no.jsonl",), "dataset=no.jsonl: no such file"),
        (("prompts=nano_sums",), "prompts=nano_sums: there is no teacher to reply to them"),
        (("model_name=Qwen/Qwen3-8B", "max_tokens=9"), "max_tokens=9 has no effect on traces"),
        (
            ("topk=20", "max_length=2048", "teacher_checkpoint={teacher}"),
            "max_length=2048: the teacher nano scores examples of up to 2047 tokens, one less",
        ),
        (
            ("topk=20", "renderer_name=role_colon", "teacher_checkpoint={teacher}"),
            "uses qwen3_instruct, which renders a question with other tokens; set",
        ),
        (("topk=0", "teacher_checkpoint={teacher}"), "topk=0: expected 1 or more"),
        (("teacher_checkpoint=nowhere",), "teacher_checkpoint=nowhere"),
    ],
)
def test_a_mistake_is_one_line(
    programs: Programs, directory: Path, words: tuple[str, ...], message: str
) -> None:
    chats = directory / "chats.jsonl"
    chats.write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    words = tuple(word.format(teacher=directory / "teacher", chats=chats) for word in words)
    done = run(programs, directory, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    *warnings, error = done.stderr.splitlines()  # a warning: role_colon does not fit nano
    assert message in error and len(warnings) == ("renderer_name=role_colon" in words), done.stderr


@pytest.mark.slow
def test_nano_becomes_as_good_as_its_teacher(programs: Programs, tmp_path: Path) -> None:
    """With the defaults, and with soft targets."""
    for topk in ("None", "20"):
        log_path = tmp_path / topk
        done = run(programs, tmp_path, f"log_path={log_path}", f"topk={topk}", timeout=900)
        assert done.returncode == 0, done.stderr
        correct = [r["test/env/all/correct"] for r in rows_of(log_path) if "test/nll" in r]
        assert correct[0] < 0.6 and correct[-1] >= 0.92
    assert rows_of(log_path)[-1]["test/forward_kl"] < 0.005
