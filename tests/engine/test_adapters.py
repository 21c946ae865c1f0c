"""LoRA adapters while the engine answers: whose words are whose, what is shared with whom, and what may be freed when."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from atlas.engine import Engine, Group
from atlas.errors import EngineUnavailable, ModelNotFound
from atlas.types import Generation, Prompt, Sampling
from tests import ggufs
from tests.engine.test_llama import GREEDY, RECOMPUTED_GAP, generate, running, same_up_to_ties, settled

NAMES: tuple[str | None, ...] = (None, "one", "two", "three")
SEEDS = {"one": 1, "two": 2, "three": 3}
ALONE = {"max_sequences": 1, "cached_sequences": 0, "host_cache_tokens": 0}


@asynccontextmanager
async def adapted(**settings: int | str) -> AsyncIterator[Engine]:
    """An engine with three adapters."""
    async with running(ggufs.tiny_calm(), **settings) as engine:
        for name, seed in SEEDS.items():
            await engine.load_adapter(name, ggufs.calm_lora(seed))
        yield engine


def ask(text: str, adapter: str | None = None, *, max_tokens: int = 30) -> Prompt:
    return Prompt(text=text, adapter=adapter, max_tokens=max_tokens, sampling=GREEDY, top_logprobs=5)


async def asked(engine: Engine, text: str, adapter: str | None = None) -> tuple[Group, Generation]:
    group = await engine.submit(ask(text, adapter))
    [generation] = await group.all()
    return group, generation


def logprobs(generation: Generation) -> list[float]:
    return [value for entry in generation.logprobs for _, _, value in entry.top]


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"30 s later: {what}")


async def test_each_adapter_answers_in_its_own_words_and_without_it_the_model_is_what_it_was() -> None:
    async with running(ggufs.tiny_calm(), **ALONE) as engine:
        _, before = await asked(engine, "hello")
        texts = set()
        for name, seed in SEEDS.items():
            await engine.load_adapter(name, ggufs.calm_lora(seed))
            texts.add((await asked(engine, "hello", name))[1].text)
        _, after = await asked(engine, "hello")
        assert len(texts | {before.text}) == 4
        assert logprobs(before) == logprobs(after), "to the bit"


async def test_an_adapter_at_half_its_scale_adds_half_as_much() -> None:
    """On the output matrix alone logits are linear in the scale, and so are differences of log-probabilities."""
    rng = np.random.default_rng(5)
    size = 270  # 256 bytes, 9 control tokens, 4 tags, one merge
    halves: dict[str, ggufs.Array] = {
        "output.weight.lora_a": rng.standard_normal((2, 64), dtype=np.float32) / 8,
        "output.weight.lora_b": rng.standard_normal((size, 2), dtype=np.float32),
    }
    path = ggufs.lora_gguf(ggufs.session_folder() / "output-lora.gguf", ggufs.tiny_calm(), seed=9, only=halves)
    async with running(ggufs.tiny_calm(), **ALONE) as engine:
        await engine.load_adapter("whole", path)
        await engine.load_adapter("half", path, scale=0.5)
        await engine.load_adapter("against", path, scale=-1.0)
        found = []
        for name in (None, "half", "whole", "against"):
            [answer] = await generate(engine, Prompt(text="scale", adapter=name, max_tokens=1, sampling=GREEDY, top_logprobs=20))
            found.append({token: value for token, _, value in answer.logprobs[0].top})
        first, second = sorted(set.intersection(*(set(top) for top in found)))[:2]
        none, half, whole, against = (top[first] - top[second] for top in found)
        assert abs(whole - none) > 0.05
        assert half - none == pytest.approx((whole - none) / 2, abs=1e-3)
        assert against - none == pytest.approx(none - whole, abs=1e-3)


def crowd(rng: random.Random, *, num_prompts: int, max_tokens: int = 40) -> list[Prompt]:
    """Prompts with few beginnings, so that there is much to share by mistake, and random adapters."""
    prompts = []
    for number in range(num_prompts):
        text = rng.choice(("You are careful. ", "Please ")) * rng.randrange(1, 6) + str(number % 7)
        prompts.append(ask(text, rng.choice(NAMES), max_tokens=rng.randrange(5, max_tokens)))
    return prompts


async def solo_answers(prompts: list[Prompt], **settings: int | str) -> list[Generation]:
    async with adapted(**{**settings, **ALONE}) as engine:
        return [generation for prompt in prompts for generation in await generate(engine, prompt)]


async def come_and_go(engine: Engine, stopped: asyncio.Event) -> int:
    """Load and drop further adapters all the time, one of them in the midst of an answer."""
    rounds = 0
    while not stopped.is_set():
        name = f"guest-{rounds % 3}"
        await engine.load_adapter(name, ggufs.calm_lora(1 + rounds % 3), scale=1.0 + rounds % 5)
        group = await engine.submit(ask("You are careful. ", name, max_tokens=20))
        await engine.drop_adapter(name)
        assert group.is_done, "a drop waits for those that use it"
        rounds += 1
    return rounds


async def test_16_streams_over_3_adapters_and_the_base_answer_as_if_alone() -> None:
    """Acceptance 5: adapters at random, others loaded and dropped meanwhile; equal but for ties closer than GAP."""
    prompts = crowd(random.Random(1), num_prompts=96)
    async with adapted(max_sequences=16) as engine:
        stopped = asyncio.Event()
        guests = asyncio.create_task(come_and_go(engine, stopped))
        places = asyncio.Semaphore(16)

        async def one(prompt: Prompt) -> Generation:
            async with places:
                [generation] = await generate(engine, prompt)
                return generation

        answers = await asyncio.wait_for(asyncio.gather(*map(one, prompts)), 120)
        stopped.set()
        assert await guests > 3
        assert engine.stats().cached_tokens > 0, "prefixes were shared"
        assert engine.stats().adapter_switches > 10
        await settled(engine)
    solo = await solo_answers(prompts)
    wrong = [number for number, pair in enumerate(zip(solo, answers, strict=True)) if not same_up_to_ties(*pair)]
    assert wrong == []


async def come_and_be_cancelled(engine: Engine, rng: random.Random) -> None:
    """Several candidates of an answer nobody waits for."""
    await asyncio.sleep(rng.random())
    warm = (Sampling(temperature=1.0),)
    prompt = Prompt(text="You are careful. " * 3, adapter=rng.choice(NAMES), n=rng.randrange(1, 4), max_tokens=200, sampling=warm)
    group = await engine.submit(prompt)
    await asyncio.sleep(rng.random() / 4)
    group.cancel()
    await group.all()


@pytest.mark.parametrize("seed", range(3))
async def test_in_a_small_context_preempted_and_copied_answers_are_still_their_own(seed: int) -> None:
    """512 cells for 12 candidates of 4 kinds: rows change hands by preemption and by way of the host's memory."""
    rng = random.Random(seed)
    long = [ask(f"{n} preempt", NAMES[n % 4], max_tokens=300) for n in range(8)]  # two of one kind outgrow the cells in step
    prompts = [*long, *crowd(rng, num_prompts=32, max_tokens=120)]
    small = {"context_tokens": 512, "cached_sequences": 4, "host_cache_tokens": 3000}
    async with adapted(max_sequences=12, **small) as engine:

        async def late(prompt: Prompt) -> Generation:
            await asyncio.sleep(0 if prompt in long else rng.random() / 2)
            [generation] = await generate(engine, prompt)
            return generation

        stopped = asyncio.Event()
        guests = asyncio.create_task(come_and_go(engine, stopped))
        cancelled = asyncio.gather(*(come_and_be_cancelled(engine, rng) for _ in range(20)))
        answers = await asyncio.wait_for(asyncio.gather(*map(late, prompts)), 120)
        stopped.set()
        await asyncio.wait_for(asyncio.gather(guests, cancelled), 60)
        assert engine.stats().preemptions > 0
        await settled(engine)
    solo = await solo_answers(prompts, context_tokens=512)
    wrong = [
        number
        for number, (one, other) in enumerate(zip(solo, answers, strict=True))
        if not same_up_to_ties(one, other, gap=RECOMPUTED_GAP)
    ]
    assert wrong == []


