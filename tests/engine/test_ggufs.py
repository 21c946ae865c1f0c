"""The models the other tests stand on: do they do what they are built to do?"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atlas.engine import Engine, load_engine
from atlas.settings import EngineSettings
from atlas.types import Generation, Message, Prompt, Sampling, Tool
from tests import ggufs
from tests.gguf_vocabulary import Vocabulary

GREEDY = (Sampling(temperature=0.0),)
ADD = Tool(name="add", parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}})


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Engine]:
    engine = await load_engine(path, model_id="tiny", settings=EngineSettings(context_tokens=4096, threads=1))
    try:
        yield engine
    finally:
        await engine.close()


def user(text: str = "1 + 2?") -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


async def answer(engine: Engine, prompt: Prompt) -> Generation:
    return (await (await engine.submit(prompt)).all())[0]


async def test_a_script_is_said_to_the_letter_thinking_apart() -> None:
    async with running(ggufs.tiny_scripted()) as engine:
        generation = await answer(engine, Prompt(messages=user(), sampling=GREEDY))
        assert (generation.reasoning, generation.text, generation.finish_reason) == ("plan.", "Hello world!\n", "stop")
        raw = await answer(engine, Prompt(text="<|im_start|>assistant\n", sampling=GREEDY))
        assert raw.text == ggufs.ANSWER


async def test_a_tool_result_ends_the_tool_loop() -> None:
    async with running(ggufs.tiny_tool_loop()) as engine:
        first = await answer(engine, Prompt(messages=user(), tools=(ADD,), sampling=GREEDY))
        (call,) = first.tool_calls
        assert (first.finish_reason, first.text, first.reasoning) == ("tool_calls", "", "I should add.")
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1, "b": 2})
        turns = (
            *user(),
            Message(role="assistant", reasoning=first.reasoning, tool_calls=first.tool_calls),
            Message(role="tool", content="3", tool_call_id=call.id),
        )
        last = await answer(engine, Prompt(messages=turns, tools=(ADD,), sampling=GREEDY))
        assert (last.text, last.finish_reason, last.tool_calls) == ("The sum is 3.", "stop", ())


async def test_a_script_that_must_call_a_tool_passes_its_grammar() -> None:
    async with running(ggufs.tiny_tool_loop()) as engine:
        for choice in ("required", "tool:add"):
            generation = await answer(engine, Prompt(messages=user(), tools=(ADD,), tool_choice=choice, sampling=GREEDY))
            (call,) = generation.tool_calls
            assert (call.arguments, generation.reasoning) == ('{"a": 1, "b": 2}', "I should add.")


async def test_branches_are_taken_with_their_probabilities(tmp_path: Path) -> None:
    script: list[str | ggufs.Branch] = ["I say", {" yes": 0.7, " no": 0.2, "<|im_end|>": 0.1}, " indeed"]
    path = ggufs.scripted_gguf(tmp_path / "branches.gguf", {"\n": script})
    plain = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
    async with running(path) as engine:
        (greedy,) = (await answer(engine, Prompt(messages=user(), sampling=GREEDY, top_logprobs=3)),)
        assert greedy.text == "I say yes indeed"
        top = [(text, value) for _, text, value in greedy.logprobs[1].top]
        assert [text for text, _ in top] == [b" yes", b" no", b"<|im_end|>"]
        assert [value for _, value in top] == pytest.approx([math.log(0.7), math.log(0.2), math.log(0.1)], abs=1e-3)

        found = collections.Counter[str]()
        for seed in range(4):
            group = await engine.submit(Prompt(messages=user(), n=128, sampling=(with_seed(plain, seed),)))
            found.update([generation.text for generation in await group.all()])
        assert set(found) == {"I say yes indeed", "I say no indeed", "I say"}
        # 512 draws: five standard deviations, a false alarm in a million
        assert found["I say yes indeed"] / 512 == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 512))
        assert found["I say"] / 512 == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / 512))


def with_seed(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k, min_p=sampling.min_p, seed=seed)


async def test_bytes_follow_one_another_where_no_script_is() -> None:
    async with running(ggufs.tiny_scripted()) as engine:
        generation = await answer(engine, Prompt(text="abc", sampling=GREEDY, max_tokens=5))
        assert generation.text == "defgh"
        beyond = await answer(engine, Prompt(text="x" + chr(0x7F), sampling=GREEDY, max_tokens=4))
        assert beyond.text == "\ufffd" * 4


async def test_every_token_of_the_random_model_depends_on_all_before_it() -> None:
    async with running(ggufs.tiny_random()) as engine:
        texts = {
            (await answer(engine, Prompt(text=first + "ello there", sampling=GREEDY, max_tokens=24))).text for first in "HhJY"
        }
        assert len(texts) == 4
        for text in texts:
            assert text.isascii()
            assert text.isprintable()


def test_a_script_that_cannot_be_a_chain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        ggufs.scripted_gguf(tmp_path / "x.gguf", {"\n": ["ha ", "ha "]})
    with pytest.raises(ValueError, match="single byte"):
        ggufs.scripted_gguf(tmp_path / "x.gguf", {"\n": ["a"]})


@pytest.mark.parametrize("text", [ggufs.ANSWER, "ha ha ha ha ha!", "a < b, <think> and <think> again\n", "\n\nx", "é🙂 🙂 🙂"])
async def test_a_text_is_cut_into_a_chain_by_itself(tmp_path: Path, text: str) -> None:
    assert "".join(Vocabulary().cut(text)) == text
    async with running(ggufs.scripted_gguf(tmp_path / "x.gguf", {"\n": text})) as engine:
        generation = await answer(engine, Prompt(text="<|im_start|>assistant\n", sampling=GREEDY))
        assert (generation.text, generation.finish_reason) == (text, "stop")
