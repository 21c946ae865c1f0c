"""Guesses that the model verifies: the same words as without them, fewer steps, and nobody who pays for it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas.engine import Engine
from atlas.engine.draft_model import ModelDrafter
from atlas.engine.engine import LlamaEngine
from atlas.engine.gain import RowCosts
from atlas.errors import EngineUnavailable
from atlas.types import Generation, Message, Prompt, Sampling, Tool
from tests import ggufs
from tests.engine.test_llama import GAP, GREEDY, RECOMPUTED_GAP, generate, running, same_up_to_ties, settled

WARM = (Sampling(temperature=0.8, seed=7),)
MODES = ("ngram", "draft")


@pytest.fixture(autouse=True)
def free_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and draft decodes cost nothing, so that whatever is guessed is computed on any machine."""
    monkeypatch.setattr(RowCosts, "seconds", lambda _self, _rows: 1.0)
    monkeypatch.setattr(ModelDrafter, "cost_s", lambda _self, _length: 0.0)


@asynccontextmanager
async def guessing(mode: str, path: Path | None = None, **settings: Any) -> AsyncIterator[Engine]:
    """An engine whose draft, if it has one, is right most of the time."""
    draft = {"draft_model": str(ggufs.tiny_draft())} if mode == "draft" else {}
    async with running(path or ggufs.tiny_calm(), **{"speculation": mode, **draft, **settings}) as engine:
        yield engine


def ask(text: str, **fields: Any) -> Prompt:
    return Prompt(text=text, **{"max_tokens": 40, "sampling": GREEDY, "top_logprobs": 2, **fields})


async def together(engine: Engine, prompts: list[Prompt]) -> list[Generation]:
    """The first answers to prompts that are all there before the next step."""
    assert isinstance(engine, LlamaEngine)
    gate = threading.Event()
    held = asyncio.create_task(engine._core.between_steps(gate.wait))
    await asyncio.sleep(0)
    groups = [await engine.submit(prompt) for prompt in prompts]
    gate.set()
    await held
    return [(await group.all())[0] for group in groups]


_solo: dict[str, list[Generation]] = {}


async def solo(prompts: list[Prompt], path: Path | None = None, **settings: Any) -> list[Generation]:
    """Answers without guesses, one at a time; the same for all modes."""
    asked = f"{prompts} {path} {settings}"
    if asked not in _solo:
        async with running(path or ggufs.tiny_calm(), max_sequences=1, cached_sequences=0, **settings) as engine:
            _solo[asked] = [generation for prompt in prompts for generation in await generate(engine, prompt)]
    return _solo[asked]


def mixed(num_prompts: int) -> list[Prompt]:
    """Prompts that repeat themselves and share beginnings; four in five greedy, the others sampled."""
    rng = random.Random(1)
    prompts = []
    for number in range(num_prompts):
        text = rng.choice(("xyz def ghi ", "You are careful. ")) * rng.randrange(1, 6) + str(number)
        prompts.append(ask(text, max_tokens=rng.randrange(5, 45), sampling=WARM if number % 5 == 4 else GREEDY))
    return prompts


@pytest.mark.parametrize("mode", MODES)
async def test_200_prompts_are_answered_as_without_guesses(mode: str) -> None:
    """Acceptance 6: greedy ones and some with a seed, five at a time; equal but for ties closer than GAP."""
    prompts = mixed(250)
    async with guessing(mode, max_sequences=5) as engine:
        answers = [generation for [generation] in await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))]
        await settled(engine)
        stats = engine.stats()
        assert stats.accepted_tokens > len(prompts) * 3, "guesses were right"
        assert stats.drafted_tokens > stats.accepted_tokens, "and some were wrong"
    pairs = list(zip(prompts, await solo(prompts), answers, strict=True))
    greedy = [(alone, other) for prompt, alone, other in pairs if prompt.sampling is GREEDY]
    assert len(greedy) == 200
    assert [alone.tokens for alone, other in greedy if not same_up_to_ties(alone, other)] == []
    assert sum(alone.tokens != other.tokens for prompt, alone, other in pairs if prompt.sampling is WARM) <= 1, (
        "float noise of 1e-4 moves the border that one draw in some 10,000 falls on"
    )


