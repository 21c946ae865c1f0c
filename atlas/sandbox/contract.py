"""The contract of a tier, tried out: what a box must do, and what must not get out of it. Run by tests and by `atlas doctor`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from atlas.errors import AtlasError
from atlas.sandbox.boxes import Boxes, BoxResult, BoxSpec
from atlas.sandbox.contract_promises import PROMISES, UNCONFINED, WITHOUT_NAMESPACES, Promise
from atlas.types import RunLimits, Tier

PROC = Path("/proc")
WALL_S = 20.0  # for programs that end by themselves, on a busy machine
PROMPT_S = 2.0
SETTLE_S = 0.2


class ContractResult(msgspec.Struct, frozen=True, kw_only=True):
    """Whether one behaviour holds; `detail` says what was seen instead."""

    name: str
    is_ok: bool
    detail: str = ""


class Broken(Exception):
    """A promise was not kept; the message says what was seen."""


class Host:
    """What boxes must not reach: a file, a directory anybody may write to, and servers."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="atlas-contract-"))
        self.directory.chmod(0o777)  # isolation is to protect it, not permissions
        self.canary = secrets.token_hex(16)
        path = self.directory / "canary.txt"
        path.write_text(self.canary)
        path.chmod(0o644)
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(f"\0{self.canary[::-1]}")
        self._unix.listen()

    def fill_in(self, code: str) -> str:
        facts = {
            "CANARY": str(self.directory / "canary.txt"),
            "DIRECTORY": str(self.directory),
            "PORT": str(self._tcp.getsockname()[1]),
            "ABSTRACT": self.canary[::-1],
        }
        for name, value in facts.items():
            code = code.replace(f"@{name}@", value)
        return code

    def damage(self) -> Iterator[str]:
        if (names := sorted(path.name for path in self.directory.iterdir())) != ["canary.txt"]:
            yield f"files were written outside: {names}"
        for listener in (self._tcp, self._unix):
            listener.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                listener.accept()[0].close()
                yield f"a box connected to {listener.getsockname()!r}"

    def close(self) -> None:
        self._tcp.close()
        self._unix.close()
        shutil.rmtree(self.directory, ignore_errors=True)


Check = Callable[[Boxes], Awaitable[None]]
CHECKS: dict[str, tuple[Check, tuple[Tier, ...]]] = {}


def check(name: str, *, not_in: tuple[Tier, ...] = ()) -> Callable[[Check], Check]:
    """A behaviour that takes more than one program to see."""

    def register(function: Check) -> Check:
        CHECKS[name] = (function, not_in)
        return function

    return register


async def check_contract(boxes: Boxes, *, only: frozenset[str] | None = None) -> list[ContractResult]:
    """Try everything that the tier of these boxes promises, or of it what `only` names; nothing is raised."""
    slots = asyncio.Semaphore(boxes.slots)
    host = Host()
    promises = [promise for promise in PROMISES if boxes.tier not in promise.not_in and (not only or promise.name in only)]
    checks = [(name, run) for name, (run, not_in) in CHECKS.items() if boxes.tier not in not_in and (not only or name in only)]
    try:
        results = await asyncio.gather(
            *(_try(promise.name, _keep(promise, host, boxes), slots) for promise in promises),
            *(_try(name, run(boxes), slots) for name, run in checks),
        )
        damage = "; ".join(host.damage()) if boxes.tier not in UNCONFINED else ""
    finally:
        host.close()
    return [*results, ContractResult(name="the host is as it was", is_ok=not damage, detail=damage)]


async def _try(name: str, promised: Awaitable[None], slots: asyncio.Semaphore) -> ContractResult:
    async with slots:
        try:
            await promised
        except Broken as broken:
            return ContractResult(name=name, is_ok=False, detail=str(broken)[:1000])
        except AtlasError as error:
            return ContractResult(name=name, is_ok=False, detail=f"a failure of ours: {error.message}")
    return ContractResult(name=name, is_ok=True)