async def test_a_prefix_is_shared_with_the_same_adapter_at_the_same_scale_only() -> None:
    """Logits beside those of an engine that holds nothing yet."""
    text = "You are a careful programmer. " * 10
    async with adapted() as engine:
        await engine.load_adapter("one-weak", ggufs.calm_lora(1), scale=0.5)
        await engine.load_adapter("one-again", ggufs.calm_lora(1))
        kinds = (*NAMES, "one-weak", "one-again")
        first = {}
        for name in kinds:
            group, first[name] = await asked(engine, text, name)
            assert group.cached_tokens == 0, name
        for name in kinds:
            group, again = await asked(engine, text, name)
            assert group.cached_tokens >= len(text) - 1, name
            assert np.allclose(logprobs(again), logprobs(first[name]), atol=2e-3), name
    assert logprobs(first["one"]) != logprobs(first["one-weak"])
    for name in NAMES:
        async with adapted(**ALONE) as engine:
            _, fresh = await asked(engine, text, name)
            assert np.allclose(logprobs(fresh), logprobs(first[name]), atol=2e-3), name


async def test_a_prefix_in_the_hosts_memory_goes_back_to_its_own_adapter_only() -> None:
    text = "t" * 300
    async with adapted() as engine:
        _, first = await asked(engine, text, "one")
        await generate(engine, Prompt(text="#", n=4, max_tokens=60, sampling=(Sampling(temperature=1.0),)))
        assert engine.stats().cells_used < len(text), "it has left the context"
        group, _ = await asked(engine, text)
        assert group.cached_tokens == 0
        group, _ = await asked(engine, text, "two")
        assert group.cached_tokens == 0
        group, again = await asked(engine, text, "one")
        assert group.cached_tokens >= len(text) - 1
        assert np.allclose(logprobs(first), logprobs(again), atol=2e-3)


