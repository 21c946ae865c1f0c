"""What every engine must do, whatever stands behind it. Each check asks only what the engine's capabilities declare.

The engine under test must answer these prompts with text of at least 40 tokens where it is free to, without thinking, and call
the tool `check` when it is told to; a script, which cannot be told, does so for the seed `TOOL_SEED`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from atlas.engine import Engine, Group
from atlas.errors import BadRequest, ContextLengthExceeded, EngineUnavailable, ModelNotFound, Unsupported
from atlas.types import Capabilities, Delta, Generation, Message, Prompt, Sampling, Tool, ToolCall

Check = Callable[[Engine], Awaitable[None]]
Needs = Callable[[Capabilities], object]

CHECKS: list[tuple[Check, Needs]] = []
GREEDY = (Sampling(temperature=0.0, seed=0),)
TOOL_SEED = 8
CHECK = Tool(
    name="check",
    description="Ticks a box.",
    parameters={
        "type": "object", "properties": {"flag": {"type": "boolean"}}, "required": ["flag"], "additionalProperties": False,
    },
)  # fmt: skip
SCHEMA = {
    "type": "object", "properties": {"flag": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}}, "required": ["flag", "kind"],
    "additionalProperties": False,
}  # fmt: skip


def check(needs: Needs = lambda _can: True) -> Callable[[Check], Check]:
    """Enter a check into the suite, for engines whose capabilities satisfy `needs`."""

    def enter(function: Check) -> Check:
        CHECKS.append((function, needs))
        return function

    return enter


def user(text: str = "Tell me a story.") -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def greedy(text: str = "Tell me a story.", **fields: Any) -> Prompt:
    return Prompt(messages=user(text), sampling=GREEDY, **{"max_tokens": 24, **fields})


async def generate(engine: Engine, prompt: Prompt) -> list[Generation]:
    return await (await engine.submit(prompt)).all()


async def follow(group: Group) -> tuple[list[Delta], list[Generation]]:
    return [delta async for delta in group], await group.all()


def assert_whole(deltas: Sequence[Delta], generation: Generation) -> None:
    """What was streamed is what was generated, and it ended once."""
    own = [delta for delta in deltas if delta.index == generation.index]
    assert "".join(delta.text for delta in own) == generation.text
    assert "".join(delta.reasoning for delta in own) == generation.reasoning
    assert tuple(logprob for delta in own for logprob in delta.logprobs) == generation.logprobs
    assert joined_calls(own) == generation.tool_calls
    assert [delta.finish_reason for delta in own if delta.finish_reason] == [generation.finish_reason]
    assert own[-1].finish_reason == generation.finish_reason


def joined_calls(deltas: Sequence[Delta]) -> tuple[ToolCall, ...]:
    """Tool calls as a client puts them together."""
    calls: dict[int, ToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        known = calls.get(piece.index)
        if known is None:
            assert piece.id
            assert piece.name
            known = ToolCall(id=piece.id, name=piece.name, arguments="")
        calls[piece.index] = ToolCall(id=known.id, name=known.name, arguments=known.arguments + piece.arguments)
    return tuple(calls[index] for index in sorted(calls))


# -- candidates --


@check()
async def each_candidate_finishes_exactly_once(engine: Engine) -> None:
    group = await engine.submit(Prompt(messages=user(), n=3, sampling=(Sampling(temperature=1.0, seed=1),), max_tokens=12))
    assert group.num_candidates == 3
    deltas, generations = await follow(group)
    assert [generation.index for generation in generations] == [0, 1, 2]
    for generation in generations:
        assert_whole(deltas, generation)
        assert generation.model == engine.capabilities.model
    assert group.is_done
    assert group.is_started


@check()
async def a_group_can_be_left_unread(engine: Engine) -> None:
    group = await engine.submit(greedy(n=2))
    async with asyncio.timeout(20):
        while not group.is_done:  # noqa: ASYNC110  nobody waits on the group: that is the point
            await asyncio.sleep(0.01)
    assert len(await group.all()) == 2


@check()
async def sampling_may_differ_per_candidate(engine: Engine) -> None:
    sampling = (Sampling(temperature=0.0, seed=5), Sampling(temperature=0.0, seed=5))
    first, second = await generate(engine, Prompt(messages=user(), n=2, sampling=sampling, max_tokens=12))
    assert first.text == second.text


@check()
async def many_prompts_at_once_do_not_mix(engine: Engine) -> None:
    prompts = [greedy(f"Story {i}. " + "and " * i) for i in range(8)]
    alone = [(await generate(engine, prompt))[0].text for prompt in prompts]
    crowd = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
    assert [generations[0].text for generations in crowd] == alone


# -- endings --


@check()
async def max_tokens_ends_an_answer(engine: Engine) -> None:
    deltas, (generation,) = await follow(await engine.submit(greedy(max_tokens=5)))
    assert_whole(deltas, generation)
    assert (generation.finish_reason, generation.num_tokens) == ("length", 5)
    assert len(generation.tokens) in (0, 5), "ids of all tokens, or, where they are unknown, none"


@check()
async def a_stop_string_ends_an_answer_and_is_no_part_of_it(engine: Engine) -> None:
    (free,) = await generate(engine, greedy())
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    deltas, (generation,) = await follow(await engine.submit(greedy(stop=("never in it", stop))))
    assert_whole(deltas, generation)
    assert generation.text == free.text[: free.text.index(stop)]
    assert generation.finish_reason == "stop"
    assert generation.matched_stop in (stop, None), "None: the engine does not say"


@check()
async def cancelling_one_candidate_spares_the_others(engine: Engine) -> None:
    group = await engine.submit(Prompt(messages=user(), n=3, sampling=(Sampling(temperature=1.0, seed=2),), max_tokens=40))
    reader = aiter(group)
    deltas = [await anext(reader)]
    group.cancel([1])
    group.cancel([1])
    deltas += [delta async for delta in reader]
    generations = await group.all()
    assert [generation.finish_reason == "abort" for generation in generations] == [False, True, False]
    for generation in generations:
        assert_whole(deltas, generation)


@check()
async def cancelling_all_ends_them_at_once(engine: Engine) -> None:
    group = await engine.submit(Prompt(messages=user(), n=3, max_tokens=2000))
    reader = aiter(group)
    deltas = [await anext(reader)]
    started_s = time.monotonic()
    group.cancel()
    deltas += [delta async for delta in reader]
    generations = await group.all()
    assert time.monotonic() - started_s < 10
    assert {generation.finish_reason for generation in generations} == {"abort"}
    for generation in generations:
        assert_whole(deltas, generation)
    group.cancel()  # too late, and no harm


@check()
async def a_group_cancelled_before_it_starts_ends_and_leaves_nothing_running(engine: Engine) -> None:
    group = await engine.submit(greedy(n=3, max_tokens=2000))
    group.cancel()
    assert {generation.finish_reason for generation in await group.all()} == {"abort"}
    async with asyncio.timeout(30):
        while engine.stats().num_running or engine.stats().num_waiting:  # noqa: ASYNC110  stats are a snapshot
            await asyncio.sleep(0.01)


@check()
async def a_deadline_aborts(engine: Engine) -> None:
    started_s = time.monotonic()
    (generation,) = await generate(engine, greedy(max_tokens=4000, deadline_s=0.1))
    assert generation.finish_reason == "abort"
    assert time.monotonic() - started_s < 20


# -- the same again --


@check()
async def temperature_zero_is_deterministic(engine: Engine) -> None:
    texts = {(await generate(engine, greedy()))[0].text for _ in range(3)}
    assert len(texts) == 1


@check()
async def a_seed_is_reproducible_and_zero_is_a_seed(engine: Engine) -> None:
    for seed in (0, 7):
        prompt = Prompt(messages=user(), n=3, sampling=(Sampling(temperature=1.0, seed=seed),), max_tokens=16)
        first, second = await generate(engine, prompt), await generate(engine, prompt)
        assert [generation.text for generation in first] == [generation.text for generation in second]


# -- what is declared --


@check(lambda can: can.tools)
async def a_required_tool_is_called(engine: Engine) -> None:
    prompt = Prompt(
        messages=user("Check it."), tools=(CHECK,), tool_choice="tool:check", max_tokens=400, sampling=(Sampling(seed=TOOL_SEED),)
    )
    deltas, (generation,) = await follow(await engine.submit(prompt))
    assert_whole(deltas, generation)
    assert generation.finish_reason == "tool_calls"
    (call,) = generation.tool_calls
    assert call.name == "check"
    assert isinstance(json.loads(call.arguments)["flag"], bool)
    assert "<tool_call>" not in generation.text


@check(lambda can: can.tools)
async def a_tool_result_can_be_sent_back(engine: Engine) -> None:
    call = ToolCall(id="call_1", name="check", arguments='{"flag": true}')
    turns = (*user("Check it."), Message(role="assistant", tool_calls=(call,)))
    result = Message(role="tool", content="done", tool_call_id="call_1")
    (generation,) = await generate(engine, Prompt(messages=(*turns, result), tools=(CHECK,), max_tokens=8))
    assert generation.finish_reason in ("length", "stop", "tool_calls")


@check(lambda can: can.json_schema)
async def a_json_schema_is_obeyed(engine: Engine) -> None:
    prompt = Prompt(
        messages=user("JSON!"), json_schema=SCHEMA, sampling=(Sampling(temperature=1.0, seed=3),), n=3, max_tokens=400
    )
    for generation in await generate(engine, prompt):
        assert generation.finish_reason == "stop"
        found = json.loads(generation.text)
        assert isinstance(found["flag"], bool)
        assert found["kind"] in ("a", "b")
        assert set(found) == {"flag", "kind"}


@check(lambda can: can.json_schema)
async def a_schema_nobody_can_obey_is_refused(engine: Engine) -> None:
    with pytest.raises(BadRequest):
        await generate(engine, greedy(json_schema={"type": "zork"}))


@check(lambda can: can.features)
async def features_are_as_wide_as_the_model(engine: Engine) -> None:
    generations = await generate(engine, greedy(features=True, n=2, max_tokens=4))
    for generation in generations:
        assert generation.features is not None
        assert len(generation.features.mean) == len(generation.features.last) > 0
        assert all(map(math.isfinite, (*generation.features.mean, *generation.features.last)))


@check(lambda can: can.fill_in_middle)
async def a_gap_is_filled(engine: Engine) -> None:
    (generation,) = await generate(engine, Prompt(text="def f():\n    ", suffix="\n    return x", sampling=GREEDY, max_tokens=4))
    assert generation.num_tokens <= 4
    assert generation.finish_reason in ("stop", "length")


@check()
async def a_raw_prompt_is_continued(engine: Engine) -> None:
    deltas, (generation,) = await follow(await engine.submit(Prompt(text="Once upon", sampling=GREEDY, max_tokens=6)))
    assert_whole(deltas, generation)
    assert generation.finish_reason == "length"


@check(lambda can: can.tokenize)
async def a_prompt_of_tokens_equals_its_text(engine: Engine) -> None:
    tokens = tuple(await engine.tokenize("Once upon", special=True))
    (by_text,) = await generate(engine, Prompt(text="Once upon", sampling=GREEDY, max_tokens=6))
    (by_tokens,) = await generate(engine, Prompt(tokens=tokens, sampling=GREEDY, max_tokens=6))
    assert by_tokens.text == by_text.text


@check(lambda can: can.tokenize)
async def tokens_count_as_they_are_fed(engine: Engine) -> None:
    long = (*user("ü" * 50), Message(role="assistant", content="a"), *user("b"))
    for prompt in (greedy(), greedy(tools=(CHECK,)), Prompt(messages=long), Prompt(text="abc", max_tokens=1)):
        group = await engine.submit(prompt)
        assert group.prompt_tokens == await engine.count_tokens(prompt) > 0
        group.cancel()
        await group.all()


@check(lambda can: can.tokenize)
async def text_survives_its_tokens(engine: Engine) -> None:
    for text in ("", "plain", "ümlaut 🙂\n\tdef f(): <|im_end|>"):
        tokens = await engine.tokenize(text)
        assert b"".join(await engine.pieces(tokens)).decode() == await engine.detokenize(tokens) == text
        assert all(0 <= token < engine.capabilities.vocab_size for token in tokens)
    for token in (-1, engine.capabilities.vocab_size):
        with pytest.raises(BadRequest):
            await engine.detokenize([token])


@check(lambda can: can.tokenize)
async def generated_tokens_are_the_text(engine: Engine) -> None:
    (generation,) = await generate(engine, greedy())
    assert await engine.detokenize(generation.tokens) == generation.text


@check(lambda can: can.embeddings)
async def embeddings_have_unit_length_and_their_order(engine: Engine) -> None:
    texts = ["sort a list", "boil an egg", "sort a list"]
    embeddings = await engine.embed(texts)
    assert len(embeddings.vectors) == 3
    for vector in embeddings.vectors:
        assert math.fsum(value * value for value in vector) == pytest.approx(1, abs=1e-4)
        assert len(vector) == (engine.capabilities.embedding_width or len(embeddings.vectors[0]))
    assert embeddings.vectors[0] == pytest.approx(embeddings.vectors[2], abs=1e-4)
    assert embeddings.vectors[0] != embeddings.vectors[1]
    assert embeddings.num_tokens > 0


@check(lambda can: not can.embeddings)
async def without_an_embedding_model_embedding_is_refused(engine: Engine) -> None:
    with pytest.raises(Unsupported):
        await engine.embed(["x"])


# -- what is refused --


@check(lambda can: can.context_tokens)
async def a_prompt_longer_than_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextLengthExceeded, match=str(engine.capabilities.context_tokens)):
        await engine.submit(greedy("word " * engine.capabilities.context_tokens))


@check()
async def wrong_numbers_are_refused(engine: Engine) -> None:
    wrong: list[dict[str, Any]] = [
        {"n": 0}, {"n": engine.capabilities.max_candidates + 1}, {"n": 3, "sampling": GREEDY * 2}, {"max_tokens": 0},
        {"top_logprobs": 21}, {"tool_choice": "required"}, {"tools": (CHECK,), "tool_choice": "tool:other"}, {"text": "too"},
    ]  # fmt: skip
    for fields in wrong:
        with pytest.raises(BadRequest):
            await engine.submit(Prompt(messages=user(), **fields))


@check()
async def an_unknown_model_is_refused_by_name(engine: Engine) -> None:
    with pytest.raises(ModelNotFound, match="no-such-model"):
        await engine.submit(Prompt(model="no-such-model", messages=user()))
    (generation,) = await generate(engine, greedy(model=engine.capabilities.model, max_tokens=1))
    assert generation.model == engine.capabilities.model


@check()
async def closing_ends_what_runs_and_refuses_what_comes(engine: Engine) -> None:
    group = await engine.submit(greedy(max_tokens=4000))
    await asyncio.wait_for(engine.close(), 30)
    await asyncio.wait_for(engine.close(), 30)
    try:
        (generation,) = await asyncio.wait_for(group.all(), 30)
    except EngineUnavailable:  # an engine may also say why it stopped
        pass
    else:
        assert generation.finish_reason == "abort"
    with pytest.raises(EngineUnavailable):
        await engine.submit(greedy())
