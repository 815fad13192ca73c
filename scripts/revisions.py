"""Copies of this repository's code, current and at a revision, to run side by side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tinker_cookbook", "recipes")


class ComparisonError(Exception):
    """The comparison cannot run; the message says why."""


@dataclass(frozen=True)
class Code:
    """A copy of the code, called `name`."""

    name: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self.directory), os.environ.get("PYTHONPATH"))))
        defaults = {"HF_HUB_OFFLINE": "1", "TINKER_TELEMETRY": "0"}
        return {**defaults, **os.environ, "PYTHONPATH": path}


def git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True)
    if done.returncode:
        raise ComparisonError(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    return done.stdout


def revision(rev: str, scratch: Path) -> Code:
    """Export the code at a commit, branch or tag."""
    try:
        found = git("rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
    except ComparisonError as error:
        raise ComparisonError(f"{rev} is not a commit ({error})") from None
    commit = found.decode().strip()
    directory = scratch / "revision"
    directory.mkdir()
    archive = git("archive", "--format=tar", commit)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    return check_imports(Code(f"{rev} ({commit[:10]})", directory))


def working_tree(scratch: Path) -> Code:
    """Copy the working tree with all changes, so that it can be edited during the comparison."""
    directory = scratch / "working-tree"
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode()
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # not deleted
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return check_imports(Code("working tree", directory))


def check_imports(code: Code) -> Code:
    """Raise ComparisonError if Python would import the packages from another place."""
    files = ", ".join(f"{package}.__file__" for package in PACKAGES)
    program = f"import {', '.join(PACKAGES)}; print({files}, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, cwd=code.directory.parent, env=code.environment,
    )  # fmt: skip
    expected = [str(code.directory / package / "__init__.py") for package in PACKAGES]
    found = done.stdout.splitlines() or done.stderr.strip().splitlines()[-1:]
    if found != expected:
        raise ComparisonError(
            f"{code.name}: expected {' '.join(expected)}, Python imports {' '.join(found)}"
        )
    return code
