"""A small pipelined loop in processes that get killed, and the rules for run directories."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import chz
import pytest

from tinker_cookbook.checkpoint_utils import load_checkpoints_file
from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, TrainingError
from tinker_cookbook.training.fields import MAY_CHANGE
from tinker_cookbook.training.journal import Journal
from tinker_cookbook.training.run_identity import changeable_keys, drop_keys
from tinker_cookbook.utils import trace
from tinker_cookbook.utils.ml_log import read_metrics

if TYPE_CHECKING:
    from tinker_cookbook.service.store import Store

# A loop with one step submitted ahead. Its "model" is two floats (weight and momentum), so a
# checkpoint that holds one step too many, or a step done twice, changes every number after it.
LOOP = """
import asyncio, json, os, resource, signal, uuid
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
import chz
from tinker_cookbook import cli_utils
from tinker_cookbook.training.journal import Journal

STORE = Path(os.environ["STORE"])

@chz.chz
class CLI:
    model_name: str = "org/tiny"
    rate: float = 0.1
    max_steps: int = 12
    save_every: int = 5
    rolling_save_every: int = 2
    log_path: str | None = None
    pause: float = 0.0
    behavior_if_log_dir_exists: str = "resume"

class FileFuture:
    def __init__(self, path): self.path = path
    def result(self): return SimpleNamespace(path=self.path)
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return self.result()

class Client:
    def __init__(self, rate):
        self.rate, self.state, self.run = rate, [1.0, 0.0], uuid.uuid4().hex
    def load(self, path): self.state = json.loads((STORE / path.replace("/", "_")).read_text())
    def step(self, i):
        weight, momentum = self.state
        loss = weight * weight + 1.0 / (i + 3)
        momentum = 0.9 * momentum + 2 * weight * (1 + i % 3)
        self.state = [weight - self.rate * momentum, momentum]
        return loss
    def save_state(self, name, ttl_seconds=None):
        path = f"tinker://{self.run}/weights/{name}"
        (STORE / path.replace("/", "_")).write_text(json.dumps(self.state))
        return FileFuture(path)
    def save_weights_for_sampler(self, name, ttl_seconds=None):
        return FileFuture(f"tinker://{self.run}/sampler_weights/{name}")

def at(point):
    if os.environ.get("FULL") == point:  # no file may grow: the next row is cut in the middle
        size = os.path.getsize(os.environ["LOG"] + "/metrics.jsonl") + 20
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if os.environ.get("KILL") == point:
        for name in ("metrics", "checkpoints"):
            if point.startswith("torn"):
                with open(os.environ["LOG"] + f"/{name}.jsonl", "a") as file:
                    file.write('{"step": 99, "na')
        os.kill(os.getpid(), signal.SIGKILL)

