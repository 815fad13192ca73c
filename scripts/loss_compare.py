"""Compare training runs at a revision with those of the working tree, bit by bit.

    ./scripts/loss_compare main                  all lines of scripts/recipes
    ./scripts/loss_compare HEAD~3 sl_ max_lag    the lines that contain one of these words

Each line of scripts/recipes runs with engine.deterministic=true on both versions of the code at the
same time, each from its own copy, in the same environment (.venv). The comparison covers all values
of metrics.jsonl, except timings, and all tensors of all checkpoints, including the optimizer's. If
they differ, the revision runs again: a revision that does not reproduce itself is reported as
UNSTABLE, because the difference then proves nothing. It still counts as a difference. A recipe that
the revision does not have is new: it does not run, and counts as neither.

Exit status: 0 if everything is equal, 1 if not or if a recipe failed, 2 if nothing was compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import safetensors
from revisions import ROOT, Code, ComparisonError, revision, working_tree

CLOCK = "time/"  # prefix of the metrics that depend on the clock, see training/journal.py
LAST_LINES = 8  # lines of the log to print if a recipe failed

Values = Mapping[str, str]  # name -> JSON of a metric, or type, shape and digest of a tensor


@dataclass(frozen=True)
class Case:
    recipe: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.recipe, *self.keys))


@dataclass(frozen=True)
class Outcome:
    """The results of a run: one row of metrics per step, and the tensors of its checkpoints."""

    rows: Sequence[Values]
    tensors: Values


# -- cases


def read_cases(table: str) -> list[Case]:
    lines = (line.split() for line in table.splitlines() if line and not line.startswith("#"))
    return [Case(recipe, tuple(keys)) for recipe, *keys in lines]


def select(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    chosen = [case for case in cases if not words or any(word in str(case) for word in words)]
    if not chosen:
        raise ComparisonError(f"no line of scripts/recipes has any of: {' '.join(words)}")
    return chosen


# -- runs


@contextmanager
def start_recipe(case: Case, code: Code, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the recipe so that it writes only to `directory`; kill it on exit.

    In its own session, because Ctrl-C would make the recipe save a checkpoint first.
    """
    directory.mkdir()
    environment = {**code.environment, "TINKER_COOKBOOK_RUNS_DIR": str(directory)}
    environment.pop("TINKER_COOKBOOK_STORE_DIR", None)
    keys = (*case.keys, "engine.deterministic=true", f"log_path={directory}/run")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", case.recipe, *keys],
            cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_outcome(directory: Path, status: int) -> Outcome | str:
    """Read the results of a run, or the end of its log if it failed."""
    if status:
        lines = (directory / "log").read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"exit status {status}", *lines])
    # one file, or one for each stage of a program
    files = sorted((directory / "run").glob("**/metrics.jsonl"))
    rows = [row for file in files for row in read_metrics(file.read_text())]
    tensors = read_tensors(directory / "store" / "runs")
    if not rows or not tensors:
        return f"{len(rows)} rows of metrics and {len(tensors)} tensors: nothing to compare"
    return Outcome(rows, tensors)


def run(case: Case, codes: Sequence[Code], scratch: Path) -> list[Outcome | str]:
    """Run all versions at the same time: nano needs only one thread each."""
    directories = [Path(tempfile.mkdtemp(dir=scratch)) / "run" for _ in codes]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(start_recipe(case, *pair)) for pair in zip(codes, directories)
        ]
        statuses = [process.wait() for process in processes]
    outcomes = [read_outcome(*pair) for pair in zip(directories, statuses)]
    for directory in directories:
        shutil.rmtree(directory.parent)
    return outcomes


def read_metrics(text: str) -> list[Values]:
    return [
        {key: json.dumps(value) for key, value in json.loads(line).items()}
        for line in text.splitlines()
    ]


def read_tensors(runs: Path) -> Values:
    """Digests of all tensors, keyed by file and name, with only the recipe's name of the run id, as
    the rest contains the time."""
    tensors = {}
    for file in sorted(runs.glob("*/*weights/*/*.safetensors")):
        run, *rest = file.parts[-4:]
        place = "/".join((run.partition("-")[0], *rest))
        for name, tensor in safetensors.deserialize(file.read_bytes()):
            digest = hashlib.sha256(tensor["data"]).hexdigest()
            tensors[f"{place} {name}"] = f"{tensor['dtype']}{tensor['shape']} {digest[:12]}"
    return tensors


