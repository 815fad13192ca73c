"""The control groups (Linux) of this process, which may limit it below what the machine has."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
UNIFIED = ""  # cgroup version 2 has no controller name in this place


def own_groups(controllers: Collection[str]) -> Iterator[tuple[str, Path]]:
    """(controller, directory) of the process's groups and their ancestors.

    Directories need not exist: a container sees its own group mounted at the root, while the name
    it is told is that of the host.
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
    """The CPU quota in CPUs; None if there is no limit."""
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
