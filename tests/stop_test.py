"""Runs that are asked to stop, at chosen and at random moments, and then go on."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from recipes import number_words
from tests.programs import Program as Running
from tests.programs import Programs
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.nano import tasks
from tinker_cookbook.preference.reference import FILE_NAME as REFERENCE_FILE
from tinker_cookbook.service.store import Store
from tinker_cookbook.utils import jsonl

pytestmark = pytest.mark.skipif(
    not (NANO / "model.safetensors").exists(), reason="nano is being built"
)

SMALL = ("lora_rank=4", "engine.deterministic=True")
SAMPLED = ("groups_per_batch=4", "group_size=4", "max_tokens=16")
# no checkpoint but those of a stop: without one, all would be done again
WORDS = {
    "sl_basic": (*SMALL, "max_steps=8", "eval_every=4", "save_every=0"),
    "sl_loop": (*SMALL, "max_steps=8", "save_every=100"),
    "rl_basic": (
        *(*SMALL, *SAMPLED, "max_steps=6", "eval_every=3", "save_every=0"),
        *("data=Arithmetic", "data.test_size=4", "eval_greedy=False"),
        *("num_substeps=2", "num_minibatches=2"),
    ),
    "rl_loop": (*SMALL, *SAMPLED, "max_steps=6", "save_every=100"),
    # stopped and resumed between changes of the teacher before steps 3 and 6
    "sdft.train": (
        *(*SMALL, "max_steps=8", "eval_every=4", "save_every=0", "batch_size=6"),
        *("teacher_sync_every=3", "max_tokens=12", f"dataset_path={number_words.path('train')}"),
    ),
    # epochs of 8 steps: in the second one the reference has scored every pair
    "preference.dpo.train": (
        *SMALL,
        "max_steps=12",
        "num_epochs=2",
        "eval_every=5",
        "save_every=3",
    ),
}


class Program:
    """One command, in one log directory, with a store of its own."""

    def __init__(self, programs: Programs, directory: Path, recipe: str, *words: str) -> None:
        self._programs = programs
        self.log_path, self._runs = directory / "log", directory / "runs"
        words = (f"log_path={self.log_path}", *WORDS[recipe], *words)
        self._command = (f"recipes.{recipe}", *words)
        self.max_steps = int(next(w for w in words if w.startswith("max_steps=")).partition("=")[2])

    def start(self) -> Running:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(self._runs)}
        return self._programs.start(*self._command, env=environment)

    def finish(self) -> str:
        """What it printed."""
        out, err = (process := self.start()).communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        return out

    def stop(self, number: signal.Signals, when: Callable[[], bool]) -> tuple[int, list[str]]:
        """Sends the signal once `when()` is true; exit code and lines on stderr."""
        process = self.start()
        deadline = time.monotonic() + 200
        while not when() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        return process.returncode, err.splitlines()

    def rows(self) -> list[dict]:
        """The rows so far; the program may be writing the next one."""
        rows = [line.value for line in jsonl.read_lines(self.log_path / "metrics.jsonl")]
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    def seconds(self) -> float:
        """The mean time of a step, evaluations included."""
        lines = jsonl.read_lines(self.log_path / "metrics.jsonl")
        return sum(line.value["time/total"] for line in lines) / len(lines)

    def weights(self) -> dict[str, bytes]:
        """Adapter and optimizer of the final checkpoint."""
        last = json.loads((self.log_path / "checkpoints.jsonl").read_text().splitlines()[-1])
        assert last["final"] is True
        tensors = {}
        with Store(self._runs / "store").open_checkpoint(last["state_path"]) as info:
            for name in ("adapter_model", "optimizer"):
                tensors.update(load_file(info.directory / f"{name}.safetensors"))
        return {name: tensor.tobytes() for name, tensor in tensors.items()}

    def reference_logprobs(self) -> list[dict]:
        return [line.value for line in jsonl.read_lines(self.log_path / REFERENCE_FILE)]

    def started(self) -> bool:
        return (self.log_path / "config.json").exists()


@dataclass
class Clock:
    """Rings so many seconds after `begun()` is true for the first time."""

    begun: Callable[[], bool]
    seconds: float
    deadline: float | None = None

    def rings(self) -> bool:
        if self.deadline is None and self.begun():
            self.deadline = time.monotonic() + self.seconds
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass
class Whole:
    """An uninterrupted run, and the seconds between two of its rows."""

    rows: list[dict]
    weights: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def whole(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    known: dict[str, Whole] = {}

    def run(recipe: str) -> Whole:
        if recipe not in known:
            program = Program(programs, tmp_path_factory.mktemp(recipe), recipe)
            program.finish()
            known[recipe] = Whole(program.rows(), program.weights(), program.seconds())
        return known[recipe]

    return run


def last_words(steps: int, program: Program) -> str:
    return (
        f"stopped after {steps} of {program.max_steps} steps; the same command resumes from there"
    )


@pytest.mark.parametrize(
    ("recipe", "stops"),
    [
        # in the evaluation before step 4; while a step is under way and one is submitted ahead
        ("sl_basic", [(signal.SIGTERM, 4), (signal.SIGINT, 5)]),
        ("sl_loop", [(signal.SIGTERM, 3)]),
        # in the evaluation before step 3; in rollouts
        ("rl_basic", [(signal.SIGINT, 3), (signal.SIGTERM, 4)]),
        ("rl_loop", [(signal.SIGINT, 2)]),
        # while completions are sampled or scored
        ("sdft.train", [(signal.SIGTERM, 2), (signal.SIGINT, 5)]),
    ],
)
def test_a_stopped_run_goes_on_and_equals_an_uninterrupted_one(
    programs: Programs,
    tmp_path: Path,
    whole: Callable[[str], Whole],
    recipe: str,
    stops: list[tuple[signal.Signals, int]],
) -> None:
    program, expected = Program(programs, tmp_path, recipe), whole(recipe)
    for number, rows in stops:
        returned, err = program.stop(number, lambda rows=rows: len(program.rows()) >= rows)
        done = len(program.rows())
        assert rows <= done < program.max_steps
        assert err[0].startswith(f"{number.name}: ") and "ends it at once" in err[0]
        assert (returned, err[1:]) == (128 + number, [last_words(done, program)])
    assert f"at step {done} of {program.max_steps} from checkpoint" in program.finish()
    assert program.rows() == expected.rows
    assert program.weights() == expected.weights


def test_before_the_first_step_there_is_nothing_to_save(programs: Programs, tmp_path: Path) -> None:
    program = Program(programs, tmp_path, "rl_basic")
    returned, err = program.stop(signal.SIGTERM, program.started)
    assert returned == 143
    assert err == [
        "SIGTERM: stopping, nothing to save; a second Ctrl-C or signal ends it at once",
        "stopped before the first step finished; the same command starts over",
    ]
    assert program.rows() == [] and not (program.log_path / "checkpoints.jsonl").exists()


def test_a_reader_that_the_same_ctrl_c_ends(programs: Programs, tmp_path: Path) -> None:
    """`recipe | tee log`: tee is gone before the last line is printed to it."""
    program = Program(programs, tmp_path, "sl_basic")
    process = program.start()
    while len(program.rows()) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    # the signal first: a program whose output is closed before it is asked to stop ends at once
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    err = process.stderr.read().splitlines()
    assert process.wait(timeout=60) == 130
    assert err[1:] == [last_words(len(program.rows()), program)]


def preference_words(directory: Path, loss: str) -> tuple[str, ...]:
    """Keys for 32 training pairs and 4 held-out ones, in two files."""
    kind = "KTO" if loss == "kto" else "DPO"
    words = [
        f"loss={loss}",
        f"batch_size={8 if loss == 'kto' else 4}",  # kto counts replies
        f"data={kind}DatasetBuilderFromComparisons",
        "data.comparison_builder=ComparisonBuilderFromJsonl",
    ]
    rng = random.Random(0)
    for split, number in (("train", 32), ("test", 4)):
        file = directory / f"{split}.jsonl"
        pairs = [tasks.preference_pair(rng, "polite", "train") for _ in range(number)]
        jsonl.write_lines(file, pairs)
        words.append(f"data.comparison_builder.{split}_path={file}")
    return tuple(words)


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_preference_training_killed_and_stopped_equals_an_uninterrupted_run(
    programs: Programs, tmp_path: Path, loss: str
) -> None:
    words = ("preference.dpo.train", *preference_words(tmp_path, loss))
    expected = Program(programs, tmp_path / "whole", *words)
    expected.finish()
    rows, metric = expected.rows(), "kto_loss" if loss == "kto" else "dpo_loss"
    assert [row["step"] for row in rows if f"test/{metric}" in row] == [0, 5, 10, 12]
    assert len({row[metric] for row in rows[:12]}) == 12

    program = Program(programs, tmp_path / "broken", *words)
    # after the checkpoint of step 3: some pairs are then first scored in the resumed run
    assert program.stop(signal.SIGKILL, lambda: len(program.rows()) >= 4) == (-signal.SIGKILL, [])
    assert len(program.rows()) < 9
    code, err = program.stop(signal.SIGTERM, lambda: len(program.rows()) >= 9)
    done = len(program.rows())
    assert done < 12 and (code, err[1:]) == (143, [last_words(done, program)])
    assert f"at step {done} of 12 from checkpoint" in program.finish()
    assert program.rows() == rows
    assert program.weights() == expected.weights()
    assert program.reference_logprobs() == expected.reference_logprobs()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", ["sl_basic", "rl_basic"])
def test_ten_random_moments(
    programs: Programs, tmp_path: Path, whole: Callable[[str], Whole], recipe: str
) -> None:
    expected, rng = whole(recipe), random.Random(recipe)
    figures = []
    for trial in range(10):
        number = (signal.SIGINT, signal.SIGTERM)[trial % 2]
        program = Program(programs, tmp_path / str(trial), recipe)
        rows, delay = rng.randrange(program.max_steps - 1), rng.uniform(0, expected.seconds)
        begun = (lambda p=program, n=rows: len(p.rows()) >= n) if rows else program.started
        code, err = program.stop(number, Clock(begun, delay).rings)
        assert code == 128 + number, err
        done = len(program.rows())
        resumed = re.search(r"at step (\d+) of", program.finish())
        repeated = done - int(resumed[1]) if resumed else done
        equal = (program.rows(), program.weights()) == (expected.rows, expected.weights)
        figures.append((number.name, f"{delay:.2f} s after row {rows}", done, repeated))
        print(*figures[-1], equal, err)
        assert equal
    assert [repeated for *_, repeated in figures] == [0] * 10
