"""What every engine must do with an allowance: stop there, wait, go on when more is allowed, end when nothing more will be."""

from __future__ import annotations

import asyncio

import msgspec

from atlas.engine import Engine, Group
from atlas.types import Prompt, Sampling
from tests.engine.contract import TOOL_SEED, assert_whole, check, follow, generate, greedy, user

QUIET_S = 0.1  # long enough for a hundred tokens of any engine under test
PATIENCE_S = 30.0


async def parked(group: Group, num_tokens: int) -> None:
    """Wait until the allowance is used up, and see that it is kept."""
    assert await asyncio.wait_for(group.reached(num_tokens), PATIENCE_S)
    await asyncio.sleep(QUIET_S)
    assert group.num_generated == num_tokens
    assert not group.is_done


@check()
async def a_candidate_parks_at_its_allowance_and_goes_on_when_more_is_allowed(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    group = await engine.submit(greedy(allowance_tokens=4))
    await parked(group, 4)
    group.allow(3)  # less than before changes nothing
    group.allow(9)
    await parked(group, 9)
    group.allow(None)
    deltas, (generation,) = await follow(group)
    assert_whole(deltas, generation)
    assert (generation.text, generation.finish_reason) == (free.text, free.finish_reason)
    assert group.completion_tokens == group.num_generated == generation.num_tokens == free.num_tokens


@check()
async def an_answer_allowed_in_slices_is_the_same_answer(engine: Engine) -> None:
    free = await generate(engine, greedy(n=2))
    group = await engine.submit(greedy(n=2, allowance_tokens=2))
    allowed = 2
    while await asyncio.wait_for(group.reached(allowed), PATIENCE_S):
        allowed += 3
        group.allow(allowed)
    assert [generation.text for generation in await group.all()] == [generation.text for generation in free]


@check()
async def nothing_is_generated_without_an_allowance(engine: Engine) -> None:
    group = await engine.submit(greedy(allowance_tokens=0))
    await parked(group, 0)
    group.allow(1)
    await parked(group, 1)
    group.end()
    deltas, (generation,) = await follow(group)
    assert_whole(deltas, generation)
    assert (generation.finish_reason, generation.num_tokens) == ("length", 1)


@check()
async def the_end_of_an_allowance_ends_the_answer_at_exactly_that_many_tokens(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    group = await engine.submit(greedy(n=2, allowance_tokens=6))
    await parked(group, 6)
    group.end("budget spent")
    group.end("too late to matter")
    group.allow(20)
    deltas, generations = await asyncio.wait_for(follow(group), PATIENCE_S)
    for generation in generations:
        assert_whole(deltas, generation)
        assert (generation.finish_reason, generation.num_tokens) == ("length", 6)
        assert free.text.startswith(generation.text)
    assert group.end_reason == "budget spent"
    assert (group.num_generated, group.completion_tokens) == (6, 12)


@check()
async def an_end_said_early_holds_later(engine: Engine) -> None:
    group = await engine.submit(greedy(allowance_tokens=7))
    group.end()
    (generation,) = await asyncio.wait_for(group.all(), PATIENCE_S)
    assert (generation.finish_reason, generation.num_tokens) == ("length", 7)


@check()
async def an_allowance_that_is_never_used_up_changes_nothing(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    for allowance_tokens in (24, 1000):
        group = await engine.submit(greedy(allowance_tokens=allowance_tokens))
        (generation,) = await asyncio.wait_for(group.all(), PATIENCE_S)
        assert (generation.text, generation.finish_reason) == (free.text, free.finish_reason)
        assert not await group.reached(1001)


@check()
async def a_group_without_an_allowance_cannot_be_ended(engine: Engine) -> None:
    group = await engine.submit(greedy())
    group.end("nothing to end at")
    (generation,) = await asyncio.wait_for(group.all(), PATIENCE_S)
    assert (generation.finish_reason, generation.num_tokens) == ("length", 24)


@check()
async def a_parked_candidate_can_be_cancelled(engine: Engine) -> None:
    group = await engine.submit(greedy(n=2, allowance_tokens=3))
    await parked(group, 3)
    group.cancel([1])
    await asyncio.sleep(QUIET_S)
    assert [generation.index for generation in group.generations] == [1]
    group.allow(5)
    await parked(group, 5)
    group.cancel()
    deltas, generations = await asyncio.wait_for(follow(group), PATIENCE_S)
    assert [generation.finish_reason for generation in generations] == ["abort", "abort"]
    assert generations[0].num_tokens == 5
    assert generations[1].num_tokens <= 3, "candidates of one connection wait for each other"
    for generation in generations:
        assert_whole(deltas, generation)


@check()
async def a_deadline_holds_for_a_parked_candidate(engine: Engine) -> None:
    group = await engine.submit(greedy(max_tokens=4000, allowance_tokens=2, deadline_s=0.5))
    (generation,) = await asyncio.wait_for(group.all(), PATIENCE_S)
    assert generation.finish_reason == "abort"
    assert generation.num_tokens <= 2


@check()
async def a_candidate_that_ends_before_its_allowance_leaves_the_other_parked(engine: Engine) -> None:
    """Two seeds, two answers; a stop string from the first, early in it, ends only that one."""
    sampling = (Sampling(temperature=1.0, seed=TOOL_SEED - 1),)
    prompt = Prompt(messages=user(), n=2, sampling=sampling, max_tokens=24)
    first, second = await generate(engine, prompt)
    assert second.num_tokens > 8
    cuts = (first.text[start : start + 3] for start in range(2, 5))
    stop = next(cut for cut in cuts if cut not in second.text)
    prompt = msgspec.structs.replace(prompt, stop=(stop,))
    group = await engine.submit(msgspec.structs.replace(prompt, allowance_tokens=8))
    await parked(group, 8)
    assert [generation.index for generation in group.generations] == [0]
    group.allow(None)
    whole = await generate(engine, prompt)
    assert [generation.text for generation in await group.all()] == [generation.text for generation in whole]


@check()
async def others_are_answered_while_one_is_parked(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    group = await engine.submit(greedy(n=3, allowance_tokens=3))
    await parked(group, 3)
    (other,) = await asyncio.wait_for(generate(engine, greedy()), PATIENCE_S)
    assert other.text == free.text
    await parked(group, 3)
    group.cancel()
    await group.all()


@check()
async def an_answer_wanted_whole_is_the_same_answer(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    for allowance_tokens in (None, 24, 4):
        group = await engine.submit(greedy(whole=True, allowance_tokens=allowance_tokens))
        if await group.reached(4):
            group.allow(None)
        deltas, (generation,) = await asyncio.wait_for(follow(group), PATIENCE_S)
        assert_whole(deltas, generation)
        assert (generation.text, generation.num_tokens) == (free.text, free.num_tokens)


@check()
async def closing_ends_what_is_parked(engine: Engine) -> None:
    group = await engine.submit(greedy(allowance_tokens=2))
    await parked(group, 2)
    await asyncio.wait_for(engine.close(), PATIENCE_S)
    await asyncio.wait([asyncio.create_task(group.all())], timeout=PATIENCE_S)
    assert group.is_done
