"""Models whose state cannot be taken back: answers are as alone, and work is gone on from only where it fits exactly."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from atlas.types import Generation, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import GREEDY, RECOMPUTED_GAP, generate, running, same_up_to_ties

LONG = "The quick brown fox jumps over the lazy dog. " * 4


def ask(text: str, **more: object) -> Prompt:
    return Prompt(text=text, **{"max_tokens": 24, "sampling": GREEDY, "top_logprobs": 2, **more})  # type: ignore[arg-type]


async def alone(prompts: list[Prompt]) -> list[Generation]:
    """Each in a context that has seen nothing before."""
    answers = []
    for prompt in prompts:
        async with running(ggufs.tiny_hybrid(), cached_sequences=0, host_cache_tokens=0) as engine:
            answers += await generate(engine, prompt)
    return answers


async def test_the_candidates_of_a_prompt_share_it_up_to_its_last_token() -> None:
    [solo] = await alone([ask(LONG)])
    async with running(ggufs.tiny_hybrid()) as engine:
        group = await engine.submit(ask(LONG, n=5))
        answers = await group.all()
        computed = engine.stats().cells_used
    assert all(same_up_to_ties(solo, answer) for answer in answers)
    assert computed < 2 * len(LONG) + 5 * 24, "the prompt's cells are there once"


async def test_the_next_turn_goes_on_from_the_last_one() -> None:
    async with running(ggufs.tiny_hybrid()) as engine:
        [first] = await generate(engine, ask(LONG))
        second = ask(f"{LONG}{first.text} and then", max_tokens=12)
        group = await engine.submit(second)
        [answer] = await group.all()
        assert group.cached_tokens == len(LONG) + len(first.tokens) - 1
    [fresh] = await alone([second])
    assert same_up_to_ties(fresh, answer)
    assert answer.logprobs[0].logprob == pytest.approx(fresh.logprobs[0].logprob, abs=2e-3)


async def test_a_prompt_that_only_begins_alike_is_read_from_its_beginning() -> None:
    other = ask(f"{LONG}but here it turns another way")
    [fresh] = await alone([other])
    async with running(ggufs.tiny_hybrid()) as engine:
        await generate(engine, ask(f"{LONG}and so it ends"))
        group = await engine.submit(other)
        [answer] = await group.all()
        assert group.cached_tokens == 0
    assert same_up_to_ties(fresh, answer)


async def test_a_finished_turn_outlives_a_restart(tmp_path: Path) -> None:
    async with running(ggufs.tiny_hybrid(), prefix_folder=str(tmp_path)) as engine:
        [first] = await generate(engine, ask(LONG))
    second = ask(f"{LONG}{first.text} and then")
    async with running(ggufs.tiny_hybrid(), prefix_folder=str(tmp_path)) as engine:
        group = await engine.submit(second)
        [answer] = await group.all()
        assert group.cached_tokens == len(LONG) + len(first.tokens) - 1
    [fresh] = await alone([second])
    assert same_up_to_ties(fresh, answer)


@pytest.mark.parametrize("host_cache_tokens", [0, 2000])
async def test_in_a_crowd_without_room_every_answer_is_as_alone(host_cache_tokens: int) -> None:
    """Forty prompts, some of several candidates, many of which begin alike, in 512 cells."""
    rng = random.Random(3)
    prompts = []
    for number in range(40):
        text = LONG[: rng.randint(5, 180)] + rng.choice(["", f" {number}", " the same"])
        prompts.append(ask(text, n=rng.choice([1, 1, 1, 3]), max_tokens=rng.randint(1, 150)))
    expected = await alone([ask(prompt.text or "", max_tokens=prompt.max_tokens) for prompt in prompts])
    async with running(ggufs.tiny_hybrid(), context_tokens=512, host_cache_tokens=host_cache_tokens) as engine:
        answers = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
        stats = engine.stats()
    assert stats.preemptions > 0
    for solo, candidates in zip(expected, answers, strict=True):
        for answer in candidates:
            assert same_up_to_ties(solo, answer, gap=RECOMPUTED_GAP), (solo.text, answer.text)


async def test_sampled_candidates_are_those_of_their_seeds() -> None:
    sampling = tuple(Sampling(temperature=1.0, seed=seed) for seed in range(4))
    singles = await alone([ask(LONG, sampling=(each, each), n=2) for each in sampling])
    async with running(ggufs.tiny_hybrid()) as engine:
        together = await generate(engine, ask(LONG, sampling=sampling, n=4))
    assert [one.tokens for one in together] == [one.tokens for one in singles[::2]]
