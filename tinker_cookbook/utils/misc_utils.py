"""Helpers too small for a file of their own."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import shlex
import sys
import time
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from contextlib import AbstractContextManager, contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def runs_path(*parts: str | os.PathLike[str]) -> Path:
    """A path under the runs directory: $TINKER_COOKBOOK_RUNS_DIR, else ~/tinker-runs."""
    root = os.environ.get("TINKER_COOKBOOK_RUNS_DIR") or "~/tinker-runs"
    return Path(root).expanduser().absolute().joinpath(*parts)


@overload
def safezip(a: Collection[A], b: Collection[B], /) -> Iterator[tuple[A, B]]: ...
@overload
def safezip(
    a: Collection[A], b: Collection[B], c: Collection[C], /
) -> Iterator[tuple[A, B, C]]: ...
def safezip(*sequences: Collection[A | B | C]) -> Iterator[tuple[A | B | C, ...]]:
    """zip that raises ValueError for different lengths at once and not at the end."""
    lengths = [len(s) for s in sequences]
    if not all_same(lengths):
        raise ValueError(f"sequences of different lengths: {lengths}")
    return zip(*sequences, strict=True)


@contextmanager
def timed(key: str, metrics: MutableMapping[str, float]) -> Iterator[None]:
    """Add the duration of the block in seconds to metrics["time/<key>"], even if it raises."""
    started = time.perf_counter()
    try:
        yield
    finally:
        name = f"time/{key}"
        metrics[name] = metrics.get(name, 0.0) + time.perf_counter() - started


def dict_mean(dicts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean per key over those dicts that have the key; keys in order of first appearance."""
    values: dict[str, list[float]] = {}
    for d in dicts:
        for key, value in d.items():
            values.setdefault(key, []).append(value)
    return {key: sum(v) / len(v) for key, v in values.items()}


def all_same(items: Iterable[T]) -> bool:
    """True if all items are equal; an empty iterable counts as equal."""
    iterator = iter(items)
    first = next(iterator, None)
    return all(item == first for item in iterator)


def concat_lists(lists: Iterable[Iterable[T]]) -> list[T]:
    """All items, one list after the other."""
    return list(itertools.chain.from_iterable(lists))


def not_none(value: T | None) -> T:
    """The value; raises ValueError if it is None."""
    if value is None:
        raise ValueError("expected a value, found None")
    return value


def each_call_in(
    function: Callable[P, R], context: Callable[[], AbstractContextManager[None]]
) -> Callable[P, R]:
    """Wrap a function, sync or async, so that each call runs in a fresh `context()`."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> object:
            with context():
                return await function(*args, **kwargs)

        return call_async  # type: ignore[return-value]  # R is what `function` returns, a coroutine

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with context():
            return function(*args, **kwargs)

    return call


def import_of(name: str, package: str, modules: Mapping[str, str]) -> Any:
    """Implement `__getattr__` of a package: import a name lazily from one of its modules."""
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tinker_cookbook.{modules[name]}"), name)


def is_whole(value: object) -> bool:
    """Whether the value is an integer, numpy or Python; 2.0 and True are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def install_line(extra: str) -> str:
    """The command that installs an extra of the cookbook into the current environment; in a
    checkout, the same command as in scripts/environment.sh."""
    checkout = Path(__file__).parents[2]
    line = [_from_here(Path(sys.executable)), "-m", "pip", "install"]
    if not (checkout / "pyproject.toml").is_file():
        return shlex.join([*line, f"open-tinker-cookbook[{extra}]"])
    constraints, here = _from_here(checkout / "constraints.txt"), _from_here(checkout)
    return shlex.join([*line, "--constraint", constraints, "--editable", f"{here}[{extra}]"])


def python_command() -> str:
    """The running interpreter, as one types it: `.venv/bin/python`."""
    return shlex.quote(_from_here(Path(sys.executable)))


def _from_here(path: Path) -> str:
    """The path, relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def counted(number: int, noun: str) -> str:
    """Format a count with its noun: `1 step`, `2,000 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def split_list(items: Sequence[T], num_splits: int) -> list[list[T]]:
    """Split into `num_splits` contiguous parts whose lengths differ by at most one.

    Raises ValueError if there are fewer items than parts, as no part may be empty.
    """
    if not 1 <= num_splits <= len(items):
        raise ValueError(f"cannot split {len(items)} items into {num_splits} non-empty parts")
    edges = [i * len(items) // num_splits for i in range(num_splits + 1)]
    return [list(items[a:b]) for a, b in itertools.pairwise(edges)]
