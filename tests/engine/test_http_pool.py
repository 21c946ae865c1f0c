"""Our own HTTP client: what it does where servers, proxies and certificates are not as simple as a peer on this machine."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atlas.engine.http_pool import NotConnected, Pool
from atlas.errors import SettingsError
from atlas.settings import ServerSettings
from atlas.tls import ensure_certificates
from tests.engine.peer import until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server's port. It is there until every connection has ended."""
    running: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.append(asyncio.create_task(serve(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait_for(asyncio.gather(*running), 30)


@asynccontextmanager
async def pooled(url: str, **headers: str) -> AsyncIterator[Pool]:
    pool = Pool(url, headers=headers, silence_s=5)
    try:
        yield pool
    finally:
        await pool.close()


def saying(*replies: bytes, heads: list[bytes] | None = None) -> Handler:
    """Answers one request after another with these."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            head = await reader.readuntil(b"\r\n\r\n")
            if heads is not None:
                heads.append(head)
            writer.write(reply)
        await reader.read()

    return handler


async def test_what_only_announces_an_answer_is_not_the_answer() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
    async with listening(saying(hints + OK)) as port, pooled(f"http://127.0.0.1:{port}") as pool:
        reply = await pool.send("/", None)
        await reply.head()
        assert (reply.status, await reply.read()) == (200, b"ok")


async def test_bytes_that_nobody_asked_for_end_their_connection() -> None:
    """Else the next request would be given another one's answer."""
    async with listening(saying(OK + OK.replace(b"ok", b"no"))) as port, pooled(f"http://127.0.0.1:{port}") as pool:
        for _ in range(3):
            assert await (await pool.send("/", None)).read() == b"ok"


async def test_an_answer_cut_short_is_an_error_and_one_without_a_length_is_not() -> None:
    cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    until_closed = b"HTTP/1.1 200 OK\r\n\r\nall of it"

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(cut if b"/cut" in head else until_closed)

    async with listening(handler) as port, pooled(f"http://127.0.0.1:{port}") as pool:
        with pytest.raises(OSError, match="in the middle"):
            await (await pool.send("/cut", None)).read()
        assert await (await pool.send("/all", None)).read() == b"all of it"


async def test_what_is_not_http_is_an_error() -> None:
    async with listening(saying(b"SSH-2.0-OpenSSH_9.2\r\n")) as port, pooled(f"http://127.0.0.1:{port}") as pool:
        with pytest.raises(OSError, match="does not speak HTTP"):
            await (await pool.send("/", None)).read()


async def test_names_and_passwords_in_an_address_are_sent() -> None:
    heads: list[bytes] = []
    async with listening(saying(OK, heads=heads)) as port, pooled(f"http://ada:l%40ce@127.0.0.1:{port}/v1") as pool:
        await (await pool.send("/models", None)).read()
    assert heads[0].startswith(b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % port)
    assert b"authorization: Basic YWRhOmxAY2U=\r\n" in heads[0]


async def test_idle_connections_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.engine.http_pool.KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr("atlas.engine.http_pool.TICK_S", 0.02)
    async with listening(saying(OK)) as port, pooled(f"http://127.0.0.1:{port}") as pool:
        await (await pool.send("/", None)).read()
        await until(lambda: not pool._open)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Of a server whose certificate is trusted here."""
    files = ensure_certificates(tmp_path, ServerSettings(tls="auto"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "tls" / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    return context


async def test_https_is_checked_and_spoken(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(saying(OK), tls) as port:
        async with pooled(f"https://localhost:{port}") as pool:
            assert await (await pool.send("/", b"{}")).read() == b"ok"
        monkeypatch.delenv("SSL_CERT_FILE")
        async with pooled(f"https://localhost:{port}") as pool:
            with pytest.raises(NotConnected, match="certificate"):
                await pool.send("/", b"{}")


async def test_a_proxy_passes_https_on_unread(tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async with listening(saying(OK), tls) as port:

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            there = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

        async with listening(proxy) as proxy_port:
            monkeypatch.setenv("https_proxy", f"http://me:pass@127.0.0.1:{proxy_port}")
            monkeypatch.setenv("no_proxy", "")
            async with pooled(f"https://localhost:{port}") as pool:
                assert await (await pool.send("/", b"{}")).read() == b"ok"
    assert asked[0].startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % port)
    assert b"proxy-authorization: Basic bWU6cGFzcw==\r\n" in asked[0]


async def test_a_proxy_that_refuses_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(saying(b"HTTP/1.1 407 No\r\ncontent-length: 0\r\n\r\n")) as port:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        async with pooled("https://model.test") as pool:
            with pytest.raises(NotConnected, match="answered 407"):
                await pool.send("/", b"{}")


def test_a_proxy_we_cannot_talk_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(SettingsError, match="https_proxy"):
        Pool("https://model.test", headers={}, silence_s=5)
