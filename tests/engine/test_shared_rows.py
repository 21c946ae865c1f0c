"""Candidates of one prompt that have said the same so far are computed once, and each says what it would say alone."""

from __future__ import annotations

import asyncio
import random

import msgspec
import numpy as np
import pytest

from atlas.engine import Engine
from atlas.engine.gain import RowCosts
from atlas.types import Generation, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import GREEDY, RECOMPUTED_GAP, generate, running, same_up_to_ties, settled

TEXT = "You are a careful programmer. " * 5
COLD = tuple(Sampling(temperature=0.3, seed=seed) for seed in range(6))  # the same for a while, then not


def ask(**fields: object) -> Prompt:
    return Prompt(**{"text": TEXT, "n": len(COLD), "sampling": COLD, "max_tokens": 40, **fields})  # type: ignore[arg-type]


async def alone(engine: Engine, prompt: Prompt) -> list[Generation]:
    """Each candidate as a request of its own, one at a time."""
    found = []
    for index in range(prompt.n):
        one = msgspec.structs.replace(prompt, n=1, sampling=(prompt.sampling[index % len(prompt.sampling)],))
        found += await generate(engine, one)
    return found


def num_rows(answers: list[Generation]) -> int:
    """Different beginnings that the answers have, each of which needs a row; the last token of an answer is not fed."""
    return len({answer.tokens[:length] for answer in answers for length in range(1, len(answer.tokens))})


async def test_each_says_what_it_says_alone_and_what_is_common_is_computed_once() -> None:
    async with running(ggufs.tiny_calm()) as engine:
        prompt = ask()
        shared = await generate(engine, prompt)
        await settled(engine)
        stats = engine.stats()
        assert [one.tokens for one in shared] == [one.tokens for one in await alone(engine, prompt)]
    rows = num_rows(shared)
    assert 40 < rows < 6 * 39, "some parted, and not at once"
    assert stats.shared_tokens == 6 * 40 - (1 + rows), "the prompt's last row gave every first token"


async def test_equal_answers_take_the_cells_and_the_steps_of_one() -> None:
    async with running(ggufs.tiny_calm()) as engine:
        group = await engine.submit(ask(n=8, sampling=GREEDY, max_tokens=60))
        await group.reached(30)
        assert engine.stats().cells_live < len(TEXT) + 61
        answers = await group.all()
        await settled(engine)
        assert len({answer.tokens for answer in answers}) == 1
        assert engine.stats().steps == 60
        assert engine.stats().shared_tokens == 7 * 60
        assert engine.stats().generated_tokens == 8 * 60


async def test_a_prompt_that_is_read_in_chunks_is_read_by_all_at_once() -> None:
    async with running(ggufs.tiny_calm(), prefill_chunk_tokens=16) as engine:
        busy = await engine.submit(Prompt(text="busy", max_tokens=2000, sampling=GREEDY))
        await busy.reached(3)
        answers = await generate(engine, ask(sampling=GREEDY))
        shared = engine.stats().shared_tokens
        busy.cancel()
        await busy.all()
    assert len({answer.tokens for answer in answers}) == 1
    assert shared == 5 * 40