async def test_another_file_under_the_same_name_finds_nothing_of_the_one_before() -> None:
    text = "u" * 200
    async with adapted() as engine:
        await asked(engine, text, "one")
        await engine.load_adapter("one", ggufs.calm_lora(2))
        group, answer = await asked(engine, text, "one")
        assert group.cached_tokens == 0
        _, like_two = await asked(engine, text, "two")
        assert answer.tokens == like_two.tokens
        await until(lambda: engine.stats().cells_used <= 2 * 230, "the cells of the old one are not given back")


async def test_an_answer_that_has_begun_keeps_its_adapter_when_the_name_gets_another_file() -> None:
    [expected] = await solo_answers([ask("keep", "one", max_tokens=300)])
    async with adapted() as engine:
        group = await engine.submit(ask("keep", "one", max_tokens=300))
        assert await group.reached(5)
        await engine.load_adapter("one", ggufs.calm_lora(3), scale=2.0)
        assert not group.is_done
        _, other = await asked(engine, "keep", "one")
        [answer] = await group.all()
        assert same_up_to_ties(expected, answer)
        assert other.tokens != answer.tokens[: len(other.tokens)]


async def test_a_drop_refuses_new_prompts_at_once_and_waits_for_those_it_has() -> None:
    async with adapted() as engine:
        group = await engine.submit(ask("drop", "one", max_tokens=1500))
        parked = await engine.submit(Prompt(text="parked", adapter="one", max_tokens=50, sampling=GREEDY, allowance_tokens=3))
        assert await parked.reached(3)
        assert [info.num_users for info in engine.adapters()] == [2, 0, 0]
        drop = asyncio.create_task(engine.drop_adapter("one"))
        await asyncio.sleep(0)
        for attempt in (engine.submit(ask("x", "one")), engine.count_tokens(ask("x", "one")), engine.drop_adapter("one")):
            with pytest.raises(ModelNotFound, match="no adapter 'one'; loaded: 'three', 'two'"):
                await attempt
        group.cancel()
        await group.all()
        done, _ = await asyncio.wait([drop], timeout=0.2)
        assert not done, "one is parked"
        parked.allow(None)
        [answer] = await parked.all()
        assert answer.num_tokens == 50
        await asyncio.wait_for(drop, 30)
        await asked(engine, "on", "two")
        await settled(engine)


