"""CPU threads: how they wait, and how many compute.

They wait asleep. OpenMP lets threads that wait for one another spin, which gains little when a
process is alone and stops everything when two share a machine: each burns the cores that the other
one is waiting for. OpenMP reads how to wait when it is loaded, and it comes with torch, so
`wait_asleep` is called first thing by this package.

How many: `Threads.choose`. The number decides how sums are split and so the last bits of results:
a process has one number from its first model on, and a run that goes on takes the one it had.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass

from tinker_cookbook.utils import control_groups

SPIN_TIMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # GNU's, LLVM's and Intel's
HOW_TO_WAIT = ("OMP_WAIT_POLICY", "KMP_LIBRARY", *SPIN_TIMES)
HOW_MANY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Parameters of a model for each thread. With few of them, what a thread computes between two
# meetings with the others takes less time than the meeting: on 2 busy cores a second thread made
# steps of nano (2 M) no faster, of 8 M 15 % slower, of 30 M 10 % slower, of 150 M 25 % faster.
PARAMETERS_PER_THREAD = 10_000_000
LOOK_SECONDS = 0.25  # how long the machine is looked at to see what is free


def wait_asleep() -> None:
    """Unless the user has said how to wait. Once torch is loaded, nothing can be done."""
    global _spinning
    if "torch" not in sys.modules and not any(name in os.environ for name in HOW_TO_WAIT):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    _spinning = not passive and all(os.environ.get(name) != "0" for name in SPIN_TIMES)


_spinning = False  # as OpenMP was told when it was loaded; what the environment says later is void


@dataclass(frozen=True)
class Threads:
    """The number of threads that compute, and why that many."""

    number: int
    why: str

    def line(self) -> str:
        spin = ""
        if _spinning and self.number > 1:
            spin = ", which spin while they wait: set OMP_WAIT_POLICY=PASSIVE to share the machine"
        plural = "s" * (self.number > 1)
        return f"{self.number} CPU thread{plural} ({self.why}){spin}"

    @classmethod
    def choose(
        cls, parameters: int, cores: int, free: float | None = None, spinning: bool = False
    ) -> Threads:
        """By the model's size, the cores there are, and how many of them others leave free.

        As many as are free, but at least half of those wanted: a run may go on for days after what
        is busy now has ended. Not so if they spin, which would stop others and themselves. free:
        None where the number may not depend on it.
        """
        useful = max(parameters // PARAMETERS_PER_THREAD, 1)
        wanted = min(useful, cores)
        if free is not None and round(free) < wanted:
            least = 1 if spinning else math.ceil(wanted / 2)
            return cls(max(round(free), least), f"{free:.1f} of {cores} cores are free")
        if useful < cores:
            return cls(wanted, f"{parameters / 1e6:,.1f} M parameters")
        return cls(wanted, f"{cores} cores" if cores > 1 else "one core")


class ThreadCount:
    """The number of threads of an engine. Only on the thread that computes.

    What the user has decided stands, in this order: `asked` (engine.num_threads), the number that a
    run had when it was saved, OMP_NUM_THREADS, torch.set_num_threads.
    """

    def __init__(self, asked: int | None, fixed: bool) -> None:
        """fixed: what else the machine does must not count."""
        self._asked, self._fixed = asked, fixed
        self.threads: Threads | None = None  # None: no model has been loaded yet

    def settle(self, parameters: int) -> None:
        """Choose, for a model of this size; the first one decides."""
        if self.threads is None:
            self._set(self._decided() or self._chosen(parameters))

    def keep(self, number: int) -> None:
        """Go on with the number that a run was saved with."""
        if self._asked is None:
            self._set(Threads(number, "as when the run was saved"))

    def _decided(self) -> Threads | None:
        if self._asked is not None:
            return Threads(self._asked, "engine.num_threads")
        number = _torchs_own()
        for name in HOW_MANY:
            if name in os.environ:
                return Threads(number, name)
        if number not in _untouched():
            return Threads(number, "torch.set_num_threads")
        return None

    def _chosen(self, parameters: int) -> Threads:
        cores = allowed_cores()
        chosen = Threads.choose(parameters, cores)
        if self._fixed or chosen.number == 1:
            return chosen
        return Threads.choose(parameters, cores, free_cores(cores), _spinning)

    def _set(self, threads: Threads) -> None:
        global _set_here
        import torch

        _torchs_own()  # remembered before it changes
        torch.set_num_threads(threads.number)
        self.threads = threads
        _set_here = threads.number


_found: int | None = None  # torch's number before any was set here
_set_here: int | None = None


def _torchs_own() -> int:
    """The number that torch has by itself or from the user."""
    global _found
    import torch

    number = torch.get_num_threads()
    if _found is None or number != _set_here:
        _found = number
    return _found


def _untouched() -> set[int]:
    """What torch takes where nobody has told it: all CPUs, or one for each core."""
    import psutil

    cpus = len(_cpus())
    physical = psutil.cpu_count(logical=False) or cpus
    return {cpus, min(cpus, physical)}


def _cpus() -> list[int]:
    """Those that this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def allowed_cores() -> int:
    """Cores that this process may use: its CPUs, two of one core counted once, within the time that
    its container is given."""
    cores = min(_untouched())
    quota = control_groups.cpu_quota()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def free_cores(cores: int) -> float:
    """How many of them others leave free at this moment; looks for LOOK_SECONDS."""
    import psutil

    own = psutil.Process()
    before, started = sum(own.cpu_times()[:2]), time.perf_counter()
    busy = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    mine = (sum(own.cpu_times()[:2]) - before) / (time.perf_counter() - started)
    cpus = _cpus()
    others = sum(busy[cpu] for cpu in cpus if cpu < len(busy)) / 100 - mine
    return min(max(len(cpus) - others, 0.0), float(cores))
