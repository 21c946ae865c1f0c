"""The front door: `Sandbox` starts the pool process, or connects to one that runs, and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from pathlib import Path

import msgspec
import structlog

from atlas.errors import AtlasError, BadRequest, SandboxOverloaded, SandboxRefused, SandboxUnavailable
from atlas.sandbox.wire import Answer, AskStatus, Cancel, Check, Connection, Done, Failed, PoolConfiguration, Run
from atlas.settings import LogSettings, SandboxSettings
from atlas.types import Execution, Program, ProjectCheck, ProjectVerdict, RunLimits, SandboxStatus

log = structlog.get_logger("atlas.sandbox")

STOP_TIMEOUT_S = 5.0
FIRST_BACKOFF_S = 0.1  # doubled with each start that did not last
MAX_BACKOFF_S = 5.0
LASTING_S = 10.0
BACKLOG = 64
ANSWERS: tuple[type[AtlasError], ...] = (BadRequest, SandboxOverloaded, SandboxRefused, SandboxUnavailable)
BY_CODE = {error.code: error for error in ANSWERS}


class Sandbox:
    """Runs code that nobody trusts. Used from one event loop.

    Args:
        settings: of the pool.
        socket_path: where further clients find the pool; None: nobody else does.
        is_unsafe: without isolation, if there is none to be had. Every Execution says so.
    """

    def __init__(
        self,
        settings: SandboxSettings,
        *,
        socket_path: Path | None = None,
        is_unsafe: bool = False,
        log_settings: LogSettings = LogSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._configuration = PoolConfiguration(settings=settings, log=log_settings, is_unsafe=is_unsafe)
        self._socket_path = socket_path
        self._listener: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._line = Line()

    @property
    def pid(self) -> int | None:
        """Of the pool process, if it is ours and alive."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def is_up(self) -> bool:
        """Whether there is a pool to ask."""
        return self._line.is_open

    @classmethod
    async def connect(cls, socket_path: Path) -> Sandbox:
        """The pool that listens there, which somebody else owns.

        Raises:
            SandboxUnavailable: nobody does.
        """
        sandbox = cls(SandboxSettings())
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_unix_connection(sandbox._line.connection, str(socket_path))
        except OSError as error:
            raise SandboxUnavailable(f"no sandbox listens on {socket_path}: {error.strerror}") from None
        sandbox._line.open(connection)
        return sandbox

    async def start(self) -> None:
        """Start the pool; it is started again whenever it dies. Which tier it chose, `status` tells."""
        if self._socket_path is not None:
            self._listener = _listen(self._socket_path)
        await self._spawn()
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the pool and everything that runs in it, if it is ours."""
        if self._keeping:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._line.close()
        if self._process is not None:
            await _wait(self._process)
        if self._listener is not None and self._socket_path is not None:
            self._listener.close()
            self._socket_path.unlink(missing_ok=True)

    async def run(self, program: Program, limits: RunLimits = RunLimits()) -> Execution:  # noqa: B008 - frozen
        """Run a program to its end, or to one of the limits. Cancelling the call ends the run.

        Raises:
            BadRequest: the program makes no sense; the message names what.
            SandboxRefused: code cannot be isolated here as the settings demand.
            SandboxOverloaded: too many runs wait already.
            SandboxUnavailable: the sandbox itself failed.
        """
        answer = await self._line.ask(Run(id=self._line.next_id(), program=program, limits=limits))
        assert answer.execution is not None
        return answer.execution

    async def check_project(self, check: ProjectCheck) -> ProjectVerdict:
        """Judge a change to a project by the project's own tests. Cancelling the call ends its runs.

        Raises:
            BadRequest: the project, the command or the interpreter cannot be used; the message names what.
            SandboxRefused: code cannot be isolated here, or projects cannot be shown in the tier that there is.
            SandboxOverloaded: too many runs wait already.
            SandboxUnavailable: the sandbox itself failed.
        """
        answer = await self._line.ask(Check(id=self._line.next_id(), check=check))
        assert answer.verdict is not None
        return answer.verdict

    async def status(self) -> SandboxStatus:
        """How the pool is; waits until it has chosen its tier.

        Raises:
            SandboxUnavailable: the pool is not there.
        """
        answer = await self._line.ask(AskStatus(id=self._line.next_id()))
        assert answer.status is not None
        return answer.status

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        inherited = [theirs.fileno(), *([self._listener.fileno()] if self._listener else [])]
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "atlas.sandbox.pool"),
                *(str(theirs.fileno()), str(self._listener.fileno() if self._listener else -1)),
                msgspec.json.encode(self._configuration).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,  # a share of the processors of its own: it can end boxes however busy they are
            )
        _, connection = await asyncio.get_running_loop().create_connection(self._line.connection, sock=ours)
        self._line.open(connection)

    async def _keep(self) -> None:
        """Start the pool again whenever it has died; the faster it dies, the slower."""
        backoff_s = FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None
            started_s = loop.time()
            status = await self._process.wait()
            backoff_s = FIRST_BACKOFF_S if loop.time() - started_s > LASTING_S else min(2 * backoff_s, MAX_BACKOFF_S)
            log.warning("sandbox.pool_died", exit_status=status, again_in_s=backoff_s)
            self._line.close()
            await asyncio.sleep(backoff_s)
            await self._spawn()


class Line:
    """Questions under way on one connection, which may be opened again."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Done]] = {}
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        return Connection(Answer, self._hear, self.close)

    def open(self, connection: Connection) -> None:
        """Ask on this one from now on; it is connected."""
        self._connection = connection

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def next_id(self) -> int:
        return next(self._ids)

    async def ask(self, question: Run | Check | AskStatus) -> Done:
        if self._connection is None:
            raise SandboxUnavailable("the sandbox is not running; it is being started again", retry_after_s=1)
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._asked[question.id] = answer
        self._connection.send(question)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._connection is not None:
                self._connection.send(Cancel(id=question.id))
            raise
        finally:
            self._asked.pop(question.id, None)

    def close(self) -> None:
        """The other end is gone, or not wanted any more: nothing asked for will be answered."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        connection.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(SandboxUnavailable("the sandbox's pool died", retry_after_s=1))

    def _hear(self, answer: Done | Failed) -> None:
        future = self._asked.get(answer.id)
        if future is None or future.done():
            return
        if isinstance(answer, Failed):
            future.set_exception(_error(answer))
        else:
            future.set_result(answer)


def _error(answer: Failed) -> AtlasError:
    kind = BY_CODE.get(answer.code, SandboxUnavailable)
    return kind(answer.message, param=answer.param, retry_after_s=answer.retry_after_s)


def _listen(path: Path) -> socket.socket:
    """A socket only this user can open, in place of one that a dead server left behind."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(BACKLOG)
    return listener


async def _wait(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
