"""`cli` runs a program from its command line to its exit code; user errors are one line."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tinker_cookbook.exceptions import RunFinished, TinkerCookbookError
from tinker_cookbook.utils import stop_signals
from tinker_cookbook.utils.command_help import help_text
from tinker_cookbook.utils.command_line import parse
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.stop_signals import StopSignals

EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 130


def cli(
    main: Callable[[Any], Any],
    config_class: type,
    aliases: Mapping[str, str] | None = None,
    first_keys: Sequence[str] = (),
) -> None:
    """Build a `config_class` from the command line and run `main(config)`, sync or async.

    aliases: {"data": "dataset_builder"} lets `data=X data.path=Y` stand for the longer key.
    first_keys: the keys that `--help` explains first (see `help_text`).
    User errors end the program with one line on stderr and exit code 2; every other exception
    keeps its traceback. The first Ctrl-C or SIGTERM saves the current run (see `Journal`), unwinds
    `main` and exits with 130 or 143; a second one ends the process at once.
    """
    argv = sys.argv[1:]
    with _one_line_errors():
        if "--help" in argv or "-h" in argv:
            docstring = inspect.getdoc(sys.modules[main.__module__]) or ""
            print(help_text(config_class, argv, aliases, first_keys, docstring))
            return
        config = parse(config_class, argv, aliases)
        with stop_signals.handled() as signals:
            if inspect.iscoroutinefunction(main):
                asyncio.run(_run_async(main(config), signals))
            else:
                main(config)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except RunFinished as finished:
        print(finished)
    except TinkerCookbookError as e:
        _fail(e)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)
    except BaseExceptionGroup as group:
        # a TaskGroup wraps the exceptions of its tasks: report the first of ours
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


async def _run_async(main: Awaitable[None], signals: StopSignals) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        signals.end_soon()  # the loop may be blocked
        loop.call_soon_threadsafe(task.cancel)

    with signals.watch(lambda: "stopping, nothing to save", cancel):
        try:
            await main
        except asyncio.CancelledError:
            if signals.requested is None:
                raise
            raise signals.stopped() from None
