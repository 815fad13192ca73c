"""Worker process that compares two answers mathematically.

`grading_process` runs this file. Protocol: one JSON line in (`{"given": "1/2", "truth": "0.5",
"seconds": 1.0}`), one out (`{"same": true}`). It imports no torch, so that it starts in half a
second and stays small.

The answers are written by a model: `9**9**9**9` or a thousand nested brackets could use up all time
and memory. So each request has a CPU limit, enforced by a signal that kills the process, which no
code in Python or C can catch, and the process has a memory limit. The limit counts CPU time and not
wall-clock time, so that a busy machine does not turn right answers into wrong ones.
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


def _grade(equal: Callable[[str, str], bool], given: str, truth: str) -> bool:
    try:
        return equal(given, truth)
    except (Exception, RecursionError):  # answers that cannot be compared are not equal
        return False


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not get between the replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable()
    sys.setrecursionlimit(5000)  # a sum of 400 terms is a tree of depth 400
    try:
        from tinker_cookbook.math_problems.answer_equality import answers_equal

        _grade(
            answers_equal, "\\frac{\\sqrt{2}}{2}x", "\\sin(1) + 2.5"
        )  # fills sympy's caches before any time limit applies
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies, flush=True)
        return
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        verdict = _grade(answers_equal, request["given"], request["truth"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"same": verdict}), file=replies, flush=True)


if __name__ == "__main__":
    main()
