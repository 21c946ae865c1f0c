"""What the engine thread has done in the event loop, and how it wakes the loop without waiting for it.

`loop.call_soon_threadsafe` gives the interpreter lock away in its write to the loop's pipe, and gets it back when the loop has
done its work: 80 us of a step (docs/log.md). The write here keeps the lock, so that the loop's work falls into the thread's next
call that gives it up, which is the next decode.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections import deque
from collections.abc import Callable

_write = ctypes.PyDLL(None).write  # of libc; PyDLL keeps the lock
_write.restype, _write.argtypes = ctypes.c_ssize_t, [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]
_READ_BYTES = 4096

Letter = tuple[Callable[..., None], tuple[object, ...]]


class Mailbox:
    """Calls from one thread into an event loop, in order. Made and closed in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._letters: deque[Letter] = deque()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)  # a full pipe has woken the loop long since
        loop.add_reader(self._reader, self._arrived)

    def put(self, function: Callable[..., None], *args: object) -> None:
        """Have this called in the loop's thread; from the other thread.

        Raises:
            RuntimeError: the loop has been closed.
        """
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        self._letters.append((function, args))
        _write(self._writer, b"!", 1)

    def close(self) -> None:
        """Deliver what is left, and take no more."""
        self._loop.remove_reader(self._reader)
        self._deliver()
        os.close(self._reader)
        os.close(self._writer)

    def _arrived(self) -> None:
        os.read(self._reader, _READ_BYTES)
        self._deliver()

    def _deliver(self) -> None:
        while self._letters:
            function, args = self._letters.popleft()
            self._loop.call_soon(function, *args)
