"""One box from the pool's side: what it writes is read and bounded, its time is kept, and its ending is told."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from atlas.errors import SandboxUnavailable
from atlas.sandbox.boxes import BoxResult, BoxSpec, Ending
from atlas.sandbox.inside.frames import FRAME_LIMIT_BYTES, HEADER_BYTES
from atlas.sandbox.zygotes import Ended

READ_BYTES = 1 << 16
STDERR_BYTES = 256 * 1024
FOLLOW_AFTER_S = 0.01  # most boxes are over by then; a program that fills a pipe before waits that long, once
REPORT_BYTES = FRAME_LIMIT_BYTES
MAX_FRAMES = 100_000  # of one report, a tenth of a second to read; three for each of 30,000 tests
# What a report may hold, by the signs that its values are written with, so that none takes longer than that to read either. Signs
# within strings count as well. Two lists of four megabytes of small numbers are within it.
MAX_SIGNS = ((b"[{", 600_000), (b":", 300_000), (b'"', 2_400_000), (b",", 4_200_000))
_decode = json.JSONDecoder().raw_decode
FEW_BYTES = 1 << 20  # cannot hold more than is read at once


class Output:
    """Reads one pipe; calls `on_full` once when more came than may be kept.

    Most boxes end before they fill a pipe, so nothing is read before `follow` is called or the box has ended: that spares the
    pool most of its wake-ups.
    """

    def __init__(
        self, descriptor: int, limit_bytes: int, on_full: Callable[[], None], on_first: Callable[[], None] = lambda: None
    ) -> None:
        self._descriptor = descriptor
        self._on_first = on_first
        self._limit_bytes = limit_bytes
        self._on_full = on_full
        self._head = bytearray()
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)

    def follow(self) -> None:
        """Read as it fills."""
        self._loop.add_reader(self._descriptor, self.read)

    def read(self) -> bool:
        """Take what is there; False if nothing is, or never will be."""
        try:
            part = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # it ended without reading what it was told; told once, before what it has written
            return True
        if not part:
            self._loop.remove_reader(self._descriptor)
            return False
        if not self._head:
            self._on_first()
        self._keep(part)
        return True

    def _keep(self, part: bytes) -> None:
        room = self._limit_bytes - len(self._head)
        self._head += part[: max(0, room)]
        if len(part) > room >= 0:
            self._limit_bytes = -1  # whatever follows is dropped
            self._on_full()

    @property
    def is_deserted(self) -> bool:
        """Whether nobody is left who could write."""
        poll = select.poll()
        poll.register(self._descriptor, 0)
        return bool(poll.poll(0))

    def close(self) -> bytes:
        """Everything kept; what is still in the pipe is read first. All writers have ended by now."""
        while self.read():
            pass
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        return bytes(self._head)


class HeadAndTail(Output):
    """Keeps the first and the last half of what may be kept; nothing is ever too much."""

    def __init__(self, descriptor: int, limit_bytes: int) -> None:
        super().__init__(descriptor, limit_bytes // 2, lambda: None)
        self._half = limit_bytes // 2
        self._tail = bytearray()
        self._dropped = 0

    def _keep(self, part: bytes) -> None:
        room = self._half - len(self._head)
        self._head += part[:room]
        self._tail += part[room:]
        surplus = len(self._tail) - self._half
        if surplus > 0:
            del self._tail[:surplus]
            self._dropped += surplus

    def close(self) -> bytes:
        head = super().close()
        gap = f"\n... {self._dropped} bytes left out ...\n".encode() if self._dropped else b""
        return head + gap + bytes(self._tail)


class Box:
    """A box that runs. Its ending may be decided here (a limit, a cancellation) or by itself.

    Args:
        spec: what it is.
        ask: asks since when it runs; answered by `start_clock`.
        kill: ends it.
        stdout, stderr, report: our ends of what it writes.
    """

    def __init__(
        self, spec: BoxSpec, *, ask: Callable[[], None], kill: Callable[[], None], stdout: int, stderr: int, report: int
    ) -> None:
        self.spec = spec
        self.started_s = 0.0  # as far as is known
        self._taken_s = 0.0
        self._report = report
        self._ask = ask
        self.seen_bytes = 0  # most memory the watch has seen, and the processor time
        self.seen_cpu_s = 0.0
        self._kill = kill
        self._reason: Ending | None = None
        self._loop = asyncio.get_running_loop()
        self._wall: asyncio.TimerHandle | None = None
        self._following: asyncio.TimerHandle | None = None
        self._has_begun = False
        self._written: tuple[bytes, bytes, bytes] | None = None
        self._outputs = (
            Output(stdout, spec.limits.output_bytes, lambda: self.end("output")),
            HeadAndTail(stderr, STDERR_BYTES),
            Output(report, REPORT_BYTES, lambda: self.end("output"), self._begin),
        )

    def submitted(self) -> None:
        """It is on its way: be there if it takes longer than most."""
        self._following = self._loop.call_later(FOLLOW_AFTER_S, self.follow)

    def hear_word(self) -> asyncio.Future[bytes]:
        """The first byte that comes from a box that is prepared, before any untrusted code; empty if it has ended."""
        word: asyncio.Future[bytes] = self._loop.create_future()

        def hear() -> None:
            self._loop.remove_reader(self._report)
            said = b""
            with contextlib.suppress(OSError):
                said = os.read(self._report, 1)
            if not word.done():
                word.set_result(said)

        self._loop.add_reader(self._report, hear)
        return word

    def take(self, spec: BoxSpec, word: bytes) -> None:
        """One that was prepared begins with what it is for, at this word.

        Raises:
            OSError: it is gone.
        """
        os.write(self._report, word)
        self.spec = spec
        self._taken_s = time.monotonic()
        self.start_clock(self._loop.time())
        self.submitted()

    def start_clock(self, started_s: float) -> None:
        """It has run since then, on the clock of the loop; of one that was prepared, since it was taken."""
        if self.started_s:
            return
        self.started_s = started_s
        self._allow(self.spec.limits.wall_s + (0.0 if self._has_begun else self.spec.prepare_s), since_s=started_s)

    def _allow(self, seconds: float, *, since_s: float) -> None:
        """Count the wall time from then on."""
        if self._wall:
            self._wall.cancel()
        self._wall = self._loop.call_at(since_s + seconds, self.end, "wall")

    def _begin(self) -> None:
        """The first frame: what had to be prepared is."""
        self._has_begun = True
        if self.spec.prepare_s and self._wall:
            self._allow(self.spec.limits.wall_s, since_s=self._loop.time())

    def follow(self) -> None:
        """It takes longer: read what it writes as it comes, and find out since when it runs."""
        self._ask()
        for output in self._outputs:
            output.follow()

    @property
    def is_over(self) -> bool:
        """Whether its processes have ended; how, will be told in a moment."""
        return self._outputs[-1].is_deserted

    def end(self, reason: Ending) -> None:
        """End it for this reason; the first reason stands."""
        if self._reason is None:
            self._reason = reason
            self._kill()

    def close(self) -> tuple[bytes, bytes, bytes]:
        """Stop the clock and take stdout, stderr and report; nothing of the box is left by now."""
        if self._written is None:
            for timer in filter(None, (self._wall, self._following)):
                timer.cancel()
            stdout, stderr, report = (output.close() for output in self._outputs)
            self._written = stdout, stderr, report
        return self._written

    def result(self, ended: Ended) -> BoxResult:
        """What there is to say, now that it has ended.

        Raises:
            SandboxUnavailable: a layer could not be had, or the fresh interpreter did not come up.
        """
        stdout, stderr, report = self.close()
        if ended.failure is not None:
            raise SandboxUnavailable(f"a box could not be made: {ended.failure}")
        if is_too_full(report):
            self._reason, report = self._reason or "output", b""
        frames, is_damaged = parse_frames(report)
        if self.spec.fresh and self._reason is None and frames[:1] != [{"begun": True}]:
            raise SandboxUnavailable("a fresh interpreter did not start in its box")
        exit_code = None if ended.status is None else os.waitstatus_to_exitcode(ended.status)
        ending = self._ending(exit_code, ended.cpu_s)
        return BoxResult(
            ending=ending,
            exit_code=exit_code if ending == "exit" else None,
            frames=tuple(frames[1:] if self.spec.fresh else frames),
            is_damaged=is_damaged,
            stdout=stdout,
            stderr=stderr,
            wall_s=time.monotonic() - self._taken_s if self._taken_s else ended.wall_s,
            cpu_s=max(ended.cpu_s, self.seen_cpu_s),
            peak_bytes=max(ended.peak_bytes, self.seen_bytes),
        )

    def _ending(self, exit_code: int | None, cpu_s: float) -> Ending:
        if self._reason is not None:
            return self._reason
        if exit_code is None:
            return "killed"
        used_up = cpu_s >= self.spec.limits.cpu_s
        return "cpu" if exit_code == -signal.SIGXCPU or (exit_code == -signal.SIGKILL and used_up) else "exit"


def is_too_full(report: bytes) -> bool:
    """Whether it holds more values than can be read without holding up all other runs."""
    if len(report) <= FEW_BYTES:
        return False
    return any(sum(map(report.count, signs)) > most for signs, most in MAX_SIGNS)


def parse_frames(report: bytes) -> tuple[list[Any], bool]:
    """Whole frames from the start, and whether something else follows them. The writer is not trusted."""
    gc.disable()  # it would look through the values again and again while they are made
    try:
        return _parse_frames(report)
    finally:
        gc.enable()


def _parse_frames(report: bytes) -> tuple[list[Any], bool]:
    frames: list[Any] = []
    position = 0
    while position + HEADER_BYTES <= len(report) and len(frames) < MAX_FRAMES:
        start = position + HEADER_BYTES
        length = int.from_bytes(report[position:start], "big")
        body = report[start : start + length]
        if len(body) < length:
            break
        try:
            frames.append(_parse(body))
        except (ValueError, RecursionError):
            return frames, True
        position = start + length
    return frames, position != len(report)


def _parse(body: bytes) -> Any:
    """As json.loads, which takes three times as long for what frames mostly are: short, and without white space around."""
    text = body.decode("utf-8", "surrogatepass")
    value, end = _decode(text)
    return value if end == len(text) else json.loads(text)
