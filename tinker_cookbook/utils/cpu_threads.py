"""The OpenMP wait policy, and the number of CPU threads.

Wait policy: passive. By default OpenMP threads spin while they wait for one another, which gains
little when a process has the machine to itself, and brings two processes on one machine to a halt:
each burns the cores that the other is waiting for. OpenMP reads the policy when it is loaded, which
importing torch does, so this package calls `wait_asleep` before anything else.

Number: `Threads.choose`. It determines how sums are split and thus the last bits of results, so a
process keeps one number from its first model on, and a resumed run keeps the number it had.
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

# Model parameters per thread. In a small model the work between two barriers takes less time than
# the barrier: on 2 busy cores a second thread made steps of nano (2 M) no faster, of 8 M 15 %
# slower, of 30 M 10 % slower, and of 150 M 25 % faster.
PARAMETERS_PER_THREAD = 10_000_000
LOOK_SECONDS = 0.25  # how long the load of the machine is measured


def wait_asleep() -> None:
    """Make OpenMP threads sleep while they wait, unless the user has set a policy. Without effect
    once torch is loaded."""
    global _spinning
    if "torch" not in sys.modules and not any(name in os.environ for name in HOW_TO_WAIT):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    _spinning = not passive and all(os.environ.get(name) != "0" for name in SPIN_TIMES)


# the policy when OpenMP was loaded; later changes of the environment have no effect
_spinning = False


@dataclass(frozen=True)
class Threads:
    """The number of compute threads, and the reason for it."""

    number: int
    why: str

    def line(self) -> str:
        spin = ""
        if _spinning and self.number > 1:
            spin = ", spinning while they wait; set OMP_WAIT_POLICY=PASSIVE to share the machine"
        plural = "s" * (self.number > 1)
        return f"{self.number} CPU thread{plural} ({self.why}){spin}"

    @classmethod
    def choose(
        cls, parameters: int, cores: int, free: float | None = None, spinning: bool = False
    ) -> Threads:
        """Choose by model size, number of cores, and how many of them are idle.

        As many as are idle, but at least half of the number wanted: a run may last for days after
        today's load has gone. Without that minimum if threads spin, since that would stall the
        other processes and this one. free: None if the number must not depend on the load.
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
    """The number of threads of an engine. To be used on the compute thread only.

    Precedence: `asked` (engine.num_threads), the number that a run had when it was saved,
    OMP_NUM_THREADS, torch.set_num_threads, and then `Threads.choose`.
    """

    def __init__(self, asked: int | None, fixed: bool) -> None:
        """fixed: do not let the number depend on the load of the machine."""
        self._asked, self._fixed = asked, fixed
        self.threads: Threads | None = None  # None: no model has been loaded yet

    def settle(self, parameters: int) -> None:
        """Choose the number for a model of this size; later models do not change it."""
        if self.threads is None:
            self._set(self._decided() or self._chosen(parameters))

    def keep(self, number: int) -> None:
        """Use the number that a run was saved with."""
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

        _torchs_own()  # record torch's own number before changing it
        torch.set_num_threads(threads.number)
        self.threads = threads
        _set_here = threads.number


_found: int | None = None  # torch's number before we set one
_set_here: int | None = None


def _torchs_own() -> int:
    """torch's number of threads by default or as the user set it."""
    global _found
    import torch

    number = torch.get_num_threads()
    if _found is None or number != _set_here:
        _found = number
    return _found


def _untouched() -> set[int]:
    """torch's possible defaults: all CPUs, or one per core."""
    import psutil

    cpus = len(_cpus())
    physical = psutil.cpu_count(logical=False) or cpus
    return {cpus, min(cpus, physical)}


def _cpus() -> list[int]:
    """The CPUs that this process may run on."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def allowed_cores() -> int:
    """The number of physical cores that this process may use, within the CPU quota of its
    container."""
    cores = min(_untouched())
    quota = control_groups.cpu_quota()
    return cores if quota is None else max(min(cores, int(quota)), 1)


def free_cores(cores: int) -> float:
    """The number of idle cores, measured over LOOK_SECONDS."""
    import psutil

    own = psutil.Process()
    before, started = sum(own.cpu_times()[:2]), time.perf_counter()
    busy = psutil.cpu_percent(LOOK_SECONDS, percpu=True)
    mine = (sum(own.cpu_times()[:2]) - before) / (time.perf_counter() - started)
    cpus = _cpus()
    others = sum(busy[cpu] for cpu in cpus if cpu < len(busy)) / 100 - mine
    return min(max(len(cpus) - others, 0.0), float(cores))