async def test_what_was_computed_with_a_dropped_adapter_gives_its_cells_back() -> None:
    async with adapted() as engine:
        await asked(engine, "v" * 500, "one")
        assert engine.stats().cells_used > 500
        await engine.drop_adapter("one")
        assert engine.stats().cells_used == 0


async def test_a_drop_that_nobody_waits_for_goes_on() -> None:
    async with adapted() as engine:
        group = await engine.submit(ask("w", "one", max_tokens=200))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.drop_adapter("one"), 0.001)
        await group.all()
        await until(lambda: engine.stats().cells_used == 0, "it still holds cells")
        assert [info.name for info in engine.adapters()] == ["three", "two"]


async def test_closing_ends_answers_and_the_drops_that_wait_for_them() -> None:
    async with adapted() as engine:
        group = await engine.submit(ask("z", "one", max_tokens=3000))
        assert await group.reached(2)
        drop = asyncio.create_task(engine.drop_adapter("one"))
        await asyncio.sleep(0)
        await engine.close()
        for waiting in (group.all(), drop, engine.load_adapter("late", ggufs.calm_lora(1))):
            with pytest.raises(EngineUnavailable):
                await asyncio.wait_for(waiting, 10)


async def test_nobody_waits_for_long_whoever_floods_the_engine() -> None:
    """The base floods, then an adapter does: the other's short answer is done long before theirs."""
    for flood, other in ((None, "one"), ("one", None)):
        async with adapted(max_sequences=16) as engine:
            groups = [await engine.submit(ask(f"flood {n}", flood, max_tokens=1500)) for n in range(8)]
            assert await groups[-1].reached(2)
            for n in range(5):
                await asked(engine, f"short {n}", other)
            assert not any(group.is_done for group in groups)
            before = groups[0].num_generated
            assert await groups[0].reached(before + 10), "they go on as well"
            for group in groups:
                group.cancel()
                await group.all()


async def test_embeddings_and_features_have_nothing_of_another_prompts_adapter() -> None:
    async with adapted() as engine:
        before = await engine.embed(["some text"])
        plain = Prompt(text="features", max_tokens=8, features=True, sampling=GREEDY)
        [alone] = await generate(engine, plain)
        group = await engine.submit(ask("busy", "one", max_tokens=400))
        assert await group.reached(2)
        assert await engine.embed(["some text"]) == before
        [beside] = await generate(engine, plain)
        [changed] = await generate(engine, Prompt(text="features", adapter="two", max_tokens=8, features=True, sampling=GREEDY))
        assert not group.is_done
        group.cancel()
        assert alone.features is not None
        assert beside.features is not None
        assert changed.features is not None
        np.testing.assert_allclose(alone.features.mean, beside.features.mean, atol=1e-3)
        assert not np.allclose(alone.features.mean, changed.features.mean, atol=1e-2)


async def test_many_candidates_of_one_prompt_share_its_cells_with_an_adapter_too() -> None:
    async with adapted() as engine:
        group = await engine.submit(
            Prompt(text="x" * 300, adapter="two", n=8, sampling=(Sampling(temperature=1.0, seed=3),), max_tokens=20)
        )
        assert len({generation.tokens for generation in await group.all()}) > 1
        await settled(engine)
        assert engine.stats().cells_used < 300 + 2 * 21


async def test_nano_answers_with_an_adapter_and_without() -> None:
    nano = Path(__file__).parents[2] / "models" / "nano" / "nano-q8_0.gguf"
    path = ggufs.lora_gguf(ggufs.session_folder() / "nano-lora.gguf", nano, seed=1)
    async with running(nano, context_tokens=1024) as engine:
        await engine.load_adapter("noise", path)
        _, before = await asked(engine, "def add(a, b):\n")
        _, changed = await asked(engine, "def add(a, b):\n", "noise")
        _, after = await asked(engine, "def add(a, b):\n")
        assert before.text == after.text != changed.text
