"""HTTP as a remote engine needs it: pooled connections, bytes out, events in, every failure as one of our errors.

aiohttp, because its parser is in C: of what a chunk of a stream costs, HTTP is the smaller half.
"""

from __future__ import annotations

import asyncio
import io
from functools import cached_property
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from atlas.engine import remote_wire as wire
from atlas.errors import AtlasError, EngineUnavailable, UpstreamFailed

CONNECT_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 4.0  # uvicorn, and so vLLM, SGLang and ATLAS, closes a connection that was idle for 5 s
DRAIN_TIMEOUT_S = 1.0  # for the end of a reply whose last event has come; chosen, unmeasured
EVENT_LIMIT_BYTES = 64 * 1024 * 1024  # a longer event is no stream of tokens
LARGE_BODY_BYTES = 1024 * 1024  # aiohttp wants longer bodies as files, which it sends in pieces
_json = {"content-type": "application/json"}


class Peer:
    """The server behind a URL. Used from one event loop; connections are opened when they are first needed.

    Args:
        url: base of the API.
        api_key: sent as a bearer token.
        timeout_s: longest silence while it answers.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)

    async def send(self, path: str, body: object = None) -> aiohttp.ClientResponse:
        """POST a body as JSON, or GET without one; return once the peer has accepted it, its reply still unread.

        Raises:
            AtlasError: the peer cannot be reached, or has refused.
        """
        content = None if body is None else msgspec.json.encode(body)
        try:
            response = await self._request(path, content)
            if 200 <= response.status < 300:
                return response
            async with response:
                reply = await response.read()
        except aiohttp.ClientError as error:
            raise self.broken(error) from error
        raise wire.failure(self.url, response.status, reply, retry_after=response.headers.get("retry-after"))

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        """All of a reply; the connection is free for the next request."""
        try:
            return await response.read()
        except aiohttp.ClientError as error:
            raise self.broken(error) from error

    async def fetch(self, path: str, body: object = None) -> bytes:
        async with await self.send(path, body) as response:
            return await self.read(response)

    def events(self, response: aiohttp.ClientResponse) -> EventStream:
        return EventStream(self, response)

    async def release(self, response: aiohttp.ClientResponse) -> None:
        """Read to the end of a reply of which nothing more is wanted, so that its connection can be used again."""
        if response.content.at_eof():
            return
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await response.read()
        except (aiohttp.ClientError, TimeoutError):
            response.close()

    async def close(self) -> None:
        if "_session" in vars(self):
            await self._session.close()
            await asyncio.sleep(0)  # transports close at the loop's next turn

    async def _request(self, path: str, content: bytes | None) -> aiohttp.ClientResponse:
        """Sent once more if the peer hung up without a word: it may have closed a connection just as we used it again."""
        try:
            return await self._send_once(path, content)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if isinstance(error, aiohttp.ClientConnectorError):
                raise
            return await self._send_once(path, content)

    async def _send_once(self, path: str, content: bytes | None) -> aiohttp.ClientResponse:
        if content is None:
            return await self._session.get(self.url + path, allow_redirects=False)
        data = content if len(content) <= LARGE_BODY_BYTES else io.BytesIO(content)
        return await self._session.post(self.url + path, data=data, headers=_json, allow_redirects=False)

    @cached_property
    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=self._timeout,
            headers=self._headers,
            skip_auto_headers=("accept-encoding",),
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_proxy_for(self.url),
        )

    def broken(self, error: aiohttp.ClientError) -> AtlasError:
        """No connection is a matter of time; a connection that breaks or falls silent is a failure of the peer."""
        reason = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return EngineUnavailable(f"{self.url} cannot be reached: {reason}", retry_after_s=5)
        return UpstreamFailed(f"{self.url} broke off: {reason}")


class EventStream:
    """`data` of server-sent events, as many at a time as have come.

    Lines are cut at newlines only: JSON may hold U+2028 and others that text readers take for ends of lines.
    """

    def __init__(self, peer: Peer, response: aiohttp.ClientResponse) -> None:
        self._peer, self._content = peer, response.content
        self._pending = b""
        self._is_over = False

    async def read(self) -> list[bytes]:
        """The next events; empty when there are no more, be it for [DONE] or the end of the reply."""
        while not self._is_over:
            try:
                piece = await self._content.readany()
            except aiohttp.ClientError as error:
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


def _proxy_for(url: str) -> str | None:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY as every client honours them. Read once: aiohttp would take a thread each time."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
