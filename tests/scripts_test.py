"""scripts/run, test, smoke and .ci/run, in a small copy of the repository with a stub for Python:
`-m venv` copies the stub, `-m pip` and every other module write down how they were called."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent

STUB = f"""#!/bin/bash
case "$1 $2" in
    "-c "*) exec {sys.executable} "$@" ;;
    "-m venv")
        echo venv >>"$CALLS"
        mkdir -p "$3/bin"
        for tool in python ruff pyright lint-imports; do cp "$0" "$3/bin/$tool"; done
        echo "version = 3.11.0" >"$3/pyvenv.cfg" ;;
    "-m pip")
        echo "pip ${{*:4}}" >>"$CALLS"
        echo "a line of pip"
        sleep "${{PIP_SLEEPS:-0}}"
        exit "${{PIP_FAILS:-0}}" ;;
    "-m pytest")
        echo "$PWD|$HF_HUB_OFFLINE$TINKER_TELEMETRY|${{*:3}}"
        echo "3 passed in 0.10s"
        exit "${{PYTEST_FAILS:-0}}" ;;
    *)
        [[ "$0 $*" != *"${{FAILS:-nothing}}"* ]] || {{ echo "a reason"; exit 1; }}
        echo "$PWD|$*" ;;
esac
"""


class Checkout:
    """The copy, in a directory whose name has a space; calls come from another directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.root, self.elsewhere = tmp_path / "a checkout", tmp_path / "elsewhere"
        self.elsewhere.mkdir()
        for folder in ("scripts", ".ci"):
            shutil.copytree(REPOSITORY / folder, self.root / folder)
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(REPOSITORY / name, self.root / name)
        self.stub = tmp_path / "python-stub"
        self.stub.write_text(STUB)
        self.stub.chmod(0o755)
        self.calls_file = tmp_path / "calls"
        self.calls_file.touch()

    def calls(self) -> list[str]:
        """Calls of venv and pip since this was last asked."""
        calls = self.calls_file.read_text().splitlines()
        self.calls_file.write_text("")
        return calls

    def start(
        self, script: str, *words: str | Path, cwd: Path | None = None, **env: str
    ) -> subprocess.Popen[str]:
        variables = {k: v for k, v in os.environ.items() if k not in ("TORCH_INDEX", "VIRTUAL_ENV")}
        for name in ("HF_HUB_OFFLINE", "TINKER_TELEMETRY"):
            variables.pop(name, None)
        variables |= {"PYTHON": str(self.stub), "CALLS": str(self.calls_file), **env}
        return subprocess.Popen(
            [self.root / script, *words],
            cwd=cwd or self.elsewhere,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, script: str, *words: str | Path, **options: Any) -> tuple[int, str, str]:
        process = self.start(script, *words, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def base_install(checkout: Checkout) -> str:
    return f"pip --constraint {checkout.root}/constraints.txt --editable {checkout.root}"


def test_the_first_call_installs_and_the_second_does_not(checkout: Checkout) -> None:
    code, out, err = checkout.run("scripts/run", "program.x", "a=1", "b=two words")
    assert (code, out) == (0, f"{checkout.elsewhere}|-m program.x a=1 b=two words\n")
    assert checkout.calls() == ["venv", base_install(checkout)]
    assert len(err.splitlines()) == 2 and "a line of pip" not in err
    assert "a line of pip" in (checkout.root / ".venv/install.log").read_text()

    code, out, err = checkout.run("scripts/run", "program.x")
    assert (code, out, err) == (0, f"{checkout.elsewhere}|-m program.x\n", "")
    assert checkout.calls() == []


def test_extras_that_a_module_or_a_key_needs_are_installed_once(checkout: Checkout) -> None:
    checkout.run("scripts/run", "x")
    checkout.calls()
    evaluation = ("tinker_cookbook.eval.run_inspect_evals", "tasks=gsm8k")
    code, out, err = checkout.run("scripts/run", *evaluation, "wandb_project=my project")
    assert code == 0 and out.endswith("|-m " + " ".join(evaluation) + " wandb_project=my project\n")
    assert [line.rpartition("[")[2] for line in checkout.calls()] == ["eval]", "wandb]"]
    assert "Updating .venv with eval" in err and "Updating .venv with wandb" in err
    checkout.run("scripts/run", "recipes.sl_basic", "wandb_project=x", "wandb_name=y")
    checkout.run("scripts/run", "x", "tinker_cookbook.evaluation", "inline_evals=None", "#")
    assert checkout.calls() == []
    checkout.run("scripts/run", "recipes.chat_sl.train", "inline_evals=inspect")
    checkout.run("scripts/run", "x", "builders.0=tinker_cookbook.eval.inspect_evaluators:Builder")
    assert checkout.calls() == []
    (checkout.root / ".venv/.installed-eval").unlink()
    checkout.run("scripts/run", "x", "builders.0=tinker_cookbook.eval.inspect_evaluators:Builder")
    assert checkout.calls() == [f"{base_install(checkout)}[eval]"]
    assert checkout.calls() == []
    assert extras_of(checkout) <= optional_dependencies()


def extras_of(checkout: Checkout) -> set[str]:
    lines = (checkout.root / "scripts/extras").read_text().splitlines()
    return {line.split()[1] for line in lines if not line.startswith("#")}


def optional_dependencies() -> set[str]:
    text = (REPOSITORY / "pyproject.toml").read_text()
    return set(tomllib.loads(text)["project"]["optional-dependencies"])


def test_without_words_run_says_what_to_write(checkout: Checkout) -> None:
    code, _, err = checkout.run("scripts/run")
    assert code == 1 and "recipes.sl_basic" in err and checkout.calls() == []


def test_the_development_tools_are_added_by_test_and_kept_by_run(checkout: Checkout) -> None:
    checkout.run("scripts/run", "x")
    checkout.calls()
    assert checkout.run("scripts/test")[0] == 0
    assert checkout.calls() == [f"{base_install(checkout)}[dev]"]
    checkout.run("scripts/run", "x")
    checkout.run("scripts/test")
    assert checkout.calls() == []


def test_a_benchmark_adds_its_peers_and_keeps_the_development_tools(checkout: Checkout) -> None:
    checkout.run("scripts/test")
    checkout.calls()
    code, out, _ = checkout.run("scripts/bench/run", "train_sft", "rounds=1")
    assert (code, out) == (
        0,
        f"{checkout.elsewhere}|{checkout.root}/scripts/bench/train_sft.py rounds=1\n",
    )
    assert checkout.calls() == [f"{base_install(checkout)}[bench]"]
    checkout.run("scripts/test")
    checkout.run("scripts/bench/run", "train_sft")
    assert checkout.calls() == []


def test_all_benchmarks_are_run_and_the_page_is_written_though_one_fails(
    checkout: Checkout,
) -> None:
    code, out, err = checkout.run("scripts/bench/run", "all", "threads=4", FAILS="train_rl")
    scripts = [re.search(r"bench/(\w+)\.py", line) for line in out.splitlines()]
    ran = [match[1] for match in scripts if match]
    assert code == 1 and "without figures: train_rl" in err
    passed = ["train_sft", "train_dpo", "sample", "tenants", "client_overhead", "growth"]
    assert ran == [*passed, "report"]
    assert out.count("docs/benchmarks.json threads=4") == 6
    code, _, err = checkout.run("scripts/bench/run", "nothing")
    assert code == 1 and "there is no benchmark nothing" in err


def test_other_constraints_are_installed_into_the_same_environment(checkout: Checkout) -> None:
    checkout.run("scripts/run", "x")
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("another==1\n")
    checkout.calls()
    _, _, err = checkout.run("scripts/run", "x")
    assert checkout.calls() == [base_install(checkout)] and "Updating" in err


def test_another_python_version_makes_another_environment(checkout: Checkout) -> None:
    checkout.run("scripts/run", "x")
    checkout.calls()
    other = checkout.stub.with_name("other")
    other.write_text(
        STUB.replace("case ", "[[ $2 != *platform* ]] || { echo 3.99.0; exit; }\ncase ", 1)
    )
    other.chmod(0o755)
    assert checkout.run("scripts/run", "x", PYTHON=str(other))[0] == 0
    assert checkout.calls()[0] == "venv"


def test_an_installation_that_was_killed_is_done_again_from_the_start(checkout: Checkout) -> None:
    process = checkout.start("scripts/run", "x", PIP_SLEEPS="60")
    deadline = time.monotonic() + 30
    while "pip" not in checkout.calls_file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkout.calls()
    code, out, _ = checkout.run("scripts/run", "x")
    assert code == 0 and out
    assert checkout.calls() == ["venv", base_install(checkout)]


def test_a_failed_installation_shows_the_end_of_the_log_and_is_done_again(
    checkout: Checkout,
) -> None:
    code, out, err = checkout.run("scripts/run", "x", PIP_FAILS="1")
    assert code == 1 and out == ""
    assert "a line of pip" in err and "error: pip install" in err and "install.log" in err
    checkout.calls()
    assert checkout.run("scripts/run", "x")[0] == 0
    assert checkout.calls() == ["venv", base_install(checkout)]


def test_first_calls_at_the_same_time_install_once(checkout: Checkout) -> None:
    processes = [checkout.start("scripts/run", f"m{i}", PIP_SLEEPS="1") for i in range(3)]
    for number, process in enumerate(processes):
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"{checkout.elsewhere}|-m m{number}\n")
    assert checkout.calls() == ["venv", base_install(checkout)]


