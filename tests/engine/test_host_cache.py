"""Prefixes in the host's memory: what is kept, and that copied cells are the cells that were computed."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from atlas.engine import Engine, Group, sizing
from atlas.engine.host_cache import HostCache
from atlas.engine.runner import Model, State, Tokens
from atlas.types import Generation, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import GREEDY, generate, running, same_up_to_ties, settled

WARM = (Sampling(temperature=1.0),)


def ids(*tokens: int) -> Tokens:
    return np.array(tokens, np.int32)


def state(name: int) -> State:
    return np.full(10, name, np.uint8)


def filled(*entries: Tokens, limit_tokens: int = 100) -> HostCache:
    cache = HostCache(limit_tokens)
    for number, tokens in enumerate(entries):
        assert cache.wants(tokens)
        cache.put(tokens, state(number))
    return cache


def found(cache: HostCache, prompt: Tokens) -> tuple[int, int]:
    """How much of it is kept, and the name of the state."""
    length, number = cache.match(prompt)
    assert number is not None
    return length, int(cache.take(number).state[0])


def test_the_longest_common_beginning_is_found() -> None:
    cache = filled(ids(1, 2, 3), ids(1, 2, 4, 5), ids(7))
    assert found(cache, ids(1, 2, 4, 9)) == (3, 1)
    assert found(cache, ids(7, 7)) == (1, 2)
    assert cache.match(ids(8)) == (0, None)


def test_what_another_entry_begins_with_is_not_kept_twice() -> None:
    cache = filled(ids(1, 2), ids(1, 2, 3, 4))
    assert not cache.wants(ids(1, 2, 3))
    assert cache.num_tokens == 4
    assert found(cache, ids(1, 2)) == (2, 1)


def test_the_entry_used_longest_ago_goes_first() -> None:
    cache = filled(ids(1, 1, 1), ids(2, 2, 2), limit_tokens=8)
    found(cache, ids(1, 1, 1))
    cache.put(ids(3, 3, 3), state(9))
    assert found(cache, ids(1, 1, 1)) == (3, 0)
    assert cache.match(ids(2)) == (0, None)
    assert cache.num_tokens == 6


def test_a_prefix_longer_than_the_cache_is_not_wanted() -> None:
    assert not HostCache(3).wants(ids(1, 2, 3, 4))
    assert not HostCache(0).wants(ids(1))


@pytest.mark.parametrize(("free_cells", "expected"), [(400, 100), (10_000, 512)])
def test_copies_take_a_quarter_of_the_free_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, free_cells: int, expected: int
) -> None:
    model = Model(ggufs.tiny_random(), gpu_layers=0)
    monkeypatch.setattr(sizing, "free_host_bytes", lambda: free_cells * sizing.kv_bytes_per_cell(model))
    assert sizing.saved_cells(model, context_tokens=512) == expected
    model.close()


async def crowd_out(engine: Engine) -> None:
    """More decode rows than any finished prefix is carried for."""
    await generate(engine, Prompt(text="#", n=4, max_tokens=60, sampling=WARM))


async def asked(engine: Engine, text: str) -> tuple[Group, Generation]:
    group = await engine.submit(Prompt(text=text, max_tokens=30, sampling=GREEDY, top_logprobs=2))
    [generation] = await group.all()
    return group, generation


async def test_a_prefix_comes_back_from_the_host_and_answers_as_before() -> None:
    system = "You are a careful programmer. " * 10
    async with running(ggufs.tiny_calm()) as engine:
        _, first = await asked(engine, system + "A")
        await crowd_out(engine)
        assert engine.stats().cells_used < len(system), "it has left the context"
        group, again = await asked(engine, system + "A")
        assert group.cached_tokens == len(system)
        assert same_up_to_ties(first, again)
        assert np.allclose([one.logprob for one in first.logprobs], [one.logprob for one in again.logprobs], atol=1e-3)
        other, _ = await asked(engine, system + "B")
        assert other.cached_tokens == len(system), "from a prompt that went on differently"
        await settled(engine)


async def test_without_a_host_cache_what_has_left_the_context_is_computed_again() -> None:
    async with running(ggufs.tiny_calm(), host_cache_tokens=0, cached_sequences=0) as engine:
        await asked(engine, "s" * 300 + "A")
        await crowd_out(engine)
        group, _ = await asked(engine, "s" * 300 + "A")
        assert group.cached_tokens == 0


async def test_several_prompts_share_what_one_of_them_brings_back() -> None:
    system = "t" * 300
    async with running(ggufs.tiny_random(), context_tokens=512) as engine:
        await asked(engine, system + "A")
        await crowd_out(engine)
        groups = [await engine.submit(Prompt(text=system + name, max_tokens=20, sampling=GREEDY)) for name in "BCD"]
        for group in groups:
            await group.all()
        assert [group.cached_tokens for group in groups] == [len(system)] * 3
        assert engine.stats().preemptions == 0, "in 512 cells only if they share"


async def test_a_saved_prefix_that_does_not_fit_is_left_where_it_is() -> None:
    """What made room for it in vain may have been the prefix that is shared instead."""
    async with running(ggufs.tiny_random(), context_tokens=512, max_sequences=4) as engine:
        await asked(engine, "a" * 40 + "b" * 260)
        await crowd_out(engine)
        await asked(engine, "a" * 40 + "c")
        busy = await engine.submit(Prompt(text="z" * 290, max_tokens=100, sampling=GREEDY))
        await asyncio.wait_for(busy.reached(2), 30)
        [answer] = await generate(engine, Prompt(text="a" * 40 + "b" * 60, max_tokens=5, sampling=GREEDY))
        assert answer.num_tokens == 5
        await busy.all()


async def ask_at_random(engine: Engine, rng: random.Random) -> None:
    """One of few beginnings, going on in one of few ways."""
    await asyncio.sleep(rng.random() * 2)
    text = rng.choice("abc") * rng.randrange(1, 5) * 30 + rng.choice("de") * rng.randrange(150) + str(rng.randrange(5))
    n, max_tokens = rng.randrange(1, 4), rng.randrange(1, 60)
    assert len(await generate(engine, Prompt(text=text, n=n, max_tokens=max_tokens, sampling=WARM))) == n


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_asked_copies_never_take_the_cells_of_rows_that_are_planned(seed: int) -> None:
    rng = random.Random(seed)
    cells = {"context_tokens": 512, "max_sequences": 6, "cached_sequences": 4, "host_cache_tokens": 3000}
    async with running(ggufs.tiny_random(), **cells) as engine:
        await asyncio.wait_for(asyncio.gather(*(ask_at_random(engine, rng) for _ in range(80))), 120)
        await settled(engine)
