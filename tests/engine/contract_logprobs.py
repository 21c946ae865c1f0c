"""What every engine must do with log-probabilities."""

from __future__ import annotations

import math

import pytest

from atlas.engine import Engine
from tests.engine.contract import assert_whole, check, follow, generate, greedy


@check(lambda can: can.logprobs)
async def logprobs_stand_beside_every_token(engine: Engine) -> None:
    deltas, (generation,) = await follow(await engine.submit(greedy(top_logprobs=3, max_tokens=8)))
    assert_whole(deltas, generation)
    assert len(generation.logprobs) == generation.num_tokens == 8
    assert b"".join(logprob.text for logprob in generation.logprobs).decode() == generation.text
    for logprob in generation.logprobs:
        values = [value for _, _, value in logprob.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert logprob.top[0][1:] == (logprob.text, logprob.logprob), "greedy takes the likeliest"
        assert sum(map(math.exp, values)) <= 1 + 1e-4
    assert generation.mean_logprob == pytest.approx(sum(logprob.logprob for logprob in generation.logprobs) / 8, abs=1e-4)
    if generation.tokens:
        assert generation.tokens == tuple(logprob.token for logprob in generation.logprobs)
    (bare,) = await generate(engine, greedy(top_logprobs=0, max_tokens=4))
    assert [logprob.top for logprob in bare.logprobs] == [()] * 4


@check(lambda can: can.logprobs)
async def a_mean_of_logprobs_is_made_for_who_asks(engine: Engine) -> None:
    (exact,) = await generate(engine, greedy(top_logprobs=0, max_tokens=8))
    (asked,) = await generate(engine, greedy(mean_logprob=True, max_tokens=8))
    (unasked,) = await generate(engine, greedy(max_tokens=8))
    assert unasked.mean_logprob is None
    if asked.tokens:  # another server's are known only where it sends them all
        assert asked.mean_logprob == pytest.approx(exact.mean_logprob, abs=0.1)