def test_a_program_does_not_hold_the_lock(checkout: Checkout) -> None:
    """Else a long training run would keep a later call from installing."""
    checkout.run("scripts/run", "x")
    stub = checkout.root / ".venv/bin/python"
    stub.write_text(STUB.replace('echo "$PWD|$*"', "sleep 60"))
    (checkout.root / ".venv/.installed-base").unlink()
    running = checkout.start("scripts/run", "long")
    time.sleep(1)
    assert running.poll() is None
    locked = subprocess.run(["flock", "-n", checkout.root / "scripts/environment.sh", "true"])
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert locked.returncode == 0


def test_torch_comes_from_the_index_that_was_named(checkout: Checkout) -> None:
    checkout.run("scripts/run", "x", TORCH_INDEX="https://cpu.example/whl")
    torch = re.search(r"^torch==\S+", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    constraints = checkout.root / "constraints.txt"
    first = f"pip {torch[0]} --index-url https://cpu.example/whl --constraint {constraints}"
    assert checkout.calls() == ["venv", first, base_install(checkout)]
    checkout.run("scripts/run", "x", TORCH_INDEX="https://cpu.example/whl")
    checkout.run("scripts/run", "x")
    assert checkout.calls() == []
    checkout.run("scripts/run", "x", TORCH_INDEX="https://other.example/whl")
    assert (
        checkout.calls()[0] == "venv"
        and "other.example"
        in checkout.stub.parent.joinpath("a checkout/.venv/.torch-index").read_text()
    )


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("sys.version_info", "Python 3.11 or newer is needed"),
        ("import venv", "has no venv module: apt install python3-venv"),
        (None, "Python 3.11 or newer is needed; no nowhere found"),
    ],
)
def test_an_unfit_python_gives_one_line(checkout: Checkout, case: str | None, message: str) -> None:
    python = "nowhere"
    if case:
        python = str(checkout.stub)
        checkout.stub.write_text(
            STUB.replace("case ", f'[[ $2 != *"{case}"* ]] || exit 1\ncase ', 1)
        )
    code, _, err = checkout.run("scripts/run", "x", PYTHON=python)
    assert code == 1 and message in err and len(err.splitlines()) == 1
    assert checkout.calls() == [] and not (checkout.root / ".venv").exists()