async def main(config):
    n = config.max_steps
    with Journal(config, recipe="loop", total_steps=n) as journal:
        client = Client(config.rate)
        if journal.resume:
            client.load(journal.resume.state_path)
        def submit(i):
            loss = client.step(i)
            return loss, journal.submit_save(client, i + 1, epoch=i // 4)
        ahead = submit(journal.start_step) if journal.start_step < n else None
        for i in range(journal.start_step, n):
            (loss, pending), ahead = ahead, submit(i + 1) if i + 1 < n else None
            with journal.step(i) as row:
                await asyncio.sleep(config.pause)
                row["train_mean_nll"] = loss
                at(f"in-step:{i}")
            at(f"after-row:{i}")
            at(f"torn:{i}")
            await journal.finish(pending)
            at(f"after-finish:{i}")
        pending = journal.submit_save(client, n, final=True)
        at("before-final")
        await journal.finish(pending)
        at("after-final")

if __name__ == "__main__":
    cli_utils.cli(main, CLI)
"""


class Loop:
    """Runs LOOP in processes of their own, in one log directory."""

    def __init__(self, tmp_path: Path, name: str) -> None:
        self.program = tmp_path / "loop.py"
        self.program.write_text(LOOP)
        self.store = tmp_path / "store"
        self.store.mkdir(exist_ok=True)
        self.log = tmp_path / name
        self._env = {**os.environ, "STORE": str(self.store), "LOG": str(self.log)}

    def start(self, *words: str, kill: str = "", full: str = "") -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(self.program), f"log_path={self.log}", *words],
            env={**self._env, "KILL": kill, "FULL": full},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, kill: str = "", full: str = "", code: int = 0) -> str:
        """Its stdout, or its stderr if it is expected to fail with `code`."""
        child = self.start(*words, kill=kill, full=full)
        out, err = child.communicate(timeout=60)
        assert child.returncode == code, err
        return err if code == 2 else out

    def numbers(self) -> list[dict]:
        """The metrics outside `time/`."""
        rows = read_metrics(self.log)
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    def final_state(self) -> list[float]:
        last = load_checkpoints_file(self.log)[-1]
        assert last.final and last.state_path
        return json.loads((self.store / last.state_path.replace("/", "_")).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    loop = Loop(tmp_path_factory.mktemp("whole"), "run")
    loop.run()
    return loop


def test_an_uninterrupted_run(whole: Loop) -> None:
    rows = read_metrics(whole.log)
    assert [row["step"] for row in rows] == list(range(12))
    assert next(iter(rows[0])) == "step" and rows[3]["progress"] == 3 / 12
    assert all(row["time/total"] >= 0 for row in rows)
    records = load_checkpoints_file(whole.log)
    assert [(r.name, r.batch, r.final) for r in records] == [
        ("000002", 2, None),
        ("000004", 4, None),
        ("000005", 5, None),
        ("000006", 6, None),
        ("000008", 8, None),
        ("000010", 10, None),
        ("final", 12, True),
    ]


def test_a_pipelined_save_holds_exactly_the_steps_it_is_named_after(whole: Loop) -> None:
    weight, momentum = 1.0, 0.0
    states = {}
    for i in range(12):
        momentum = 0.9 * momentum + 2 * weight * (1 + i % 3)
        weight -= 0.1 * momentum
        states[i + 1] = [weight, momentum]
    for record in load_checkpoints_file(whole.log):
        assert record.state_path and record.batch
        saved = json.loads((whole.store / record.state_path.replace("/", "_")).read_text())
        assert saved == states[record.batch]


@pytest.mark.parametrize(
    ("kill", "resumes_at"),
    [
        ("in-step:0", 0),
        ("after-row:1", 0),  # the checkpoint of step 2 exists, but nothing says so
        ("in-step:4", 4),
        ("after-finish:4", 5),
        ("after-row:9", 8),
        ("torn:7", 6),
        ("after-row:11", 10),
        ("before-final", 10),
    ],
)
def test_killed_and_started_again_equals_uninterrupted(
    tmp_path: Path, whole: Loop, kill: str, resumes_at: int
) -> None:
    loop = Loop(tmp_path, "run")
    loop.run(kill=kill, code=-signal.SIGKILL)
    said = loop.run()
    if resumes_at:
        assert f"resuming {loop.log} at step {resumes_at} of 12" in said
    else:
        assert "without a checkpoint: restarting at step 0" in said
    assert loop.numbers() == whole.numbers()
    assert loop.final_state() == whole.final_state()


def test_a_full_disk_is_one_line_and_the_same_command_resumes(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    *warnings, error = loop.run(full="after-finish:6", code=2).splitlines()
    reason = "cannot be written: File too large; free space"
    assert error == (
        f"error: {loop.log}/metrics.jsonl {reason} and run the same command; it resumes"
    )
    assert warnings == [f"WARNING: {loop.log}/logs.log {reason}, or this log will have gaps"]
    assert [row["step"] for row in read_metrics(loop.log)] == list(range(7))
    assert (loop.log / "metrics.jsonl").read_text().endswith("}\n")  # no half line
    loop.run()
    assert loop.numbers() == whole.numbers()
    assert loop.final_state() == whole.final_state()


def test_killed_three_times(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    for kill in ("after-row:3", "after-finish:5", "in-step:6"):
        loop.run(kill=kill, code=-signal.SIGKILL)
    loop.run()
    assert loop.numbers() == whole.numbers()
    assert loop.final_state() == whole.final_state()


def test_killed_from_outside_at_any_moment(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    child = loop.start("pause=0.03")
    while len(read_metrics(loop.log)) < 7:
        time.sleep(0.01)
        assert child.poll() is None
    child.kill()
    child.communicate()
    assert len(read_metrics(loop.log)) < 12
    loop.run("pause=0.03")
    assert loop.numbers() == whole.numbers()


def stopped(loop: Loop, number: signal.Signals, *words: str, rows: int) -> tuple[int, list[str]]:
    """Exit code and stderr of a loop that gets the signal after `rows` rows."""
    child = loop.start(*words)
    while len(read_metrics(loop.log)) < rows:
        time.sleep(0.01)
        assert child.poll() is None
    child.send_signal(number)
    _, err = child.communicate(timeout=20)
    return child.returncode, err.splitlines()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_loop_that_does_not_ask_is_stopped_behind_a_step(
    tmp_path: Path, whole: Loop, number: signal.Signals, code: int
) -> None:
    """It submits a step ahead without asking `stopping`: that step is dropped, none is repeated."""
    loop = Loop(tmp_path, "run")
    returned, err = stopped(loop, number, "pause=0.05", "rolling_save_every=0", rows=6)
    assert returned == code
    assert err[0].startswith(f"{number.name}: finishing ")
    done = len(read_metrics(loop.log))
    assert err[1:] == [f"stopped after {done} of 12 steps; the same command resumes from there"]
    last = load_checkpoints_file(loop.log)[-1]
    assert (last.name, last.batch, last.extra["rolling"]) == (f"{done:06d}", done, True)
    assert f"resuming {loop.log} at step {done} of 12" in loop.run("pause=0.05")
    assert loop.numbers() == whole.numbers()
    assert loop.final_state() == whole.final_state()


def test_a_second_signal_ends_at_once(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    child = loop.start("pause=0.3")
    while not read_metrics(loop.log):
        time.sleep(0.01)
    for _ in range(2):
        child.send_signal(signal.SIGINT)
        time.sleep(0.2)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert err.splitlines()[1:] == ["ended at once; the same command resumes"]
    loop.run("pause=0.3")
    assert loop.numbers() == whole.numbers()


def test_a_killed_final_save_is_no_end_and_a_recorded_one_is(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "run")
    loop.run(kill="after-final", code=-signal.SIGKILL)
    said = loop.run()
    assert f"{loop.log} holds a finished run of 12 steps" in said
    assert f"run directory: {loop.log}-2" in said
    assert len(read_metrics(f"{loop.log}-2")) == 12
    loop.run(kill="in-step:6", code=-signal.SIGKILL)  # this one is number 3
    assert f"resuming {loop.log}-3 at step 6 of 12" in loop.run()


def test_a_finished_run_is_skipped_and_an_unfinished_one_resumed(tmp_path: Path) -> None:
    loop, skip = Loop(tmp_path, "run"), "behavior_if_log_dir_exists=skip"
    loop.run(skip, kill="in-step:6", code=-signal.SIGKILL)
    assert f"resuming {loop.log} at step 6 of 12" in loop.run(skip)
    finished = f"{loop.log} holds a finished run of 12 steps: nothing to do\n"
    assert loop.run(skip) == finished
    assert not loop.log.with_name("run-2").exists()
    assert f"{loop.log} holds a run with a different config" in loop.run(skip, "rate=0.2", code=2)


def test_a_longer_run_continues_a_finished_one(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    loop.run("max_steps=7")
    assert f"resuming {loop.log} at step 7 of 12 from checkpoint final" in loop.run()
    without_progress = [
        [{k: v for k, v in row.items() if k != "progress"} for row in rows]
        for rows in (loop.numbers(), whole.numbers())
    ]
    assert without_progress[0] == without_progress[1]
    assert loop.final_state() == whole.final_state()


def test_an_unfinished_run_past_the_end_is_refused(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "run")
    loop.run(kill="after-finish:9", code=-signal.SIGKILL)
    assert loop.run("max_steps=4", code=2) == (
        f"error: {loop.log} holds a run of 10 steps, more than the requested 4; "
        "raise max_steps or set another log_path\n"
    )


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    loop = Loop(tmp_path, "run")
    loop.run(kill="in-step:6", code=-signal.SIGKILL)
    before = (loop.log / "config.json").read_bytes()
    assert loop.run("rate=0.2", "model_name=x", "save_every=3", code=2) == (
        f'error: {loop.log} holds a run with a different config: model_name was "org/tiny" and '
        'is "x" now; rate was 0.1 and is 0.2 now; set another log_path, or '
        "behavior_if_log_dir_exists=delete\n"
    )
    assert (loop.log / "config.json").read_bytes() == before
    said = loop.run("rate=0.2", "behavior_if_log_dir_exists=delete")
    assert f"deleted an unfinished run of 6 steps from {loop.log}" in said
    assert [row["step"] for row in read_metrics(loop.log)] == list(range(12))


def test_two_processes_cannot_share_a_directory(tmp_path: Path, whole: Loop) -> None:
    loop = Loop(tmp_path, "run")
    # long enough for the second process to start while the first one trains
    first = loop.start("pause=0.5")
    while not read_metrics(loop.log):
        time.sleep(0.01)
    error = loop.run(code=2)
    assert error == (
        f"error: {loop.log} is in use by process {first.pid} on {os.uname().nodename}; "
        "wait until it ends or set another log_path\n"
    )
    first.communicate(timeout=30)
    assert loop.numbers() == whole.numbers()


# ---- in this process


@chz.chz
class Config:
    model_name: str = "org/Tiny Model"
    rate: float = 0.1
    max_steps: int | None = None
    num_epochs: int = 1
    evaluator_builders: list[str] = chz.field(default_factory=list)
    engine: str = "auto"
    eval_every: int = 3
    wandb_name: str | None = None
    log_path: str | None = None


class Client:
    def save_state(
        self, name: str, ttl_seconds: int | None = None
    ) -> asyncio.Future[SimpleNamespace]:
        return self._future(f"tinker://r/weights/{name}")

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> asyncio.Future[SimpleNamespace]:
        return self._future(f"tinker://r/sampler_weights/{name}")

    def _future(self, path: str) -> asyncio.Future[SimpleNamespace]:
        future: Future = Future()
        future.set_result(SimpleNamespace(path=path))
        return asyncio.wrap_future(future)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINKER_COOKBOOK_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


async def do(config: Any, steps: int, **arguments: Any) -> Journal:
    """A finished run of `steps` steps."""
    with Journal(config, recipe="r", total_steps=steps, **arguments) as journal:
        for i in range(journal.start_step, steps):
            with journal.step(i) as row:
                row["loss"] = 1.0
        await journal.finish(journal.submit_save(Client(), steps, final=True))
    return journal


async def test_the_directory_is_named_by_what_matters(runs: Path) -> None:
    first = (await do(Config(), 1)).log_path
    assert first.parent == runs
    assert first.name.startswith("r-Tiny_Model-") and len(first.name) == len("r-Tiny_Model-") + 8
    free = Config(max_steps=3, eval_every=9, wandb_name="w", engine="cpu", evaluator_builders=["x"])
    assert (await do(free, 2)).log_path == first  # continued: two steps are more than one
    assert (await do(free, 2)).log_path.name == f"{first.name}-2"
    other = (await do(Config(rate=0.2), 1)).log_path
    assert other.name != first.name and not other.name.endswith("-2")


@chz.chz
class Limits:
    turns: int = 3
    timeout: float = chz.field(default=1.0, metadata=MAY_CHANGE)


@chz.chz
class OtherLimits:
    turns: int = 3
    timeout: float = 1.0


@chz.chz
class Distilled(Config):
    log_path: str | None = None
    max_steps: int = 1
    shown: int = chz.field(default=1, metadata=MAY_CHANGE)
    limits: Limits | OtherLimits = chz.field(default_factory=Limits)
    data: dict[str, int] = chz.field(default_factory=lambda: {"save_every": 1})
    teacher_sync_every: int = 2


async def test_keys_that_may_change(tmp_path: Path) -> None:
    """The config's own, those of nested objects, and those of all loops."""
    log = str(tmp_path / "x")
    await do(Distilled(log_path=log), 1)
    changes = {"shown": 2, "limits": Limits(timeout=4.0), "eval_every": 3, "max_steps": 2}
    journal = await do(Distilled(log_path=log, **changes), 2)
    assert journal.start_step == 1
    assert json.loads((tmp_path / "x/config.json").read_text())["limits"]["timeout"] == 4.0
    for other, text in (
        (Distilled(limits=Limits(turns=4)), r"limits\.turns was 3 and is 4 now"),
        (Distilled(limits=OtherLimits(timeout=2.0)), r"limits\.timeout was 4\.0 and is 2\.0"),
        (Distilled(data={"save_every": 2}), r"data\.save_every was 1 and is 2 now"),
        (Distilled(teacher_sync_every=5), r"teacher_sync_every was 2 and is 5 now"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            await do(chz.replace(other, log_path=log, max_steps=3), 3)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a", {"b": 3, "b.x": 4}),
        ("a.x", {"a": {"y": {"x": 2}}, "b": 3, "b.x": 4}),
        ("a.y.x", {"a": {"x": 1, "y": {}}, "b": 3, "b.x": 4}),
        ("x", {"a": {"x": 1, "y": {"x": 2}}, "b": 3, "b.x": 4}),
        ("a.*", {"a": {"x": 1, "y": {"x": 2}}, "b": 3, "b.x": 4}),
    ],
)
def test_dotted_names(name: str, kept: dict[str, Any]) -> None:
    content = {"a": {"x": 1, "y": {"x": 2}}, "b": 3, "b.x": 4}
    assert drop_keys(content, ["z", "z.x", name]) == kept


async def test_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = await do(Config(log_path=str(tmp_path / "x")), 2)
    names = {p.name for p in journal.log_path.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "code.diff",
        "logs.log",
        "metrics.jsonl",
        "checkpoints.jsonl",
    }
    config = json.loads((journal.log_path / "config.json").read_text())
    assert list(config)[:3] == ["recipe", "model_name", "rate"] and config["rate"] == 0.1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"run directory: {journal.log_path}"
    assert out[1].startswith("step 0/2  loss 1  ") and out[2].startswith("step 1/2  loss 1  ")
    assert out[3].startswith("final weights: tinker://")
    assert out[4].startswith("finished: 2 steps in 0:0")
    assert out[5].startswith("to evaluate: ./scripts/run tinker_cookbook.eval.run_inspect_evals")
    assert f"model_path={journal.log_path} tasks=" in out[5]
    assert f"tinker_cookbook.weights.export checkpoint={journal.log_path} output=" in out[6]
    log = (journal.log_path / "logs.log").read_text()
    assert "finished: 2 steps" in log and "saved checkpoint final" in log


async def test_a_key_in_the_hash_of_a_mapping_config(runs: Path) -> None:
    journal = await do({"model_name": "m", "rate": 1}, 1)
    assert journal.log_path.name.startswith("r-m-")


def test_rows_are_written_once_and_in_order(tmp_path: Path) -> None:
    with Journal(Config(log_path=str(tmp_path)), recipe="r", total_steps=3) as journal:
        with pytest.raises(RuntimeError, match="row 1 out of order: row 0"), journal.step(1):
            pass
        with journal.step(0):
            pass
        with pytest.raises(RuntimeError, match="row 0 out of order: row 1"), journal.step(0):
            pass
    assert len(read_metrics(tmp_path)) == 1


def test_a_step_that_fails_writes_no_row_and_can_be_tried_again(tmp_path: Path) -> None:
    with Journal(Config(log_path=str(tmp_path)), recipe="r", total_steps=3) as journal:
        with pytest.raises(KeyError), journal.step(0) as row:
            row["loss"] = 1.0
            raise KeyError
        with journal.step(0) as row:
            row["loss"] = 2.0
    assert [row["loss"] for row in read_metrics(tmp_path)] == [2.0]


def test_timings_inside_and_between_steps(tmp_path: Path) -> None:
    with Journal(Config(log_path=str(tmp_path)), recipe="r", total_steps=3) as journal:
        with journal.step(0):
            with journal.timed("a"):
                time.sleep(0.01)
            with journal.timed("a"):
                time.sleep(0.01)
            with trace.span("of the user's"):
                time.sleep(0.01)
        with journal.timed("between"):
            time.sleep(0.01)
        with journal.step(1):
            pass
    with trace.span("after the run"):
        pass
    first, second = read_metrics(tmp_path)
    assert first["time/total"] >= first["time/a"] + first["time/of the user's"] >= 0.03
    assert set(second) == {"step", "progress", "time/between", "time/total"}


def test_progress_fields_of_rl_and_of_the_loop_itself(tmp_path: Path) -> None:
    config = Config(log_path=str(tmp_path))
    with Journal(config, recipe="r", total_steps=4, progress="rl") as journal:
        with journal.step(0):
            pass
        with journal.step(1) as row:
            row["progress/done_frac"] = 0.9
    first, second = read_metrics(tmp_path)
    assert (first["progress/batch"], first["progress/done_frac"]) == (0, 0.25)
    assert (second["progress/batch"], second["progress/done_frac"]) == (1, 0.9)


async def test_a_save_cannot_be_recorded_before_its_rows(tmp_path: Path) -> None:
    with Journal(Config(log_path=str(tmp_path)), recipe="r", total_steps=1) as journal:
        pending = journal.submit_save(Client(), 1, final=True)
        with pytest.raises(RuntimeError, match=r"save after 1 step .* before row 0 is written"):
            await journal.finish(pending)
        with journal.step(0):
            pass
        await journal.finish(pending)
        assert await journal.finish(None) is None
    assert len(load_checkpoints_file(tmp_path)) == 1


async def test_a_row_for_the_final_weights_is_written_again_by_a_longer_run(tmp_path: Path) -> None:
    for total in (2, 3):
        config = Config(log_path=str(tmp_path), num_epochs=total)
        with Journal(config, recipe="r", total_steps=total) as journal:
            for i in range(journal.start_step, total + 1):
                with journal.step(i) as row:
                    row["test/nll"] = float(total)
            await journal.finish(journal.submit_save(Client(), total, final=True))
    rows = [(row["step"], row["test/nll"]) for row in read_metrics(tmp_path)]
    assert rows == [(0, 2.0), (1, 2.0), (2, 3.0), (3, 3.0)]


async def test_loop_state_comes_back(tmp_path: Path) -> None:
    config = Config(log_path=str(tmp_path))
    with Journal(config, recipe="r", total_steps=1) as journal:
        assert journal.resume is None
        with journal.step(0):
            pass
        await journal.finish(
            journal.submit_save(Client(), 1, final=True, epoch=2, cursor={"file": 3})
        )
    longer = Config(log_path=str(tmp_path), num_epochs=2)
    with Journal(longer, recipe="r", total_steps=2) as journal:
        assert journal.resume is not None and journal.start_step == 1
        assert (journal.resume.epoch, journal.resume.extra["cursor"]) == (2, {"file": 3})


def test_an_error_is_logged_passed_on_and_frees_the_directory(tmp_path: Path) -> None:
    config = Config(log_path=str(tmp_path))
    journal = Journal(config, recipe="r", total_steps=3)
    with pytest.raises(TrainingError, match="no luck"), journal:
        with journal.step(0):
            pass
        raise TrainingError("no luck")
    log = (tmp_path / "logs.log").read_text()
    assert "stopped after 1 step in 0:00 by TrainingError" in log and "no luck" in log
    assert "Traceback" in log and "finished" not in log
    with Journal(config, recipe="r", total_steps=3) as journal:
        assert journal.start_step == 0


def test_a_start_that_fails_frees_the_directory(tmp_path: Path) -> None:
    @chz.chz
    class Bad:
        log_path: str = str(tmp_path)
        display: str = "fancy"

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="display='fancy'"):
            Journal(Bad(), recipe="r").__enter__()


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": []}')
    with pytest.raises(ConfigurationError, match=r"config\.json was not written by a run"):
        Journal(Config(log_path=str(tmp_path)), recipe="r").__enter__()
    (tmp_path / "config.json").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    with Journal(Config(log_path=str(tmp_path)), recipe="r"):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_whose_config_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"config\.json is not readable"):
        Journal(Config(log_path=str(tmp_path)), recipe="r").__enter__()


