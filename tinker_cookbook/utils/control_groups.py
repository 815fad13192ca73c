"""The control groups of this process (Linux), which may allow it less than its machine has."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
UNIFIED = ""  # what version 2 has in place of a controller's name


def own_groups(controllers: Collection[str]) -> Iterator[tuple[str, Path]]:
    """(controller, directory) of the process's own groups and of those above them.

    Directories need not exist: a container sees its own group at the root of the file system, under
    whatever name.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        for controller in set(names.split(",")) & set(controllers):
            root = GROUPS / (names if controller else "")
            own = root / path.strip("/")
            for group in (own, *own.parents[: len(own.parts) - len(root.parts)]):
                yield controller, group


def cpu_quota() -> float | None:
    """CPUs' worth of time that the groups allow; None where there is no limit."""
    found = []
    for controller, group in own_groups((UNIFIED, "cpu")):
        try:
            if controller == UNIFIED:
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                found.append(int(quota) / int(period))
        except (OSError, ValueError):
            continue  # no limit ("max"), or no such group here
    return min(found, default=None)