def test_test_passes_words_on_and_finds_paths_from_both_directories(checkout: Checkout) -> None:
    (checkout.elsewhere / "here_test.py").touch()
    words = ["here_test.py::test_x", "tests/there_test.py", "-k", "a b"]
    _, out, _ = checkout.run("scripts/test", *words)
    expected = f"{checkout.elsewhere}/here_test.py::test_x tests/there_test.py -k a b"
    assert out.splitlines()[0] == f"{checkout.root}|10|{expected}"
    _, out, _ = checkout.run("scripts/test", HF_HUB_OFFLINE="0")
    assert out.splitlines()[0] == f"{checkout.root}|00|--numprocesses logical --dist worksteal"
    assert checkout.run("scripts/test", PYTEST_FAILS="1")[0] == 1


def test_smoke_runs_every_recipe_and_reports_the_one_that_fails(checkout: Checkout) -> None:
    code, out, _ = checkout.run("scripts/smoke")
    lines = [line for line in out.splitlines() if line.startswith("ok")]
    assert code == 0 and len(lines) == len(listed_recipes())
    assert all(re.fullmatch(r"ok +\d+\.\d s  recipes\.\S+.* max_steps=2", line) for line in lines)
    code, out, err = checkout.run("scripts/smoke", FAILS="recipes.sl_loop")
    assert code == 1 and "a reason" in out and f"1 of {len(lines)} recipes failed" in err
    assert sum(line.startswith("FAILED") for line in out.splitlines()) == 1
    code, out, _ = checkout.run("scripts/smoke", "sl_loop")
    assert code == 0 and len(out.splitlines()) == 1
    assert checkout.run("scripts/smoke", "no_such_recipe")[0] == 1


