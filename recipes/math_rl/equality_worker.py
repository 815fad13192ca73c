"""A process that says whether two answers in LaTeX are the same mathematics.

Run as a file by `grading_process`, one JSON line in (`{"pairs": [[given, truth], ...], "seconds":
1.0}`), one out (`{"equal": true}`). It imports nothing of the cookbook, so that it starts in half a
second and holds no model, whatever program asked for it.

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
from typing import Any

MEMORY_BYTES = 2 * 1024**3
TOLERANCE = 1.000001e-6  # relative, where one side is written as a decimal


def same(given: str, truth: str) -> bool:
    """Whether math-verify takes `given` for `truth`; decimals within a relative millionth.

    Its own timeouts are off (0): they raise inside Python code, and this process has a harder one.
    """
    from math_verify import verify

    parsed_truth, parsed_given = _parse(truth), _parse(given)
    if not parsed_truth or not parsed_given:
        return False
    close = _close_decimals(parsed_given[0], parsed_truth[0])
    if close is not None:
        return close
    return verify(parsed_truth, parsed_given, timeout_seconds=0, allow_set_relation_comp=True)


def _parse(latex: str) -> list[Any]:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    # units=True would take the t of 3t for a unit; units are gone already
    spelling = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )
    config = LatexExtractionConfig(boxed_match_priority=-1, normalization_config=spelling)
    return parse(
        f"${latex}$",
        [config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=0,
    )


def _close_decimals(a: Any, b: Any) -> bool | None:
    """None where this is no comparison of two numbers of which one is a decimal."""
    from sympy import Expr, Float

    if not all(isinstance(side, Expr) and not side.free_symbols for side in (a, b)):
        return None
    if not (a.has(Float) or b.has(Float)):
        return None
    try:
        x, y = complex(a.doit()), complex(b.doit())
    except (TypeError, ValueError, ArithmeticError):
        return None
    return abs(x - y) <= TOLERANCE * max(abs(x), abs(y))


def _any_same(pairs: list[list[str]]) -> bool:
    for given, truth in pairs:
        try:
            if same(given, truth):
                return True
        except (Exception, RecursionError):  # what cannot be compared is not the same
            continue
    return False


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not end up between the replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable()
    try:
        _any_same([["\\frac{1}{2}", "0.25 + 0.25"]])  # imports and tables, before the clock runs
        import math_verify  # noqa: F401
    except ImportError as error:
        print(json.dumps({"error": str(error)}), file=replies, flush=True)
        return
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        equal = _any_same(request["pairs"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"equal": equal}), file=replies, flush=True)


if __name__ == "__main__":
    main()