# ---- data, and what the service still has


@chz.chz
class File:
    path: str

    def identity(self) -> dict[str, Any]:
        return {"path": {"text": Path(self.path).read_text()}}


@chz.chz
class DataConfig(Config):
    dataset_builder: File


async def test_other_data_is_another_run_and_moved_data_is_not(tmp_path: Path, runs: Path) -> None:
    (tmp_path / "a").write_text("one")
    (tmp_path / "moved").write_text("one")
    a = DataConfig(dataset_builder=File(path=str(tmp_path / "a")))
    first = await do(a, 2)
    config = json.loads((first.log_path / "config.json").read_text())
    assert config["dataset_builder"] == {
        "class": f"{__name__}:File",
        "path": str(tmp_path / "a"),
        "identity": {"path": {"text": "one"}},
    }
    moved = chz.replace(a, dataset_builder=File(path=str(tmp_path / "moved")), max_steps=3)
    again = await do(moved, 3)
    assert (again.log_path, again.start_step) == (first.log_path, 2)
    (tmp_path / "a").write_text("one and more")  # the same command after the file grew
    grown = await do(a, 4)
    assert grown.log_path.name[:-8] == first.log_path.name[:-8] != grown.log_path.name
    assert grown.start_step == 0
    with pytest.raises(
        ConfigurationError,
        match=r'dataset_builder\.identity\.path\.text was "one" and is "one and more" now',
    ):
        await do(chz.replace(a, log_path=str(first.log_path), max_steps=9), 9)


