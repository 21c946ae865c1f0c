from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from atlas.engine import Engine, Group, ScriptedEngine
from atlas.errors import BadRequest, ContextLengthExceeded, EngineUnavailable, ModelNotFound, Unsupported
from atlas.types import Delta, Generation, Message, Prompt, Sampling, Tool

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
ADD = Tool(name="add", parameters={"type": "object"})


def ask(content: str = "hi", **fields: Any) -> Prompt:
    return Prompt(messages=(Message(role="user", content=content),), **fields)


async def answer(engine: Engine, prompt: Prompt) -> Generation:
    return (await (await engine.submit(prompt)).all())[0]


async def read(group: Group) -> list[Delta]:
    return [delta async for delta in group]


async def test_replies_come_in_turn_round_and_round() -> None:
    engine = ScriptedEngine(["one", "two", "three"])
    assert [(await answer(engine, ask())).text for _ in range(4)] == ["one", "two", "three", "one"]
    group = await engine.submit(ask(n=3))
    assert [generation.text for generation in await group.all()] == ["two", "three", "one"]


async def test_a_seed_chooses_the_reply() -> None:
    engine = ScriptedEngine(["one", "two", "three"])
    prompt = ask(sampling=(Sampling(seed=1),), n=2)
    for _ in range(2):
        assert [generation.text for generation in await (await engine.submit(prompt)).all()] == ["two", "three"]


async def test_a_reply_streams_word_by_word_and_adds_up() -> None:
    engine = ScriptedEngine(["Hello wide  world!\n if a < b: é🙂\n"])
    group = await engine.submit(ask(n=2))
    deltas = await read(group)
    for generation in await group.all():
        own = [delta for delta in deltas if delta.index == generation.index]
        assert len(own) > 5
        assert "".join(delta.text for delta in own) == generation.text == "Hello wide  world!\n if a < b: é🙂\n"
        assert [delta.finish_reason for delta in own if delta.finish_reason] == ["stop"]
        assert own[-1].finish_reason == "stop"
        assert generation.num_tokens == len(generation.tokens) + 1
        assert await engine.detokenize(generation.tokens) == generation.text


async def test_thinking_and_calls_are_taken_apart() -> None:
    engine = ScriptedEngine([f"<think>\nadd them\n</think>\n\nSure.\n{CALL}"])
    generation = await answer(engine, ask(tools=(ADD,)))
    assert (generation.text, generation.reasoning, generation.finish_reason) == ("Sure.", "add them", "tool_calls")
    assert [(call.name, call.arguments) for call in generation.tool_calls] == [("add", '{"a": 1, "b": 2}')]
    assert generation.reasoning_tokens > 0


async def test_without_tools_a_call_is_text() -> None:
    assert (await answer(ScriptedEngine([CALL]), ask())).text == CALL


async def test_thinking_is_closed_when_its_budget_is_spent() -> None:
    engine = ScriptedEngine(["<think>a b c d e f</think>yes"])
    generation = await answer(engine, ask(thinking_budget_tokens=2))
    assert (generation.text, generation.reasoning) == ("yes", "a b")


async def test_stop_strings_and_max_tokens_end_an_answer() -> None:
    engine = ScriptedEngine(["one two three four"])
    stopped = await answer(engine, ask(stop=("o th",)))
    assert (stopped.text, stopped.finish_reason, stopped.matched_stop) == ("one tw", "stop", "o th")
    cut = await answer(engine, ask(max_tokens=2))
    assert (cut.text, cut.finish_reason, cut.num_tokens) == ("one two", "length", 2)


async def test_an_answer_ends_where_the_context_does() -> None:
    engine = ScriptedEngine(["one two three four"], context_tokens=3)
    for max_tokens in (None, 9999):
        generation = await answer(engine, Prompt(text="x", max_tokens=max_tokens))
        assert (generation.text, generation.finish_reason) == ("one two", "length")


async def test_cancelling_one_candidate_spares_the_others() -> None:
    engine = ScriptedEngine(["a b c d e f g h"], delay_s=0.01)
    group = await engine.submit(ask(n=3))
    group.cancel([1])
    assert [generation.finish_reason for generation in await group.all()] == ["stop", "abort", "stop"]


async def test_cancel_ends_everything_at_once() -> None:
    engine = ScriptedEngine(["never"], delay_s=60)
    group = await engine.submit(ask(n=4))
    started_s = time.monotonic()
    group.cancel()
    assert {generation.finish_reason for generation in await group.all()} == {"abort"}
    assert time.monotonic() - started_s < 30
    assert engine.stats().num_running == 0


