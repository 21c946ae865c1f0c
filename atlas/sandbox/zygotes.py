"""Fork servers as the pool holds them: the process, its socket, and the boxes that live in it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from atlas.errors import SandboxUnavailable
from atlas.types import Tier

log = structlog.get_logger("atlas.sandbox")

INSIDE = Path(__file__).parent / "inside"
START_TIMEOUT_S = 30.0  # importing pylint on a busy machine takes some seconds
STOP_TIMEOUT_S = 2.0
MESSAGE_BYTES = 1 << 16
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "random",
    "LD_BIND_NOW": "1",  # functions of libraries are looked up here, once, and not again in every box
}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """A zygote's last word on a box: the wait status of its program, or what failed on our side; neither if it was killed."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    status: int | None = None
    failure: str | None = None


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """What a zygote is started with.

    Attributes:
        python: its interpreter; what that can import, boxes can.
        uid: taken where the pool runs as root.
        read_only: paths that boxes see beside the system's and the interpreter's.
        project: a directory that boxes may have a view of (inside/project_view.py); empty: none.
        tier: native: boxes are clones of the process; else each is a program that it starts.
        bwrap: path of bubblewrap, in that tier.
    """

    profile: str
    python: str
    uid: int
    read_only: tuple[str, ...] = ()
    project: str = ""
    tier: Tier = "native"
    bwrap: str = ""

    @property
    def program(self) -> Path:
        return INSIDE / ("zygote.py" if self.tier == "native" else "starter.py")


class Zygote:
    """One fork server. Written in the event loop's thread only."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.layers: dict[str, Any] = {}
        self.pids: dict[int, int] = {}  # job -> pid of its keeper in the zygote's namespace
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._endings: dict[int, asyncio.Future[Ended]] = {}
        self._on_started: dict[int, Callable[[float], None]] = {}
        self._ready: asyncio.Future[None] | None = None

    @property
    def is_alive(self) -> bool:
        return self._socket is not None

    @property
    def num_boxes(self) -> int:
        return len(self._endings)

    @property
    def pid(self) -> int | None:
        """Of the launcher; the zygote itself is its only child."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the process and wait until it is warm.

        Raises:
            SandboxUnavailable: it could not isolate itself, or did not come up in time; the message says why.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(self.configuration.python, "-I", str(self.configuration.program), str(theirs.fileno())),
                msgspec.json.encode(self.configuration).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,  # a share of the processors for it and its boxes, apart from the pool's
            )
        self._socket = ours
        self._ready = loop.create_future()
        loop.add_reader(ours, self._read)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.shield(self._ready)
        except TimeoutError:
            await self.stop()
            raise SandboxUnavailable(f"the sandbox's {self.configuration.profile} process was not ready in time") from None
        except SandboxUnavailable:
            await self.stop()
            raise

    def submit(
        self, job: int, descriptors: Sequence[int], on_started: Callable[[float], None], *, has_keeper: bool, is_fresh: bool
    ) -> asyncio.Future[Ended]:
        """Make a box of these descriptors, which stay the caller's to close.

        `on_started` is called once `ask` has been, with the time at which the box was started.

        Raises:
            SandboxUnavailable: the zygote is gone or does not listen.
        """
        if self._socket is None:
            raise SandboxUnavailable("the sandbox's process has ended; it is being started again", retry_after_s=1)
        rights = array.array("i", descriptors)
        try:
            self._socket.sendmsg(
                [b"box %d %d %d" % (job, has_keeper, is_fresh)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
            )
        except OSError as error:
            self._lose(f"the sandbox's process does not take work: {error.strerror}")
            raise SandboxUnavailable("the sandbox's process died; it is being started again", retry_after_s=1) from None
        ending = asyncio.get_running_loop().create_future()
        self._endings[job] = ending
        self._on_started[job] = on_started
        return ending

    def ask(self, job: int) -> None:
        """Ask since when a box runs: the first to wonder is whoever it takes too long."""
        self._say(b"tell %d" % job, job)

    def kill(self, job: int) -> None:
        self._say(b"kill %d" % job, job)

    def _say(self, message: bytes, job: int) -> None:
        if self._socket is not None and job in self._endings:
            with contextlib.suppress(OSError):  # a zygote that is gone has taken the box with it
                self._socket.send(message)

    async def stop(self) -> None:
        """End it and every box in it."""
        self._lose("the sandbox is closing")
        if self._process is None or self._process.returncode is not None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()  # its child is told by the kernel
            await self._process.wait()

    def _read(self) -> None:
        assert self._socket is not None
        while self._socket is not None:
            try:
                message = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._lose("the sandbox's process died")
                return
            self._hear(msgspec.json.decode(message))

    def _hear(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._end(message.pop("ended"), msgspec.convert(message, Ended))
        elif "started" in message:
            job = message["started"]
            self.pids[job] = message["pid"]
            if started := self._on_started.pop(job, None):
                started(message["at_s"])
        elif "ready" in message:
            self.layers = message["ready"]
            if self._ready and not self._ready.done():
                self._ready.set_result(None)
        elif self._ready and not self._ready.done():
            self._ready.set_exception(SandboxUnavailable(message["broken"]))

    def _end(self, job: int, ended: Ended) -> None:
        self.pids.pop(job, None)
        self._on_started.pop(job, None)
        future = self._endings.pop(job, None)
        if future and not future.done():
            future.set_result(ended)

    def _lose(self, reason: str) -> None:
        """The socket is gone, and so is everything behind it."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = None
        if self._ready and not self._ready.done():
            self._ready.set_exception(SandboxUnavailable(reason))
        for future in self._endings.values():
            if not future.done():
                future.set_exception(SandboxUnavailable(reason, retry_after_s=1))
        self._endings.clear()
        self._on_started.clear()
        self.pids.clear()
        log.info("zygote.lost", profile=self.configuration.profile, reason=reason)
