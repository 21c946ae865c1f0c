"""Keeps the private Redis running beside the serving process, from the parent of `atlas serve`."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque

import structlog

from atlas.errors import OperatorError
from atlas.launch import end_process
from atlas.valkey import PrivateRedis

log = structlog.get_logger("atlas.keeper")

START_TIMEOUT_S = 30.0  # until it answers; it answers while it loads, too
EXIT_TIMEOUT_S = 10.0  # to write what it has to (chosen)
FIRST_BACKOFF_S = 0.1  # doubled with each restart in a row
MAX_BACKOFF_S = 5.0
LASTING_S = 60.0  # having run this long, the next end is the first one again


class RedisKeeper:
    """Starts `server`, starts it again whenever it ends, and ends it in order. Used once, from the main thread.

    It never gives up: without Redis nothing that is metered is served, but pages and sign-in are.
    """

    def __init__(self, server: PrivateRedis) -> None:
        self.server = server
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=5)

    async def start(self) -> None:
        """Start it, and keep it from now on.

        Raises:
            OperatorError: its folder is held, or it ends at once; the message has what it said.
        """
        await asyncio.to_thread(self.server.take_place)
        try:
            process = await self._launch()
            await self._wait_up(process)
        except OperatorError:
            self.server.release()
            raise
        self._keeping = asyncio.create_task(self._keep(process))

    async def stop(self) -> None:
        """End it, with time to write; its clients should have gone."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self._end()
        self.server.release()

    async def _wait_up(self, process: asyncio.subprocess.Process) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not await asyncio.to_thread(self.server.is_up):
            if process.returncode is not None or time.monotonic() > deadline_s:
                await self._end()
                raise OperatorError(f"{self.server.binary} does not start: {' / '.join(self._last_lines) or 'it says nothing'}")
            await asyncio.sleep(0.01)

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            started_s = time.monotonic()
            status = await process.wait()
            if time.monotonic() - started_s > LASTING_S:
                backoff_s = FIRST_BACKOFF_S
            log.error("redis.died", status=status, said=list(self._last_lines), restart_in_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            try:
                process = await self._launch()
            except OSError as error:  # out of processes, memory or file descriptors: tried again after a longer pause
                log.error("redis.not_started", reason=str(error))

    async def _launch(self) -> asyncio.subprocess.Process:
        """Start the process: from this thread, the main one, since its death signal fires when the starting thread ends.

        In a session of its own: an interrupt from the terminal is for the server, which still has things to count while it stops.
        """
        assert self.server.lock_fd is not None
        readable, writable = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.server.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writable,
                stderr=writable,
                pass_fds=(self.server.lock_fd,),
                start_new_session=True,
            )
        finally:
            os.close(writable)
        self._reading = asyncio.create_task(self._read(readable))
        return self._process

    async def _read(self, readable: int) -> None:
        """What it says: warnings. Kept for the case that it dies."""
        reader = asyncio.StreamReader()
        with os.fdopen(readable, "rb", buffering=0) as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            try:
                async for line in reader:
                    self._last_lines.append(line.decode("utf-8", "replace").strip())
                    log.debug("redis.said", line=self._last_lines[-1])
            finally:
                transport.close()

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        if await end_process(process, timeout_s=EXIT_TIMEOUT_S):
            log.warning("redis.killed", reason="did not stop in time")
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