async def test_a_deadline_aborts() -> None:
    engine = ScriptedEngine(["a b c"], delay_s=60)
    assert (await answer(engine, ask(deadline_s=0.02))).finish_reason == "abort"


async def test_logprobs_stand_beside_every_token() -> None:
    generation = await answer(ScriptedEngine(["one two"]), ask(top_logprobs=3))
    assert b"".join(logprob.text for logprob in generation.logprobs) == b"one two"
    for logprob in generation.logprobs:
        assert logprob.top[0] == (logprob.token, logprob.text, logprob.logprob)
        assert [top[2] for top in logprob.top] == sorted((top[2] for top in logprob.top), reverse=True)
        assert len(logprob.top) == 3
    mean = sum(logprob.logprob for logprob in generation.logprobs) / len(generation.logprobs)
    assert generation.mean_logprob == pytest.approx(mean)


async def test_tokens_are_bytes_and_special_tokens_only_on_demand() -> None:
    engine = ScriptedEngine(["x"])
    assert await engine.tokenize("é<|im_end|>", special=True) == [0xC3, 0xA9, 257]
    assert len(await engine.tokenize("<|im_end|>")) == 10
    assert await engine.detokenize([0xC3, 0xA9, 257]) == "é<|im_end|>"
    with pytest.raises(BadRequest, match="token 99999 is outside"):
        await engine.detokenize([99999])


async def test_the_group_says_what_count_tokens_says() -> None:
    engine = ScriptedEngine(["x"])
    for prompt in (ask("hello"), ask(tools=(ADD,)), Prompt(text="def f():"), Prompt(tokens=(1, 2, 3))):
        assert (await engine.submit(prompt)).prompt_tokens == await engine.count_tokens(prompt)


async def test_a_raw_prompt_is_answered_raw() -> None:
    reply = "<think>x</think>" + CALL
    assert (await answer(ScriptedEngine([reply]), Prompt(text="go", suffix="stop"))).text == reply


async def test_embeddings_are_unit_vectors_and_near_for_shared_words() -> None:
    embeddings = await ScriptedEngine(["x"]).embed(["sort a list", "sort the list", "zebra", "", (104, 105)])
    assert all(math.isclose(math.fsum(v * v for v in vector), 1) for vector in embeddings.vectors)
    near, far = (sum(a * b for a, b in zip(embeddings.vectors[0], embeddings.vectors[other], strict=True)) for other in (1, 2))
    assert near > far
    assert embeddings.num_tokens == 11 + 13 + 5 + 0 + 2


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (Prompt(), BadRequest, "exactly one of"),
        (Prompt(text="a", tokens=(1,)), BadRequest, "exactly one of"),
        (Prompt(tokens=()), BadRequest, "no tokens"),
        (ask(suffix="a"), BadRequest, "suffix goes with"),
        (ask(n=0), BadRequest, r"n is 0; it must lie in 1\.\.128"),
        (ask(n=129), BadRequest, "n is 129"),
        (ask(n=3, sampling=(Sampling(), Sampling())), BadRequest, "2 sampling settings for n=3"),
        (ask(max_tokens=0), BadRequest, "max_tokens is 0"),
        (ask("x" * 5000), ContextLengthExceeded, "the prompt has 50"),
        (ask(top_logprobs=21), BadRequest, "top_logprobs is 21"),
        (ask(model="other"), ModelNotFound, "'other' is not here; this engine runs 'scripted'"),
        (ask(tools=(ADD,), tool_choice="tool:sub"), BadRequest, "names 'sub'"),
        (ask(tool_choice="required"), BadRequest, "there are no tools"),
        (ask(tool_choice="maybe"), BadRequest, "'maybe'"),
        (ask(json_schema={}), Unsupported, "does not support json_schema"),
        (ask(features=True), Unsupported, "does not support features"),
        (ask(adapter="py"), Unsupported, "adapter 'py'"),
    ],
)
async def test_a_wrong_prompt_is_refused_before_anything_is_generated(
    prompt: Prompt, error: type[BadRequest], message: str
) -> None:
    engine = ScriptedEngine(["x"])
    with pytest.raises(error, match=message):
        await engine.submit(prompt)
    assert engine.stats().generated_tokens == 0


async def test_closing_aborts_what_runs_and_refuses_what_comes() -> None:
    engine = ScriptedEngine(["never"], delay_s=60)
    group = await engine.submit(ask())
    await engine.close()
    await engine.close()
    assert [generation.finish_reason for generation in await asyncio.wait_for(group.all(), 30)] == ["abort"]
    with pytest.raises(EngineUnavailable):
        await engine.submit(ask())