async def _keep(promise: Promise, host: Host, boxes: Boxes) -> None:
    result = await boxes.run(
        BoxSpec(
            runner="run",
            payload={},
            files={"main.py": host.fill_in(promise.code), **promise.files},
            tests=promise.tests,
            stdin=promise.stdin,
            fresh=promise.fresh,
            limits=RunLimits(**{"wall_s": WALL_S, **promise.limits}),
        )
    )
    wanted = (promise.ending, promise.exit_code if promise.ending == "exit" else None)
    _expect((result.ending, result.exit_code) == wanted and promise.says in (None, result.stdout), result)


def program(code: str, *, fresh: bool = False, wall_s: float = WALL_S) -> BoxSpec:
    """A box that runs this as a whole program."""
    return BoxSpec(runner="run", payload={}, files={"main.py": code}, fresh=fresh, limits=RunLimits(wall_s=wall_s))


def _expect(holds: bool, seen: object) -> None:
    if not holds:
        raise Broken(f"seen: {_show(seen)}")


def _show(seen: object) -> str:
    if isinstance(seen, BoxResult):
        return f"{seen.ending} {seen.exit_code}, stdout {seen.stdout[-300:]!r}, stderr {seen.stderr[-500:]!r}"
    return repr(seen)


async def _gone(marker: str) -> None:
    """No process anywhere on this machine bears the marker in its arguments."""
    await asyncio.sleep(SETTLE_S)
    left = _bearing(marker.encode())
    _expect(not left, f"processes {left} live on")


def _bearing(marker: bytes) -> list[str]:
    left = []
    for directory in PROC.iterdir():
        with contextlib.suppress(OSError):
            if directory.name.isdecimal() and marker in (directory / "cmdline").read_bytes():
                left.append(directory.name)
    return left


def _daemon(marker: str) -> str:
    """A program that leaves a grandchild behind, in a session of its own and known by its arguments."""
    return f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        os.execv('/bin/sh', ['sh', '-c', 'sleep 300; : {marker}'])
    os._exit(0)
