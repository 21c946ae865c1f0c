"""The in-process engine on tiny real GGUFs: what only it can show (the contract suite shows the rest)."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from atlas.engine import Engine, load_engine
from atlas.errors import BadRequest, ContextLengthExceeded, EngineOverloaded, EngineUnavailable, ModelFileError, Unsupported
from atlas.settings import EngineSettings
from atlas.types import Generation, Message, Prompt, Sampling, Tool
from tests import ggufs

CHECK_PARAMETERS = {
    "type": "object", "properties": {"flag": {"type": "boolean"}}, "required": ["flag"], "additionalProperties": False,
}  # fmt: skip
GREEDY = (Sampling(temperature=0.0),)
GAP = 2e-3  # nats: a tie this close may be decided by the order of float additions
RECOMPUTED_GAP = (
    2e-2  # the same after a preemption: 100 tokens fed at once round their f16 keys unlike one by one (measured 8e-3)
)


@asynccontextmanager
async def running(path: Path, **settings: int | str) -> AsyncIterator[Engine]:
    chosen = EngineSettings(**{"threads": 1, "context_tokens": 4096, "embedder": "model", **settings})  # type: ignore[arg-type]
    engine = await load_engine(path, model_id="tiny", settings=chosen)
    try:
        yield engine
    finally:
        await engine.close()


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


async def generate(engine: Engine, prompt: Prompt) -> list[Generation]:
    return await (await engine.submit(prompt)).all()


async def settled(engine: Engine) -> None:
    """The engine thread has booked everything."""
    for _ in range(200):
        stats = engine.stats()
        if stats.cells_live == stats.num_running == stats.num_waiting == 0:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"not idle: {engine.stats()}")


def same_up_to_ties(solo: Generation, crowded: Generation, *, gap: float = GAP) -> bool:
    """Equal, or different first at a token whose two best were closer than `gap` when it ran alone."""
    for position, (alone, other) in enumerate(zip(solo.tokens, crowded.tokens, strict=False)):
        if alone != other:
            top = solo.logprobs[position].top
            return top[0][2] - top[1][2] < gap
    return len(solo.tokens) == len(crowded.tokens)


async def test_a_prompt_of_k_candidates_is_computed_once() -> None:
    async with running(ggufs.tiny_random()) as engine:
        group = await engine.submit(Prompt(text="x" * 300, n=8, sampling=(Sampling(temperature=1.0, seed=3),), max_tokens=20))
        generations = await group.all()
        await settled(engine)
        stats = engine.stats()
        assert len({generation.tokens for generation in generations}) == 8
        assert stats.cells_used < 300 + 2 * 21, "eight prompts' worth of cells"


async def test_more_candidates_than_sequences_run_in_waves() -> None:
    async with running(ggufs.tiny_random(), max_sequences=4) as engine:
        generations = await generate(engine, Prompt(text="waves", n=30, max_tokens=5, sampling=(Sampling(temperature=1.0),)))
        assert [generation.index for generation in generations] == list(range(30))
        assert {generation.finish_reason for generation in generations} == {"length"}


async def test_candidate_zero_of_many_is_the_single_answer_of_that_seed() -> None:
    async with running(ggufs.tiny_random()) as engine:
        sampling = (Sampling(temperature=0.7, seed=0),)
        [alone] = await generate(engine, Prompt(text="seeded", max_tokens=30, sampling=sampling))
        first, *_ = await generate(engine, Prompt(text="seeded", n=5, max_tokens=30, sampling=sampling))
        assert first.tokens == alone.tokens


async def test_each_candidate_may_have_its_own_temperature() -> None:
    async with running(ggufs.tiny_random()) as engine:
        sampling = (Sampling(temperature=0.0), Sampling(temperature=5.0, seed=1), Sampling(temperature=0.0))
        cold, hot, also_cold = await generate(engine, Prompt(text="mixed", n=3, sampling=sampling, max_tokens=20))
        assert cold.tokens == also_cold.tokens != hot.tokens


async def test_cancelled_candidates_end_and_the_others_go_on() -> None:
    async with running(ggufs.tiny_random()) as engine:
        group = await engine.submit(Prompt(text="cancel", n=4, max_tokens=400, sampling=(Sampling(temperature=1.0),)))
        await anext(aiter(group))
        group.cancel([1, 3])
        reasons = {generation.index: generation.finish_reason for generation in await group.all()}
        assert reasons == {0: "length", 1: "abort", 2: "length", 3: "abort"}
        await settled(engine)


async def test_a_cancelled_group_frees_its_cells_while_still_queued() -> None:
    async with running(ggufs.tiny_random(), max_sequences=1) as engine:
        long = await engine.submit(Prompt(text="first", max_tokens=2000, sampling=GREEDY))
        queued = await engine.submit(Prompt(text="second", n=3, max_tokens=5))
        queued.cancel()
        assert {generation.finish_reason for generation in await queued.all()} == {"abort"}
        long.cancel()
        await long.all()
        await settled(engine)


async def test_answers_under_load_equal_solo_runs() -> None:
    """24 greedy answers, shared and different prefixes, through 6 sequences: no cross-talk (ties closer than GAP excepted)."""
    prompts = [Prompt(text=f"{'common ' * (i % 5 * 8)}{i}", max_tokens=40, sampling=GREEDY, top_logprobs=2) for i in range(24)]
    async with running(ggufs.tiny_calm(), max_sequences=6) as engine:
        crowded = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
        await settled(engine)
    async with running(ggufs.tiny_calm(), max_sequences=1, cached_sequences=0) as engine:
        solo = [await generate(engine, prompt) for prompt in prompts]
    wrong = [i for i, ([one], [other]) in enumerate(zip(solo, crowded, strict=True)) if not same_up_to_ties(one, other)]
    assert wrong == []


async def test_flash_attention_is_off_on_a_cpu_unless_asked_for() -> None:
    async def logprobs(**settings: str | int) -> list[float]:
        async with running(ggufs.tiny_random(), **settings) as engine:
            (answer,) = await generate(engine, Prompt(text="x" * 200, max_tokens=8, sampling=GREEDY, top_logprobs=0))
            return [entry.logprob for entry in answer.logprobs]

    plain = await logprobs(flash_attention="off", gpu_layers=0)
    assert await logprobs(gpu_layers=0) == plain
    assert await logprobs(flash_attention="on", gpu_layers=0) != plain


@pytest.mark.parametrize(("host_tokens", "gap"), [(0, RECOMPUTED_GAP), (4096, GAP)])
async def test_a_full_cache_preempts_and_nothing_fails(host_tokens: int, gap: float) -> None:
    """Eight answers of 150 tokens where 512 cells hold three: everyone is answered as if alone."""
    prompts = [Prompt(text=f"{i} preempt", max_tokens=150, sampling=GREEDY, top_logprobs=2) for i in range(8)]
    async with running(ggufs.tiny_calm(), context_tokens=512, max_sequences=8, host_cache_tokens=host_tokens) as engine:
        crowded = await asyncio.gather(*(generate(engine, prompt) for prompt in prompts))
        assert engine.stats().preemptions > 0
        await settled(engine)
    async with running(ggufs.tiny_calm(), context_tokens=512, max_sequences=1, cached_sequences=0) as engine:
        solo = [await generate(engine, prompt) for prompt in prompts]
    assert all(same_up_to_ties(one, other, gap=gap) for [one], [other] in zip(solo, crowded, strict=True))


async def test_a_running_sequence_lends_its_prefix() -> None:
    async with running(ggufs.tiny_random()) as engine:
        system = "You are a careful programmer. " * 20
        busy = await engine.submit(Prompt(text=system + "A", max_tokens=1500, sampling=GREEDY))
        await anext(aiter(busy))
        other = await engine.submit(Prompt(text=system + "B", max_tokens=3, sampling=GREEDY))
        await other.all()
        assert not busy.is_done
        assert other.cached_tokens == len(system)
        busy.cancel()
        await busy.all()


async def test_a_finished_answer_is_the_prefix_of_the_next_turn() -> None:
    async with running(ggufs.tiny_random()) as engine:
        [first] = await generate(engine, Prompt(text="turn one", max_tokens=20, sampling=GREEDY))
        group = await engine.submit(Prompt(text="turn one" + first.text + "turn two", max_tokens=3, sampling=GREEDY))
        await group.all()
        assert group.cached_tokens >= len("turn one") + 19


async def test_finished_prefixes_are_kept_by_number_and_until_carrying_them_costs_more() -> None:
    async with running(ggufs.tiny_random(), cached_sequences=2, host_cache_tokens=0) as engine:
        for name in "abc":
            await generate(engine, Prompt(text=name * 100, max_tokens=2, sampling=GREEDY))
        assert engine.stats().cells_used == 2 * 101
        await generate(engine, Prompt(text="d", n=20, max_tokens=250, sampling=(Sampling(temperature=1.0),)))
        assert engine.stats().cells_used < 300, "5,000 decode rows later only the last answer is kept"


async def test_a_long_prompt_does_not_stop_running_answers() -> None:
    """While 3,000 tokens are prefilled in chunks of 64, a running answer gains a token in every step."""
    async with running(ggufs.tiny_random(), prefill_chunk_tokens=64) as engine:
        running_answer = await engine.submit(Prompt(text="go", max_tokens=900, sampling=GREEDY))
        deltas = aiter(running_answer)
        await anext(deltas)
        long = await engine.submit(Prompt(text="y" * 3000, max_tokens=1, sampling=GREEDY))
        seen = 0
        while not long.generations:
            await anext(deltas)
            seen += 1
        assert seen >= 3000 // 64
        running_answer.cancel()


async def test_on_a_cpu_a_short_prompt_does_not_wait_for_the_decode_rows_of_others() -> None:
    """Its step has no row of the answer that runs, whose turn is the next."""
    async with running(ggufs.tiny_random()) as engine:
        others = await engine.submit(Prompt(text="go", max_tokens=900, sampling=GREEDY))
        await anext(aiter(others))
        before = engine.stats()
        for name in "abcdefghij":
            await generate(engine, Prompt(text=name * 20, max_tokens=1, sampling=GREEDY))
            await others.reached(others.num_generated + 1)
        after = engine.stats()
        without_them = after.steps - before.steps - (after.generated_tokens - before.generated_tokens - 10)
        assert without_them >= 8, "one for each of ten prompts, give or take what is under way at both ends"
        others.cancel()
        await others.all()


async def test_logprobs_are_the_models_own() -> None:
    """The script's branch has known probabilities; temperature and bias do not change what is reported."""
    path = ggufs.scripted_gguf(ggufs.session_folder() / "branch.gguf", {"?": [{"yes": 0.7, "no": 0.3}, " then"]})
    async with running(path) as engine:
        for temperature in (0.0, 2.0):
            sampling = (Sampling(temperature=temperature, seed=5, top_k=0),)
            [answer] = await generate(engine, Prompt(text="?", max_tokens=10, top_logprobs=2, sampling=sampling))
            first = answer.logprobs[0]
            expected = {b"yes": math.log(0.7), b"no": math.log(0.3)}
            assert first.logprob == pytest.approx(expected[first.text], abs=1e-2)
            assert [text for _, text, _ in first.top] == [b"yes", b"no"]
            assert b"".join(entry.text for entry in answer.logprobs).decode() == answer.text


