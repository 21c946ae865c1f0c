"""From the ledger's thread to the event loop: results that come together are handed over together.

`asyncio.wrap_future` wakes the loop once for each future, with a system call from a thread that has others to serve; a commit of
the ledger finishes dozens at a time. Here also nobody needs a shield: whoever is cancelled stops waiting, and the work goes on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from atlas.store import Written

Outcome = Callable[[BaseException | None], None]


class Arrivals:
    """Of one event loop."""

    def __init__(self) -> None:
        self._arrived: deque[tuple[Written[None], asyncio.Future[None], Outcome | None]] = deque()
        self._is_announced = False

    def expect(self, future: Written[None], then: Outcome | None = None) -> asyncio.Future[None]:
        """A future of the event loop that ends as this one does.

        `then` is called in the event loop with the error or None, before the waiter goes on and even if it has gone.
        """
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        future.add_done_callback(partial(self._arrive, loop, waiting, then))
        return waiting

    def _arrive(
        self, loop: asyncio.AbstractEventLoop, waiting: asyncio.Future[None], then: Outcome | None, future: Written[None]
    ) -> None:
        """In the thread that finished the future."""
        self._arrived.append((future, waiting, then))
        if not self._is_announced and not loop.is_closed():
            self._is_announced = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_announced = False  # before looking: what arrives from now on is announced anew
        while self._arrived:
            future, waiting, then = self._arrived.popleft()
            error = future.exception()
            if then is not None:
                then(error)
            if waiting.done():  # its waiter was cancelled
                continue
            if error is None:
                waiting.set_result(None)
            else:
                waiting.set_exception(error)
