from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from atlas import control
from atlas.errors import NotFound, OperatorError


async def double(params: dict[str, Any]) -> dict[str, Any]:
    return {"twice": params["number"] * 2}


async def refuse(params: dict[str, Any]) -> None:
    raise NotFound("no such thing")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A control socket with a server behind it, in a thread with a loop of its own."""
    path = tmp_path / "atlas.sock"
    listener = control.listen(path)
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(control.serve_control(listener, {"double": double, "refuse": refuse}))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield path
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.close()


def raw(path: Path, sent: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


def test_a_call_gets_its_result(path: Path) -> None:
    assert control.call(path, "double", {"number": 21}) == {"twice": 42}


def test_a_refusal_arrives_as_its_sentence(path: Path) -> None:
    with pytest.raises(OperatorError, match="no such thing"):
        control.call(path, "refuse")


def test_an_unknown_method_is_named(path: Path) -> None:
    with pytest.raises(OperatorError, match="knows no method 'nope'"):
        control.call(path, "nope")


@pytest.mark.parametrize("sent", [b"", b"\n", b"not json\n", b"{}\n", b'{"method": 3}\n', b"\xff" * 100 + b"\n"])
def test_rubbish_is_answered_and_does_no_harm(path: Path, sent: bytes) -> None:
    assert b'"error":"control request' in raw(path, sent)
    assert control.call(path, "double", {"number": 1}) == {"twice": 2}


def test_a_line_without_end_is_refused(path: Path) -> None:
    with suppress(ConnectionError):  # the answer may be overtaken by the end of the connection
        assert b'"error":"control request' in raw(path, b"x" * (3 * control.LINE_LIMIT_BYTES))
    assert control.call(path, "double", {"number": 1}) == {"twice": 2}


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    """A Unix socket's address holds 107 bytes; data directories can be deeper."""
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    listener = control.listen(folder / "atlas.sock")
    assert (folder / "atlas.sock").stat().st_mode & 0o777 == 0o600
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        control.call(folder / "atlas.sock", "double")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_past_the_file_mode(path: Path) -> None:
    path.chmod(0o666)
    path.parent.chmod(0o755)
    code = (
        "import os, socket; connection = socket.socket(socket.AF_UNIX); os.setuid(65534)\n"
        "connection.connect('atlas.sock'); connection.sendall(b'{\"method\": \"double\"}\\n')\n"
        "print(connection.recv(4096))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=path.parent)
    assert "serves the owner" in run.stdout, run.stderr