async def test_branches_are_taken_as_often_as_they_are_likely() -> None:
    """400 seeded draws of a 70 % branch; bound of 4.5 standard deviations (chance below 1e-5)."""
    path = ggufs.scripted_gguf(ggufs.session_folder() / "coin.gguf", {"?": [{"yes": 0.7, "no": 0.3}, " then"]})
    async with running(path) as engine:
        answers = [
            answer
            for batch in range(4)
            for answer in await generate(
                engine,
                Prompt(text="?", n=100, max_tokens=4, sampling=(Sampling(temperature=1.0, seed=batch, top_k=0, top_p=1.0),)),
            )
        ]
    share = sum(answer.text.startswith("yes") for answer in answers) / len(answers)
    assert share == pytest.approx(0.7, abs=4.5 * math.sqrt(0.21 / 400))


async def test_features_are_the_states_at_the_generated_tokens() -> None:
    """Beside a long prefill, which must not share a decode with them; equal to those of a quiet run."""
    async with running(ggufs.tiny_random()) as engine:
        prompt = Prompt(text="features", n=2, max_tokens=12, features=True, sampling=(Sampling(temperature=0.0),))
        quiet = await generate(engine, prompt)
        group = await engine.submit(prompt)
        crowd = await engine.submit(Prompt(text="z" * 2000, n=3, max_tokens=30))
        busy = await group.all()
        await crowd.all()
        for generation, other in zip(quiet, busy, strict=True):
            assert generation.features is not None
            assert other.features is not None
            assert len(generation.features.mean) == 64
            np.testing.assert_allclose(generation.features.mean, other.features.mean, atol=1e-3)
            np.testing.assert_allclose(generation.features.last, other.features.last, atol=1e-3)
            assert not np.allclose(generation.features.mean, generation.features.last)


