"""How many threads compute, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinker_cookbook.utils import control_groups, cpu_threads
from tinker_cookbook.utils.cpu_threads import HOW_MANY, HOW_TO_WAIT, ThreadCount, Threads

NANO, LARGE = 2_000_000, 8_000_000_000


@pytest.mark.parametrize(
    ("parameters", "cores", "free", "spinning", "number"),
    [
        (1000, 64, None, False, 1),
        (NANO, 64, 64, False, 1),
        (150_000_000, 2, None, False, 2),
        (150_000_000, 1, 0.0, False, 1),
        (150_000_000, 64, 64, False, 15),  # no more than pay
        (LARGE, 64, 64, False, 64),
        (LARGE, 64, 47.6, False, 48),  # what is free
        (LARGE, 64, 3.0, False, 32),  # but half of it stays
        (150_000_000, 64, 3.0, False, 8),
        (LARGE, 64, None, False, 64),  # the load does not count
        (LARGE, 2, 1.6, False, 2),
        (LARGE, 2, 1.4, False, 1),
        (LARGE, 2, 0.0, False, 1),
        (LARGE, 64, 3.0, True, 3),  # threads that spin leave nothing to others
        (LARGE, 64, 0.0, True, 1),
    ],
)
def test_the_choice(
    parameters: int, cores: int, free: float | None, spinning: bool, number: int
) -> None:
    assert Threads.choose(parameters, cores, free, spinning).number == number


def test_the_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "_spinning", False)
    assert Threads.choose(NANO, 8).line() == "1 CPU thread (2.0 M parameters)"
    assert Threads.choose(LARGE, 8).line() == "8 CPU threads (8 cores)"
    assert Threads.choose(LARGE, 8, 4.8).line() == "5 CPU threads (4.8 of 8 cores are free)"
    assert Threads.choose(LARGE, 1).line() == "1 CPU thread (one core)"
    monkeypatch.setattr(cpu_threads, "_spinning", True)
    assert (
        "spinning while they wait; set OMP_WAIT_POLICY=PASSIVE" in Threads.choose(LARGE, 8).line()
    )
    assert "spin" not in Threads.choose(NANO, 8).line()


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 cores, of which 3 are free, and a torch that nobody has told anything."""
    for name in HOW_MANY:
        monkeypatch.delenv(name, raising=False)
    state = {"number": 8}
    monkeypatch.setattr(torch, "get_num_threads", lambda: state["number"])
    monkeypatch.setattr(torch, "set_num_threads", lambda number: state.update(number=number))
    monkeypatch.setattr(cpu_threads, "_found", None)
    monkeypatch.setattr(cpu_threads, "_set_here", None)
    monkeypatch.setattr(cpu_threads, "_spinning", False)
    monkeypatch.setattr(cpu_threads, "_cpus", lambda: list(range(8)))
    monkeypatch.setattr(cpu_threads.control_groups, "cpu_quota", lambda: None)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    monkeypatch.setattr(cpu_threads, "free_cores", lambda cores: 5.0)


def settled(parameters: int, asked: int | None = None, fixed: bool = False) -> Threads:
    count = ThreadCount(asked, fixed)
    count.settle(parameters)
    assert count.threads is not None
    assert torch.get_num_threads() == count.threads.number
    return count.threads


def test_who_decides(untouched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(LARGE).number == 5
    assert settled(NANO).number == 1
    assert settled(LARGE).number == 5  # what the engines before have set is not the user's word
    assert settled(LARGE, fixed=True).number == 8
    assert settled(NANO, asked=3).number == 3
    torch.set_num_threads(6)
    assert settled(NANO) == Threads(6, "torch.set_num_threads")
    assert settled(NANO, asked=3).number == 3
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert settled(NANO) == Threads(8, "OMP_NUM_THREADS")
    assert settled(NANO).number == 8
    monkeypatch.setattr(cpu_threads, "_cpus", lambda: list(range(16)))
    monkeypatch.setattr(cpu_threads.control_groups, "cpu_quota", lambda: 2.5)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert settled(LARGE, fixed=True).number == 2  # a container


def test_the_first_model_decides_and_a_saved_run_keeps_its_number(untouched: None) -> None:
    count = ThreadCount(None, fixed=False)
    count.settle(NANO)
    count.settle(LARGE)
    assert count.threads and count.threads.number == torch.get_num_threads() == 1
    count.keep(4)
    assert count.threads.number == torch.get_num_threads() == 4
    asked = ThreadCount(3, fixed=False)
    asked.settle(LARGE)
    asked.keep(4)  # what the user says now is the last word
    assert asked.threads and asked.threads.number == torch.get_num_threads() == 3


def test_a_container_has_what_its_groups_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_groups, "GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "OWN_GROUPS", tmp_path / "own")
    assert control_groups.cpu_quota() is None  # not Linux
    (tmp_path / "own").write_text("0::/a/b\n3:cpu,cpuacct:/c\n")
    assert control_groups.cpu_quota() is None
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    assert control_groups.cpu_quota() is None
    (tmp_path / "a" / "cpu.max").write_text("350000 100000\n")  # the group above
    assert control_groups.cpu_quota() == 3.5
    (tmp_path / "cpu,cpuacct" / "c").mkdir(parents=True)  # version 1
    for directory, quota in ((tmp_path / "cpu,cpuacct", -1), (tmp_path / "cpu,cpuacct/c", 150000)):
        (directory / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (directory / "cpu.cfs_period_us").write_text("100000\n")
    assert control_groups.cpu_quota() == 1.5


def test_what_is_free_excludes_what_others_use() -> None:
    cores = cpu_threads.allowed_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert 0 <= cpu_threads.free_cores(cores) <= cores


def policy(code: str, **given: str) -> str:
    """What a fresh Python prints."""
    kept = {k: v for k, v in os.environ.items() if k not in HOW_TO_WAIT}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **given}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = """
from tinker_cookbook.utils import cpu_threads
print(os.environ.get("OMP_WAIT_POLICY"), cpu_threads._spinning)
"""


def test_threads_wait_asleep_unless_the_user_says_otherwise() -> None:
    recipe = "import os, sys\nimport recipes\nassert 'torch' not in sys.modules\n" + SHOW
    assert policy(recipe) == "PASSIVE False"
    assert policy(recipe, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE True"
    assert policy(recipe, GOMP_SPINCOUNT="500") == "None True"
    assert policy(recipe, GOMP_SPINCOUNT="0") == "None False"


def test_after_torch_it_is_too_late() -> None:
    """tinker imports torch, so a program that imports tinker first is told."""
    assert policy("import os, tinker\nimport tinker_cookbook\n" + SHOW) == "None True"
    given = policy("import os, tinker\nimport tinker_cookbook\n" + SHOW, OMP_WAIT_POLICY="passive")
    assert given == "passive False"
