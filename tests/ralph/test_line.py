"""A worker's connection: what is asked is answered, or fails with an error that passes, whatever the other end does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from atlas.errors import Disconnected, EngineOverloaded
from atlas.ralph.line import Line
from atlas.ralph.worker import ended
from atlas.workline import (
    AskLease,
    Done,
    Drop,
    Frames,
    Hello,
    LengthFrames,
    Message,
    Stop,
    Welcome,
    WorkerSays,
    encoded,
    failed,
    worker_said,
)

Answer = Callable[[WorkerSays], list[Message] | None]


class Main:
    """The other end: welcomes, notes what it hears, answers as told; None ends the connection."""

    def __init__(self, answer: Answer) -> None:
        self.heard: list[WorkerSays] = []
        self.frames: list[Frames] = []
        self._answer = answer
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = LengthFrames(reader, writer)
        self.frames.append(frames)
        while (frame := await frames.read()) is not None:
            said = worker_said(frame)
            self.heard.append(said)
            answers = [Welcome(lease_s=1.0)] if isinstance(said, Hello) else self._answer(said)
            if answers is None:
                break
            for answer in answers:
                await frames.write(encoded(answer))
        frames.close()


@asynccontextmanager
async def connected(answer: Answer) -> AsyncIterator[tuple[Main, Line]]:
    main = Main(answer)
    server = await asyncio.start_server(main.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()

    async def dial() -> Frames:
        return LengthFrames(*await asyncio.open_connection(host, port))

    line = Line(dial, "w")
    keeping = asyncio.create_task(line.keep())
    try:
        yield main, line
    finally:
        await ended(keeping)
        server.close()
        for frames in main.frames:
            frames.close()


def lease(number: int) -> AskLease:
    return AskLease(id=number, wait_s=1.0)


async def test_what_is_asked_before_there_is_a_connection_waits_for_it() -> None:
    async with connected(lambda said: [Done(id=said.id)] if isinstance(said, AskLease) else []) as (_, line):
        assert (await line.ask(lease)).lease is None


async def test_an_error_of_the_server_is_raised_as_what_it_is() -> None:
    def answer(said: WorkerSays) -> list[Message]:
        return [failed(said.id, EngineOverloaded("full", retry_after_s=3.0))] if isinstance(said, AskLease) else []

    async with connected(answer) as (_, line):
        with pytest.raises(EngineOverloaded, match="full") as caught:
            await line.ask(lease)
    assert caught.value.retry_after_s == 3.0


async def test_a_connection_that_breaks_fails_what_was_asked_on_it_and_is_made_again() -> None:
    answers: list[list[Message] | None] = [None]

    def answer(said: WorkerSays) -> list[Message] | None:
        return answers.pop() if answers else [Done(id=said.id)] if isinstance(said, AskLease) else []

    async with connected(answer) as (_, line):
        with pytest.raises(Disconnected, match="broke"):
            await line.ask(lease)
        assert isinstance(await line.ask(lease), Done)
        assert line.num_connections == 2


async def test_a_server_that_does_not_answer_is_left_for_another_connection() -> None:
    async with connected(lambda said: [Done(id=said.id)] if isinstance(said, AskLease) and said.id > 1 else []) as (_, line):
        with pytest.raises(Disconnected, match="does not answer"):
            await line.ask(lease, timeout_s=0.2)
        await line.ask(lease)
        assert line.num_connections == 2


async def test_a_call_that_nobody_waits_for_any_more_is_dropped() -> None:
    async with connected(lambda _: []) as (main, line):
        asking = asyncio.create_task(line.ask(lease))
        async with asyncio.timeout(20):
            while not any(isinstance(said, AskLease) for said in main.heard):  # noqa: ASYNC110  # the other end's
                await asyncio.sleep(0.01)
            asking.cancel()
            while not isinstance(main.heard[-1], Drop):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert main.heard[-1] == Drop(id=1)
        assert asking.cancelled()


async def test_orders_reach_whoever_heeds_that_delivery_and_nobody_else() -> None:
    def answer(said: WorkerSays) -> list[Message]:
        if not isinstance(said, AskLease):
            return []
        orders = [Stop(task=task, delivery=number, standing="lost") for task, number in (("a", 2), ("b", 1), ("a", 1))]
        return [*orders, Done(id=said.id)]

    async with connected(answer) as (_, line):
        heard: list[str] = []
        with line.heeding("a", 1, heard.append):
            await line.ask(lease)
        assert heard == ["lost"]
        await line.ask(lease)
        assert heard == ["lost"]
