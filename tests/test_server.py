"""The HTTP server's own part: how the head of a reply is written, and what is never written into one."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from atlas.server import WHOLE_REPLY, HTTPProtocol

KEEP_ALIVE_S = 1
Headers = list[tuple[bytes, bytes]]
REPLIES: dict[str, tuple[int, Headers]] = {
    "/counted": (200, [(b"content-length", b"4")]),
    "/uncounted": (200, [(b"content-type", b"text/plain")]),
    "/empty": (204, []),
    "/closing": (200, [(b"content-length", b"4"), (b"connection", b"close")]),
    "/umlaut": (200, [(b"content-length", b"4"), (b"x-name", "\N{LATIN SMALL LETTER A WITH DIAERESIS}\tb".encode("latin-1"))]),
    "/split": (200, [(b"content-length", b"4"), (b"x-id", b"1\r\nx-evil: 1")]),
    "/torn": (200, [(b"content-length", b"4"), (b"x-id", b"1\nx-evil: 1")]),
    "/nul": (200, [(b"content-length", b"4"), (b"x-id", b"1\x00")]),
}


async def replying(scope: Any, receive: Any, send: Any) -> None:  # an application of ASGI
    if scope["path"] == "/slow":
        await asyncio.sleep(KEEP_ALIVE_S + 0.5)
    if scope["path"] in ("/whole", "/slow"):
        assert WHOLE_REPLY in scope["extensions"]
        await send({"type": WHOLE_REPLY, "status": 200, "headers": [(b"content-type", b"text/plain")], "body": b"four"})
        return
    status, headers = REPLIES[scope["path"]]
    await receive()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if status == 204 else b"four"})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(replying, http=HTTPProtocol, ws="none", log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE_S)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


def ask(port: int, path: str, *, method: str = "GET", version: int = 11) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection._http_vsn, connection._http_vsn_str = version, f"HTTP/{version / 10}"  # type: ignore[attr-defined]  # no other way
    connection.request(method, path)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/counted", {"content-length": "4"}),
        ("/uncounted", {"content-type": "text/plain", "transfer-encoding": "chunked"}),
        ("/whole", {"content-type": "text/plain", "content-length": "4"}),
        ("/closing", {"content-length": "4", "connection": "close"}),
        ("/umlaut", {"content-length": "4", "x-name": "\N{LATIN SMALL LETTER A WITH DIAERESIS}\tb"}),
    ],
)
def test_a_head_says_how_its_body_ends(port: int, path: str, expected: dict[str, str]) -> None:
    reply, body = ask(port, path)
    headers = {name: value for name, value in reply.getheaders() if name not in ("date", "server")}
    assert (reply.status, headers, body) == (200, expected, b"four")


def test_a_reply_that_has_no_body_announces_none(port: int) -> None:
    for path, method, status in (("/empty", "GET", 204), ("/uncounted", "HEAD", 200)):
        reply, body = ask(port, path, method=method)
        assert (reply.status, reply.getheader("transfer-encoding"), body) == (status, None, b"")


def test_a_client_of_http_1_0_is_told_that_the_connection_ends(port: int) -> None:
    reply, body = ask(port, "/counted", version=10)
    assert (reply.getheader("connection"), body) == ("close", b"four")


@pytest.mark.parametrize("path", ["/split", "/torn", "/nul"])
def test_a_header_that_would_end_its_line_is_never_sent(port: int, path: str) -> None:
    reply, _ = ask(port, path)
    assert reply.status == 500
    assert reply.getheader("x-evil") is None
    assert reply.getheader("x-id") is None


def test_replies_on_one_connection_come_in_the_order_of_their_requests(port: int) -> None:
    requests = [f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in ("/counted", "/umlaut", "/empty")]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"".join(requests))
        received = b""
        while b" 204 " not in received:
            more = connection.recv(65536)
            assert more, received
            received += more
    assert received.count(b" 200 ") == 2
    assert received.index(b"four") < received.index(b"x-name") < received.index(b" 204 ")


def test_a_whole_reply_ends_a_connection_of_http_1_0(port: int) -> None:
    reply, body = ask(port, "/whole", version=10)
    assert (reply.getheader("connection"), body) == ("close", b"four")


def exchange(connection: socket.socket, path: str) -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    received = b""
    while not received.endswith(b"four"):
        more = connection.recv(65536)
        assert more, received
        received += more
    return received


def test_a_connection_is_closed_once_it_has_been_idle_for_long_enough(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        exchange(connection, "/whole")
        for _ in range(3):  # longer than the timeout altogether, each pause shorter
            time.sleep(KEEP_ALIVE_S * 0.6)
            exchange(connection, "/whole")
        started_s = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - started_s >= KEEP_ALIVE_S * 0.9


def test_a_connection_is_not_idle_while_it_has_a_request(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        exchange(connection, "/whole")
        connection.sendall(b"GET /whole HTTP/1.1\r\n")  # the rest comes late
        time.sleep(KEEP_ALIVE_S + 0.5)
        connection.sendall(b"host: x\r\n\r\n")
        assert connection.recv(65536).endswith(b"four")
        exchange(connection, "/slow")  # longer than the timeout
        exchange(connection, "/whole")
        assert connection.recv(1) == b""
