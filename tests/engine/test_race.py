"""How many candidates of a race run at once, and that all of them are heard of."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from atlas.engine.race import MAX_LEFT, width
from atlas.engine.runner import DecodeResult, Runner
from atlas.types import Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import generate, running, settled

RACE = Prompt(text="go", n=6, max_tokens=12, is_race=True, sampling=(Sampling(temperature=1.0, seed=3),))


def linear(rows: int) -> float:
    return 0.4 + 0.3 * rows


@pytest.mark.parametrize(("left", "ended"), [(1, 0), (5, 0), (2, 3), (20, 0), (MAX_LEFT, 0)])
def test_all_run_where_rows_come_for_nothing(left: int, ended: int) -> None:
    assert width(left, ended=ended, others=0, seconds=lambda _rows: 0.03) == left


def test_one_at_a_time_where_a_row_costs_as_much_as_the_first() -> None:
    assert [width(left, ended=5 - left, others=0, seconds=float) for left in (5, 4, 3, 2, 1)] == [1, 1, 1, 1, 1]


def test_the_likelier_all_fail_the_more_run() -> None:
    """By hand, for steps of 0.7, 1.0, 1.3, 1.6 and 1.9: 2 + 3 candidates take 1.0 + 1.3 / 3, any other way is longer."""
    assert width(5, ended=0, others=0, seconds=linear) == 2
    assert width(3, ended=2, others=0, seconds=linear) == 3
    assert width(5, ended=50, others=0, seconds=linear) == 5


def test_rows_of_others_make_a_candidate_cheaper() -> None:
    assert width(5, ended=0, others=12, seconds=lambda rows: 1.0 + 0.01 * rows) == 5
    assert width(MAX_LEFT + 1, ended=0, others=0, seconds=float) == MAX_LEFT + 1


async def test_every_candidate_of_a_race_ends_with_the_tokens_it_would_have_anyway() -> None:
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, Prompt(text="warm", n=4, max_tokens=8))  # so that something is known of its steps
        race = await generate(engine, RACE)
        together = await generate(engine, Prompt(text="go", n=6, max_tokens=12, sampling=RACE.sampling))
        assert [one.tokens for one in race] == [one.tokens for one in together]


def saying(letters: str) -> tuple[Sampling, ...]:
    """Each candidate says its letter, over and over."""
    return tuple(Sampling(temperature=0.0, logit_bias={ord(letter): 50.0}) for letter in letters)


@pytest.fixture
def two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.engine.race.width", lambda left, **_: min(left, 2))


@pytest.fixture
def long_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a race is still on when a busy machine gets round to the next line of a test."""
    decode = Runner.decode

    def slowly(runner: Runner, *, features: bool = False) -> DecodeResult:
        time.sleep(0.003)
        return decode(runner, features=features)

    monkeypatch.setattr(Runner, "decode", slowly)


@pytest.mark.usefixtures("two_at_once", "long_steps")
async def test_a_race_that_is_over_leaves_nothing_behind() -> None:
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, Prompt(text="warm", max_tokens=8))
        group = await engine.submit(msgspec.structs.replace(RACE, max_tokens=900, sampling=saying("abcdef")))
        ended = group.finished()
        await group.reached(50)
        group.cancel([0])
        assert (await anext(ended)).index == 0
        group.cancel([5])  # which is paused
        last = await anext(ended)
        assert (last.index, last.num_tokens) == (5, 1)
        await group.reached(100)
        group.cancel()
        async with asyncio.timeout(20):
            rest = sorted([one async for one in ended], key=lambda one: one.index)
        assert all(one.finish_reason == "abort" for one in rest)
        assert [one.index for one in rest if one.num_tokens > 1] == [1, 2], "two ran, and one went on in place of the first"
        await settled(engine)
        assert engine.stats().cells_live == 0


@pytest.mark.usefixtures("two_at_once", "long_steps")
async def test_paused_candidates_make_room_and_come_back() -> None:
    async with running(ggufs.tiny_random(), max_sequences=6) as engine:
        await generate(engine, Prompt(text="warm", max_tokens=8))
        race = await engine.submit(msgspec.structs.replace(RACE, max_tokens=400))
        await race.reached(20)
        others = [await engine.submit(Prompt(text=f"{number} here", max_tokens=10)) for number in range(4)]
        async with asyncio.timeout(20):
            for other in others:
                await other.all()
        assert not race.is_done, "nobody waited for the race"
        answers = await race.all()
        await settled(engine)
        assert [one.num_tokens for one in answers] == [400] * 6
    async with running(ggufs.tiny_random()) as engine:
        together = await generate(engine, Prompt(text="go", n=6, max_tokens=400, sampling=RACE.sampling))
    assert [one.tokens[:20] for one in answers] == [one.tokens[:20] for one in together]


@pytest.mark.usefixtures("two_at_once")
async def test_those_go_first_who_agree() -> None:
    """Of six candidates three say the same: they run, with another one."""
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, Prompt(text="warm", max_tokens=8))
        group = await engine.submit(msgspec.structs.replace(RACE, sampling=saying("abcdcc")))
        order = [one.index async for one in group.finished()]
    assert sorted(order[:4]) == [0, 2, 4, 5], "the other is the first of those that are left"


@pytest.mark.usefixtures("two_at_once")
async def test_an_allowance_that_the_first_have_used_up_lets_the_others_go_on() -> None:
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, Prompt(text="warm", max_tokens=8))
        group = await engine.submit(msgspec.structs.replace(RACE, max_tokens=30, allowance_tokens=10))
        async with asyncio.timeout(20):
            while group.num_generated < 10 or group.completion_tokens < 60:
                await group.changed()
            group.allow(None)
            assert [one.num_tokens for one in await group.all()] == [30] * 6