@pytest.mark.parametrize("mode", MODES)
async def test_guesses_save_steps_while_fewer_than_8_answers_run_and_there_are_none_at_8(mode: str) -> None:
    """Short prompts that come together decode from the same step on, and without guesses end in the same step."""
    prompts = [ask(f"{number} " + "xyz def ghi " * 4, max_tokens=120) for number in range(8)]
    async with guessing(mode) as engine:
        for num in (1, 7):
            before = engine.stats()
            await together(engine, prompts[:num])
            await settled(engine)
            after = engine.stats()
            assert after.accepted_tokens - before.accepted_tokens > 30 * num
            assert after.steps - before.steps < 100
        before = after
        await together(engine, prompts)
        await settled(engine)
        assert engine.stats().drafted_tokens == before.drafted_tokens
        assert engine.stats().steps - before.steps >= 120


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_left_of_an_answer_is_a_true_prefix_for_the_next(mode: str) -> None:
    """Cells behind a wrong guess are gone: the next turn finds the answer, and its logits are those of a fresh context."""
    async with guessing(mode) as engine:
        for number in range(12):
            text = f"{number} " + "xyz def ghi " * 3
            [answer] = await generate(engine, ask(text, max_tokens=25 + number))
            following = ask(f"{text}{answer.text} and {number}", max_tokens=4, top_logprobs=20)
            group = await engine.submit(following)
            [after] = await group.all()
            assert group.cached_tokens == len(text) + len(answer.tokens) - 1
            [fresh] = await solo([following])
            assert same_up_to_ties(fresh, after)
            assert first_logprobs(after) == pytest.approx(first_logprobs(fresh), abs=2e-3)
        await settled(engine)
        assert engine.stats().accepted_tokens < engine.stats().drafted_tokens, "something was taken back"


def first_logprobs(answer: Generation) -> list[float]:
    return [logprob for _, _, logprob in answer.logprobs[0].top]


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 40])
async def test_an_answer_is_exactly_as_long_as_it_may_be(max_tokens: int) -> None:
    async with guessing("ngram") as engine:
        [answer] = await generate(engine, ask("xyz" * 20, max_tokens=max_tokens))
        assert (answer.finish_reason, answer.num_tokens, len(answer.tokens)) == ("length", max_tokens, max_tokens)
        await settled(engine)
        assert engine.stats().cells_used == 60 + max_tokens - 1, "the last token is not computed, nor is any guess behind it"


async def test_a_stop_string_or_an_end_inside_an_accepted_draft_ends_the_answer_there() -> None:
    """The draft is the model itself, so every guess is right, beyond the end as well."""
    words = "one two three four five six seven eight nine ten eleven twelve"
    path = ggufs.scripted_gguf(ggufs.session_folder() / "numbers.gguf", {"?": words})
    prompts = [ask("?", stop=stop, max_tokens=40) for stop in ((), ("six",), ("ve si", "n ei"), ("e t",), ("never",))]
    found = []
    for speculation in ("draft", "off"):
        async with running(path, speculation=speculation, draft_model=str(path), cached_sequences=1) as engine:
            answers, cells = [], []
            for prompt in prompts:
                answers += await generate(engine, prompt)
                await settled(engine)
                cells.append(engine.stats().cells_used)
            assert (engine.stats().accepted_tokens > 20) == (speculation == "draft")
        found.append(([(answer.text, told(answer)) for answer in answers], cells))
    assert found[0] == found[1]
    assert answers[1].text == "one two three four five "


def told(answer: Generation) -> tuple[object, ...]:
    return (
        answer.tokens,
        answer.num_tokens,
        answer.finish_reason,
        answer.matched_stop,
        answer.reasoning_tokens,
        len(answer.logprobs),
    )


async def test_thinking_budgets_and_tool_calls_are_kept_inside_accepted_drafts() -> None:
    """The enforced end of a think block is not what was guessed."""
    path = ggufs.scripted_gguf(
        ggufs.session_folder() / "thinker.gguf",
        {
            "\t": "<think>\n" + "and so on " * 12 + "</think>",
            "\n": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        },
    )
    after_tool = (Message(role="user", content="2+2"), Message(role="tool", content="4", tool_call_id="c"))
    tool = Tool(name="add", description="", parameters={"type": "object", "properties": {"a": {"type": "integer"}}})
    prompts = [
        Prompt(
            messages=after_tool, sampling=GREEDY, thinking_budget_tokens=budget, tools=(tool,), tool_choice=choice, max_tokens=80
        )
        for budget in (0, 3, 5, None)
        for choice in ("auto", "tool:add")
    ]
    async with running(path, speculation="draft", draft_model=str(path)) as engine:
        answers = [(await generate(engine, prompt))[0] for prompt in prompts]
        assert engine.stats().accepted_tokens > 50
    for one, other in zip(await solo(prompts, path), answers, strict=True):
        assert told(one) == told(other)
        assert one.reasoning == other.reasoning
        assert [call.arguments for call in one.tool_calls] == [call.arguments for call in other.tool_calls]