# ---- code of the user's own

GAME = """
import chz
import rules

@chz.chz
class Game:
    size: int = 1

def evaluator():
    pass
"""


@chz.chz
class GameConfig(Config):
    data: Any
    evaluator_builders: list[Any] = chz.field(default_factory=list)
    behavior_if_log_dir_exists: str | None = None


@pytest.fixture
def games(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Imports user modules afresh after each change, as another process would."""
    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = ("my_game", "other_game", "rules", "evals")

    def write(**sources: str) -> dict[str, Any]:
        for name, source in sources.items():
            (folder / f"{name}.py").write_text(source)
        for name in names:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        there = [name for name in names if (folder / f"{name}.py").exists()]
        return {name: importlib.import_module(name) for name in there}

    yield write
    for name in names:
        sys.modules.pop(name, None)


async def begin(config: Any, steps: int, total: int = 9) -> Journal:
    """`steps` steps and a checkpoint of an unfinished run."""
    with Journal(config, recipe="r", total_steps=total) as journal:
        journal._checkpoints._save_every = 1
        for i in range(journal.start_step, steps):
            with journal.step(i):
                pending = journal.submit_save(Client(), i + 1)
            await journal.finish(pending)
    return journal


async def test_a_class_of_the_same_name_in_another_module_is_another_run(
    tmp_path: Path, runs: Path, games: Callable[..., dict[str, Any]]
) -> None:
    code = games(my_game=GAME, other_game=GAME, rules="N = 1")
    mine, other = (GameConfig(data=code[m].Game()) for m in ("my_game", "other_game"))
    first = await begin(mine, 2)
    assert (await begin(mine, 3)).start_step == 2
    another = await begin(other, 1)
    assert another.log_path != first.log_path and another.start_step == 0
    with pytest.raises(ConfigurationError, match=r"my_game:Game.* and is .*other_game:Game"):
        await begin(chz.replace(other, log_path=str(first.log_path)), 4)


@pytest.mark.parametrize("changed", ["my_game", "rules"])
async def test_edited_code_is_refused_by_name_until_resume_is_asked_for(
    tmp_path: Path,
    runs: Path,
    games: Callable[..., dict[str, Any]],
    changed: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def config(**changes: Any) -> GameConfig:
        return GameConfig(data=code["my_game"].Game(), **changes)

    sources = {"my_game": GAME, "rules": "N = 1"}
    code = games(**sources)
    first = await begin(config(), 2)
    code = games(**{changed: f"{sources[changed]}\n# edited"})
    with pytest.raises(ConfigurationError) as refused:
        await begin(config(), 3)
    assert f"{changed}.py changed since it was last started or resumed; restore it" in str(
        refused.value
    )
    assert "behavior_if_log_dir_exists=resume to resume with" in str(refused.value)
    code = games(**sources)  # restored
    assert (await begin(config(), 3)).start_step == 2
    code = games(**{changed: f"{sources[changed]}\n# edited"})
    capsys.readouterr()
    again = await begin(config(behavior_if_log_dir_exists="resume"), 4)
    assert (again.log_path, again.start_step) == (first.log_path, 3)
    assert (
        f"{changed}.py changed: the remaining steps run the edited code" in capsys.readouterr().out
    )
    assert (await begin(config(), 5)).start_step == 4, "config.json knows the code of now"
    await do(config(), 9)
    code = games(**sources)
    assert (await begin(config(), 1)).log_path.name == f"{first.log_path.name}-2", "finished"


async def test_code_may_be_edited_before_the_first_checkpoint(
    runs: Path, games: Callable[..., dict[str, Any]]
) -> None:
    code = games(my_game=GAME, rules="N = 1")
    with pytest.raises(KeyError), Journal(GameConfig(data=code["my_game"].Game()), recipe="r") as a:
        raise KeyError
    code = games(my_game=GAME + "# mended")
    with Journal(GameConfig(data=code["my_game"].Game()), recipe="r") as b:
        assert (b.log_path, b.start_step) == (a.log_path, 0)


async def test_other_evaluators_go_on_and_say_so(
    runs: Path, games: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = games(my_game=GAME, rules="N = 1", evals="def evaluator(): pass")
    config = GameConfig(data=code["my_game"].Game(), evaluator_builders=[code["evals"].evaluator])
    await begin(config, 1)
    code = games(evals="def evaluator(): return 1")
    config = GameConfig(data=code["my_game"].Game(), evaluator_builders=[code["evals"].evaluator])
    capsys.readouterr()
    assert (await begin(config, 2)).start_step == 1
    assert "evaluators changed: evals.py" in capsys.readouterr().out
    assert (await begin(chz.replace(config, evaluator_builders=[]), 3)).start_step == 2
    assert "evaluators changed: evaluator_builders was " in capsys.readouterr().out
    await begin(chz.replace(config, evaluator_builders=[]), 4)
    assert "evaluators changed" not in capsys.readouterr().out


async def test_a_run_of_an_earlier_version_goes_on(
    runs: Path, games: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.json has classes without modules, from which its directory is named."""
    code = games(my_game=GAME, rules="N = 1")
    config = GameConfig(data=code["my_game"].Game())
    journal = await begin(config, 2)
    file = journal.log_path / "config.json"
    content = json.loads(file.read_text())
    del content["config_class"], content["user_code"]
    content["data"]["class"] = "Game"
    file.write_text(json.dumps(content))
    text = json.dumps(drop_keys(content, changeable_keys(config)), sort_keys=True)
    older = runs / f"{journal.log_path.name[:-8]}{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    journal.log_path.rename(older)
    capsys.readouterr()
    again = await begin(config, 3)
    assert (again.log_path, again.start_step) == (older, 2)
    assert "an older tinker_cookbook started this run without recording my_game" in (
        capsys.readouterr().out
    )
    assert (await begin(config, 4)).log_path == older
    with pytest.raises(ConfigurationError, match=r"data\.size was 1 and is 2 now"):
        larger = GameConfig(data=code["my_game"].Game(size=2), log_path=str(older))
        await begin(larger, 5)


async def test_more_steps_of_the_data_alone_continue_no_finished_run(tmp_path: Path) -> None:
    config = Config(log_path=str(tmp_path / "x"), max_steps=5)
    await do(config, 2)
    assert (await do(config, 4)).log_path == tmp_path / "x-2"
    journal = await do(chz.replace(config, max_steps=6), 6)
    assert (journal.log_path, journal.start_step) == (tmp_path / "x", 2)


async def test_a_continued_run_says_so_until_its_next_checkpoint(tmp_path: Path) -> None:
    config = Config(log_path=str(tmp_path / "x"), max_steps=2)
    assert (await do(config, 2)).continued is False
    longer = chz.replace(config, max_steps=4)
    for _ in range(2):  # the second time, after a crash in its first step
        with pytest.raises(KeyError), Journal(longer, recipe="r", total_steps=4) as journal:
            assert (journal.continued, journal.start_step) == (True, 2)
            raise KeyError
    with Journal(longer, recipe="r", total_steps=4) as journal:
        with journal.step(2):
            pass
        journal._checkpoints._save_every = 3
        await journal.finish(journal.submit_save(Client(), 3))
    with Journal(longer, recipe="r", total_steps=4) as journal:
        assert (journal.continued, journal.start_step) == (False, 3)


@chz.chz
class SavingConfig(Config):
    save_every: int = 4
    rolling_save_every: int = 2
    behavior_if_log_dir_exists: str | None = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    from tinker_cookbook.service.store import Store

    return Store(tmp_path / "store")


class StoreClient(Client):
    """Saves into a real store, without weights."""

    def __init__(self, store: Any, run: str) -> None:
        self._store, self._run = store, run
        store.create_run(run, "m", 8)

    def save_state(
        self, name: str, ttl_seconds: int | None = None
    ) -> asyncio.Future[SimpleNamespace]:
        return self._future(self._write("weights", name, ttl_seconds))

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> asyncio.Future[SimpleNamespace]:
        return self._future(self._write("sampler_weights", name, ttl_seconds))

    def _write(self, kind: str, name: str, ttl_seconds: int | None) -> str:
        return self._store.write_checkpoint(
            self._run, kind, name, lambda path: None, ttl_seconds=ttl_seconds
        )


async def work(config: Any, rest: Any, client: Any, steps: int, total: int) -> Journal:
    """`steps` of `total` steps, then left as after a crash."""
    with Journal(config, recipe="r", total_steps=total, rest_client=rest) as journal:
        for i in range(journal.start_step, steps):
            with journal.step(i):
                pending = journal.submit_save(client, i + 1)
            await journal.finish(pending)
    return journal


async def test_a_checkpoint_that_is_gone_is_skipped(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinker_cookbook.service.rest import LocalRestClient

    rest = LocalRestClient(store)
    config = SavingConfig(log_path=str(tmp_path / "x"))
    await work(config, rest, StoreClient(store, "first"), 7, 12)
    found = {str(info.path): info.expires_at for info in store.list_checkpoints("first")}
    assert list(found) == [
        "tinker://first/weights/000006",
        "tinker://first/sampler_weights/000004",
        "tinker://first/weights/000004",  # 000002 was replaced
    ]
    assert found["tinker://first/weights/000006"] is None
    links = tmp_path / "x" / "weights"
    runs = Path("..", "..", "store", "runs", "first")
    assert {each.name: each.readlink() for each in links.iterdir()} == {
        "000004": runs / "sampler_weights" / "000004",
        "000006": runs / "weights" / "000006",
    }
    assert found["tinker://first/weights/000004"] is not None
    store.delete("tinker://first/weights/000006")
    capsys.readouterr()
    resumed = await work(config, rest, StoreClient(store, "second"), 9, 12)
    assert resumed.start_step == 4
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("skipping checkpoint 000006: run first has no weights/000006; ")
    assert out[1].endswith("at step 4 of 12 from checkpoint 000004")
    assert [row["step"] for row in read_metrics(tmp_path / "x")] == list(range(9))
    left = {str(info.path) for info in store.list_checkpoints("second")}
    assert "tinker://second/weights/000006" not in left and len(left) == 2
    assert {each.name for each in links.iterdir()} == {"000004", "000008"}
    shutil.rmtree(tmp_path / "store" / "runs" / "first")
    (links / "mine").write_text("")
    again = await work(config, rest, StoreClient(store, "third"), 9, 12)
    assert again.start_step == 8 and {each.name for each in links.iterdir()} == {"000008", "mine"}
    replaced = chz.replace(config, behavior_if_log_dir_exists="delete")
    await work(replaced, rest, StoreClient(store, "fourth"), 1, 12)
    assert {each.name for each in links.iterdir()} == {"mine"}


async def test_a_store_that_is_not_there_does_not_start_a_run_over(
    tmp_path: Path, store: Store
) -> None:
    from tinker_cookbook.service.rest import LocalRestClient
    from tinker_cookbook.service.store import Store

    config = SavingConfig(log_path=str(tmp_path / "x"))
    await work(config, LocalRestClient(store), StoreClient(store, "first"), 7, 12)
    elsewhere = LocalRestClient(Store(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=r"no checkpoint of this run .*no run first"):
        await work(config, elsewhere, Client(), 8, 12)
    assert len(read_metrics(tmp_path / "x")) == 7
