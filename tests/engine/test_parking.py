"""Parked candidates in the in-process engine: what they cost, and who gets their place (the contract shows the rest)."""

from __future__ import annotations

import asyncio
import random

import pytest

from atlas.engine import Engine, Group
from atlas.errors import BadRequest
from atlas.types import Generation, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import generate, running, settled

GREEDY = (Sampling(temperature=0.0),)


def ask(text: str, **fields: int) -> Prompt:
    return Prompt(text=text, sampling=GREEDY, **{"max_tokens": 40, **fields})  # type: ignore[arg-type]  # numbers only


async def reached(group: Group, num_tokens: int) -> None:
    assert await asyncio.wait_for(group.reached(num_tokens), 30)


async def in_slices(engine: Engine, prompt: Prompt, *, size: int) -> Generation:
    """The only candidate of a prompt, allowed `size` tokens at a time."""
    group = await engine.submit(prompt)
    allowed = prompt.allowance_tokens or 0
    while await asyncio.wait_for(group.reached(allowed), 60):
        await asyncio.sleep(0.01)  # time for others to take its place
        allowed += size
        group.allow(allowed)
    (generation,) = await group.all()
    return generation


async def test_a_parked_candidate_takes_no_steps_and_keeps_its_cells() -> None:
    async with running(ggufs.tiny_random()) as engine:
        group = await engine.submit(ask("x" * 100, allowance_tokens=5))
        await reached(group, 5)
        await asyncio.sleep(0.05)
        before = engine.stats()
        await asyncio.sleep(0.2)
        after = engine.stats()
        assert after.steps == before.steps
        assert after.cells_live == before.cells_live == 104, "the fifth token has not been fed"
        group.cancel()
        await group.all()
        await settled(engine)


async def test_without_an_allowance_not_even_the_prompt_is_computed() -> None:
    async with running(ggufs.tiny_random()) as engine:
        group = await engine.submit(ask("x" * 100, allowance_tokens=0))
        await asyncio.sleep(0.1)
        assert engine.stats().steps == 0
        assert engine.stats().num_waiting == 1
        group.end()
        (generation,) = await group.all()
        assert (generation.finish_reason, generation.num_tokens, generation.text) == ("length", 0, "")
        await settled(engine)


async def test_a_parked_candidate_gives_its_place_to_one_that_can_use_it() -> None:
    """Four answers through one sequence: each parks, steps aside for the next, and goes on where it stopped."""
    prompts = [ask(f"{i} aside") for i in range(4)]
    async with running(ggufs.tiny_calm(), max_sequences=1) as engine:
        alone = [(await generate(engine, prompt))[0].text for prompt in prompts]
        groups = [await engine.submit(ask(f"{i} aside", allowance_tokens=10)) for i in range(4)]
        for group in groups:
            await reached(group, 10)
        for group in groups:
            group.allow(None)
        assert [(await group.all())[0].text for group in groups] == alone
        await settled(engine)


@pytest.mark.parametrize(("host_cache_tokens", "stays"), [(0, True), (4096, False)])
async def test_who_stepped_aside_finds_its_cells_again(host_cache_tokens: int, stays: bool) -> None:
    """In the context, or copied back from the host's memory: either way nothing is computed anew."""
    async with running(ggufs.tiny_random(), max_sequences=1, host_cache_tokens=host_cache_tokens) as engine:
        group = await engine.submit(ask("y" * 500, allowance_tokens=5))
        await reached(group, 5)
        await generate(engine, ask("between"))
        assert (engine.stats().cells_used > 500) == stays
        assert engine.stats().preemptions == 0
        num_steps = engine.stats().steps
        group.allow(None)
        (generation,) = await group.all()
        assert engine.stats().steps - num_steps == generation.num_tokens - 5
        await settled(engine)


async def test_a_candidate_set_aside_can_be_cancelled_and_ended_and_is_late() -> None:
    async with running(ggufs.tiny_random(), max_sequences=1) as engine:
        cancelled, ended = [await engine.submit(ask(name, allowance_tokens=3)) for name in "ab"]
        late = await engine.submit(Prompt(text="c", sampling=GREEDY, allowance_tokens=3, deadline_s=1.0))
        await generate(engine, ask("d"))  # the three have stepped aside
        cancelled.cancel()
        ended.end()
        assert [generation.finish_reason for generation in await cancelled.all()] == ["abort"]
        assert [generation.finish_reason for generation in await ended.all()] == ["length"]
        assert [generation.finish_reason for generation in await asyncio.wait_for(late.all(), 30)] == ["abort"]
        await settled(engine)


async def test_parked_cells_are_taken_when_others_need_them() -> None:
    """Parked answers fill most of 512 cells; one that needs 400 is answered, and they go on from their tokens."""
    async with running(ggufs.tiny_calm(), context_tokens=512, max_sequences=8, cached_sequences=0) as engine:
        groups = [await engine.submit(ask("p" * 100 + str(i), allowance_tokens=6)) for i in range(3)]
        for group in groups:
            await reached(group, 6)
        (big,) = await asyncio.wait_for(generate(engine, ask("z" * 400)), 60)
        assert big.num_tokens == 40
        for group in groups:
            group.allow(None)
        assert [(await group.all())[0].num_tokens for group in groups] == [40] * 3
        await settled(engine)


async def test_slices_under_load_lose_no_token() -> None:
    """Twelve answers allowed three tokens at a time, through three sequences and few cells."""
    async with running(ggufs.tiny_random(), context_tokens=512, max_sequences=3) as engine:
        asked = [ask(f"{i} slices", allowance_tokens=3) for i in range(12)]
        generations = await asyncio.gather(*(in_slices(engine, prompt, size=3) for prompt in asked))
        assert {(generation.finish_reason, generation.num_tokens) for generation in generations} == {("length", 40)}
        await settled(engine)


async def whims(group: Group, rng: random.Random) -> None:
    """What a capricious reader may do to a group, until it is done."""
    allowed = group.allowance_tokens or 0
    while not group.is_done:
        whim = rng.random()
        if whim < 0.05:
            group.cancel([rng.randrange(group.num_candidates)])
        elif whim < 0.1:
            group.end()
        else:
            allowed += rng.randrange(6)
            group.allow(None if whim > 0.97 else allowed)
        await asyncio.sleep(rng.random() * 0.01)


async def test_whatever_is_done_to_them_groups_end_and_cells_come_back() -> None:
    rng = random.Random(5)
    async with running(ggufs.tiny_random(), context_tokens=512, max_sequences=4, cached_sequences=3) as engine:
        groups = []
        for i in range(60):
            prompt = Prompt(
                text="w" * rng.randrange(1, 150) + str(i),
                n=rng.randrange(1, 4),
                max_tokens=60,
                allowance_tokens=rng.randrange(8),
                deadline_s=rng.choice([None, None, 0.3]),
                priority=rng.randrange(3),
            )
            groups.append(await engine.submit(prompt))
        await asyncio.wait_for(asyncio.gather(*(whims(group, rng) for group in groups)), 120)
        for group in groups:
            generations = await group.all()
            assert len(generations) == group.num_candidates
            assert group.completion_tokens == sum(generation.num_tokens for generation in generations)
            if group.is_ended and group.allowance_tokens is not None:
                assert group.num_generated <= group.allowance_tokens
        await settled(engine)


async def test_an_allowance_below_zero_is_refused() -> None:
    async with running(ggufs.tiny_random()) as engine:
        with pytest.raises(BadRequest, match="allowance_tokens is -1"):
            await engine.submit(ask("x", allowance_tokens=-1))