def listed_recipes() -> set[str]:
    text = (REPOSITORY / "scripts/recipes").read_text()
    return set(re.findall(r"^recipes\.[\w.]+", text, re.MULTILINE))


NOT_TRAINING = {
    "recipes.prompt_distillation.create_data",  # samples; `train` calls it
    "recipes.math_rl.aime",  # evaluates, on data that is not bundled; tested in aime_test
}


def test_every_recipe_is_in_the_list() -> None:
    programs = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "recipes").rglob("*.py")
        if "__main__" in path.read_text() and not path.name.endswith("_test.py")
    }
    assert programs - NOT_TRAINING == listed_recipes()


def test_ci_runs_all_parts_and_ends_with_the_closing_line_of_pytest(checkout: Checkout) -> None:
    code, out, _ = checkout.run(".ci/run")
    assert code == 0 and "FAILED" not in out
    assert out.splitlines()[-1] == "3 passed in 0.10s"
    for name in ("ruff check", "ruff format", "imports", "pyright", "smoke", "tests"):
        assert f"== {name}" in out and re.search(rf"^{name} +ok, \d+ s$", out, re.MULTILINE)
    for failure in ({"FAILS": "pyright"}, {"FAILS": "recipes.sl_basic"}, {"PYTEST_FAILS": "1"}):
        code, out, _ = checkout.run(".ci/run", **failure)
        assert code == 1 and out.splitlines()[-1] == "3 passed in 0.10s"
        assert len(re.findall(r"^\S.*? +FAILED, \d+ s$", out, re.MULTILINE)) == 1


def test_run_knows_the_recipes(checkout: Checkout) -> None:
    code, _, err = checkout.run("scripts/run", "recipes.nothing")
    assert code == 1 and "there is no recipes.nothing" in err and checkout.calls() == []
    code, _, err = checkout.run("scripts/run", "--help")
    assert code == 0 and "MODULE [key=value ...]" in err and checkout.calls() == []
