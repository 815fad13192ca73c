"""Futures of the in-process clients, with the SDK's `APIFuture` interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Generic, Self, TypeVar

from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

S = TypeVar("S")
T = TypeVar("T")


class Converted(APIFuture[T], Generic[S, T]):
    """A future whose result is converted to the SDK's types when it is first requested.

    So the conversion runs on the caller's thread, not on the engine's, which all users share, and
    each call needs one future less.
    """

    def __init__(self, future: Future[S], convert: Callable[[S], T]) -> None:
        self._future = future
        self._convert = convert
        self._converted: list[T] = []  # cache: empty, or the converted result (which may be None)

    def result(self, timeout: float | None = None) -> T:
        return self._value(self._future.result(timeout))

    async def result_async(self, timeout: float | None = None) -> T:
        if timeout is None:
            # wrap_future resumes the awaiting task on its own event loop, whatever thread completes
            # the engine's future
            return self._value(await asyncio.wrap_future(self._future))
        async with asyncio.timeout(timeout):
            return await self.result_async()

    def future(self) -> Future[T]:
        return then(self._future, self._value)

    def _value(self, answer: S) -> T:
        if not self._converted:
            self._converted.append(self._convert(answer))
        return self._converted[0]


class Ready(Generic[S]):
    """Base of clients that can be used at once and are futures of themselves, as in the SDK."""

    def __init__(self, created: Future[S]) -> None:
        self._created = created

    def future(self) -> Future[Self]:
        return then(self._created, lambda _: self)

    def result(self, timeout: float | None = None) -> Self:
        """Wait until the client exists and return it; raises the error of its creation."""
        self._created.result(timeout)
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        await AwaitableConcurrentFuture(self._created).result_async(timeout)
        return self

    def __await__(self) -> Generator[None, None, Self]:
        return self.result_async().__await__()


def then(future: Future[S], convert: Callable[[S], T]) -> Future[T]:
    """A future of `convert(result)`. Errors pass through, and cancelling it cancels `future`."""
    converted: Future[T] = Future()

    def finish(done: Future[S]) -> None:
        # marks it as running, so that it cannot be cancelled while `convert` runs
        if not converted.set_running_or_notify_cancel():
            return
        try:
            converted.set_result(convert(done.result()))
        except BaseException as error:
            converted.set_exception(error)

    future.add_done_callback(finish)
    converted.add_done_callback(lambda done: done.cancelled() and future.cancel())
    return converted


def failed(error: BaseException) -> Future[T]:
    """A future that has already failed."""
    future: Future[T] = Future()
    future.set_exception(error)
    return future