@pytest.mark.parametrize("mode", MODES)
async def test_grammars_penalties_and_seeds_hold_inside_drafts(mode: str) -> None:
    text = '{"flag": true, "kind": "a"} ' * 3
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}, "text": {"type": "string"}},
        "required": ["kind", "text"],
    }
    penalised = Sampling(temperature=0.9, seed=3, repetition_penalty=1.1, frequency_penalty=0.2, logit_bias={65: 2.0})
    prompts = [
        *(ask(text + str(n), json_schema=schema, max_tokens=60) for n in range(6)),
        *(ask(text + str(n), sampling=(penalised,), max_tokens=60) for n in range(6)),
        *(ask(text + str(n), sampling=(Sampling(temperature=0.3, seed=n),), max_tokens=60) for n in range(12)),
    ]
    async with guessing(mode) as engine:
        answers = [(await generate(engine, prompt))[0] for prompt in prompts]
        assert engine.stats().accepted_tokens > 100
    for one, other in zip(await solo(prompts), answers, strict=True):
        assert one.tokens == other.tokens
        assert one.text == other.text
        assert [e.logprob for e in one.logprobs] == pytest.approx([e.logprob for e in other.logprobs], abs=5e-3)


@pytest.mark.parametrize("mode", MODES)
async def test_features_are_the_states_at_the_tokens_that_were_kept(mode: str) -> None:
    prompts = [ask("xyz def ghi " * number, max_tokens=60, features=True) for number in (1, 2, 3)]
    async with guessing(mode) as engine:
        answers = [generation for [generation] in await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))]
        assert 10 < engine.stats().accepted_tokens < engine.stats().drafted_tokens
    for answer, alone in zip(answers, await solo(prompts), strict=True):
        assert answer.tokens == alone.tokens
        assert answer.features is not None
        assert alone.features is not None
        np.testing.assert_allclose(answer.features.mean, alone.features.mean, atol=1e-3)
        np.testing.assert_allclose(answer.features.last, alone.features.last, atol=1e-3)


@pytest.mark.parametrize(("mode", "host_tokens", "gap"), [("draft", 0, RECOMPUTED_GAP), ("ngram", 4096, GAP)])
async def test_where_cells_run_out_guesses_take_nobodys(mode: str, host_tokens: int, gap: float) -> None:
    """Six answers outgrow 512 cells, again and again: cells that wrong guesses kept would leave no room for a counted row."""
    prompts = [[ask(f"{other} {number}", max_tokens=200) for other in range(6)] for number in range(4)]
    async with guessing(mode, context_tokens=512, max_sequences=6, host_cache_tokens=host_tokens) as engine:
        found = [await together(engine, six) for six in prompts]
        assert engine.stats().preemptions >= len(prompts)
        assert engine.stats().accepted_tokens > 100
        await settled(engine)
    alone = await solo([prompt for six in prompts for prompt in six], context_tokens=512)
    assert all(same_up_to_ties(one, other, gap=gap) for one, other in zip(alone, chain.from_iterable(found), strict=True))


@pytest.mark.parametrize("mode", MODES)
async def test_one_answer_may_fill_the_context_and_a_finished_prefix_stays(mode: str) -> None:
    async with guessing(mode, context_tokens=256, host_cache_tokens=0) as engine:
        await generate(engine, ask("k" * 80, max_tokens=1))
        [answer] = await generate(engine, ask("xyz def ghi " * 2, max_tokens=256 - 80 - 24))
        await settled(engine)
        assert answer.finish_reason == "length"
        assert engine.stats().cells_used == 255, "no guess has evicted the finished prefix"
        group = await engine.submit(ask("k" * 80, max_tokens=1))
        await group.all()
        assert group.cached_tokens == 79
        [answer] = await generate(engine, ask("xyz def ghi " * 2, max_tokens=256 - 24))
        assert (answer.finish_reason, answer.num_tokens) == ("length", 256 - 24)
        assert engine.stats().preemptions == 0


@pytest.mark.parametrize("mode", MODES)
async def test_an_allowance_is_kept_to_the_token(mode: str) -> None:
    prompt = ask("xyz def ghi " * 3, max_tokens=100, allowance_tokens=4)
    async with guessing(mode) as engine:
        group = await engine.submit(prompt)
        for allowed in range(4, 100, 9):
            group.allow(allowed)
            assert await asyncio.wait_for(group.reached(allowed), 30)
            await until_parked(engine)
            assert (group.num_generated, engine.stats().cells_live) == (allowed, 36 + allowed - 1)
        group.end()
        [answer] = await group.all()
        assert engine.stats().accepted_tokens > 20
    [alone] = await solo([ask(prompt.text or "", max_tokens=94)])
    assert answer.tokens == alone.tokens