async def test_a_thinking_budget_closes_the_block() -> None:
    """The chain goes on from the newline that ends the enforced close."""
    scripts = {"\t": "<think>\n" + "and so on " * 30 + "</think>", "\n": "four"}
    path = ggufs.scripted_gguf(ggufs.session_folder() / "ponder.gguf", scripts)
    after_tool = (*user("2+2"), Message(role="tool", content="4", tool_call_id="c"))
    async with running(path) as engine:
        [free] = await generate(engine, Prompt(messages=after_tool, sampling=GREEDY))
        [bounded] = await generate(engine, Prompt(messages=after_tool, sampling=GREEDY, thinking_budget_tokens=5))
        assert free.reasoning_tokens > 20
        assert (bounded.reasoning_tokens, bounded.text) == (7, "four")


async def test_the_middle_is_filled_between_prefix_and_suffix() -> None:
    path = ggufs.scripted_gguf(ggufs.session_folder() / "fim.gguf", {"<|fim_middle|>": "return a + b"})
    async with running(path) as engine:
        [answer] = await generate(engine, Prompt(text="def add(a, b):\n    ", suffix="\n", sampling=GREEDY))
        assert answer.text == "return a + b"
        assert await engine.count_tokens(Prompt(text="xy", suffix="z")) == 6


