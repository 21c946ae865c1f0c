"""The command line as a client of the running server: where it is, and a key for it."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import msgspec

from atlas import control
from atlas.cli.options import find_directory
from atlas.directory import DataDirectory
from atlas.errors import OperatorError
from atlas.settings import Settings

OWN_KEY = "command-line-key"  # secrets/NAME: this machine's own key, so that `atlas ask` needs no set-up
TIMEOUT = httpx.Timeout(600.0, connect=5.0)  # an answer may take minutes to begin on a CPU


class Server(NamedTuple):
    """A running server: `url` without /v1, and the loaded model (None while it loads).

    Attributes:
        is_open: auth.mode = "off".
        ca: PEM file of the server's own certificate authority; None where the system's are the ones to ask.
    """

    url: str
    model: str | None
    is_open: bool
    ca: str | None = None

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """What httpx is to trust."""
        return ssl.create_default_context(cafile=self.ca) if self.ca else True


def find_server(directory: DataDirectory) -> Server:
    """The server that holds this data directory.

    Raises:
        OperatorError: there is none.
    """
    try:
        status = control.call(directory.control_socket, "status")
    except (FileNotFoundError, ConnectionRefusedError):
        raise OperatorError(f"no server runs on {directory.path}; start one with `atlas serve`") from None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(status["host"], status["host"])  # noqa: S104 - compared, not bound
    name = f"[{host}]" if ":" in host else host
    scheme = status["url"].partition(":")[0]
    return Server(
        url=f"{scheme}://{name}:{status['port']}",
        model=status["model"],
        is_open=status["auth"] == "off",
        ca=status["tls_ca"] or None,
    )


def find_key(directory: DataDirectory, server: Server) -> str:
    """ATLAS_API_KEY, else this machine's own key, made when first needed and kept beside the other secrets (mode 0600)."""
    if given := os.environ.get("ATLAS_API_KEY"):
        return given
    if server.is_open:
        return "none"
    kept = directory.read_secret(OWN_KEY)
    known = {info["id"] for info in control.call(directory.control_socket, "keys.list")["keys"] if info["revoked_at"] is None}
    if kept is not None:
        key_id, _, key = kept.decode("ascii").partition(" ")
        if key_id in known:
            return key
    made = control.call(directory.control_socket, "keys.create", {"name": "command line"})
    directory.write_secret(OWN_KEY, f"{made['info']['id']} {made['key']}".encode("ascii"))
    return str(made["key"])


def find_access(settings: Settings) -> tuple[Server, str]:
    """The running server of these settings, and a key for it. Raises OperatorError: there is none."""
    directory = find_directory(settings)
    server = find_server(directory)
    return server, find_key(directory, server)


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@contextmanager
def talking(url: str) -> Iterator[None]:
    """Turns what can go wrong with an HTTP exchange into one line."""
    try:
        yield
    except httpx.RequestError as error:
        raise OperatorError(f"{url} did not answer: {str(error) or type(error).__name__}") from None


def check(response: httpx.Response) -> None:
    """Raises OperatorError with the server's own sentence unless the answer is a success."""
    if response.is_success:
        return
    response.read()
    raise OperatorError(f"{response.url.path}: HTTP {response.status_code}: {_sentence(response)}")


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON payloads of an event stream, to its end.

    Raises:
        OperatorError: the server ended the stream with an error.
    """
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data and data != "[DONE]":
            payload = json.loads(data)
            if "error" in payload:
                raise OperatorError(str(payload["error"].get("message", payload["error"])))
            yield payload


class _Error(msgspec.Struct):
    message: str


class _ErrorReply(msgspec.Struct):
    error: _Error


def _sentence(response: httpx.Response) -> str:
    try:
        return msgspec.json.decode(response.content, type=_ErrorReply).error.message
    except msgspec.DecodeError:
        return response.reason_phrase
