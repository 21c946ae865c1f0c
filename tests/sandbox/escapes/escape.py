"""What an attack is: a program as data, and what must be seen of it. Nothing here runs one; only a box does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

Kind = Literal["files", "processes", "kernel", "resources", "network", "persistence", "channel"]

# Stands before every attack. `attempt` is for what must fail: it says GOT if it did not.
PRELUDE = '''
import ctypes, errno, json, os, re, signal, socket, struct, subprocess, sys, threading, time
HOST = json.loads(@HOST@)
CALLS = HOST["calls"]
libc = ctypes.CDLL(None, use_errno=True)
def say(*words, write=os.write):
    write(1, (" ".join(map(str, words)) + "\\n").encode("utf-8", "backslashreplace"))
def why(error):
    number = getattr(error, "errno", None)
    return errno.errorcode.get(number, type(error).__name__) if isinstance(number, int) else type(error).__name__
def attempt(what, action, *arguments, **options):
    try:
        result = action(*arguments, **options)
    except BaseException as error:
        say("refused", what, why(error))
    else:
        say("GOT", what, repr(result)[:2000])
        return result
def call(name, *arguments):
    number = CALLS[name] if isinstance(name, str) else name
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    return must(result)
def read(path, size=65536):
    with open(path, "rb") as file:
        return file.read(size)
def write(path, text=HOST["marker"]):
    with open(path, "w") as file:
        file.write(text)
    return path
def in_child(action):
    """The wait status of a fork that does this, as an exit code; None while it runs on."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            say("child", why(error))
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def in_many(count, action):
    """Start so many processes that do this, and wait for them."""
    for _ in range(count):
        if os.fork() == 0:
            try:
                action()
            except BaseException as error:
                say("child", why(error))
            os._exit(0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
def must(result):
    """A call of libc that has failed is an error."""
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
def report_descriptors():
    """What this program was not told of but has: the way to the pool."""
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2 and os.path.exists("/proc/self/fd/" + name)]
say("begun")
'''
EPILOGUE = '\nsay("done")\n'


class Escape(msgspec.Struct, frozen=True, kw_only=True):
    """One attack, and how it must end.

    Attributes:
        name: a sentence; what holds.
        code: of the attack, between PRELUDE and EPILOGUE.
        shows: regular expression that its output must hold: that it did what it was to do.
        hides: regular expressions that nothing it writes may hold, beside GOT and every secret of the host.
        endings: of its box, any of these.
        exit_code: of the box if it ends by itself; None: whatever.
        finishes: it must come to its last line.
        along: a second program, in another box at the same time.
        then: a third one, after it, in a box of the same pool; what holds for `code` holds for these two as well.
        meanwhile: name of what the host itself does while the box runs (`drive.py`), and must be able to do.
        limits: of RunLimits.
        alone: nothing else runs beside it,
        and the pool is never late by more than MAX_LAG_S: one attack must not cost others time.
        not_in: tiers that do not promise this (design/sandbox.md 8.2).
    """

    name: str
    kind: Kind
    code: str
    shows: str = ""
    hides: tuple[str, ...] = ()
    endings: tuple[str, ...] = ("exit",)
    exit_code: int | None = 0
    finishes: bool = True
    along: str = ""
    then: str = ""
    meanwhile: str = ""
    limits: dict[str, Any] = {}
    files: dict[str, str] = {}
    tests: dict[str, str] = {}
    stdin: str = ""
    fresh: bool = False
    has_keeper: bool = True
    alone: bool = False
    not_in: tuple[str, ...] = ()


def maker(kind: Kind) -> Callable[..., Escape]:
    """How the modules of this package write an attack down: name, code, and what else differs from the usual."""

    def make(name: str, code: str, **others: Any) -> Escape:
        return Escape(name=name, kind=kind, code=code, **others)

    return make


def source(code: str, host: dict[str, Any]) -> str:
    """The whole program."""
    return PRELUDE.replace("@HOST@", repr(msgspec.json.encode(host).decode())) + code + EPILOGUE


class Seen(msgspec.Struct, kw_only=True):
    """What one box showed."""

    ending: str
    exit_code: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    reported: bytes = b""
    is_damaged: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0

    @property
    def everything(self) -> str:
        return b"\n".join((self.stdout, self.stderr, self.reported)).decode(errors="backslashreplace")


class Outcome(msgspec.Struct, kw_only=True):
    """What an attack showed, and how the pool was right after it.

    Attributes:
        failure: an exception of ours instead of a result.
        meanwhile: what the host could not do in the meantime.
        hello: what a harmless program said afterwards.
        left: processes of boxes that are there and were not before; counted only when attacks run one by one.
        descriptors: of the pool, more than before; likewise.
        lag_s: the longest that the pool's loop was late; likewise.
        busy_s: the longest that it computed without looking up, in processor time; likewise.
    """

    name: str
    main: Seen | None = None
    along: Seen | None = None
    then: Seen | None = None
    failure: str = ""
    meanwhile: str = ""
    hello: str = ""
    hello_s: float = 0.0
    left: list[str] = []
    descriptors: int = 0
    lag_s: float = 0.0
    busy_s: float = 0.0
