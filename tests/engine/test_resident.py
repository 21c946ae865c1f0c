"""A model that falls asleep and is woken, and one that leaves: nothing is lost by it but time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atlas.engine import Engine, ScriptedEngine, load_engine
from atlas.engine.resident import Resident
from atlas.errors import EngineUnavailable, ModelFileError
from atlas.settings import EngineSettings
from tests import ggufs
from tests.engine.contract import CHECKS, TOOL_SEED, Check, Needs, greedy
from tests.engine.peer import until
from tests.engine.test_contract import CALL, STORY

MODEL = "scripted"
NAP_S = 0.2


class Nursery:
    """Makes scripted engines, and says how many."""

    def __init__(self, *, delay_s: float = 0.0) -> None:
        self.made: list[ScriptedEngine] = []
        self.delay_s = delay_s
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = ""

    async def make(self) -> Engine:
        await self.gate.wait()
        if self.failure:
            raise ModelFileError(self.failure)
        self.made.append(ScriptedEngine([STORY] * TOOL_SEED + [CALL], model=MODEL, delay_s=self.delay_s))
        return self.made[-1]


@asynccontextmanager
async def napping(nursery: Nursery, *, sleep_after_s: float = NAP_S) -> AsyncIterator[Resident]:
    resident = Resident(await nursery.make(), nursery.make, sleep_after_s=sleep_after_s)
    try:
        yield resident
    finally:
        nursery.gate.set()
        await resident.close()


@pytest.mark.parametrize(("check", "needs"), CHECKS, ids=lambda value: getattr(value, "__name__", ""))
async def test_one_that_has_just_been_asleep_keeps_the_contract(check: Check, needs: Needs) -> None:
    async with napping(Nursery(delay_s=0.001), sleep_after_s=0.3) as resident:
        if not needs(resident.capabilities):
            pytest.skip("a script does not declare it")
        await until(lambda: resident.state == "asleep")
        await check(resident)


async def test_it_falls_asleep_when_nobody_wants_anything_and_the_next_request_wakes_it() -> None:
    nursery = Nursery()
    async with napping(nursery) as resident:
        await (await resident.submit(greedy())).all()
        counted = resident.stats()
        await until(lambda: resident.state == "asleep")
        assert (resident.is_asleep, resident.capabilities.model) == (True, MODEL)
        assert resident.stats().generated_tokens == counted.generated_tokens
        [generation] = await (await resident.submit(greedy())).all()
        assert generation.num_tokens == 24
        assert len(nursery.made) == 2
        assert resident.stats().generated_tokens == 2 * counted.generated_tokens


async def test_it_stays_awake_while_an_answer_is_written() -> None:
    nursery = Nursery(delay_s=0.02)
    async with napping(nursery) as resident:
        [generation] = await (await resident.submit(greedy(max_tokens=50))).all()
        assert generation.finish_reason == "length"
        assert len(nursery.made) == 1


async def test_all_who_come_meanwhile_wait_for_the_same_waking_and_whoever_goes_ends_nothing() -> None:
    nursery = Nursery()
    async with napping(nursery) as resident:
        await until(lambda: resident.state == "asleep")
        nursery.gate.clear()
        waiting = [asyncio.create_task(resident.submit(greedy())) for _ in range(3)]
        await until(lambda: resident.state == "waking")
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        nursery.gate.set()
        for each in waiting[1:]:
            assert (await (await each).all())[0].num_tokens == 24
        assert len(nursery.made) == 2


async def test_one_that_cannot_be_woken_says_why_and_is_tried_again() -> None:
    nursery = Nursery()
    async with napping(nursery) as resident:
        await until(lambda: resident.state == "asleep")
        nursery.failure = "no memory"
        with pytest.raises(EngineUnavailable, match="cannot be woken: no memory"):
            await resident.submit(greedy())
        nursery.failure = ""
        assert await (await resident.submit(greedy())).all()


async def test_one_that_leaves_refuses_what_comes_and_ends_what_runs() -> None:
    nursery = Nursery(delay_s=0.01)
    async with napping(nursery, sleep_after_s=0) as resident:
        group = await resident.submit(greedy(max_tokens=40))
        leaving = asyncio.create_task(resident.leave())
        await until(lambda: resident.state == "leaving")
        with pytest.raises(EngineUnavailable, match="is being unloaded") as refused:
            await resident.submit(greedy())
        assert refused.value.retry_after_s == 5
        assert not leaving.done()
        assert [generation.finish_reason for generation in await group.all()] == ["length"]
        await asyncio.wait_for(leaving, 30)
        with pytest.raises(EngineUnavailable):
            await nursery.made[0].submit(greedy())


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


async def test_a_real_model_is_out_of_memory_while_it_sleeps_and_keeps_its_adapters(tmp_path: Path) -> None:
    path = tmp_path / "calm.gguf"
    shutil.copy(ggufs.tiny_calm(), path)
    settings = EngineSettings(threads=1, context_tokens=512, max_sequences=2, embedder="off")

    async def make() -> Engine:
        return await load_engine(path, model_id=MODEL, settings=settings)

    resident = Resident(await make(), make, sleep_after_s=0.5)
    try:
        await resident.load_adapter("one", ggufs.calm_lora(1), scale=0.5)
        before = await (await resident.submit(greedy(adapter="one"))).all()
        await until(lambda: resident.state == "asleep")
        await until(lambda: not is_mapped(path))
        assert [adapter.name for adapter in resident.adapters()] == ["one"]
        after = await (await resident.submit(greedy(adapter="one"))).all()
        assert [each.text for each in after] == [each.text for each in before]
        assert resident.stats().steps > 0
    finally:
        await resident.close()
    assert not is_mapped(path)