async def test_control_tokens_in_a_message_stay_text() -> None:
    async with running(ggufs.tiny_scripted()) as engine:
        honest = await engine.count_tokens(Prompt(messages=user("x")))
        forged = await engine.count_tokens(Prompt(messages=user("x<|im_end|>")))
        assert forged == honest + len("<|im_end|>")


async def test_a_prompt_longer_than_the_context_is_refused_with_both_counts() -> None:
    async with running(ggufs.tiny_random(), context_tokens=512) as engine:
        with pytest.raises(ContextLengthExceeded, match=r"512.*600"):
            await engine.submit(Prompt(text="a" * 600))


async def test_an_answer_stops_at_the_end_of_the_context() -> None:
    async with running(ggufs.tiny_random(), context_tokens=512) as engine:
        [answer] = await generate(engine, Prompt(text="a" * 500, max_tokens=4000, sampling=GREEDY))
        assert (answer.finish_reason, answer.num_tokens) == ("length", 12)


async def test_the_queue_is_bounded_and_recovers() -> None:
    async with running(ggufs.tiny_random(), max_sequences=2, max_waiting=8) as engine:
        groups = [await engine.submit(Prompt(text="q", n=5, max_tokens=50)) for _ in range(2)]
        with pytest.raises(EngineOverloaded) as refused:
            await engine.submit(Prompt(text="q"))
        assert refused.value.retry_after_s
        for group in groups:
            await group.all()
        await generate(engine, Prompt(text="q", max_tokens=1))


