"""Runs attacks in boxes, so many at a time, and tells what was seen: as whoever this process is.

python -m tests.sandbox.escapes.drive < ORDER > OUTCOMES
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from atlas.errors import AtlasError
from atlas.log import configure_logging
from atlas.sandbox.boxes import BoxResult, BoxSpec
from atlas.sandbox.native import NativeBoxes
from atlas.sandbox.tiers import make
from atlas.settings import SandboxSettings
from atlas.types import RunLimits, Tier
from tests.sandbox.escapes.escape import Escape, Outcome, Seen, source

PROC = Path("/proc")
SETTLE_S = 2.0  # for the kernel to take away what has been killed
MEANWHILE_S = 0.4  # attacks with a `meanwhile` have done their worst by then
LAG_EVERY_S = 0.02
DEFAULT_WALL_S = 20.0  # for attacks that end by themselves, with twenty of them on one processor


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, and on what.

    Attributes:
        canary: a secret of this process; it is in its environment and its memory.
        host: what attacks may know about the host.
        ahead: in fresh interpreters, in boxes that were prepared before the attack was known.
    """

    tier: Tier
    uid: int
    python: str
    parallel: int
    canary: str
    host: dict[str, Any]
    escapes: tuple[Escape, ...]
    ahead: bool = False


class Outcomes(msgspec.Struct, kw_only=True):
    """Of all attacks, and how the pool was at the end."""

    outcomes: list[Outcome]
    num_restarts: int
    descriptors: int
    left: list[str]
    lag_s: float


async def start(order: Order) -> NativeBoxes:
    boxes = make(order.tier, SandboxSettings(uid=order.uid, slots=max(2, order.parallel)), order.python)
    await boxes.start()
    return boxes


class Driver:
    """One pool and what it has been asked to run."""

    def __init__(self, order: Order, boxes: NativeBoxes) -> None:
        self._order = order
        self._boxes = boxes
        self._slots = asyncio.Semaphore(order.parallel)
        self._lag_s = self._busy_s = 0.0

    async def run_all(self) -> Outcomes:
        for hello in [self._hello() for _ in range(self._order.parallel)]:
            await hello  # all processes that stay are there now
        processes, descriptors = processes_of(self._order.uid), count_descriptors()
        watching = asyncio.create_task(self._watch_lag())
        outcomes = await asyncio.gather(*map(self._run_one, self._order.escapes))
        watching.cancel()
        await self._boxes.rest()
        left = await settle(self._order.uid, processes)
        return Outcomes(
            outcomes=outcomes,
            num_restarts=self._boxes.num_restarts,
            descriptors=count_descriptors() - descriptors,
            left=left,
            lag_s=self._lag_s,
        )

    async def _run_one(self, escape: Escape) -> Outcome:
        async with self._slots:
            outcome = Outcome(name=escape.name)
            processes, descriptors = processes_of(self._order.uid), count_descriptors()
            lag_s, self._lag_s = self._lag_s, 0.0
            self._busy_s = 0.0
            try:
                await self._attack(escape, outcome)
                began_s = time.monotonic()
                outcome.hello = await self._hello()
                outcome.hello_s = time.monotonic() - began_s
            except AtlasError as error:
                outcome.failure = f"{type(error).__name__}: {error.message}"
            if self._order.parallel == 1:
                await self._boxes.rest()
                outcome.left = await settle(self._order.uid, processes)
                outcome.descriptors = count_descriptors() - descriptors
                outcome.lag_s, outcome.busy_s = self._lag_s, self._busy_s
            self._lag_s = max(lag_s, self._lag_s)
            return outcome

    async def _attack(self, escape: Escape, outcome: Outcome) -> None:
        running = asyncio.create_task(self._run(escape, escape.code))
        beside = asyncio.create_task(self._run(escape, escape.along)) if escape.along else None
        if escape.meanwhile:
            outcome.meanwhile = await MEANWHILE[escape.meanwhile](self._order.host)
        try:
            outcome.main = await running
        finally:
            if beside is not None:
                outcome.along = await beside
        if escape.then:
            outcome.then = await self._run(escape, escape.then)

    async def _run(self, escape: Escape, code: str) -> Seen:
        spec = BoxSpec(
            runner="run",
            payload={},
            limits=RunLimits(**{"wall_s": DEFAULT_WALL_S, **escape.limits}),
            files={**escape.files, "main.py": source(code, self._order.host)},
            tests=escape.tests,
            stdin=escape.stdin.encode(),
            fresh=escape.fresh,
            has_keeper=escape.has_keeper,
        )
        if self._order.ahead and not escape.tests:
            spec = msgspec.structs.replace(spec, fresh=True)
            await self._boxes.run(msgspec.structs.replace(spec, files={"main.py": ""}, limits=_patient(spec.limits)))
        return seen(await self._boxes.run(spec))

    async def _hello(self) -> str:
        result = await self._boxes.run(BoxSpec(runner="run", payload={}, files={"main.py": "print('hello', 6 * 7)"}))
        return f"{result.ending} {result.stdout.decode().strip()}"

    async def _watch_lag(self) -> None:
        """How late the pool's loop gets, and how long it computes at a time: what one attack costs all others."""
        while True:
            began_s, used_s = time.monotonic(), time.thread_time()
            await asyncio.sleep(LAG_EVERY_S)
            self._busy_s = max(self._busy_s, time.thread_time() - used_s)
            self._lag_s = max(self._lag_s, time.monotonic() - began_s - LAG_EVERY_S)


