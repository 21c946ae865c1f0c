"""The result of a work of the ledger, once it is on the disk.

As `concurrent.futures.Future`, without what only a pool of threads needs: making, ending and asking one of those took 10 us, and
each request waits for two.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Written(Generic[T]):
    """Ended once, by the writer's thread; asked by any thread."""

    __slots__ = ("_callbacks", "_error", "_is_done", "_result")

    def __init__(self) -> None:
        self._callbacks: deque[Callable[[Any], object]] = deque()  # of Written[T]
        self._is_done = False
        self._result: T | None = None
        self._error: BaseException | None = None

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for it.

        Raises:
            TimeoutError: it takes longer than `timeout_s`.
            BaseException: whatever went wrong.
        """
        if (error := self.exception(timeout_s)) is not None:
            raise error
        return self._result  # type: ignore[return-value]  # a T by now

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Wait for it; what went wrong, if anything did.

        Raises:
            TimeoutError: it takes longer than `timeout_s`.
        """
        if not self._is_done:
            done = threading.Event()
            self.add_done_callback(lambda _: done.set())
            if not done.wait(timeout_s):
                raise TimeoutError
        return self._error

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Called with this object, in the thread that ends it, or here if it has ended."""
        self._callbacks.append(callback)
        if self._is_done:
            self._call()

    def set_result(self, result: T) -> None:
        self._result = result
        self._is_done = True  # before looking: whoever comes later looks for themselves
        self._call()

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._is_done = True
        self._call()

    def _call(self) -> None:
        """Each callback is taken by one thread, and each that was added before `_is_done` was seen is taken by somebody."""
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # another thread was quicker
                return
            callback(self)


async def arrival(written: Written[T]) -> T:
    """Wait for it in an event loop; a waiter that goes away leaves the work to go on."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiting.done():  # its waiter was cancelled
            waiting.set_result(None)

    def arrive(_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(wake)

    written.add_done_callback(arrive)
    await waiting
    return written.result()
