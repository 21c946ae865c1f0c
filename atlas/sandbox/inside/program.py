"""The main process of a box, once it stands: its order, its runner, its end.

Imported by every fresh interpreter; see frames.py for why it imports next to nothing.
"""

from __future__ import annotations

import _thread
import marshal
import posix
import sys

from atlas.sandbox.inside.frames import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from atlas.sandbox.inside.runners import Runner

_END = 2  # os.SEEK_END
BROKEN = 98  # exit code of a runner that failed: no verdict comes of it
THREAD_STACK_BYTES = 8 << 20  # else each thread would take the main one's bound of the address space


def read_order(payload: int) -> dict[str, Any]:
    """What this box is to do. The file is the pool's, and nothing untrusted has run in this box yet."""
    size = posix.lseek(payload, 0, _END)  # fstat would make twenty numbers of which one is wanted
    order: dict[str, Any] = marshal.loads(posix.pread(payload, size, 0))  # noqa: S302
    return order


def put_files(files: dict[str, str]) -> None:
    """As view.put_files, into the working directory and with what a fresh interpreter has."""
    for name, text in files.items():
        for end, sign in enumerate(name):
            if sign == "/":
                _make_directory(name[:end])
        descriptor = posix.open(name, posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o666)
        content = memoryview(text.encode("utf-8", "surrogateescape"))
        while content:
            content = content[posix.write(descriptor, content) :]
        posix.close(descriptor)


def _make_directory(path: str) -> None:
    try:  # noqa: SIM105 - contextlib costs five milliseconds
        posix.mkdir(path)
    except FileExistsError:
        pass


def perform(run: Runner, payload: dict[str, Any], report: int, peer: list[int]) -> NoReturn:
    """Call the runner and end as an interpreter ends. Never returns."""
    _thread.stack_size(THREAD_STACK_BYTES)
    sys.argv = ["main.py"]
    try:
        status = run(payload, Channel(-1, report), Channel(*peer) if peer else None)
    except BaseException:  # a runner's own, of which nobody may see the way here
        status = BROKEN
    _flush()
    posix._exit(status & 0xFF)  # noqa: SLF001 - os._exit is this


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # contextlib costs five milliseconds; these may be the program's own objects by now
        pass
