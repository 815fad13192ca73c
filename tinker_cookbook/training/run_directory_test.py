import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.training.run_directory import (
    RunLock,
    check_log_dir,
    choose_resume_or_delete,
    clear_run_directory,
    holds_run,
)
from tinker_cookbook.training.run_identity import differences

HOLD = """
import sys, time
from pathlib import Path
from tinker_cookbook.training.run_directory import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def holder(directory: Path) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


def a_run(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "metrics.jsonl").write_text('{"step": 0}\n')
    (directory / "iteration_000000").mkdir()
    (directory / "iteration_000000" / "x").touch()
    return directory


def test_a_second_process_is_told_who_holds_the_directory_until_that_one_is_killed(
    tmp_path: Path,
) -> None:
    child = holder(tmp_path / "run")
    try:
        with pytest.raises(ConfigurationError) as e:
            RunLock(tmp_path / "run")
        assert str(e.value) == (
            f"{tmp_path / 'run'} is in use by process {child.pid} on {os.uname().nodename}; "
            "wait until it ends or set another log_path"
        )
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == child.pid
    RunLock(tmp_path / "run").release()


FORK = """
import os, sys, time
from pathlib import Path
from tinker_cookbook.training.run_directory import RunLock
lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)  # by the child: only now has it let go of the lock
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_forked_worker_of_a_killed_process_does_not_keep_the_directory(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    try:
        with pytest.raises(ConfigurationError, match=f"in use by process {parent.pid} "):
            RunLock(tmp_path)
        parent.kill()
        parent.wait()
        os.kill(worker, 0)  # it lives on
        RunLock(tmp_path).release()
    finally:
        parent.kill()
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    RunLock(tmp_path).release()
    assert f"{tmp_path}: this file system does not support locks" in caplog.text


def test_one_process_cannot_lock_twice_but_again_after_release(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(ConfigurationError, match=f"process {os.getpid()} "):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"log_path=.*/file is not writable"):
        RunLock(tmp_path / "file")


def test_check_log_dir(tmp_path: Path) -> None:
    check_log_dir(tmp_path / "none", "raise")
    assert not (tmp_path / "none").exists()
    run = a_run(tmp_path / "run")
    check_log_dir(run, "resume")
    check_log_dir(run, "ask")  # no terminal: nobody is asked
    assert holds_run(run)
    with pytest.raises(ConfigurationError, match=r"run holds a run; set another log_path, or"):
        check_log_dir(run, "raise")
    with pytest.raises(ConfigurationError, match=r"='overwrite' is unknown.*resume, skip, delete"):
        check_log_dir(run, "overwrite")  # type: ignore[arg-type]
    check_log_dir(run, "delete")
    assert [p.name for p in run.iterdir()] == [".lock"]


def test_delete_spares_what_is_no_run_and_what_is_in_use(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    check_log_dir(model, "delete")
    assert (model / "config.json").exists()
    run = a_run(tmp_path / "run")
    lock = RunLock(run)
    with pytest.raises(ConfigurationError, match="in use"):
        check_log_dir(run, "delete")
    assert holds_run(run)
    lock.release()


def test_ask_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    asked: list[str] = []

    def answers(*words: str) -> None:
        left = list(words)

        def read(question: str) -> str:
            asked.append(question)
            return left.pop(0)

        monkeypatch.setattr("builtins.input", read)

    answers("what?", "", "d")
    assert choose_resume_or_delete(tmp_path, "ask", "a run of 3 steps") == "delete"
    assert asked == [f"{tmp_path} holds a run of 3 steps. resume, delete or quit? "] * 3
    answers("Resume")
    assert choose_resume_or_delete(tmp_path, "ask", "a run") == "resume"
    answers("q")
    with pytest.raises(ConfigurationError, match="was not changed"):
        choose_resume_or_delete(tmp_path, "ask", "a run")


def test_differences_name_dotted_keys_with_both_values() -> None:
    there = {"a": 1, "data": {"class": "X", "n": 3}, "gone": True, "same": [1, 2]}
    here = {"a": 2, "data": {"class": "Y", "n": 3, "new": None}, "same": [1, 2]}
    assert differences(there, here) == [
        "a was 1 and is 2 now",
        'data.class was "X" and is "Y" now',
        "data.new was not set and is null now",
        "gone was true and is not set now",
    ]


def test_deleting_a_run_leaves_what_is_not_its_own(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "config.json", "code-2.diff", "logs.log", "checkpoints.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "iteration_000001").mkdir()
    (tmp_path / "iteration_000001" / "train.html").write_text("x")
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "photos").mkdir()
    clear_run_directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "thesis.txt"]
