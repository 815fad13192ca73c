"""The command line of every program: `key=value` words, `config=FILE`, `--help`, one-line errors.

    if __name__ == "__main__":
        cli_utils.cli(main, CLI)

A word is read by chz: `learning_rate=1e-4`, `data=JsonlChats data.path=x.jsonl` (a class by its
name, then its fields), `...model_name=x` (every field of that name). `config=FILE` names a YAML
file of the same keys, nested or dotted, or the config.json of a run; it is applied before the other
words.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from tinker_cookbook.exceptions import TinkerCookbookError
from tinker_cookbook.utils.command_help import help_text
from tinker_cookbook.utils.command_line import one_line, parse
from tinker_cookbook.utils.misc_utils import runs_path
from tinker_cookbook.utils.run_directory import LogDirBehavior, check_log_dir

__all__ = ["LogDirBehavior", "check_log_dir", "cli", "help_text", "parse", "runs_path"]

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
_GRACE_SECONDS = 10.0  # after Ctrl-C, for what is running in threads


def cli(
    main: Callable[[Any], Any], config_class: type, aliases: Mapping[str, str] | None = None
) -> None:
    """Builds a `config_class` from the command line and runs `main(config)`, sync or async.

    aliases: {"data": "dataset_builder"} lets `data=X data.path=Y` stand for the longer key.
    Errors that are the user's end the program with one line on stderr and exit code 2; every other
    exception keeps its traceback. The first Ctrl-C unwinds `main` and exits with 130, a second one
    (or ten seconds) ends the process at once.
    """
    argv = sys.argv[1:]
    with _one_line_errors():
        if "--help" in argv or "-h" in argv:
            print(help_text(config_class, argv, aliases, about=_about(main)))
            return
        config = parse(config_class, argv, aliases)
        with _interruptible():
            if inspect.iscoroutinefunction(main):
                asyncio.run(_run_async(main(config)))
            else:
                _second_interrupt_ends()
                main(config)


def _about(main: Callable[..., Any]) -> str:
    """The first paragraph of the docstring of the module that defines `main`."""
    text = inspect.getdoc(sys.modules[main.__module__]) or ""
    return " ".join(text.split("\n\n")[0].split())


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except TinkerCookbookError as e:
        _fail(e)
    except BrokenPipeError:  # whoever read the output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_INTERRUPTED)
    except BaseExceptionGroup as group:
        # a TaskGroup wraps what its tasks raised: the first of ours is the reason
        known, others = group.split(TinkerCookbookError)
        if known is None or others is not None:
            raise
        leaf: BaseException = known
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        _fail(leaf)


def _fail(error: BaseException) -> NoReturn:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


@contextmanager
def _interruptible() -> Iterator[None]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if in_main_thread else None
    try:
        yield
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)


async def _run_async(main: Awaitable[None]) -> None:
    # in here, because asyncio.run puts its own handler (which cancels this task) only over
    # Python's default one
    _second_interrupt_ends()
    await main


def _say_interrupted() -> None:
    print("interrupted; the same command resumes", file=sys.stderr, flush=True)


def _second_interrupt_ends() -> None:
    """Leaves the first Ctrl-C to the present handler; a second one, or the grace time, ends it all.

    Threads that compute cannot be stopped from outside, and Python would wait for them. Nothing is
    lost by not waiting: everything that a run keeps is written atomically.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    first = signal.getsignal(signal.SIGINT)
    if not callable(first):  # ignored, as in a background job
        return
    count = 0

    def end() -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\x1b[?25h")  # a live display may have hidden the cursor
            sys.stdout.flush()
        _say_interrupted()
        logging.shutdown()
        os._exit(EXIT_INTERRUPTED)

    def handler(number: int, frame: types.FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            end()
        timer = threading.Timer(_GRACE_SECONDS, end)
        timer.daemon = True
        timer.start()
        first(number, frame)

    signal.signal(signal.SIGINT, handler)
