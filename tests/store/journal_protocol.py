"""How the processes of the journal's stress test talk: one JSON object a line on a Unix socket, answered by one."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path
from typing import Any

import msgspec


class Unreachable(Exception):
    """The server is not there, or could not do it now; try again."""


class Client:
    """Calls a server, which may be killed at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: socket.socket | None = None
        self._replies: Any = None  # socket.makefile's

    def call(self, method: str, *, timeout_s: float = 10.0, **params: Any) -> Any:
        """The reply, which the method makes what it is.

        Raises:
            Unreachable: nobody knows whether it was done.
        """
        try:
            connection = self._connected(timeout_s)
            connection.sendall(msgspec.json.encode({"method": method, "params": params}) + b"\n")
            line = self._replies.readline()
        except OSError as error:
            self.close()
            raise Unreachable(str(error)) from None
        if not line.endswith(b"\n"):
            self.close()
            raise Unreachable("the connection was closed")
        reply = msgspec.json.decode(line)
        if "unavailable" in reply:
            raise Unreachable(reply["unavailable"])
        return reply["result"]

    def insist(self, method: str, **params: Any) -> Any:
        """As `call`, again and again until there is a reply; a minute at most."""
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with contextlib.suppress(Unreachable):
                return self.call(method, **params)
            time.sleep(0.05)
        raise Unreachable(f"{method}: nobody answered for a minute")

    def _connected(self, timeout_s: float) -> socket.socket:
        if self._connection is None:
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.settimeout(timeout_s)
            self._connection.connect(str(self._path))
            self._replies = self._connection.makefile("rb")
        self._connection.settimeout(timeout_s)
        return self._connection

    def close(self) -> None:
        if self._replies is not None:
            self._replies.close()
            self._replies = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
