"""The ways in which `benchmarks.solve` has a task solved: by ATLAS, by its loop on an engine, by llama-server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import httpx

from atlas.bench.values import Task
from atlas.cli.client import Server
from atlas.cli.tasks import Tasks
from atlas.engine import Engine, ScriptedEngine
from atlas.ralph import Policy, Tools, extract_code, solve_task
from atlas.sandbox import Sandbox
from atlas.types import Event, Message, Request, Route, Run, RunClosed
from benchmarks.peers import KEY, Peer

MAX_TOKENS = 256
TEMPERATURE = 0.8
SAMPLING = {"temperature": TEMPERATURE, "top_k": 20, "top_p": 0.95, "min_p": 0.0}  # the others are what ATLAS takes for nano


class Solved(NamedTuple):
    """One task, one way. The times are of one clock and add up to `wall_s`.

    Attributes:
        decode_s: until the chosen candidate had ended, or the last one; prompt, HTTP and the server's queue included.
        queue_s: waiting for a slot to run in, and what is not the run itself: submission, queue, reading the result.
        test_s: the rest.
    """

    wall_s: float
    decode_s: float
    queue_s: float
    is_verified: bool
    code: str

    @property
    def test_s(self) -> float:
        return self.wall_s - self.decode_s - self.queue_s


class Answers(NamedTuple):
    """What llama-server said to a task, and how long that took."""

    codes: list[str]
    decode_s: float


class Served:
    """Tasks of a running server."""

    def __init__(self, peer: Peer) -> None:
        self._tasks = Tasks(Server(peer.url, peer.model, is_open=False), KEY)

    async def solve(self, request: Request) -> tuple[Run, float]:
        route = request.route
        assert route is not None
        body = {
            "task": request.task,
            "entry_point": request.entry_point,
            "tests": request.tests.code,
            "seed": request.seed,
            "k": route.k,
            "max_attempts": route.max_attempts,
            "temperature": route.temperature,
            "max_tokens": route.max_tokens,
        }
        started_s = time.perf_counter()
        closed = await self._tasks.solve(body, lambda _event: None)
        wall_s = time.perf_counter() - started_s
        if closed.run is None or closed.run.failure is not None:
            raise SystemExit(f"a failure of ours spoils the comparison: {closed}")
        return closed.run, wall_s

    async def close(self) -> None:
        await self._tasks.__aexit__()


class Ours:
    """The loop on an engine: over HTTP, as `atlas bench` has it, or in this process."""

    def __init__(self, engine: Engine, sandbox: Sandbox, *, model: str) -> None:
        self.engine, self.sandbox, self.model = engine, sandbox, model

    def events(self, request: Request, policy: Policy | None = None) -> AsyncIterator[Event]:
        tools = Tools(generate=self.engine.submit, run=self.sandbox.run)
        return solve_task(request, tools if policy is None else Tools(generate=tools.generate, run=tools.run, policy=policy))

    async def solve(self, request: Request) -> tuple[Run, float]:
        started_s = time.perf_counter()
        *_, last = [event async for event in self.events(request)]
        assert isinstance(last, RunClosed)
        if last.run.failure is not None:
            raise SystemExit(f"a failure of ours spoils the comparison: {last.run.failure.message}")
        return last.run, time.perf_counter() - started_s


def one_attempt(task: Task, k: int, *, seed: int) -> Request:
    route = Route(
        k=k,
        max_attempts=1,
        temperature=TEMPERATURE,
        max_temperature=TEMPERATURE,
        is_first_greedy=False,
        max_tokens=MAX_TOKENS,
    )
    return Request(task=task.task, entry_point=task.entry_point, tests=task.visible, seed=seed, route=route)


async def messages_of(request: Request) -> tuple[Message, ...]:
    """The prompt that ATLAS makes of a request, so that the peer is asked the same."""
    listener = ScriptedEngine(["no code here"], context_tokens=100_000)

    async def never(*_: object) -> Any:
        raise AssertionError("there is no code to be run")

    async for _ in solve_task(request, Tools(generate=listener.submit, run=never)):
        pass
    return listener.prompts[0].messages


async def solved_by_us(ours: Ours | Served, request: Request) -> Solved:
    run, wall_s = await ours.solve(request)
    candidates, queue_s = run.attempts[0].candidates, wall_s - run.wall_s
    chosen = next((candidate for candidate in candidates if candidate.ref == run.winner), None)
    is_verified = run.verdict.status == "verified"
    if is_verified and chosen is not None and chosen.execution is not None:
        return Solved(wall_s, chosen.ended_s, queue_s + chosen.execution.queue_s, True, run.code)
    ended_s = max((candidate.ended_s for candidate in candidates), default=0.0)
    return Solved(wall_s, min(ended_s, wall_s), queue_s, False, run.code)


async def asked(client: httpx.AsyncClient, peer: Peer, messages: Sequence[Message], *, k: int, seed: int) -> Answers:
    """n=k from llama-server, whole."""
    body = {
        "model": peer.model,
        "messages": [{"role": message.role, "content": message.content} for message in messages],
        "n": k,
        "seed": seed,
        "max_tokens": MAX_TOKENS,
        "cache_prompt": True,
        **SAMPLING,
    }
    started_s = time.perf_counter()
    answer = await client.post(f"{peer.url}/v1/chat/completions", json=body, headers=peer.headers)
    decode_s = time.perf_counter() - started_s
    reply = answer.raise_for_status().json()
    codes = [extract_code(choice["message"]["content"] or "") for choice in reply["choices"]]
    return Answers(codes, decode_s)
