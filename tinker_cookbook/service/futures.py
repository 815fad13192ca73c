"""Answers that come later, in the SDK's `APIFuture` form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Generic, Self, TypeVar

from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

S = TypeVar("S")
T = TypeVar("T")


class Converted(APIFuture[T], Generic[S, T]):
    """An answer in the SDK's types, which are made by whoever asks for the result: the engine's
    thread has better things to do, and a call costs one future less.
    """

    def __init__(self, future: Future[S], convert: Callable[[S], T]) -> None:
        self._future = future
        self._convert = convert
        self._values: list[T] = []  # the result, once it was asked for

    def result(self, timeout: float | None = None) -> T:
        return self._value(self._future.result(timeout))

    async def result_async(self, timeout: float | None = None) -> T:
        if timeout is None:
            return self._value(await asyncio.wrap_future(self._future))
        async with asyncio.timeout(timeout):
            return await self.result_async()

    def future(self) -> Future[T]:
        return then(self._future, self._value)

    def _value(self, answer: S) -> T:
        if not self._values:
            self._values.append(self._convert(answer))
        return self._values[0]


class Ready(Generic[S]):
    """A client that can be used at once and is also a future of itself, as the SDK's are."""

    def __init__(self, created: Future[S]) -> None:
        self._created = created

    def future(self) -> Future[Self]:
        return then(self._created, lambda _: self)

    def result(self, timeout: float | None = None) -> Self:
        """This client, once it exists; the error of its creation otherwise."""
        self._created.result(timeout)
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        await AwaitableConcurrentFuture(self._created).result_async(timeout)
        return self

    def __await__(self) -> Generator[None, None, Self]:
        return self.result_async().__await__()


def then(future: Future[S], convert: Callable[[S], T]) -> Future[T]:
    """A future of the converted result."""
    out: Future[T] = Future()

    def finish(done: Future[S]) -> None:
        if not out.set_running_or_notify_cancel():
            return
        try:
            out.set_result(convert(done.result()))
        except BaseException as error:
            out.set_exception(error)

    future.add_done_callback(finish)
    out.add_done_callback(lambda done: done.cancelled() and future.cancel())
    return out


def failed(error: BaseException) -> Future[T]:
    out: Future[T] = Future()
    out.set_exception(error)
    return out
