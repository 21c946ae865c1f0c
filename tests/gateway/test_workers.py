"""Workers over their line: what they may ask, what they hear, and what becomes of a task."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from atlas.engine import ScriptedEngine
from atlas.errors import DeliveryOver, OperatorError
from atlas.gateway.worker_watch import GRACE_S, WorkerWatch
from atlas.ralph.dial import local
from atlas.ralph.held import Held
from atlas.settings import SandboxSettings
from atlas.types import Message, Program, Prompt, Request, Route, RunLimits
from atlas.workline import (
    MESSAGE_LIMIT_BYTES,
    PATH,
    VERSION,
    Beat,
    Finish,
    GiveBack,
    Hello,
    PutEvents,
    PutStep,
    Refused,
    encoded,
    main_said,
)
from tests.gateway.conftest import wait_for
from tests.gateway.metered import redis
from tests.gateway.workshop import TASK, Shop, connected, eventually, leased, open_shop, shop
from tests.store.live.conftest import Server

__all__ = ["redis", "shop"]  # fixtures

ASK = Prompt(messages=(Message(role="user", content="Write double(x)."),), n=2)


def test_a_worker_solves_a_task_and_its_owner_pays_once(shop: Shop) -> None:
    task_id = shop.submit()
    with shop.worker():
        task = shop.closed(task_id)
    assert (task.outcome, task.reason) == ("done", ""), task.reason
    run = shop.run_of(task_id)
    assert (run.verdict.status, run.request, run.ended_by) == ("verified", TASK, "passed")
    [usage] = shop.usage(task_id)
    assert (usage.state, usage.owner, usage.route) == ("completed", shop.owner.owner, "/v1/tasks")
    assert usage.completion_tokens == run.num_tokens > 0
    assert task.sandbox_s == pytest.approx(run.sandbox_s)
    names = [type(event).__name__ for event in shop.events(task_id)]
    assert names == ["RunStarted", "AttemptStarted", "CandidateEnded", "CandidateTested", "AttemptEnded"]


@pytest.mark.parametrize("sandbox", [None, SandboxSettings(slots=1)], ids=["with the server's sandbox", "with its own"])
def test_a_worker_from_elsewhere_does_so_by_a_key_for_workers(shop: Shop, sandbox: SandboxSettings | None) -> None:
    task_id = shop.submit()
    with shop.worker(socket="", server=shop.running.url, key=shop.key("worker"), sandbox=sandbox):
        task = shop.closed(task_id)
    assert task.outcome == "done", task.reason
    assert shop.run_of(task_id).verdict.status == "verified"


async def test_any_other_key_is_refused_with_the_reason(shop: Shop) -> None:
    with pytest.raises(OperatorError, match=r"HTTP 403.*the scope 'worker' is needed"):
        async with connected(shop.far_line(shop.key("chat", "tasks"))):
            pass
    with pytest.raises(OperatorError, match="HTTP 401"):
        async with connected(shop.far_line("sk-wrong")):
            pass


def test_a_browser_on_the_way_in_for_workers_is_told_what_it_is(shop: Shop) -> None:
    with httpx.Client(base_url=shop.running.url) as http:
        reply = http.get(PATH, headers={"x-api-key": shop.key("worker")})
    assert reply.status_code == 400
    assert "atlas worker" in reply.json()["error"]["message"]


def test_a_key_for_workers_alone_buys_nothing(shop: Shop) -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
    with httpx.Client(base_url=shop.running.url, headers={"x-api-key": shop.key("worker")}) as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 403


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(version=999, worker="from-the-future"), "999"),
        (Hello(version=VERSION, worker="\x1b[31mred"), "letters, digits"),
        (Hello(version=VERSION, worker=""), "letters, digits"),
    ],
)
async def test_a_worker_of_another_version_or_of_no_name_is_refused_with_the_reason(
    shop: Shop, hello: Hello, reason: str
) -> None:
    frames = await local(shop.socket)()
    await frames.write(encoded(hello))
    answer = await frames.read()
    assert answer is not None
    refused = main_said(answer)
    assert isinstance(refused, Refused)
    assert reason in refused.message
    assert await frames.read() is None
    frames.close()


@pytest.mark.parametrize("bytes_", [b"\x00\x00\x00\x03abc", b"\xff\xff\xff\xff", (MESSAGE_LIMIT_BYTES + 1).to_bytes(4, "big")])
async def test_whoever_speaks_something_else_is_cut_off(shop: Shop, bytes_: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(shop.socket))
    writer.write(bytes_)
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_what_a_worker_asks_for_is_for_the_owner_of_its_task(shop: Shop) -> None:
    task_id = shop.submit(priority=2)
    async with connected(shop.line()) as line:
        held = await leased(line)
        forged = replace(ASK, owner="somebody else", priority=0)
        candidates = await held.tools(None).generate(forged)
        ended = [generation async for generation in candidates.finished()]
        assert sorted(generation.index for generation in ended) == [0, 1]
        await held.call(Finish, outcome="done")
    prompt = shop.engine.prompts[-1]
    assert (prompt.owner, prompt.priority) == (shop.owner.owner, 2)
    assert shop.task(task_id).outcome == "done"
    [usage] = shop.usage(task_id)
    assert usage.completion_tokens == sum(generation.num_tokens for generation in ended)


async def test_candidates_can_be_stopped_one_by_one_and_say_what_they_have(redis: Server, tmp_path: Path) -> None:
    engine = ScriptedEngine(["word " * 2000], model="scripted", delay_s=0.01)
    with open_shop(redis, tmp_path / "data", engine) as shop:
        shop.submit()
        async with connected(shop.line()) as line:
            held = await leased(line)
            candidates = await held.tools(None).generate(ASK)
            texts = {0: "", 1: ""}
            async for delta in candidates:
                texts[delta.index] += delta.text
                if len(texts[1]) > 50:
                    break
            candidates.cancel([1])
            first = await anext(candidates.finished())
            assert (first.index, first.finish_reason) == (1, "abort")
            assert first.text.startswith(texts[1][:50])
            candidates.cancel()
            assert len([one async for one in candidates.finished()]) == 2
            await held.call(Finish, outcome="cancelled")


async def test_a_cancelled_task_is_told_to_its_worker_at_once(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        keeping = asyncio.create_task(held.keep())
        await eventually(lambda: shop.task(task_id).state == "running")
        started_s = asyncio.get_running_loop().time()
        await asyncio.to_thread(lambda: shop.do(shop.journal.cancel(task_id)))
        await asyncio.wait_for(held.is_cancelled.wait(), 20)
        assert asyncio.get_running_loop().time() - started_s < 4.0  # the next beat would have been after five seconds
        assert (await held.call(Finish, outcome="cancelled", reason="so it was wanted")).finish == "closed"
        keeping.cancel()
    assert shop.task(task_id).outcome == "cancelled"


async def test_a_worker_has_no_say_in_what_another_one_holds(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line, connected(shop.line()) as other:
        held = await leased(line)
        thief = Held(other, held.lease)
        with pytest.raises(DeliveryOver):
            await thief.call(PutEvents, bodies=(b"{}",))
        with pytest.raises(DeliveryOver):
            await thief.tools(None).generate(ASK)
        with pytest.raises(DeliveryOver):
            await thief.call(GiveBack, reason="mine now")
        with pytest.raises(DeliveryOver):
            await thief.call(Finish, outcome="done", result=b"forged")
        assert (await thief.call(Beat)).standing == "lost"
        assert (await held.call(Beat)).standing == "held"
        assert (await held.call(Finish, outcome="done")).finish == "closed"
        assert (await held.call(Finish, outcome="done")).finish == "repeated"
    assert shop.task(task_id).outcome == "done"


async def test_steps_that_were_kept_come_with_the_next_lease(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        await held.call(PutStep, step="first", body=b"1")
        assert (await held.call(GiveBack, reason="enough for today", is_excused=True)).is_done
        again = await leased(line)
        assert (again.lease.task, again.lease.delivery, again.lease.steps) == (task_id, 2, {"first": b"1"})
        await again.call(Finish, outcome="done")


async def test_a_program_runs_in_the_servers_sandbox_for_who_holds_a_task(shop: Shop) -> None:
    shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        tools = held.tools(None)
        execution = await tools.run(Program(code="print(6 * 7)"), RunLimits())
        assert (execution.outcome, execution.stdout) == ("completed", "42\n")
        assert await tools.route(TASK) == Route(k=5, max_attempts=5, temperature=0.6)
        assert tuple(await tools.context(TASK)) == ()
        await held.call(Finish, outcome="done")


async def test_a_task_that_its_worker_never_took_is_for_others_and_does_not_count(shop: Shop) -> None:
    task_id = shop.submit(max_deliveries=1)
    async with connected(shop.line()) as line:
        await leased(line)
    await eventually(lambda: shop.task(task_id).state == "queued")
    async with connected(shop.line()) as line:
        held = await leased(line)
        assert (held.lease.task, held.lease.delivery) == (task_id, 2)
        await held.call(Finish, outcome="done")
    assert shop.task(task_id).excused == 1


async def test_batch_tasks_get_their_part_under_a_stream_of_interactive_ones(shop: Shop) -> None:
    """At least a fifth of the half that would be fair, with interactive tasks waiting all the time."""
    batch = {shop.submit(priority=2) for _ in range(20)}
    interactive = [shop.submit(priority=0) for _ in range(5)]
    served = []
    async with connected(shop.line()) as line:
        for _ in range(90):
            interactive.append(shop.submit(priority=0))
            held = await leased(line)
            served.append(held.lease.task)
            await held.call(Finish, outcome="done")
        while not all(shop.task(task_id).is_closed for task_id in (*batch, *interactive)):
            await (await leased(line)).call(Finish, outcome="done")
    assert len(batch & set(served)) >= 9
    assert len(set(served)) == 90


def test_workers_are_counted_and_missed_after_a_while(shop: Shop) -> None:
    with shop.worker(), shop.running.http() as http:
        wait_for(lambda: 'atlas_workers{state="connected"} 1.0' in http.get("/metrics").text)
        assert shop.closed(shop.submit()).outcome == "done"
        assert re.search(r'atlas_task_deliveries_total\{ending="done"\} [1-9]', http.get("/metrics").text)
    now_s = [0.0]
    watch = WorkerWatch(clock=lambda: now_s[0])

    def is_missed(after_s: float) -> bool:
        now_s[0] += after_s
        return watch.reasons == ("no worker is connected: tasks wait",)

    assert not is_missed(GRACE_S + 1)  # none is expected
    watch.num_expected = 1
    assert is_missed(0)
    watch.see({"w": 0})
    assert not is_missed(GRACE_S + 1)
    watch.see({})
    assert not is_missed(GRACE_S - 1)
    assert is_missed(2)


async def test_readiness_names_what_tasks_wait_for(shop: Shop) -> None:
    watch = shop.running.deps.workers
    watch.num_expected, watch._missing_since_s = 1, -1e9
    with shop.running.http() as http:
        await eventually(lambda: not watch.busy)
        assert "no worker is connected: tasks wait" in http.get("/readyz").json()["reasons"]
        async with connected(shop.line()):
            assert "no worker is connected: tasks wait" not in http.get("/readyz").json()["reasons"]
    watch.num_expected = 0


async def test_a_broken_connection_is_made_again_and_the_task_goes_on(shop: Shop) -> None:
    task_id = shop.submit()
    async with connected(shop.line()) as line:
        held = await leased(line)
        assert (await held.call(Beat)).standing == "held"
        line.hang_up()
        await eventually(lambda: line.num_connections >= 2)
        assert (await held.call(Beat)).standing == "held"
        assert (await held.call(Finish, outcome="done")).finish == "closed"
    assert shop.task(task_id).outcome == "done"


def test_a_request_that_nobody_can_solve_is_failed_at_once_with_the_reason(shop: Shop) -> None:
    wrong_model = shop.submit(replace(TASK, model="no-such-model"))
    no_request = shop.submit(body=b'{"task": 7}')
    with shop.worker():
        first, second = shop.closed(wrong_model), shop.closed(no_request)
    assert (first.outcome, first.delivery) == ("failed", 1)
    assert "no-such-model" in first.reason
    assert (second.outcome, second.delivery) == ("failed", 1)
    assert "Expected `str`, got `int`" in second.reason


def test_a_run_that_proves_nothing_is_done_all_the_same(shop: Shop) -> None:
    task_id = shop.submit(Request(task="Write double(x).", tests=TASK.tests, max_tokens=3, route=Route(k=1, max_attempts=1)))
    with shop.worker():
        assert shop.closed(task_id).outcome == "done"
    assert shop.run_of(task_id).verdict.status == "unchecked"


async def test_a_worker_that_is_shut_down_gives_its_task_back(redis: Server, tmp_path: Path) -> None:
    engine = ScriptedEngine(["word " * 4000], model="scripted", delay_s=0.05)
    with open_shop(redis, tmp_path / "data", engine) as shop:
        task_id = shop.submit()
        process = shop.start_worker()
        await eventually(lambda: len(engine.prompts) > 0)
        process.terminate()
        await eventually(lambda: shop.task(task_id).state == "queued")
        assert process.wait(20) == 0
        task = shop.task(task_id)
        assert (task.excused, task.reason) == (1, "its worker was shut down")
        [usage] = shop.usage(task_id)
        assert usage.state == "interrupted"
        await eventually(lambda: engine.stats().num_running == 0)
