"""Compares the numbers of training runs at a revision with those of the working tree, bit by bit.

    ./scripts/loss_compare main                  every line of scripts/recipes
    ./scripts/loss_compare HEAD~3 sl_ max_lag    those with one of these words in them

Each line of scripts/recipes is run with engine.deterministic=true by the code of both revisions at
the same time, each in a copy of its own and in the same environment (.venv). Compared are all
values of metrics.jsonl, except those of CLOCK, and all tensors of all checkpoints, the optimizer's
too. Where they differ, the revision is run once more: if it does not repeat itself, the difference
proves nothing, and the line says so; it counts as a difference all the same.

Exit status: 0 if all is equal, 1 if not or if a recipe failed, 2 if nothing could be compared.
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
from revisions import ROOT, Code, Refused, revision, working_tree

CLOCK = "time/"  # what depends on the clock has names that begin so, see training/journal.py
LAST_LINES = 8  # of a recipe that failed

Values = Mapping[str, str]  # name -> JSON of a metric, or type, shape and digest of a tensor


@dataclass(frozen=True)
class Case:
    recipe: str
    keys: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.recipe, *self.keys))


@dataclass(frozen=True)
class Outcome:
    """What a run left behind: a row of metrics for each step, and tensors."""

    rows: Sequence[Values]
    tensors: Values


# -- cases


def read_cases(table: str) -> list[Case]:
    lines = (line.split() for line in table.splitlines() if line and not line.startswith("#"))
    return [Case(recipe, tuple(keys)) for recipe, *keys in lines]


def select(cases: Sequence[Case], words: Sequence[str]) -> list[Case]:
    chosen = [case for case in cases if not words or any(word in str(case) for word in words)]
    if not chosen:
        raise Refused(f"no line of scripts/recipes has any of: {' '.join(words)}")
    return chosen


# -- runs


@contextmanager
def running(case: Case, code: Code, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The recipe with all that it writes in `directory`; killed if it still runs at the end. In a
    session of its own: Ctrl-C would have it save a checkpoint first."""
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


def outcome(directory: Path, status: int) -> Outcome | str:
    """What the run has left in `directory`, or the end of its log if it failed."""
    if status:
        lines = (directory / "log").read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"exit status {status}", *lines])
    rows = read_metrics((directory / "run" / "metrics.jsonl").read_text())
    tensors = read_tensors(directory / "store" / "runs")
    if not rows or not tensors:
        return f"{len(rows)} rows of metrics and {len(tensors)} tensors: nothing to compare"
    return Outcome(rows, tensors)


def run(case: Case, codes: Sequence[Code], scratch: Path) -> list[Outcome | str]:
    """At the same time: nano computes with one thread."""
    directories = [Path(tempfile.mkdtemp(dir=scratch)) / "run" for _ in codes]
    with ExitStack() as stack:
        processes = [stack.enter_context(running(case, *each)) for each in zip(codes, directories)]
        statuses = [process.wait() for process in processes]
    found = [outcome(*each) for each in zip(directories, statuses)]
    for directory in directories:
        shutil.rmtree(directory.parent)
    return found


def read_metrics(text: str) -> list[Values]:
    return [
        {key: json.dumps(value) for key, value in json.loads(line).items()}
        for line in text.splitlines()
    ]


def read_tensors(runs: Path) -> Values:
    """By file and name, without the name of the run, which has the time in it."""
    found = {}
    for file in sorted(runs.glob("*/*weights/*/*.safetensors")):
        place = "/".join(file.parts[-3:])
        for name, tensor in safetensors.deserialize(file.read_bytes()):
            digest = hashlib.sha256(tensor["data"]).hexdigest()
            found[f"{place} {name}"] = f"{tensor['dtype']}{tensor['shape']} {digest[:12]}"
    return found


# -- comparison


def difference(theirs: Outcome, ours: Outcome, names: tuple[str, str]) -> str | None:
    """The first value that differs, with both of its values and how many more there are; None: all
    is equal. Values are compared as they are written: 1 is not 1.0, nan is nan."""
    found: list[str] = []
    for theirs_row, our_row in zip_longest(theirs.rows, ours.rows, fillvalue={}):
        step = theirs_row.get("step", our_row.get("step"))
        found += [f"step {step}: {each}" for each in _differing(theirs_row, our_row, names)]
    found += _differing(theirs.tensors, ours.tensors, names)
    if not found:
        return None
    return found[0] + (f" (and {len(found) - 1} more values)" if found[1:] else "")


def _differing(theirs: Values, ours: Values, names: tuple[str, str]) -> list[str]:
    keys = [key for key in {**theirs, **ours} if not key.startswith(CLOCK)]
    return [
        f"{key} is {theirs.get(key, 'absent')} at {names[0]}, {ours.get(key, 'absent')} in"
        f" the {names[1]}"
        for key in keys
        if theirs.get(key) != ours.get(key)
    ]


def judge(case: Case, codes: tuple[Code, Code], scratch: Path) -> tuple[str, str]:
    """(verdict, explanation) of a case."""
    theirs, ours = run(case, codes, scratch)
    for code, result in zip(codes, (theirs, ours)):
        if isinstance(result, str):
            return "FAILED", f"{code.name}: {result}"
    assert isinstance(theirs, Outcome) and isinstance(ours, Outcome)
    found = difference(theirs, ours, (codes[0].name, codes[1].name))
    if found is None:
        values = sum(not key.startswith(CLOCK) for row in ours.rows for key in row)
        return "equal", f"{len(ours.rows)} rows, {values} values, {len(ours.tensors)} tensors"
    [again] = run(case, codes[:1], scratch)
    if isinstance(again, str):
        return "FAILED", f"{codes[0].name}, second run: {again}"
    unstable = difference(theirs, again, ("the first run", "second"))
    if unstable is not None:
        return "UNSTABLE", f"two runs of {codes[0].name} differ, too: {unstable}"
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
    equal = verdicts.count("equal")
    seconds = time.monotonic() - started
    print(f"{equal} of {len(cases)} equal in {seconds:.0f} s; not compared: {CLOCK}*")
    return int(equal < len(cases))


def _end(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="loss_compare", description="training at REV and in the working tree, bit by bit"
    )
    parser.add_argument("rev", metavar="REV", help="what git knows as a commit, e.g. main")
    parser.add_argument("words", nargs="*", help="select lines of scripts/recipes")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)  # so that what was begun ends, too
    try:
        sys.exit(main(arguments.rev, arguments.words))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