# -- comparison


def find_difference(theirs: Outcome, ours: Outcome, names: tuple[str, str]) -> str | None:
    """Describe the first difference and count the others; None if everything is equal.

    Values are compared as text, so 1 differs from 1.0, and NaN equals NaN.
    """
    differences: list[str] = []
    for theirs_row, our_row in zip_longest(theirs.rows, ours.rows, fillvalue={}):
        step = theirs_row.get("step", our_row.get("step"))
        differences += [
            f"step {step}: {text}" for text in _differing_values(theirs_row, our_row, names)
        ]
    differences += _differing_values(theirs.tensors, ours.tensors, names)
    if not differences:
        return None
    more = len(differences) - 1
    return differences[0] + (f" (and {more} more values)" if more else "")


def _differing_values(theirs: Values, ours: Values, names: tuple[str, str]) -> list[str]:
    keys = [key for key in {**theirs, **ours} if not key.startswith(CLOCK)]
    return [
        f"{key} is {theirs.get(key, 'absent')} at {names[0]}, {ours.get(key, 'absent')} in"
        f" the {names[1]}"
        for key in keys
        if theirs.get(key) != ours.get(key)
    ]


def has_recipe(code: Code, recipe: str) -> bool:
    path = code.directory.joinpath(*recipe.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def judge(case: Case, codes: tuple[Code, Code], scratch: Path) -> tuple[str, str]:
    """Run a case on both versions and return (verdict, explanation)."""
    if not has_recipe(codes[0], case.recipe) and has_recipe(codes[1], case.recipe):
        return "new", f"{codes[0].name} has no {case.recipe}"
    theirs, ours = run(case, codes, scratch)
    for code, result in zip(codes, (theirs, ours)):
        if isinstance(result, str):
            return "FAILED", f"{code.name}: {result}"
    assert isinstance(theirs, Outcome) and isinstance(ours, Outcome)
    found = find_difference(theirs, ours, (codes[0].name, codes[1].name))
    if found is None:
        values = sum(not key.startswith(CLOCK) for row in ours.rows for key in row)
        return "equal", f"{len(ours.rows)} rows, {values} values, {len(ours.tensors)} tensors"
    # Different. Is the revision at least equal to itself?
    [again] = run(case, codes[:1], scratch)
    if isinstance(again, str):
        return "FAILED", f"{codes[0].name}, second run: {again}"
    unstable = find_difference(theirs, again, ("the first run", "second"))
    if unstable is not None:
        return "UNSTABLE", f"two runs of {codes[0].name} also differ: {unstable}"
    return "DIFFERENT", found


def main(rev: str, words: Sequence[str]) -> int:
    cases = select(read_cases((ROOT / "scripts" / "recipes").read_text()), words)
    started, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="loss-compare-") as name:
        scratch = Path(name).resolve()
        codes = revision(rev, scratch), working_tree(scratch)
        print(f"{codes[0].name} against the {codes[1].name}", flush=True)
        for case in cases:
            began = time.monotonic()
            verdict, text = judge(case, codes, scratch)
            verdicts.append(verdict)
            print(f"{verdict:<9} {time.monotonic() - began:6.1f} s  {case}")
            print("    " + text.replace("\n", "\n    "), flush=True)
    equal, compared = verdicts.count("equal"), len(cases) - verdicts.count("new")
    seconds = time.monotonic() - started
    print(f"{equal} of {compared} equal in {seconds:.0f} s; not compared: {CLOCK}*")
    return int(equal < compared) if compared else 2


def _exit_on_sigterm(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="loss_compare", description="compare training at REV with the working tree, bit by bit"
    )
    parser.add_argument("rev", metavar="REV", help="a commit, branch or tag, e.g. main")
    parser.add_argument(
        "words", nargs="*", help="run only the lines of scripts/recipes that contain one of these"
    )
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGTERM, _exit_on_sigterm
    )  # exit through `finally`, which kills the recipes
    try:
        sys.exit(main(arguments.rev, arguments.words))
    except ComparisonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
