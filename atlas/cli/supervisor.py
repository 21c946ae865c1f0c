"""The parent of `atlas serve`: holds the listening socket and keeps a serving process behind it.

It stays small on purpose: whatever kills the serving process, a C abort or the kernel, must find this one alive. It loads no
model, no web framework and no torch.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

import atlas
from atlas.cli.keeper import RedisKeeper
from atlas.errors import OperatorError
from atlas.launch import Failed, Launch, Ready, Report, write_launch

log = structlog.get_logger("atlas.supervisor")

RESTART_WINDOW_S = 60.0
FIRST_BACKOFF_S = 0.1  # doubled with each restart within the window
MAX_BACKOFF_S = 5.0
HUGE_PAGES = "glibc.malloc.hugetlb=1"
DRAIN_MARGIN_S = 1.6  # after the streams are cut: closing the engine and the ledger


class Supervisor:
    """Runs `command` with a Launch, again and again, until it is told to stop. Used once, from the main thread.

    Attributes:
        command: the serving process, without its last argument, the file descriptor its Launch is read from.
        on_ready: called the first time a serving process is ready.
        redis: runs as long as there are serving processes; None if the Redis is somebody else's.
    """

    def __init__(
        self, launch: Launch, command: Sequence[str], *, on_ready: Callable[[Ready], None], redis: RedisKeeper | None = None
    ) -> None:
        self.launch = launch
        self.redis = redis
        self.command = tuple(command)
        self.on_ready: Callable[[Ready], None] | None = on_ready
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._failure: Failed | None = None
        self._restarts: deque[float] = deque()  # when, within the window
        self._lives = 0
        self._has_terminal = _has_terminal()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; SIGHUP makes the serving process read its settings again.

        Raises:
            OperatorError: the serving process failed for good, or crashes too often; Redis cannot be started.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self.redis is None:
            await self._serve()
            return
        await self.redis.start()
        try:
            await self._serve()
        finally:
            await self.redis.stop()

    async def _serve(self) -> None:
        while not self._stopping.is_set():
            status = await self._run_once()
            if self._stopping.is_set():
                return
            if self._failure is not None:
                raise OperatorError(self._failure.message)
            await self._back_off(status)

    async def _run_once(self) -> int:
        """One life of a serving process; its exit status, negative for a signal."""
        readable, writable = os.pipe()
        launch = msgspec.structs.replace(self.launch, report_fd=writable, parent_pid=os.getpid(), restarts=self._lives)
        self._lives += 1
        launch_fd = write_launch(launch)
        try:
            # asyncio starts it from this thread, the main one: the child's death signal fires when the starting thread ends.
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                str(launch_fd),
                stdin=asyncio.subprocess.DEVNULL,
                env=serving_environment(),
                pass_fds=(launch.http_fd, launch.control_fd, launch.lock_fd, writable, launch_fd),
            )
        finally:
            os.close(writable)
            os.close(launch_fd)
        reports = asyncio.create_task(self._read_reports(readable))
        status = await self._wait()
        await reports
        return status

    async def _wait(self) -> int:
        """Wait for the process; once a stop is asked for, no longer than it is allowed to take."""
        assert self._process is not None
        exited = asyncio.ensure_future(self._process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((exited, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not exited.done():
            self._signal(signal.SIGTERM)
            await asyncio.wait((exited,), timeout=self.launch.settings.server.drain_timeout_s + DRAIN_MARGIN_S)
        if not exited.done():
            log.warning("serving_process.killed", reason="did not stop in time")
            self._signal(signal.SIGKILL)
        return await exited

    async def _read_reports(self, readable: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        with os.fdopen(readable, "rb", buffering=0) as pipe:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            async for line in reader:
                self._hear(msgspec.json.decode(line, type=Report))
            transport.close()

    def _hear(self, report: Report) -> None:
        if isinstance(report, Failed):
            self._failure = report
        elif self.on_ready is None:
            log.info("serving_process.ready_again", model=report.model)
        else:
            self.on_ready(report)
            self.on_ready = None

    async def _back_off(self, status: int) -> None:
        """Wait a little before the next life, or give up."""
        now_s = time.monotonic()
        while self._restarts and now_s - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        limit = self.launch.settings.server.restart_limit
        if len(self._restarts) >= limit:
            raise OperatorError(
                f"the serving process ended {limit + 1} times within {RESTART_WINDOW_S:.0f} s, last with {_describe(status)}; "
                "the lines above say why, `atlas doctor` looks for the cause"
            )
        delay_s = min(FIRST_BACKOFF_S * 2 ** len(self._restarts), MAX_BACKOFF_S)
        self._restarts.append(now_s)
        log.error("serving_process.died", status=_describe(status), restart_in_s=delay_s)
        try:
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _stop(self) -> None:
        """First signal: stop in order. Second: at once."""
        if self._stopping.is_set():
            self._signal(signal.SIGKILL)
        self._stopping.set()

    def _hang_up(self) -> None:
        """Our terminal has been closed, or somebody wants the settings to be read again."""
        if self._has_terminal and not _has_terminal():
            self._stop()
        else:
            self._signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)


def serving_command() -> list[str]:
    """The serving process in this interpreter. -P keeps a folder named `atlas` in the working directory out of its imports."""
    root = Path(atlas.__file__).parents[1]
    is_checkout = bool(sys.path) and Path(sys.path[0] or ".").resolve() == root
    return [sys.executable, *([] if is_checkout else ["-P"]), "-m", "atlas.app"]


def serving_environment() -> dict[str, str]:
    """Ours, with large memory in huge pages where the kernel gives them to who asks: weights and cells are read through once a
    token, and with small pages the processor looks up an address every 4 KiB (measured: docs/log.md). glibc's malloc, 2.35 and
    later, asks; others ignore it. Whoever has set GLIBC_TUNABLES keeps it, and has the last word.
    """
    own = os.environ.get("GLIBC_TUNABLES")
    return {**os.environ, "GLIBC_TUNABLES": f"{HUGE_PAGES}:{own}" if own else HUGE_PAGES}


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