os.wait()
time.sleep(0.1)
print('ok', flush=True)
"""


def _marker() -> str:
    return f"contract-{secrets.token_hex(8)}"


@check("a daemon ends with its box")
async def _daemon_ends(boxes: Boxes) -> None:
    marker = _marker()
    result = await boxes.run(program(_daemon(marker)))
    _expect((result.ending, result.stdout) == ("exit", b"ok\n"), result)
    await _gone(marker)


@check("a limit ends grandchildren too")
async def _limit_ends_all(boxes: Boxes) -> None:
    marker = _marker()
    result = await boxes.run(program(_daemon(marker) + "time.sleep(60)", wall_s=1.0))
    _expect((result.ending, result.stdout) == ("wall", b"ok\n"), result)
    await _gone(marker)


@check("cancelling is prompt and leaves nothing")
async def _cancel_is_prompt(boxes: Boxes) -> None:
    marker = _marker()
    running = asyncio.create_task(boxes.run(program(_daemon(marker) + "while True: pass")))
    await asyncio.sleep(1.0)
    started_s = time.monotonic()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    _expect(time.monotonic() - started_s < PROMPT_S, f"cancelled after {time.monotonic() - started_s:.1f} s")
    await _gone(marker)


@check("nothing of one run is there in the next", not_in=WITHOUT_NAMESPACES)
async def _nothing_remains(boxes: Boxes) -> None:
    places = "('.', '/tmp', '/dev/shm')"
    await boxes.run(program(f"for place in {places}: open(place + '/left-over', 'w').write('x')\n{_daemon(_marker())}"))
    result = await boxes.run(
        program(
            f"import os; print([place for place in {places} if 'left-over' in os.listdir(place)],"
            " len([name for name in os.listdir('/proc') if name.isdecimal()]) <= 2)"
        )
    )
    _expect(result.stdout == b"[] True\n", result)


@check("two boxes at once do not see each other's files")
async def _boxes_are_apart(boxes: Boxes) -> None:
    name = _marker()
    writes = (
        "import tempfile, time\n"
        f"for place in ('.', tempfile.gettempdir()): open(place + '/{name}', 'w')\n"
        "print('ok', flush=True); time.sleep(1.5)"
    )
    looks = (
        "import os, tempfile, time\nseen, until = set(), time.time() + 1\n"
        "while time.time() < until:\n"
        f"    seen |= {{place for place in ('.', tempfile.gettempdir(), '/tmp') if os.path.exists(place + '/{name}')}}\n"
        "    time.sleep(0.05)\nprint(seen)"
    )
    wrote, looked = await asyncio.gather(boxes.run(program(writes)), boxes.run(program(looks)))
    _expect(wrote.stdout == b"ok\n", wrote)
    _expect(looked.stdout == b"set()\n", looked)


@check("of stderr the beginning and the end are kept")
async def _stderr_is_kept(boxes: Boxes) -> None:
    code = "import sys\nwrite = sys.stderr.write\nwrite('first\\n')\nfor _ in range(9000): write('x' * 99)\nwrite('last')"
    result = await boxes.run(program(code))
    is_kept = result.stderr.startswith(b"first\n") and result.stderr.endswith(b"last") and len(result.stderr) < 400_000
    _expect(result.ending == "exit" and is_kept, (result.ending, len(result.stderr)))


@check("each fresh interpreter has a hash seed of its own")
async def _seeds_differ(boxes: Boxes) -> None:
    results = [await boxes.run(program("print(hash('atlas'))", fresh=True)) for _ in range(2)]
    _expect(results[0].stdout != results[1].stdout and results[0].exit_code == 0, [result.stdout for result in results])


@check("garbage in the report is told and nothing more")
async def _garbage_is_told(boxes: Boxes) -> None:
    code = """
import fcntl, os
for number in range(3, 256):
    try: os.write(number, b'garbage')
    except OSError: pass
print('ok')"""
    result = await boxes.run(program(code))
    _expect(result.is_damaged and result.stdout == b"ok\n", result)


# What the two boxes of a pair have of each other: the only pipe to read from, and the last one to write to.
PEER = """
import fcntl, os, stat
found = {}
for number in range(3, 256):
    try:
        if stat.S_ISFIFO(os.fstat(number).st_mode): found[fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE] = number
    except OSError: pass
receiving, sending = found[os.O_RDONLY], found[os.O_WRONLY]
"""


@check("the boxes of a pair can talk")
async def _pair_talks(boxes: Boxes) -> None:
    tests = program(PEER + "os.write(sending, b'question'); print(os.read(receiving, 99))")
    candidate = program(PEER + "os.write(sending, os.read(receiving, 99) + b' answered'); os.read(receiving, 1)")
    asked, _ = await boxes.run_pair(tests, candidate)
    _expect(asked.stdout == b"b'question answered'\n", asked)


@check("when one of a pair dies, the other sees the end")
async def _pair_ends(boxes: Boxes) -> None:
    tests = program(PEER + "print(os.read(receiving, 99))")
    asked, served = await boxes.run_pair(tests, program("import os; os.kill(os.getpid(), 9)"))
    _expect(asked.stdout == b"b''\n" and served.exit_code in (-9, None), (asked, served))


@check("when the tests of a pair end, so does the candidate")
async def _pair_ends_together(boxes: Boxes) -> None:
    started_s = time.monotonic()
    asked, served = await boxes.run_pair(program("print('ok')"), program("import time; time.sleep(60)"))
    took_s = time.monotonic() - started_s
    _expect(asked.stdout == b"ok\n" and served.ending == "killed" and took_s < WALL_S / 2, (asked, served, took_s))
