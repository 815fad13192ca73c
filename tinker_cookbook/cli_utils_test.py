"""The command line as a user meets it: in a process of its own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tinker_cookbook import cli_utils

PROGRAM = '''
"""Does what a test wants it to do.

Not shown.
"""
import asyncio, sys, threading, time
import chz
from tinker_cookbook import cli_utils
from tinker_cookbook.exceptions import ConfigurationError, TrainingError

@chz.chz
class CLI:
    mode: str = chz.field(default="return", doc="What main does.")
    rate: float = 0.5

def ready():
    print("ready", flush=True)

async def amain(config):
    try:
        if config.mode == "sleep":
            ready()
            await asyncio.sleep(30)
        if config.mode == "thread":
            ready()
            await asyncio.to_thread(time.sleep, 30)
        if config.mode == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
        print("mode", config.mode, "rate", config.rate)
    finally:
        print("unwound", flush=True)

async def fail():
    raise TrainingError("the step\\nfailed")

def main(config):
    if config.mode == "error":
        raise TrainingError("two\\nlines")
    if config.mode == "bug":
        raise RuntimeError("a bug")
    if config.mode == "event":
        ready()
        threading.Event().wait(30)
    print("mode", config.mode)

if __name__ == "__main__":
    if "sync" in sys.argv:
        sys.argv.remove("sync")
        cli_utils.cli(main, CLI)
    else:
        cli_utils.cli(amain, CLI)
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "prog.py"
    file.write_text(PROGRAM)
    return file


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(program), *words], capture_output=True, text=True, timeout=60
    )


def interrupt(
    program: Path,
    *words: str,
    signals: tuple[signal.Signals, ...] = (signal.SIGINT,),
    ignored: tuple[signal.Signals, ...] = (),
    pause: float = 0.3,
) -> tuple[int, str, str, float]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    child = subprocess.Popen(
        [sys.executable, str(program), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    started = time.monotonic()
    for number in signals:
        os.kill(child.pid, number)
        time.sleep(pause)
    out, err = child.communicate(timeout=30)
    return child.returncode, out, err, time.monotonic() - started


@pytest.mark.parametrize("words", [["mode=a"], ["sync", "mode=a"]])
def test_a_program_runs_with_its_config(program: Path, words: list[str]) -> None:
    done = run(program, *words)
    assert done.returncode == 0 and done.stdout.startswith("mode a") and done.stderr == ""


def test_config_file(program: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mode: from-file\nrate: 1e-3\n")
    done = run(program, f"config={tmp_path / 'c.yaml'}")
    assert done.stdout == "mode from-file rate 0.001\nunwound\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rat=1"], "error: unknown key 'rat'; did you mean 'rate'?\n"),
        (["rate=fast"], "error: rate='fast': expected float\n"),
        (
            ["config=none.yaml"],
            "error: config=none.yaml cannot be read: No such file or directory\n",
        ),
        (["sync", "mode=error"], "error: two lines\n"),
        (["mode=group"], "error: the step failed\n"),
        (["--help", "rat=1"], "error: unknown key 'rat'; did you mean 'rate'?\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(
    program: Path, words: list[str], line: str
) -> None:
    done = run(program, *words)
    assert (done.returncode, done.stderr) == (2, line)


def test_what_is_a_bug_keeps_its_traceback(program: Path) -> None:
    done = run(program, "sync", "mode=bug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and done.stderr.endswith("RuntimeError: a bug\n")


def test_help_is_quick_and_complete(program: Path) -> None:
    started = time.monotonic()
    done = run(program, "--help")
    assert time.monotonic() - started < 3
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == textwrap.dedent(
        f"""\
        usage: python {program} [config=FILE.yaml] [key=value ...]

        Does what a test wants it to do.

        keys of this program
          mode                           str         return
              What main does.
          rate                           float       0.5
        """
    )


STOPPING = "{}: stopping, nothing to save; a second Ctrl-C or signal ends it at once\n"
STOPPED = "stopped; run the same command to resume\n"
AT_ONCE = "ended at once; the same command resumes\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_unwinds_and_says_how_to_go_on(
    program: Path, number: signal.Signals, code: int
) -> None:
    returned, out, err, seconds = interrupt(program, "mode=sleep", signals=(number,))
    assert (returned, out, err) == (code, "unwound\n", STOPPING.format(number.name) + STOPPED)
    assert seconds < 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_program_that_waits_without_asyncio(
    program: Path, number: signal.Signals, code: int
) -> None:
    returned, _, err, seconds = interrupt(program, "sync", "mode=event", signals=(number,))
    assert returned == code
    assert err == f"{number.name}: stopping; a second Ctrl-C or signal ends it at once\n{STOPPED}"
    assert seconds < 3


def test_a_second_signal_does_not_wait_for_threads(program: Path) -> None:
    signals = (signal.SIGTERM, signal.SIGINT)
    code, _, err, seconds = interrupt(program, "mode=thread", signals=signals)
    assert (code, err) == (130, STOPPING.format("SIGTERM") + AT_ONCE)
    assert seconds < 1.5  # and not by the grace time


def test_a_signal_that_a_wrapper_passes_on_is_no_second_one(program: Path) -> None:
    code, out, err, _ = interrupt(program, "mode=sleep", signals=(signal.SIGINT,) * 2, pause=0.01)
    assert (code, out, err) == (130, "unwound\n", STOPPING.format("SIGINT") + STOPPED)


def test_a_thread_that_hangs_is_left_after_the_grace_time(program: Path) -> None:
    code, out, err, seconds = interrupt(program, "mode=thread")
    assert (code, err) == (130, STOPPING.format("SIGINT") + STOPPED)
    assert out == "unwound\n" and 1.9 < seconds < 6


def test_an_ignored_signal_stays_ignored(program: Path) -> None:
    """As nohup does it, and shells for background jobs."""
    ignored = (signal.SIGHUP, signal.SIGINT)
    code, _, err, _ = interrupt(
        program, "mode=sleep", signals=(*ignored, signal.SIGTERM), ignored=ignored
    )
    assert (code, err) == (143, STOPPING.format("SIGTERM") + STOPPED)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", "nano"),
        ("model_name=a lr=1 ...model_name=b", "b"),
        ("teacher.model_name=a model_name=b=c", "b=c"),
    ],
)
def test_model_name_before_the_rest_is_parsed(words: str, found: str) -> None:
    assert cli_utils.model_name_from_argv(words.split(), "nano") == found
