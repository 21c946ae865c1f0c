"""When the engine thread's news reach the event loop."""

from __future__ import annotations

import asyncio

import pytest

from atlas.engine import Group
from atlas.engine import engine as engine_module
from atlas.types import Delta, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import running

GREEDY = (Sampling(temperature=0.0),)


def ask(text: str, *, max_tokens: int, whole: bool = False) -> Prompt:
    return Prompt(text=text, sampling=GREEDY, max_tokens=max_tokens, whole=whole)


async def test_nothing_that_has_been_said_waits_while_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "HAND_OVER_CPU_S", 60.0)
    async with running(ggufs.tiny_random(), prefill_chunk_tokens=64) as engine:
        first = await engine.submit(ask("first", max_tokens=2000))
        await first.begun()
        await asyncio.sleep(0.2)
        assert first.num_generated == 1
        second = await engine.submit(ask("x" * 1500, max_tokens=1))
        while not second.is_started:
            await second.changed()
        assert first.num_generated > 1
        first.cancel()
        await asyncio.gather(first.all(), second.all())


async def test_an_end_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "HAND_OVER_CPU_S", 60.0)
    async with running(ggufs.tiny_random()) as engine:
        long = await engine.submit(ask("long", max_tokens=3000))
        short = await engine.submit(ask("short", max_tokens=20))
        (generation,) = await short.all()
        assert generation.num_tokens == 20
        assert not long.is_done
        long.cancel()
        await long.all()


async def test_words_do_not_wait_for_the_end_that_came_with_them() -> None:
    """What is sent together is what can be had without waiting: before an end is told it is paid for."""
    group = Group(1, prompt_tokens=1, cancel=lambda _: None)
    group.put([Delta(text="a"), Delta(text="b"), Delta(finish_reason="stop")])
    reader = aiter(group)
    assert ((await anext(reader)).text, group.has_more) == ("a", True)
    assert ((await anext(reader)).text, group.has_more) == ("b", False)
    assert ((await anext(reader)).finish_reason, group.has_more) == ("stop", False)
