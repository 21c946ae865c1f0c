"""One connection of an HTTP/1.1 client: bytes out, a reply in, whole or piece by piece. Parsed by llhttp, as our server's is.

Ours, because of a request that costs the gateway 400 us a general client takes a third: it makes some forty objects for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

UNREAD_LIMIT_BYTES = 256 * 1024  # of a reply that nobody reads on: then TCP holds the server back; chosen
WHOLE_LIMIT_BYTES = 256 * 1024 * 1024  # of a reply that is wanted whole; chosen: a million numbers of embeddings are 20 MB


class Reply:
    """An answer on its way; read by one task, or taken by whoever is told that it is over. Waiting for it raises OSError
    (TimeoutError is one) if it breaks off.

    Attributes:
        status: 0 until its head has come.
        headers: names in lower case; of repeated ones the last.
        is_over: all of the body has come.
        is_wanted_whole: it is taken in as fast as it comes.
        error: why it broke off.
    """

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.is_over = self.is_wanted_whole = False
        self.error: Exception | None = None
        self.num_unread = 0  # bytes
        self._connection = connection
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._on_over: Callable[[], None] | None = None

    async def head(self) -> None:
        """Wait for status and headers."""
        while not self.status:
            await self._more()

    async def read(self) -> bytes:
        """All that has not been read yet."""
        self._want_whole()
        while not self.is_over:
            await self._more()
        return self.take()

    async def piece(self) -> bytes:
        """The next bytes; empty when there are no more."""
        while not self._pieces and not self.is_over:
            await self._more()
        return self.take()

    def when_over(self, act: Callable[[], None]) -> None:
        """Have `act` called, at a turn of the event loop, when all of it is there, or `error` says why it will not be."""
        self._on_over = act
        self._want_whole()

    def take(self) -> bytes:
        """What is there."""
        pieces, self._pieces, self.num_unread = self._pieces, [], 0
        self._connection.read_on()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Give up what has not come yet, and the connection with it."""
        if not self.is_over:
            self._connection.close()

    # -- the connection's side --

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.num_unread += len(data)
        self.wake()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_over is not None and (self.is_over or self.error is not None):
            asyncio.get_running_loop().call_soon(self._on_over)
            self._on_over = None

    def _want_whole(self) -> None:
        self.is_wanted_whole = True
        self._connection.read_on()

    async def _more(self) -> None:
        """Wait for anything new."""
        if self.error is not None:
            raise self.error
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class Connection(asyncio.Protocol):
    """One request after another.

    Attributes:
        last_s: when something last came or went, by the loop's clock.
        is_open: it can take a request, if it has none.
    """

    def __init__(self, on_free: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self.is_open = False
        self.is_paused = False
        self._on_free, self._on_lost = on_free, on_lost
        self._loop = asyncio.get_running_loop()
        self.last_s = self._loop.time()
        import httptools  # not above: the parent of the server imports this room, and speaks no HTTP

        self._parser, self._malformed = httptools.HttpResponseParser(self), httptools.HttpParserError
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None

    def send(self, request: bytes) -> Reply:
        assert self._transport is not None  # it has been connected
        self._reply = Reply(self)
        self.last_s = self._loop.time()
        self._transport.write(request)
        return self._reply

    def _hold_back(self, reply: Reply) -> None:
        """More has come than is read."""
        if not reply.is_wanted_whole:
            self._pause()
        elif reply.num_unread > WHOLE_LIMIT_BYTES:
            self.fail(OSError(f"its reply has more than {WHOLE_LIMIT_BYTES} bytes"))

    def _pause(self) -> None:
        transport = self._transport
        if transport is not None and not self.is_paused:
            self.is_paused = True
            transport.pause_reading()

    def read_on(self) -> None:
        transport = self._transport
        if transport is not None and self.is_paused:
            self.is_paused = False
            self.last_s = self._loop.time()
            transport.resume_reading()

    def fail(self, error: Exception) -> None:
        """Whoever waits for the reply gets this."""
        reply = self._reply
        self.close()
        self._reply = None
        if reply is not None:
            reply.fail(error)

    def close(self) -> None:
        self.is_open = False
        if self._transport is None:
            return
        if self._reply is None:
            self._transport.close()
        else:  # what the server still sends is not wanted, and it shall know so
            self._transport.abort()

    # -- asyncio's calls --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self.last_s = self._loop.time()
        try:
            self._parser.feed_data(data)
        except self._malformed as error:
            self.fail(OSError(f"it does not speak HTTP: {error}"))
            return
        if self._reply is not None and self._reply.num_unread > UNREAD_LIMIT_BYTES:
            self._hold_back(self._reply)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._transport = None
        reply = self._reply
        if reply is not None and reply.status and error is None and _ends_with_connection(reply):
            self._end(reply)
        self.fail(error or ConnectionResetError("the connection was closed in the middle of a reply"))
        self._on_lost(self)

    # -- llhttp's calls --

    def on_message_begin(self) -> None:
        if self._reply is None or self._reply.status:  # nobody asked for this; what follows cannot be told from answers
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reply is not None:
            self._reply.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._reply is not None and status >= 200:  # before it there may be others, which only say that it will come
            self._reply.status = status
            self._reply.wake()

    def on_body(self, data: bytes) -> None:
        if self._reply is not None:
            self._reply.add(data)

    def on_message_complete(self) -> None:
        reply = self._reply
        if reply is None or not reply.status:
            return
        self.is_open = self.is_open and self._parser.should_keep_alive()
        self._end(reply)
        if self.is_open:
            self._on_free(self)
        else:
            self.close()

    def _end(self, reply: Reply) -> None:
        self._reply = None
        reply.is_over = True
        reply.wake()


def _ends_with_connection(reply: Reply) -> bool:
    return b"content-length" not in reply.headers and b"transfer-encoding" not in reply.headers