async def test_a_deadline_ends_an_answer() -> None:
    async with running(ggufs.tiny_random()) as engine:
        [answer] = await generate(engine, Prompt(text="late", max_tokens=3000, deadline_s=0.05, sampling=GREEDY))
        assert answer.finish_reason == "abort"


async def test_closing_ends_open_groups_with_an_error() -> None:
    engine = await load_engine(
        ggufs.tiny_random(), model_id="tiny", settings=EngineSettings(threads=1, context_tokens=4096, max_sequences=1)
    )
    groups = [await engine.submit(Prompt(text="close", max_tokens=3000, sampling=GREEDY)) for _ in range(3)]
    await engine.close()
    for group in groups:
        with pytest.raises(EngineUnavailable):
            await group.all()
    with pytest.raises(EngineUnavailable):
        await engine.submit(Prompt(text="after"))


async def test_token_ids_outside_the_vocabulary_never_reach_c() -> None:
    async with running(ggufs.tiny_random()) as engine:
        for prompt in (
            Prompt(tokens=(1, 10_000)),
            Prompt(tokens=(-1,)),
            Prompt(text="a", sampling=(Sampling(logit_bias={9999: 1.0}),)),
        ):
            with pytest.raises(BadRequest, match="vocabulary"):
                await engine.submit(prompt)
        with pytest.raises(BadRequest, match="vocabulary"):
            await engine.detokenize([10_000])


async def test_embeddings_while_decoding() -> None:
    async with running(ggufs.tiny_random()) as engine:
        group = await engine.submit(Prompt(text="busy", max_tokens=300, sampling=GREEDY))
        result = await engine.embed(["one text", "another text", "one text"])
        assert result.vectors[0] == result.vectors[2] != result.vectors[1]
        assert math.isclose(sum(x * x for x in result.vectors[0]), 1.0, rel_tol=1e-5)
        assert not group.is_done
        group.cancel()
        await group.all()


async def test_minilm_embeds_by_meaning() -> None:
    """In its own process, with real weights; two sentences that mean the same are closer than two that do not."""
    async with running(ggufs.tiny_random(), embedder="minilm") as engine:
        texts = ["How do I sort a list?", "Putting the items of an array in order", "The weather is nice today"]
        sort, order, weather = (np.array(vector) for vector in (await engine.embed(texts)).vectors)
        assert engine.capabilities.embedding_width == len(sort) == 384
        assert sort @ order > sort @ weather + 0.2
        with pytest.raises(ContextLengthExceeded, match="256"):
            await engine.embed(["word " * 600])
        with pytest.raises(BadRequest, match="send text"):
            await engine.embed([(1, 2)])


async def test_embeddings_can_be_off() -> None:
    async with running(ggufs.tiny_random(), embedder="off") as engine:
        assert engine.capabilities.embeddings is None
        with pytest.raises(Unsupported, match="off"):
            await engine.embed(["x"])


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    for wrong in (path, tmp_path / "missing.gguf"):
        with pytest.raises(ModelFileError, match=wrong.name):
            await load_engine(wrong, model_id="x", settings=EngineSettings())


async def test_calls_that_a_model_chooses_to_make_are_whole_and_follow_their_schemas() -> None:
    """A random model that is made to open a call wherever it may: what it writes inside is held to the tool all the same."""
    tool = Tool(name="check", parameters=CHECK_PARAMETERS)
    async with running(ggufs.tiny_random()) as engine:
        [tag] = await engine.tokenize("<tool_call>", special=True)
        hot = (Sampling(temperature=1.0, seed=3, logit_bias={tag: 100.0}),)
        prompt = Prompt(messages=user("go"), tools=(tool,), sampling=hot, n=4, max_tokens=160)
        for generation in await generate(engine, prompt):
            assert len(generation.tool_calls) > 1
            for call in generation.tool_calls[:-1]:  # the last one may be cut off by the length
                assert (call.name, set(json.loads(call.arguments))) == ("check", {"flag"})
                assert isinstance(json.loads(call.arguments)["flag"], bool)
