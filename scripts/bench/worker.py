"""One contestant of a benchmark in a process of its own.

`python worker.py MODULE:CLASS` reads one JSON object a line: the first makes the contestant, each
further one is a measurement. Each is answered with a line of JSON, {"answer": ...} or
{"error": ...}, and the peak memory so far. Needs the standard library only: vLLM's own environment
runs it, too.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

PEAKS = ("peak_rss_gib", "peak_gpu_gib")


def one_line(error: BaseException) -> str:
    """An exception as `Type: the first line that says something`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def peak_memory() -> dict[str, float]:
    """Peak resident memory in GiB of this process and its children, and of the GPU if it is used.

    From VmHWM: ru_maxrss would begin with the peak of the parent, which it inherits.
    """
    peaks = {"peak_rss_gib": sum(map(_high_water, _family(os.getpid()))) / 2**20}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


def reset_peak_rss() -> None:
    """Start the peak anew at what is resident now (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(each for child in text.split() for each in _family(int(child)))]


def _high_water(pid: int) -> int:
    """KiB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def answer(contestant: Any, words: dict[str, Any]) -> dict[str, Any]:
    """One measurement, or the reason why there is none."""
    try:
        reply = {"answer": contestant.measure(**words)}
    except BaseException as error:
        traceback.print_exc()
        reply = {"error": one_line(error)}
    return {**reply, **peak_memory()}


def make(name: str, words: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(contestant, the line that says what it knows or why it is not there)."""
    try:
        module, _, attribute = name.partition(":")
        contestant = getattr(importlib.import_module(module), attribute)(**words)
        reply = {"answer": getattr(contestant, "facts", {})}
    except BaseException as error:
        traceback.print_exc()
        contestant, reply = None, {"error": one_line(error)}
    return contestant, {**reply, **peak_memory()}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
    with suppress(OSError):  # if memory runs out, it is this process that ends
        Path("/proc/self/oom_score_adj").write_text("1000")
    contestant = None
    for number, line in enumerate(sys.stdin):
        words = json.loads(line)
        if number == 0:
            contestant, reply = make(sys.argv[1], words)
        else:
            reply = answer(contestant, words)
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
