"""The git state of the code, for code.diff."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SECONDS = 10  # timeout: a huge or broken checkout must not delay a run


def code_state(directory: Path | None = None) -> str:
    """The commit and the uncommitted changes of the git checkout that holds this package.

    directory: another checkout. Without a checkout or git, the text says so.
    """
    directory = directory or Path(__file__).resolve().parent
    commit = _git(directory, "rev-parse", "HEAD")
    if commit is None:
        return f"# no git checkout at {directory}: the state of the code is not known\n"
    changes = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff")
    untracked = _git(directory, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    head = f"# commit {commit.strip()}\n"
    names = "".join(f"# untracked: {name}\n" for name in (untracked or "").splitlines())
    return head + names + ("# git diff failed or took too long\n" if changes is None else changes)


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            capture_output=True,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
