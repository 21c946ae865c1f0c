"""The native tier: boxes cloned from warm zygotes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import marshal
import os
import socket
from collections.abc import Sequence

import msgspec
import structlog
from msgspec.structs import replace

from atlas.errors import SandboxUnavailable
from atlas.sandbox.boxes import BoxResult, BoxSpec
from atlas.sandbox.project_zygotes import ProjectZygotes
from atlas.sandbox.spares import Running, Spare, Spares
from atlas.sandbox.supervision import Box
from atlas.sandbox.watch import MemoryWatch
from atlas.sandbox.zygotes import Configuration, Zygote
from atlas.types import Tier

log = structlog.get_logger("atlas.sandbox")

FEW_SLOTS = 2
SLOTS_PER_ZYGOTE = 4
ENDING_S = 1.0
PLAIN_MARSHAL = 2  # knows no references: what is equal in an order is two objects in the box
SERVING_S = 60.0  # a candidate that is only asked is not ended by the clock before the one that asks
EAGER = ("lite", "pytest")  # the others are started when first asked for


class NativeBoxes:
    """`Boxes` of the native tier. Used from one event loop."""

    tier: Tier = "native"
    prepares = True  # boxes for fresh interpreters, ahead

    def __init__(self, *, python: str, uid: int, slots: int) -> None:
        self.slots = slots
        self._python = python
        self._uid = uid
        # Two take twice as much work as one on two cores; from there on one for four slots (design/sandbox.md 6.1).
        self._per_profile = max(min(slots, FEW_SLOTS), slots // SLOTS_PER_ZYGOTE)
        self._zygotes: dict[str, list[Zygote]] = {}
        self._projects = ProjectZygotes(python=python, uid=uid)
        self._locks: dict[str, asyncio.Lock] = {}
        self._jobs = itertools.count(1)
        self._watch = MemoryWatch()
        self._spares = Spares(self._prepare, most=slots if self.prepares else 0)
        self.num_restarts = 0

    @property
    def num_zygotes(self) -> int:
        return sum(zygote.is_alive for zygotes in self._zygotes.values() for zygote in zygotes) + len(self._projects)

    async def start(self) -> dict[str, object]:
        """Start one zygote that boxes can be made with; the rest follow as they are needed. What its layers are.

        Raises:
            SandboxUnavailable: this machine does not give what the tier needs.
        """
        zygote = Zygote(self._configuration("lite"))
        await zygote.start()
        self._zygotes["lite"] = [zygote]
        return zygote.layers

    async def warm_up(self) -> None:
        """Start what will be needed soon.

        Raises:
            SandboxUnavailable: it could not be started; the next run will try again.
        """
        for profile in EAGER:
            while len(self._alive(profile)) < self._per_profile:
                await self._replenish(profile)

    async def rest(self) -> None:
        """End what was prepared and nobody has asked for."""
        await self._spares.close()

    async def close(self) -> None:
        await self.rest()
        self._watch.close()
        for zygote in [zygote for zygotes in self._zygotes.values() for zygote in zygotes]:
            await zygote.stop()
        await self._projects.close()

    async def run(self, spec: BoxSpec) -> BoxResult:
        if not self._spares.fits(spec):
            return await self._finish(await self._submit(spec))
        running = await self._spares.take(spec, _order(spec))
        if running is not None:
            self._watch.add(running.job, running.zygote, running.box)
        else:
            running = await self._submit(spec)
            self._spares.prepare(spec)
        return await self._finish(running)

    async def _prepare(self, spec: BoxSpec) -> Spare:
        zygote = await self._choose_for(spec)
        descriptors = make_descriptors(_order(spec, waits=True), b"")
        order, stdin = map(os.dup, descriptors[1])
        try:
            return Spare(self._place(zygote, spec, descriptors), order, stdin)
        except SandboxUnavailable:
            os.close(order)
            os.close(stdin)
            raise

    async def run_pair(self, tests: BoxSpec, candidate: BoxSpec) -> tuple[BoxResult, BoxResult]:
        candidate = replace(candidate, limits=replace(candidate.limits, wall_s=candidate.limits.wall_s + SERVING_S))
        await self._choose_for(tests)  # before the candidate's box begins to wait for it
        questions, answers = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)  # each: read end, write end
        try:
            serving = await self._submit(candidate, (questions[0], answers[1]))
            served = asyncio.create_task(self._finish(serving))
            try:
                asking = await self._submit(tests, (answers[0], questions[1]))
            except BaseException:
                serving.box.end("killed")
                raise
        finally:  # an end that stayed open here would hide from one box that the other is gone
            for descriptor in (*questions, *answers):
                os.close(descriptor)
        result: BoxResult | None = None
        try:
            result = await self._finish(asking)
        finally:
            if serving.box.is_over:  # by itself: that is what has to be told, and not that it is ended now
                await asyncio.wait([served], timeout=ENDING_S)
            # If the tests ran out of time, whatever they waited for did so too.
            serving.box.end("wall" if result is not None and result.ending == "wall" else "killed")
            candidate_result = await served
        return result, candidate_result

    async def _finish(self, running: Running) -> BoxResult:
        """Wait for its end; if nobody wants it any more, end it."""
        try:
            return running.box.result(await asyncio.shield(running.ending))
        except asyncio.CancelledError:
            running.box.end("killed")
            with contextlib.suppress(SandboxUnavailable):
                await asyncio.shield(running.ending)
            raise
        finally:
            self._watch.forget(running.job)
            running.box.close()

    async def _submit(self, spec: BoxSpec, peer: Sequence[int] = ()) -> Running:
        """Hand a box to a zygote; one that turns out to be dead says nothing about the others."""
        for _ in range(self._per_profile):
            zygote = await self._choose_for(spec)
            with contextlib.suppress(SandboxUnavailable):
                return self._hand_over(zygote, spec, peer)
        return self._hand_over(await self._choose_for(spec), spec, peer)

    def _hand_over(self, zygote: Zygote, spec: BoxSpec, peer: Sequence[int]) -> Running:
        running = self._place(zygote, spec, make_descriptors(_order(spec), spec.stdin), peer)
        running.box.submitted()
        self._watch.add(running.job, zygote, running.box)
        return running

    def _place(self, zygote: Zygote, spec: BoxSpec, descriptors: Descriptors, peer: Sequence[int] = ()) -> Running:
        """Hand a box to its zygote; all descriptors of the other side are closed here."""
        job = next(self._jobs)
        pipes, (payload, stdin) = descriptors
        readable, writable = zip(*pipes, strict=True)
        stdout, stderr, report = readable
        box = Box(
            spec,
            ask=lambda: zygote.ask(job),
            kill=lambda: zygote.kill(job),
            stdout=stdout,
            stderr=stderr,
            report=report,
        )
        try:
            ending = zygote.submit(
                job,
                (payload, stdin, *writable, *peer),
                box.start_clock,
                has_keeper=spec.has_keeper,
                is_fresh=spec.fresh,
            )
        except SandboxUnavailable:
            box.close()
            raise
        finally:
            for descriptor in (payload, stdin, *writable):
                os.close(descriptor)
        return Running(job, zygote, box, ending)

    async def _choose_for(self, spec: BoxSpec) -> Zygote:
        return await (self._projects.choose(spec.project) if spec.project else self._choose(spec.profile))

    async def _choose(self, profile: str) -> Zygote:
        """The least busy zygote of a profile; those that are missing are started, one at a time."""
        alive = self._alive(profile)
        if len(alive) < self._per_profile and not (alive and self._lock(profile).locked()):
            alive = await self._replenish(profile)
        return min(alive, key=lambda zygote: zygote.num_boxes)

    def _alive(self, profile: str) -> list[Zygote]:
        return [zygote for zygote in self._zygotes.get(profile, ()) if zygote.is_alive]

    async def _replenish(self, profile: str) -> list[Zygote]:
        """One more zygote, unless another call has just started the last that was missing."""
        async with self._lock(profile):
            known, alive = self._zygotes.get(profile, []), self._alive(profile)
            if len(alive) >= self._per_profile:
                return alive
            self.num_restarts += len(known) - len(alive)
            zygote = Zygote(self._configuration(profile))
            await zygote.start()
            self._zygotes[profile] = [*alive, zygote]
            return self._zygotes[profile]

    def _lock(self, profile: str) -> asyncio.Lock:
        return self._locks.setdefault(profile, asyncio.Lock())

    def _configuration(self, profile: str) -> Configuration:
        return Configuration(profile=profile, python=self._python, uid=self._uid)


def _order(spec: BoxSpec, *, waits: bool = False) -> bytes:
    """What the box reads: everything but stdin, which is a file of its own. With `waits` another order follows.

    JSON values, in the form that an interpreter reads without importing anything, in the version of it that all share.
    """
    fields = {name: getattr(spec, name) for name in spec.__struct_fields__ if name != "stdin"}
    order = fields | {"limits": msgspec.structs.asdict(spec.limits), "waits": waits}
    return marshal.dumps(msgspec.json.decode(msgspec.json.encode(order)), PLAIN_MARSHAL)


Descriptors = tuple[list[tuple[int, int]], tuple[int, int]]


def make_descriptors(order: bytes, stdin: bytes) -> Descriptors:
    """The ways out of a box for stdout, stderr and report, and the files it reads: its order and its stdin.

    Of a pipe that the same user has made a box could open the other end, and take back its report; of a socket it cannot.

    Raises:
        SandboxUnavailable: this process has too many descriptors open, or there is no memory.
    """
    opened: list[int] = []
    try:
        pipes = []
        for make in (_pipe, _pipe, _sockets):
            pipes.append(make())
            opened.extend(pipes[-1])
        files = [_file(content, opened) for content in (order, stdin)]
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        raise SandboxUnavailable(f"the sandbox's pool cannot make a box: {error.strerror}", retry_after_s=1) from None
    return pipes, (files[0], files[1])


def _pipe() -> tuple[int, int]:
    return os.pipe2(os.O_CLOEXEC)


def _sockets() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


def _file(content: bytes, opened: list[int]) -> int:
    """A nameless file in memory, at its start; its descriptor is noted in `opened`."""
    opened.append(descriptor := os.memfd_create("box", os.MFD_CLOEXEC))
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