async def until_parked(engine: Engine) -> None:
    for _ in range(1000):
        steps = engine.stats().steps
        await asyncio.sleep(0.01)
        if engine.stats().steps == steps:
            return
    raise AssertionError(f"10 s later it still computes: {engine.stats()}")


@pytest.mark.parametrize("mode", MODES)
async def test_candidates_that_are_cancelled_in_the_midst_of_drafts_leave_nothing_behind(mode: str) -> None:
    rng = random.Random(4)
    prompts = [ask("xyz def ghi " * 2 + str(number), max_tokens=50) for number in range(20)]

    async def come_and_go(engine: Engine) -> None:
        for number in range(25):
            group = await engine.submit(
                ask(f"cancelled {number % 3} " * 2, n=2, max_tokens=300, sampling=WARM, top_logprobs=None)
            )
            await group.reached(rng.randrange(1, 30))
            group.cancel([0])
            await asyncio.sleep(rng.random() / 100)
            group.cancel()
            assert {generation.finish_reason for generation in await group.all()} == {"abort"}

    async with guessing(mode, context_tokens=1024, max_sequences=6, cached_sequences=1, host_cache_tokens=0) as engine:
        guests = [asyncio.create_task(come_and_go(engine)) for _ in range(2)]
        answers = [(await generate(engine, prompt))[0] for prompt in prompts]
        await asyncio.wait_for(asyncio.gather(*guests), 60)
        await settled(engine)
        [whole] = await generate(engine, ask("z" * 800, max_tokens=224))
        assert whole.finish_reason == "length", "all cells are there"
    alone = await solo(prompts)
    assert all(same_up_to_ties(one, other, gap=RECOMPUTED_GAP) for one, other in zip(alone, answers, strict=True))


@pytest.mark.parametrize("mode", MODES)
async def test_with_an_adapter_guesses_are_judged_by_the_model_that_has_it(mode: str) -> None:
    prompts = [ask("xyz def ghi " * 2 + str(n), adapter=("one", None, "two")[n % 3], max_tokens=50) for n in range(18)]
    found = []
    for speculation in (mode, "off"):
        async with guessing(mode, max_sequences=6, speculation=speculation) as engine:
            for name, seed in (("one", 1), ("two", 2)):
                await engine.load_adapter(name, ggufs.calm_lora(seed))
            found.append([answer for [answer] in await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))])
            assert (engine.stats().accepted_tokens > 50) == (speculation != "off")
    assert all(same_up_to_ties(one, other) for one, other in zip(found[1], found[0], strict=True))


async def test_a_candidate_guesses_what_a_sibling_has_said() -> None:
    """One at a time: the first has only itself to look at, the others have its answer."""
    prompt = ask("Once", n=3, max_tokens=60)
    async with guessing("ngram", max_sequences=1) as engine:
        [alone] = await generate(engine, ask("Once", max_tokens=60))
        by_itself = engine.stats().accepted_tokens
        answers = await generate(engine, prompt)
        assert engine.stats().accepted_tokens - by_itself > 2 * 50 + by_itself
    assert {answer.tokens for answer in answers} == {alone.tokens}


@pytest.mark.parametrize("mode", MODES)
async def test_where_rows_cost_their_share_hardly_anything_is_computed_but_tried_now_and_then(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowCosts, "seconds", lambda _self, rows: float(rows))
    async with guessing(mode) as engine:
        await generate(engine, ask("xyz def ghi " * 4, max_tokens=1000))
        await settled(engine)
        stats = engine.stats()
        assert 4 <= stats.drafted_tokens <= 4 + 1000 // 128 + 1
        assert stats.steps >= 990


async def test_a_model_that_cannot_take_back_a_guess_is_not_guessed_for() -> None:
    """A recurrent state has no tail to drop."""
    async with guessing("ngram", ggufs.tiny_hybrid()) as engine:
        await generate(engine, ask("xyz def ghi " * 4, max_tokens=60))
        assert engine.stats().drafted_tokens == 0


async def test_closing_in_the_midst_of_drafts_ends_open_answers_with_an_error() -> None:
    async with guessing("draft") as engine:
        group = await engine.submit(ask("xyz def ghi " * 3, max_tokens=3000))
        assert await group.reached(20)
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await group.all()
