"""Programs of other languages: a compiler first, if need be, then the program with this process's streams, or once per input."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any

from atlas.sandbox.inside.frames import Channel

COMPILER_OUTPUT_BYTES = 16 * 1024
NOT_FOUND = 127
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
SHARED = {"GOCACHE": "/tmp/go-cache", "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "CGO_ENABLED": "0"}


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """`compile` and `run` are commands; with `inputs` one frame for each, else the program takes the place of this process."""
    os.environ.update(SHARED)
    if payload["compile"] and not _compile(payload["compile"], report):
        return 0
    report.send({"compiled": True})
    if payload["inputs"] is None:
        return _become(payload["run"])
    for number, text in enumerate(payload["inputs"]):
        report.send({"case": number} | _feed(payload, text))
    report.send({"end": len(payload["inputs"])})
    return 0


def _compile(command: list[str], report: Channel) -> bool:
    with _file() as source, _file() as out:
        status = _spawn(command, (source, out, out), seconds=None)
        if status == 0:
            return True
        text = _head(out, COMPILER_OUTPUT_BYTES)[:COMPILER_OUTPUT_BYTES]
    report.send({"compile": {"type": "CompileError", "message": text or f"the compiler ended with {status}"}})
    return False


def _spawn(command: list[str], streams: tuple[Any, Any, Any], *, seconds: float | None) -> int | str:
    """Run a command in a group of its own: its exit code, a negative signal, or "timeout".

    `subprocess` would do the same, but every box would pay for its modules.
    """
    actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate(streams)]
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setpgroup=0, setsigdef=IGNORED_BY_PYTHON)
    poll, handle = select.poll(), os.pidfd_open(pid)
    poll.register(handle, select.POLLIN)
    is_over = poll.poll(None if seconds is None else 1000 * seconds)
    os.close(handle)
    if not is_over:
        os.killpg(pid, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return ended if is_over else "timeout"


def _become(command: list[str]) -> int:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        return NOT_FOUND


def _feed(payload: dict[str, Any], text: str) -> dict[str, Any]:
    """One run on one input. Files hold its streams, so that nothing here can block or grow."""
    started_s = time.perf_counter()
    with _file(text.encode()) as source, _file() as out, _file() as err:
        try:
            status = _spawn(payload["run"], (source, out, err), seconds=payload["seconds"])
        except OSError as error:
            return {"exit": NOT_FOUND, "stdout": "", "stderr": str(error), "seconds": 0.0}
        seconds = time.perf_counter() - started_s
        return {
            "exit": status,
            "stdout": _head(out, payload["output_bytes"]),
            "stderr": _head(err, COMPILER_OUTPUT_BYTES),
            "seconds": seconds,
        }


def _file(content: bytes = b"") -> Any:
    descriptor = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    file = os.fdopen(descriptor, "r+b")
    file.write(content)
    file.seek(0)
    return file


def _head(file: Any, limit: int) -> str:
    file.seek(0)
    return file.read(limit + 1).decode("utf-8", "replace")  # type: ignore[no-any-return]
