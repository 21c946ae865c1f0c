"""HTTP as a remote engine needs it: bytes out, events in, every failure as one of our errors."""

from __future__ import annotations

import asyncio

import msgspec

from atlas.engine import remote_wire as wire
from atlas.engine.http1 import Reply
from atlas.engine.http_pool import NotConnected, Pool
from atlas.errors import AtlasError, EngineUnavailable, UpstreamFailed

DRAIN_TIMEOUT_S = 1.0  # for the end of a reply whose last event has come; chosen, unmeasured
EVENT_LIMIT_BYTES = 64 * 1024 * 1024  # a longer event is no stream of tokens


class Peer:
    """The server behind a URL. Used from one event loop; connections are opened when they are first needed.

    Args:
        url: base of the API.
        api_key: sent as a bearer token.
        timeout_s: longest silence while it answers.
        name: what messages call it; empty takes its URL, without a name or password in it.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, name: str = "") -> None:
        self.url = url.rstrip("/")
        self.name = name or without_password(self.url)
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = Pool(self.url, headers=headers, silence_s=timeout_s)

    async def send(self, path: str, body: object = None) -> Reply:
        """POST a body as JSON, or GET without one; return once the peer has accepted it, the rest of its reply still unread.

        Raises:
            AtlasError: the peer cannot be reached, or has refused.
        """
        content = None if body is None else msgspec.json.encode(body)
        try:
            reply = await self._accepted(path, content)
        except OSError as error:
            raise self.broken(error) from error
        except NotConnected as error:
            raise EngineUnavailable(f"{self.name} cannot be reached: {error}", retry_after_s=5) from error
        if not _is_good(reply):
            raise self._refusal(reply, await self._all_of(reply))
        return reply

    def send_now(self, path: str, body: object) -> Reply | None:
        """POST a body as JSON where a connection is free; None where one would have to be made first."""
        return self._pool.send_now(path, msgspec.json.encode(body))

    def whole(self, reply: Reply) -> bytes:
        """The body of a reply that is over, or has failed.

        Raises:
            AtlasError: it broke off, or says that the peer has refused.
        """
        if reply.error is not None:
            raise self.broken(reply.error) from reply.error
        data = reply.take()
        if not _is_good(reply):
            raise self._refusal(reply, data)
        return data

    async def read(self, reply: Reply) -> bytes:
        """All of a reply; the connection is free for the next request."""
        try:
            return await reply.read()
        except OSError as error:
            raise self.broken(error) from error

    async def fetch(self, path: str, body: object = None) -> bytes:
        return await self._all_of(await self.send(path, body))

    def events(self, reply: Reply) -> EventStream:
        return EventStream(self, reply)

    async def release(self, reply: Reply) -> None:
        """Read to the end of a reply of which nothing more is wanted, so that its connection can be used again."""
        if reply.is_over:
            return
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await reply.read()
        except OSError:
            reply.close()

    async def close(self) -> None:
        await self._pool.close()

    async def _all_of(self, reply: Reply) -> bytes:
        try:
            return await self.read(reply)
        finally:
            reply.close()

    async def _accepted(self, path: str, content: bytes | None) -> Reply:
        """Sent once more if the peer hung up without a word: it may have closed a connection just as we used it again."""
        try:
            return await _with_head(await self._pool.send(path, content))
        except ConnectionError:
            return await _with_head(await self._pool.send_anew(path, content))

    def _refusal(self, reply: Reply, data: bytes) -> AtlasError:
        retry_after = reply.headers.get(b"retry-after", b"").decode("latin-1")
        return wire.failure(self.name, reply.status, data, retry_after=retry_after)

    def broken(self, error: Exception) -> AtlasError:
        return UpstreamFailed(f"{self.name} broke off: {str(error) or type(error).__name__}")


def without_password(url: str) -> str:
    """A URL as messages may show it: they reach clients."""
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://{after}" if at else url


def _is_good(reply: Reply) -> bool:
    return 200 <= reply.status < 300


async def _with_head(reply: Reply) -> Reply:
    try:
        await reply.head()
    except BaseException:
        reply.close()
        raise
    return reply


class EventStream:
    """`data` of server-sent events, as many at a time as have come.

    Lines are cut at newlines only: JSON may hold U+2028 and others that text readers take for ends of lines.
    """

    def __init__(self, peer: Peer, reply: Reply) -> None:
        self._peer, self._reply = peer, reply
        self._pending = b""
        self._is_over = False

    async def read(self) -> list[bytes]:
        """The next events; empty when there are no more, be it for [DONE] or the end of the reply."""
        while not self._is_over:
            try:
                piece = await self._reply.piece()
            except OSError as error:
                raise self._peer.broken(error) from error
            self._is_over = not piece
            if events := self._cut(piece):
                return events
        return []

    def _cut(self, piece: bytes) -> list[bytes]:
        *lines, self._pending = (self._pending + piece).split(b"\n")
        if len(self._pending) > EVENT_LIMIT_BYTES:
            raise UpstreamFailed(f"an event of more than {EVENT_LIMIT_BYTES} bytes")
        events = [data for line in lines if line.startswith(b"data:") and (data := line[5:].strip())]
        if events and b"[DONE]" in events:
            self._is_over = True
            del events[events.index(b"[DONE]") :]
        return events