def _patient(limits: RunLimits) -> RunLimits:
    """With time to end by itself, which is all that a box prepared for the same limits may differ in."""
    return msgspec.structs.replace(limits, wall_s=DEFAULT_WALL_S)


def seen(result: BoxResult) -> Seen:
    return Seen(
        ending=result.ending,
        exit_code=result.exit_code,
        stdout=result.stdout,
        stderr=result.stderr,
        reported=repr(result.frames)[:100_000].encode(errors="backslashreplace"),
        is_damaged=result.is_damaged,
        wall_s=result.wall_s,
        cpu_s=result.cpu_s,
        peak_bytes=result.peak_bytes,
    )


def processes_of(uid: int) -> dict[int, str]:
    """What runs as this user below this process, or below nobody any more, by pid."""
    parents, commands = {}, {}
    for path in PROC.iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == uid:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(path.name)] = (path / "cmdline").read_text(errors="replace").replace("\0", " ")[:200]
    return {pid: command for pid, command in commands.items() if _origin(pid, parents) in (os.getpid(), 1)}


def _origin(pid: int, parents: dict[int, int]) -> int:
    """This process, or whoever else the line of its parents leads to that is not of that user."""
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid


async def settle(uid: int, before: dict[int, str]) -> list[str]:
    """What still runs that did not before, once the kernel has had its time."""
    deadline_s = time.monotonic() + SETTLE_S
    while True:
        left = [f"{pid}: {command}" for pid, command in processes_of(uid).items() if pid not in before]
        if not left or time.monotonic() > deadline_s:
            return left
        await asyncio.sleep(0.02)


def count_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def do_something_else(_: dict[str, Any]) -> str:
    """The pool is busy while the box begins."""
    await asyncio.sleep(0.003)
    time.sleep(0.3)  # noqa: ASYNC251 - that is the point
    return ""


async def watch_files(_: dict[str, Any]) -> str:
    """Whoever runs the pool may go on to watch files."""
    await asyncio.sleep(MEANWHILE_S)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init()
    if descriptor < 0:
        return f"inotify_init: {os.strerror(ctypes.get_errno())}"
    os.close(descriptor)
    return ""


async def poll_events(_: dict[str, Any]) -> str:
    """Whoever runs the pool may go on to wait for events."""
    await asyncio.sleep(MEANWHILE_S)
    epoll = select.epoll()
    ends = os.pipe()
    try:
        epoll.register(ends[0])
    except OSError as error:
        return f"epoll: {error}"
    finally:
        epoll.close()
        for end in ends:
            os.close(end)
    return ""


async def write_shared_file(host: dict[str, Any]) -> str:
    """Who owns a file that boxes can see may go on to write it."""
    await asyncio.sleep(MEANWHILE_S)
    try:
        os.close(os.open(host["shared_file"], os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return f"open for writing: {error}"
    return ""


async def lock_shared_file(host: dict[str, Any]) -> str:
    await asyncio.sleep(MEANWHILE_S)
    descriptor = os.open(host["shared_file"], os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"flock: {error}"
    finally:
        os.close(descriptor)
    return ""


async def connect_loopback(host: dict[str, Any]) -> str:
    """What a box listens on is not on the host's loopback."""
    await asyncio.sleep(MEANWHILE_S)
    with socket.socket() as client:
        client.settimeout(0.2)
        try:
            client.connect(("127.0.0.1", host["box_port"]))
        except OSError:
            return ""
    return "the host reached a server in a box"


MEANWHILE: dict[str, Callable[[dict[str, Any]], Awaitable[str]]] = {
    "do something else": do_something_else,
    "watch files": watch_files,
    "poll events": poll_events,
    "write a shared file": write_shared_file,
    "lock a shared file": lock_shared_file,
    "connect to its loopback": connect_loopback,
}


async def main() -> None:
    configure_logging("error")
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    os.environ["SECRET"] = order.canary  # no box may inherit it
    boxes = await start(order)
    try:
        outcomes = await Driver(order, boxes).run_all()
    finally:
        await boxes.close()
    sys.stdout.buffer.write(msgspec.json.encode(outcomes))


if __name__ == "__main__":
    asyncio.run(main())
