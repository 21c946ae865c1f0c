"""The process of a worker: `python -m atlas.ralph OPTIONS` beside a server, `atlas worker` elsewhere.

It loads neither the model's library nor torch nor the web framework, and opens neither ledger nor Redis.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from atlas.errors import OperatorError
from atlas.launch import die_with
from atlas.log import configure_logging
from atlas.ralph.dial import local, remote
from atlas.ralph.held import RunProgram
from atlas.ralph.line import Dial, Line
from atlas.ralph.worker import Worker, ended
from atlas.sandbox import Sandbox
from atlas.settings import LogSettings, SandboxSettings
from atlas.types import Execution, Program, RunLimits, Value

log = structlog.get_logger("atlas.worker")


class WorkerOptions(Value, frozen=True, kw_only=True):
    """What a worker is started with.

    Attributes:
        socket: of the server on this machine; empty: `server` is somewhere else.
        server: its address.
        key: of scope `worker`.
        ca: PEM file of the server's own certificate authority.
        parent_pid: the process to end with; 0: none.
        sandbox: a pool of this worker's own; None: the server's runs the code.
    """

    socket: str = ""
    server: str = ""
    key: str = ""
    ca: str = ""
    parent_pid: int = 0
    sandbox: SandboxSettings | None = None
    log: LogSettings = LogSettings()

    @property
    def dial(self) -> Dial:
        return local(Path(self.socket)) if self.socket else remote(self.server, self.key, ca=self.ca)


async def run_worker(options: WorkerOptions) -> None:
    """Work until SIGTERM or SIGINT; a second one ends it at once.

    Raises:
        OperatorError: the server does not want this worker.
    """
    async with _own_sandbox(options) as run:
        line = Line(options.dial, own_name())
        pool = NearPool(line)
        worker = Worker(line, lambda: run or (pool.run if line.welcome.sandbox else None))
        _stop_by_signals(worker)
        keeping, working = asyncio.create_task(line.keep()), asyncio.create_task(worker.work())
        try:
            await asyncio.wait((keeping, working), return_when=asyncio.FIRST_COMPLETED)
        finally:
            await ended(working)
            await ended(keeping)
            await pool.close()


def own_name() -> str:
    """Of this process, as the journal shows it: no other has it, here or elsewhere."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())[:32]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


@asynccontextmanager
async def _own_sandbox(options: WorkerOptions) -> AsyncIterator[RunProgram | None]:
    """A pool of this worker's own, where it is to have one and code can be isolated."""
    if options.sandbox is None:
        yield None
        return
    sandbox = Sandbox(options.sandbox, log_settings=options.log)
    await sandbox.start()
    try:
        status = await sandbox.status()
        if status.tier is None:
            log.warning("worker.no_sandbox", reason=status.reason, instead="the server's runs the code")
        yield sandbox.run if status.tier is not None else None
    finally:
        await sandbox.close()


class NearPool:
    """The server's pool, which its socket leads to: programs and what they showed need not go through the server."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._sandbox: Sandbox | None = None

    async def run(self, program: Program, limits: RunLimits) -> Execution:
        """As `Sandbox.run`."""
        if self._sandbox is None or not self._sandbox.is_up:
            await self.close()
            self._sandbox = await self._connected()
        return await self._sandbox.run(program, limits)

    async def close(self) -> None:
        if self._sandbox is not None:
            await self._sandbox.close()
            self._sandbox = None

    async def _connected(self) -> Sandbox:
        return await Sandbox.connect(Path(self._line.welcome.sandbox))


def _stop_by_signals(worker: Worker) -> None:
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        worker.stop()
        loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


def main() -> None:
    """Beside a server: the options are the only argument, and what else there is to know comes over the line."""
    options = msgspec.json.decode(sys.argv[1], type=WorkerOptions)
    configure_logging(options.log.level, form=options.log.format)
    if options.parent_pid:
        die_with(options.parent_pid)
    try:
        asyncio.run(run_worker(options))
    except OperatorError as error:
        log.error("worker.refused", reason=error.message)
        sys.exit(1)