KINDS: dict[str, dict[str, object]] = {
    "penalties": {"sampling": tuple(Sampling(temperature=0.3, seed=seed, repetition_penalty=1.3) for seed in range(6))},
    "own bias": {"sampling": tuple(Sampling(temperature=0.0, logit_bias={97 + index: 3.0}) for index in range(6))},
    "own temperature": {"sampling": tuple(Sampling(temperature=heat, seed=5) for heat in (0.0, 0.2, 0.4, 1.0, 1.5, 0.0))},
    "own top-k": {"sampling": tuple(Sampling(temperature=1.0, seed=5, top_k=k) for k in (1, 2, 3, 0, 40, 1))},
    "log-probabilities": {"top_logprobs": 3},
    "grammar": {"grammar": 'root ::= [a-e ]+ "."'},
    "stop": {"stop": ("e", "th")},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_each_draws_as_it_asks(kind: str) -> None:
    async with running(ggufs.tiny_calm()) as engine:
        prompt = ask(**KINDS[kind])
        shared, single = await generate(engine, prompt), await alone(engine, prompt)
    assert [(one.tokens, one.finish_reason, one.text) for one in shared] == [
        (one.tokens, one.finish_reason, one.text) for one in single
    ]
    for one, other in zip(shared, single, strict=True):
        assert [entry.logprob for entry in one.logprobs] == pytest.approx([entry.logprob for entry in other.logprobs], abs=1e-3)


async def test_each_has_the_hidden_states_of_its_own_words() -> None:
    async with running(ggufs.tiny_calm()) as engine:
        prompt = ask(features=True)
        shared, single = await generate(engine, prompt), await alone(engine, prompt)
    for one, other in zip(shared, single, strict=True):
        assert one.features is not None
        assert other.features is not None
        np.testing.assert_allclose(one.features.mean, other.features.mean, atol=1e-3)
        np.testing.assert_allclose(one.features.last, other.features.last, atol=1e-3)


@pytest.mark.parametrize("mode", ["ngram", "draft"])
async def test_a_guess_may_be_right_for_some_of_those_who_share_it(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowCosts, "seconds", lambda _self, _rows: 1.0)  # so that whatever is guessed is computed
    draft = {"draft_model": str(ggufs.tiny_draft())} if mode == "draft" else {}
    prompts = [ask(text=f"{number} xyz def ghi " * 4, n=5, sampling=COLD[:5], top_logprobs=2) for number in range(8)]
    async with running(ggufs.tiny_calm(), speculation=mode, **draft) as engine:
        guessed = [await generate(engine, prompt) for prompt in prompts]
        await settled(engine)
        stats = engine.stats()
        assert 50 < stats.accepted_tokens < stats.drafted_tokens
        assert stats.shared_tokens > 200
    async with running(ggufs.tiny_calm()) as engine:
        plain = [await generate(engine, prompt) for prompt in prompts]
    pairs = [(one, other) for five, others in zip(plain, guessed, strict=True) for one, other in zip(five, others, strict=True)]
    assert sum(one.tokens != other.tokens for one, other in pairs) <= 1, "float noise may move one draw in thousands"


@pytest.mark.parametrize("host_tokens", [0, 4096])
async def test_in_a_crowd_without_room_and_with_cancellations_nobody_hears_anothers_words(host_tokens: int) -> None:
    chance = random.Random(7)
    prompts = [
        ask(
            text=f"{TEXT[: chance.randrange(20, 90)]}{number}",
            sampling=GREEDY,
            n=chance.randint(1, 6),
            top_logprobs=2,
            max_tokens=150,
        )
        for number in range(40)
    ]
    async with running(ggufs.tiny_calm(), context_tokens=512, max_sequences=12, host_cache_tokens=host_tokens) as engine:
        groups = [await engine.submit(prompt) for prompt in prompts]
        for group in groups[::3]:
            await group.reached(chance.randint(1, 20))
            group.cancel([0])
        crowded = await asyncio.gather(*(group.all() for group in groups))
        assert engine.stats().preemptions > 0
        await settled(engine)
    async with running(ggufs.tiny_calm(), max_sequences=1, cached_sequences=0) as engine:
        single = [(await generate(engine, msgspec.structs.replace(prompt, n=1)))[0] for prompt in prompts]
    for one, answers in zip(single, crowded, strict=True):
        for answer in answers:
            if answer.finish_reason == "abort":
                one_cut = msgspec.structs.replace(one, tokens=one.tokens[: len(answer.tokens)])
                assert same_up_to_ties(one_cut, answer, gap=RECOMPUTED_GAP)
            else:
                assert same_up_to_ties(one, answer, gap=RECOMPUTED_GAP)


async def test_a_recurrent_state_is_nobody_elses() -> None:
    async with running(ggufs.tiny_hybrid()) as engine:
        answers = await generate(engine, ask(sampling=GREEDY))
        assert len({answer.tokens for answer in answers}) == 1
        assert engine.stats().shared_tokens == 0
