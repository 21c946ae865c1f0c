"""What the parent of `atlas serve` hands to the serving process, what it hears back, and how children end with their parents."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Sequence

import msgspec

from atlas.settings import Settings

PR_SET_PDEATHSIG = 1


class ModelChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The model to serve.

    Attributes:
        path: its GGUF file.
        notices: what the person starting the server should know about the choice; said again on /readyz.
    """

    id: str
    path: str
    notices: tuple[str, ...] = ()


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a serving process starts with. It may hold passwords (in URLs), so it travels in memory: see `write_launch`.

    Attributes:
        settings: with the port that was really bound.
        data_dir: the directory whose lock `lock_fd` holds.
        http_fd: the listening socket; it stays open in the parent, so that connections wait while this process is replaced.
        control_fd: the listening Unix socket of the command line.
        report_fd: write end of the pipe on which Reports go back, one JSON line each.
        parent_pid: the process to end with.
        model: None with a remote engine.
        restarts: how many serving processes there were before this one.
        redis_url: where limits are counted.
        config_path: the settings file, to be read again on SIGHUP; empty if there is none.
        is_unsafe: run code without isolation where there is none to be had.
    """

    settings: Settings
    data_dir: str
    http_fd: int
    control_fd: int
    lock_fd: int
    report_fd: int
    parent_pid: int
    model: ModelChoice | None = None
    restarts: int = 0
    redis_url: str = ""
    config_path: str = ""
    is_unsafe: bool = False


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded and requests are answered."""

    model: str
    context_tokens: int
    notices: tuple[str, ...] = ()


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The serving process ends for a reason only a person can mend; another try would end the same way."""

    message: str


Report = Ready | Failed


def write_launch(launch: Launch) -> int:
    """A file descriptor to be inherited, whose number is the last argument of the serving process; the caller closes it."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("atlas-launch")
    else:
        with tempfile.TemporaryFile() as file:  # of no name, readable by us alone
            descriptor = os.dup(file.fileno())
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(msgspec.json.encode(launch))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_launch(argv: Sequence[str]) -> Launch:
    """What the parent wrote; to be called once."""
    with os.fdopen(int(argv[-1]), "rb") as file:
        return msgspec.json.decode(file.read(), type=Launch)


async def end_process(process: asyncio.subprocess.Process, *, timeout_s: float) -> bool:
    """Have a child end in order, or kill it after `timeout_s`; whether it had to be killed."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await process.wait()
    if is_deaf := process.returncode is None:
        process.kill()
        await process.wait()
    return is_deaf


def die_with(parent_pid: int) -> None:
    """End this process when its parent ends, however that happens.

    The kernel's death signal is armed here rather than before exec, which clears it for some programs; a parent that ended before
    this line is noticed by its pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)
