"""A project's own tests, by its own command and interpreter; watched by this process, which the tests cannot reach.

Frames: what the reporter in project_pytest.py says, as it comes, and at the end `ended`, which is this process's own word.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from typing import Any

from atlas.sandbox.inside import kernel, view
from atlas.sandbox.inside.frames import HEADER_BYTES, Channel

LAUNCHER = os.path.join(view.PROGRAM, "project_pytest.py")
WORD_LIMIT_BYTES = 1 << 20
READ_BYTES = 1 << 16
NOT_FOUND = 127

Seen = dict[str, tuple[int, ...]]


def run(payload: dict[str, Any], report: Channel, peer: Channel | None) -> int:
    """Run the command in the project's directory to its end."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # what the tests start may neither look into this process nor open what it has open
    os.chdir(payload["directory"])
    before = _watched(payload)
    try:
        child, words = _start(payload)
    except OSError as error:
        report.send(
            {"ended": NOT_FOUND, "tampering": [], "is_forged": False, "failure": f"{payload['command'][0]}: {error.strerror}"}
        )
        return 0
    words.relay(child, report)
    tampering = sorted(_compare(before, _watched(payload)))
    report.send({"ended": child.wait(), "tampering": tampering, "is_forged": words.is_forged})
    return 0


def _start(payload: dict[str, Any]) -> tuple[subprocess.Popen[bytes], Words]:
    """The tests' process, and what it will say."""
    secret = os.urandom(16).hex()
    (asked, telling), (listening, saying) = os.pipe(), os.pipe()
    os.write(telling, secret.encode())
    os.close(telling)
    command = payload["command"]
    if payload["mode"] != "command":
        descriptors = f"{asked},{saying}"
        command = [
            payload["python"],
            LAUNCHER,
            descriptors,
            payload["mode"],
            payload["directory"],
            payload["path"],
            *payload["arguments"],
        ]
    try:
        child = subprocess.Popen(  # noqa: S603 - untrusted, which is why this is a box
            command,
            env={**view.ENVIRONMENT, **payload["environment"]},
            stdin=subprocess.DEVNULL,
            pass_fds=(asked, saying) if payload["mode"] != "command" else (),
        )
    finally:
        os.close(asked)
        os.close(saying)
    return child, Words(listening, secret)


class Words:
    """What comes from the reporter: only what carries the secret is passed on."""

    def __init__(self, descriptor: int, secret: str) -> None:
        self._descriptor = descriptor
        self._secret = secret
        self._buffer = bytearray()
        self._is_closed = False
        self.is_forged = False
        os.set_blocking(descriptor, False)

    def relay(self, child: subprocess.Popen[bytes], report: Channel) -> None:
        """Until the child ends, and what it said until then; others that hold the descriptor are not waited for."""
        pidfd = os.pidfd_open(child.pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._descriptor, select.POLLIN)
        is_over = False
        while not is_over:
            ready = {descriptor for descriptor, _ in poll.poll()}
            is_over = pidfd in ready
            while self._read():
                for word in self._words():
                    report.send(word)
            if self._is_closed and self._descriptor in ready:
                poll.unregister(self._descriptor)
        os.close(pidfd)

    def _read(self) -> bool:
        try:
            part = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        self._is_closed = not part
        self._buffer += b"" if self.is_forged else part
        return bool(part)

    def _words(self) -> Iterator[dict[str, Any]]:
        while len(self._buffer) >= HEADER_BYTES and not self.is_forged:
            length = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
            if length > WORD_LIMIT_BYTES:
                self.is_forged = True
                return
            if len(self._buffer) < HEADER_BYTES + length:
                return
            body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + length])
            del self._buffer[: HEADER_BYTES + length]
            word = self._checked(body)
            if word is not None:
                yield word

    def _checked(self, body: bytes) -> dict[str, Any] | None:
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(body)
            if isinstance(value, list) and len(value) == 2 and value[0] == self._secret and isinstance(value[1], dict):
                return value[1]
        self.is_forged = True
        return None


def _watched(payload: dict[str, Any]) -> Seen:
    """What tells whether a file was touched, of all that a verdict rests on."""
    protected = tuple(payload["protected"])
    skipped = {os.path.normpath(path) for path in payload["skipped"]}
    seen: Seen = {}
    for top, directories, files in os.walk("."):
        directories[:] = [name for name in directories if os.path.normpath(os.path.join(top, name)) not in skipped]
        for name in files:
            path = os.path.normpath(os.path.join(top, name))
            if name in payload["watched"] or name.endswith(".pth") or _is_below(path, protected):
                with contextlib.suppress(OSError):
                    found = os.lstat(path)
                    seen[path] = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return seen


def _is_below(path: str, protected: tuple[str, ...]) -> bool:
    return any(path == place or path.startswith(place + "/") for place in protected)


def _compare(before: Seen, after: Seen) -> Iterator[str]:
    for path in before.keys() | after.keys():
        if path not in after:
            yield f"{path} was deleted while the tests ran"
        elif path not in before:
            yield f"{path} was made while the tests ran"
        elif before[path] != after[path]:
            yield f"{path} was changed while the tests ran"
