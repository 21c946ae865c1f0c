"""What the pool asks of a tier of isolation: start boxes, watch them, and tell how they ended."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import msgspec

from atlas.types import RunLimits, Tier

Profile = Literal["lite", "pytest", "lint"]
Ending = Literal["exit", "wall", "cpu", "memory", "output", "killed"]


class ProjectMount(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of the user's, seen in a box at its own path: as it is, but what is written there stays in the box.

    Attributes:
        read_only: absolute paths that are seen too.
        shared: relative paths, as `hidden` and `protected`: seen, never copied, and not writable.
        hidden: seen as empty.
        protected: not writable once `changes` are made; what does not exist is left out.
        changes: text of files that are other than in the directory; None: not there.
    """

    directory: str
    read_only: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()
    changes: dict[str, str | None] = {}


class BoxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One box: what runs in it, on what, within which limits.

    Attributes:
        runner: name in `inside/runners.py`; it is called with `payload` in the box's main process.
        payload: JSON values only. Nothing in it is secret to the code that will run: expected values never enter.
        profile: what the process has imported before the box is made.
        stdin: what the program reads; empty is end of file at once.
        files: written into the working directory HOME (inside/view.py), which is writable; relative paths, checked before.
        tests: written into TESTS (inside/view.py), which is read-only once the runner begins.
        fresh: the runner is called in a fresh interpreter rather than in a fork of a warm one.
        has_keeper: a process of ours is pid 1. Without one the program is, which costs a third less, and whose signals to itself
            have no default action; for runners that call functions, not for whole programs.
        prepare_s: time before the first frame (a compiler's), which does not count as the program's wall time.
        project: only in the native tier.
    """

    runner: str
    payload: dict[str, Any]
    profile: Profile = "lite"
    stdin: bytes = b""
    files: dict[str, str] = {}
    tests: dict[str, str] = {}
    limits: RunLimits = RunLimits()
    fresh: bool = False
    has_keeper: bool = True
    prepare_s: float = 0.0
    project: ProjectMount | None = None


class BoxResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a box ended. Everything in it that the code inside could write is data, not a verdict.

    Attributes:
        ending: exit, the limit that ended it, or killed (by the machine, which had no memory left).
        exit_code: of the main process; negative is a signal; None if we ended the box.
        frames: what the runner reported, each one JSON value; cut off at 16 MiB in all.
        is_damaged: what came on the report descriptor is not a sequence of whole frames.
        stdout: at most `limits.output_bytes`.
        stderr: head and tail.
    """

    ending: Ending
    exit_code: int | None = None
    frames: tuple[Any, ...] = ()
    is_damaged: bool = False
    stdout: bytes = b""
    stderr: bytes = b""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


class Boxes(Protocol):
    """A tier. Cancelling the call ends the box, and the call returns only when nothing of the box is left."""

    tier: Tier
    slots: int  # how many boxes, or pairs, at the same time

    @property
    def num_zygotes(self) -> int:
        """Warm processes that are alive."""
        ...

    @property
    def num_restarts(self) -> int:
        """How many of them have died."""
        ...

    async def warm_up(self) -> None:
        """Start what will be needed soon."""
        ...

    async def close(self) -> None:
        """End everything that runs."""
        ...

    async def run(self, spec: BoxSpec) -> BoxResult:
        """Run one box to its end.

        Raises:
            SandboxUnavailable: a failure of ours, before or while the code ran.
        """
        ...

    async def run_pair(self, tests: BoxSpec, candidate: BoxSpec) -> tuple[BoxResult, BoxResult]:
        """Run two boxes with a byte channel between them, and nothing else in common; each has its own limits.

        The candidate's box is ended when the tests' box has ended; the other way round the tests' box sees end of file.

        Raises:
            SandboxUnavailable: a failure of ours in either box.
        """
        ...
