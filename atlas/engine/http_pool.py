"""The connections to one server: kept for the next request, through a proxy where the environment names one, with TLS."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
from functools import cached_property
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from atlas.engine.http1 import Connection, Reply
from atlas.errors import SettingsError

CONNECT_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 4.0  # uvicorn, and so vLLM, SGLang and ATLAS, closes a connection that was idle for 5 s
TICK_S = 1.0  # how often connections are looked at that are idle or silent for too long
PORTS = {"http": 80, "https": 443}


class NotConnected(Exception):
    """There is no way to the server just now."""


class Pool:
    """Used from one event loop.

    Args:
        url: base of all requests, http or https.
        headers: sent with each.
        silence_s: the longest a server may say nothing while it owes something.
    """

    def __init__(self, url: str, *, headers: dict[str, str], silence_s: float) -> None:
        self._base = urlsplit(url)
        proxy = _proxy_for(self._base)
        self._proxy = urlsplit(proxy) if proxy else None
        self._silence_s = silence_s
        self._headers = _head_of({"host": _netloc(self._base)} | headers | self._credentials())
        self._idle: list[Connection] = []  # the one used last is taken first
        self._open: set[Connection] = set()
        self._ticking: asyncio.TimerHandle | None = None

    async def send(self, path: str, body: bytes | None) -> Reply:
        """POST a body of JSON, or GET without one; the reply is on its way.

        Raises:
            NotConnected: nothing was sent.
        """
        return (await self._connection()).send(self._request(path, body))

    def send_now(self, path: str, body: bytes | None) -> Reply | None:
        """The same, if a connection is there; None if one would have to be made first."""
        connection = self._free()
        return None if connection is None else connection.send(self._request(path, body))

    async def send_anew(self, path: str, body: bytes | None) -> Reply:
        """The same, on a connection that nobody has used before."""
        return (await self._connect()).send(self._request(path, body))

    async def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in tuple(self._open):
            connection.close()
        await asyncio.sleep(0)  # transports close at the loop's next turn
        await asyncio.sleep(0)

    def _request(self, path: str, body: bytes | None) -> bytes:
        method = b"GET" if body is None else b"POST"
        head = b"%b %b%b HTTP/1.1\r\n%b" % (method, self._target, path.encode(), self._headers)
        if body is None:
            return head + b"\r\n"
        return b"%bcontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def _credentials(self) -> dict[str, str]:
        """Names and passwords in the addresses of the server, and of a proxy that reads our requests."""
        of_proxy = _authorization(self._proxy, "proxy-authorization") if self._proxy and self._base.scheme == "http" else {}
        return _authorization(self._base, "authorization") | of_proxy

    @cached_property
    def _target(self) -> bytes:
        """What stands before the path of a request; the whole address for a proxy that passes requests on."""
        path = self._base.path.rstrip("/")
        is_passed_on = self._proxy is not None and self._base.scheme == "http"
        return (f"http://{_netloc(self._base)}{path}" if is_passed_on else path).encode()

    async def _connection(self) -> Connection:
        return self._free() or await self._connect()

    def _free(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await (self._connect_directly() if self._proxy is None else self._connect_through(self._proxy))
        except OSError as error:  # TimeoutError is one
            raise NotConnected(str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        self._open.add(connection)
        if self._ticking is None:
            self._tick()
        return connection

    async def _connect_directly(self) -> Connection:
        host, port = _address(self._base)
        _, connection = await asyncio.get_running_loop().create_connection(self._made, host, port, ssl=self._tls)
        return connection

    async def _connect_through(self, proxy: SplitResult) -> Connection:
        """To a proxy, which passes requests for http on, and bytes for https."""
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(self._made, *_address(proxy))
        if self._tls is None:
            return connection
        host, port = _address(self._base)
        asked = _head_of({"host": f"{host}:{port}"} | _authorization(proxy, "proxy-authorization"))
        reply = connection.send(f"CONNECT {host}:{port} HTTP/1.1\r\n".encode() + asked + b"\r\n")
        await reply.head()
        if reply.status != 200:
            connection.close()
            raise ConnectionRefusedError(f"the proxy {proxy.hostname} answered {reply.status}")
        inner = self._made()
        encrypted = await loop.start_tls(transport, inner, self._tls, server_hostname=host)
        assert encrypted is not None  # only of a closing transport is there none
        inner.connection_made(encrypted)
        return inner

    def _made(self) -> Connection:
        return Connection(self._idle.append, self._forget)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now_s, idle = loop.time(), set(self._idle)
        for connection in tuple(self._open):
            silent_s = 0.0 if connection.is_paused else now_s - connection.last_s
            if connection in idle and silent_s > KEEP_ALIVE_S:
                connection.close()
            elif connection not in idle and silent_s > self._silence_s:
                connection.fail(TimeoutError(f"nothing came for {self._silence_s:g} s"))
        wait_s = min(TICK_S, self._silence_s / 4)
        self._ticking = loop.call_later(wait_s, self._tick) if self._open else None

    @cached_property
    def _tls(self) -> ssl.SSLContext | None:
        return ssl.create_default_context() if self._base.scheme == "https" else None


def is_of_this_machine(url: str) -> bool:
    """Whether what is sent there stays on this machine: to its own addresses, by their names, with no proxy between.

    A name that the resolver would have to be asked about counts as elsewhere, whatever it says today.
    """
    base = urlsplit(url)
    host = base.hostname or ""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    return is_loopback and _proxy_for(base) is None


def _proxy_for(base: SplitResult) -> str | None:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY as every client honours them.

    Raises:
        SettingsError: the proxy is one that we cannot talk to.
    """
    if proxy_bypass(base.hostname or ""):
        return None
    proxy = getproxies().get(base.scheme)
    if proxy and urlsplit(proxy).scheme != "http":
        raise SettingsError(f"{base.scheme}_proxy: only proxies with http:// are supported")
    return proxy


def _address(url: SplitResult) -> tuple[str, int]:
    return url.hostname or "", url.port or PORTS.get(url.scheme, 80)


def _netloc(url: SplitResult) -> str:
    return url.netloc.rpartition("@")[2]


def _authorization(url: SplitResult, header: str) -> dict[str, str]:
    """Name and password in a URL, as a header."""
    if url.username is None:
        return {}
    pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {header: "Basic " + base64.b64encode(pair.encode()).decode()}


def _head_of(headers: dict[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
