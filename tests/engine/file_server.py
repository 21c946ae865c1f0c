"""A file server that can be told to misbehave, on a real socket."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `body` at any path under /files, with byte ranges; .../resolve/... redirects there as Hugging Face does.

    Attributes:
        break_after: close each connection after this many bytes of body.
        announced: the hash that is announced; "" announces none.
        requests: (method, path, range, if-range, authorization) of each request.
    """

    daemon_threads = True

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = body
        self.etag = '"v1"'
        self.announced = hashlib.sha256(body).hexdigest()
        self.status = 200
        self.break_after: int | None = None
        self.honours_ranges = True
        self.requests: list[tuple[str, str, str | None, str | None, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: object) -> None:
        return

    def _answer(self, *, with_body: bool) -> None:
        server = self.server
        wanted = self.headers.get("range")
        server.requests.append((self.command, self.path, wanted, self.headers.get("if-range"), self.headers.get("authorization")))
        start = self._start(wanted)
        if server.status != 200:
            self._send(server.status, {})
        elif "/resolve/" in self.path:
            announced = {"x-linked-etag": f'"{server.announced}"'} if server.announced else {}
            self._send(302, {"location": "/files/model.gguf", "x-linked-size": str(len(server.body)), **announced})
        elif start >= len(server.body):
            self._send(416, {})
        else:
            self._send_file(start, with_body=with_body)

    def _send_file(self, start: int, *, with_body: bool) -> None:
        server = self.server
        headers = {"etag": server.etag, "content-length": str(len(server.body) - start)}
        if start:
            headers["content-range"] = f"bytes {start}-{len(server.body) - 1}/{len(server.body)}"
        self._send(206 if start else 200, headers)
        if with_body:
            self._send_body(server.body[start:])

    def _start(self, wanted: str | None) -> int:
        if wanted is None or not self.server.honours_ranges or self.headers.get("if-range") not in (None, self.server.etag):
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes) -> None:
        if self.server.break_after is not None and len(body) > self.server.break_after:
            body = body[: self.server.break_after]
            self.close_connection = True
        self.wfile.write(body)


@contextmanager
def serving(body: bytes) -> Iterator[FileServer]:
    server = FileServer(body)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
