"""How many candidates of a race run at once, and that all of them are heard of."""

from __future__ import annotations

import asyncio

import pytest

from atlas.engine.race import MAX_LEFT, width
from atlas.types import Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import generate, running

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


async def test_a_race_that_is_over_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas.engine.core.width", lambda left, **_: min(left, 2))
    async with running(ggufs.tiny_random()) as engine:
        await generate(engine, Prompt(text="warm", max_tokens=8))
        group = await engine.submit(Prompt(text="go", n=6, max_tokens=900, is_race=True))
        ended = group.finished()
        await group.reached(5)
        assert engine.stats().num_running == 2
        group.cancel([0])
        assert (await anext(ended)).index == 0
        group.cancel([5])  # which has not begun
        assert (await anext(ended)).index == 5
        await group.reached(20)
        assert engine.stats().num_running == 2
        group.cancel()
        async with asyncio.timeout(20):
            rest = [one async for one in ended]
        assert sorted(one.index for one in rest) == [1, 2, 3, 4]
        assert all(one.finish_reason == "abort" for one in rest)
        assert [one.num_tokens for one in rest if one.index in (3, 4)] == [0, 0]
        stats = engine.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
