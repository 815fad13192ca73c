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
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tinker_cookbook.exceptions import TinkerCookbookError
from tinker_cookbook.utils import stop_signals
from tinker_cookbook.utils.command_help import help_text
from tinker_cookbook.utils.command_line import one_line, parse
from tinker_cookbook.utils.misc_utils import runs_path
from tinker_cookbook.utils.run_directory import LogDirBehavior, check_log_dir
from tinker_cookbook.utils.stop_signals import StopSignals

__all__ = [
    "LogDirBehavior",
    "check_log_dir",
    "cli",
    "help_text",
    "model_name_from_argv",
    "parse",
    "runs_path",
]

EXIT_USER_ERROR = 2
EXIT_BROKEN_PIPE = 130


def cli(
    main: Callable[[Any], Any], config_class: type, aliases: Mapping[str, str] | None = None
) -> None:
    """Builds a `config_class` from the command line and runs `main(config)`, sync or async.

    aliases: {"data": "dataset_builder"} lets `data=X data.path=Y` stand for the longer key.
    Errors that are the user's end the program with one line on stderr and exit code 2; every other
    exception keeps its traceback. The first Ctrl-C or SIGTERM saves the run that is under way (see
    `Journal`), unwinds `main` and exits with 130 or 143; a second one ends the process at once.
    """
    argv = sys.argv[1:]
    with _one_line_errors():
        if "--help" in argv or "-h" in argv:
            print(help_text(config_class, argv, aliases, about=_about(main)))
            return
        config = parse(config_class, argv, aliases)
        with stop_signals.handled() as signals:
            if inspect.iscoroutinefunction(main):
                asyncio.run(_run_async(main(config), signals))
            else:
                main(config)


def model_name_from_argv(argv: Sequence[str], default: str) -> str:
    """The last `model_name=` (or `...model_name=`) of a command line, for programs that need it
    before they parse the rest. Files of `config=` are not read."""
    found = [word.removeprefix("...").partition("=") for word in argv]
    return next((value for key, _, value in reversed(found) if key == "model_name"), default)


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
        sys.exit(EXIT_BROKEN_PIPE)
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
