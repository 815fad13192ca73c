"""Worker process that runs one contestant of a benchmark.

`python worker.py MODULE:CLASS` reads one JSON object per line: the first has the arguments of the
constructor, each later one those of a measurement. It answers each with one JSON line,
{"answer": ...} or {"error": ...}, plus the peak memory so far. It uses only the standard library,
because it also runs in vLLM's separate environment.
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
    """Format an exception as `Type: first non-empty line of the message`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


def peak_memory() -> dict[str, float]:
    """Peak resident memory in GiB of this process and its children, and peak GPU memory if used.

    Read from VmHWM, because ru_maxrss is inherited and would start at the parent's peak.
    """
    peaks = {"peak_rss_gib": sum(map(_peak_rss_kib, _process_tree(os.getpid()))) / 2**20}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


def reset_peak_rss() -> None:
    """Reset the peak to the current resident memory (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return [pid]
    return [pid, *(other for child in text.split() for other in _process_tree(int(child)))]


def _peak_rss_kib(pid: int) -> int:
    """Peak resident memory of a process in KiB; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def answer(contestant: Any, words: dict[str, Any]) -> dict[str, Any]:
    """Measure once and return the reply: an answer or an error."""
    try:
        reply = {"answer": contestant.measure(**words)}
    except BaseException as error:
        traceback.print_exc()
        reply = {"error": one_line(error)}
    return {**reply, **peak_memory()}


def make(name: str, words: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Create the contestant; returns it (or None) and the reply: its facts or an error."""
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
    os.dup2(2, 1)  # output of libraries must not get between the answers
    with suppress(OSError):  # if memory runs out, the kernel should kill this process first
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
