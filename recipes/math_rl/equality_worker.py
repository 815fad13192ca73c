"""A process that says whether two answers are the same mathematics.

Run as a file by `grading_process`, one JSON line in (`{"given": "1/2", "truth": "0.5", "seconds":
1.0}`), one out (`{"same": true}`). It imports nothing of `tinker_cookbook`, so that it starts in
half a second and holds no model, whatever program asked for it.

Answers come from a model: `9**9**9**9` or a thousand nested brackets may eat all time and memory.
Each request therefore runs under a limit of CPU seconds whose end kills the process, which no code
in Python or C can catch, and the process lives under a limit of memory. CPU and not wall-clock
seconds, so that a busy machine does not turn right answers into wrong ones.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable

MEMORY_BYTES = 2 * 1024**3


def _same(same: Callable[[str, str], bool], given: str, truth: str) -> bool:
    try:
        return same(given, truth)
    except (Exception, RecursionError):  # what cannot be compared is not the same
        return False


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not end up between the replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable()
    sys.setrecursionlimit(5000)  # a sum of 400 terms is a tree as deep
    try:
        from recipes.math_rl.answer_equality import same

        _same(same, "\\frac{\\sqrt{2}}{2}x", "\\sin(1) + 2.5")  # tables, before the clock runs
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies, flush=True)
        return
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        verdict = _same(same, request["given"], request["truth"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"same": verdict}), file=replies, flush=True)


if __name__ == "__main__":
    main()
