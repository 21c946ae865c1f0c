"""Model `atlas`: a chat that asks for code is a task; its progress is the reasoning, and the answer comes with its proof.

Whatever is no coding task, or asks for what the loop cannot do (tools, a schema, several answers), passes through to the loaded
model and is marked `unchecked`. While its task runs, a chat holds no place at the engine and no unit of concurrency: the task
pays for itself. A client that goes away cancels the task; a server that stops does not.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from msgspec.structs import replace

from atlas.engine import Engine, Group
from atlas.errors import AtlasError, BadRequest, EngineFailed, LimitsUnavailable
from atlas.gateway import fallback
from atlas.gateway.errors import RequestAborted
from atlas.gateway.exchange import Exchange, asked_priority
from atlas.gateway.limit_headers import RawHeader
from atlas.gateway.meter import PRIORITIES
from atlas.gateway.models import ATLAS
from atlas.gateway.submissions import fixed_route
from atlas.gateway.tariff import count_prompt
from atlas.gateway.tasks_desk import journal_of, run_of, submit
from atlas.gateway.wire import AtlasObject
from atlas.ralph import Proof, TaskResult, is_coding_task, read_event, request_of, told
from atlas.store import Task, TaskClosed, TaskEvent
from atlas.types import Delta, Generation, Prompt, Request, RequestState, Run

log = structlog.get_logger("atlas.gateway")

PATIENCE_S = 60.0  # for events, while Redis is away; a private one is back in about a second
RETRY_S = 0.5
UNCHECKED = AtlasObject(verdict=Proof(status="unchecked"))
NO_ANSWER = "No code came of this within its limits."


async def begin(exchange: Exchange, engine: Engine, prompt: Prompt, *, is_proved: bool, is_streamed: bool) -> None:
    """Have a prompt answered: by a task if a proof is wanted and there is something to prove, else by the engine.

    Raises:
        AtlasError: as `Exchange.submit`, or `Journal.submit`.
    """
    if not is_proved or not is_solvable(prompt):
        exchange.proof = UNCHECKED if is_proved else None
        await fallback.submit(exchange, engine, prompt, is_streamed=is_streamed)
        return
    prompt_tokens = await count_prompt(engine, prompt)
    by_default = PRIORITIES[exchange.route][0 if is_streamed else 1]
    priority = max(by_default, asked_priority(exchange.headers.get("x-atlas-priority", "")))
    task, _ = await submit(exchange, request_for(exchange, prompt), priority=priority)
    exchange.model = ATLAS
    exchange.metered = TaskAnswer(exchange, task, prompt_tokens=prompt_tokens)


def is_solvable(prompt: Prompt) -> bool:
    """Whether the loop can give what is asked for."""
    is_plain = prompt.n == 1 and not prompt.stop and prompt.top_logprobs is None
    return is_plain and is_coding_task(prompt)


def request_for(exchange: Exchange, prompt: Prompt) -> Request:
    """The task that a chat is; what it says about sampling is the route's affair, but for seed, length and thinking."""
    request = replace(request_of(prompt), model="", seed=prompt.sampling[0].seed)
    if prompt.max_tokens is None and prompt.thinking is None:
        return request
    usual = fixed_route(exchange.deps.settings.tasks)
    return replace(request, route=replace(usual, max_tokens=prompt.max_tokens, thinking=prompt.thinking))


class TaskAnswer:
    """The answer of a task in the making, as an exchange sees it: one candidate, whose reasoning is what happens to the task.

    Written by the event loop only.
    """

    length_reason = ""
    aborted_by = ""
    queue_position = 0
    charged = None  # the task is, not this request

    def __init__(self, exchange: Exchange, task: Task, *, prompt_tokens: int) -> None:
        self.status = 0
        self.is_settled = False
        self.task_id = task.id
        self.group = Group(1, prompt_tokens=prompt_tokens, cancel=lambda _: self.stop())
        self.groups = [self.group]
        self._exchange = exchange
        self._journal = journal_of(exchange)
        self._started_s = time.monotonic()
        self._reasoning: list[str] = []
        self._cancelling: asyncio.Task[None] | None = None
        self._following = asyncio.create_task(self._follow())
        self.group.start(cached_tokens=0)

    @property
    def headers(self) -> list[RawHeader]:
        return [(b"x-atlas-task-id", self.task_id.encode())]

    @property
    def generations(self) -> list[Generation]:
        return self.group.generations

    async def started(self) -> None:
        """It has been submitted; more is not waited for."""

    async def settle(self, state: RequestState, finish: str) -> None:
        """Nothing is charged here; what nobody waits for any more is stopped."""
        self.is_settled = True
        self.stop()
        if self._cancelling is not None:
            await self._cancelling

    def stop(self) -> None:
        """Nobody waits for the answer any more. The task goes on only if it is the server that stops."""
        if self.group.is_done:
            return
        self._following.cancel()
        self._end("abort", "")
        if not self._exchange.is_cut:
            self._cancelling = asyncio.create_task(self._cancel())

    def forget(self) -> None:
        self.stop()

    async def _cancel(self) -> None:
        try:
            await self._journal.cancel(self.task_id, reason="the client went away")
        except AtlasError as error:
            log.warning("task.not_cancelled", task_id=self.task_id, reason=error.message)

    # -- following the task --

    async def _follow(self) -> None:
        try:
            await self._read()
        except AtlasError as error:
            self.group.fail(error)
        except Exception:  # a defect; whoever waits must not do so for ever
            log.exception("task.not_followed", task_id=self.task_id)
            self.group.fail(EngineFailed("the server failed while answering; its log has the reason"))

    async def _read(self) -> None:
        """Up to the end, over gaps in which Redis is away."""
        last, heard_s = 0, time.monotonic()
        while not self.group.is_done:
            try:
                async for event in self._journal.events(self.task_id, after=last):
                    last, heard_s = event.number, time.monotonic()
                    await self._take(event)
                return
            except LimitsUnavailable:
                if time.monotonic() - heard_s > PATIENCE_S:
                    raise
            await asyncio.sleep(RETRY_S)

    async def _take(self, event: TaskEvent | TaskClosed) -> None:
        if isinstance(event, TaskClosed):
            await self._close(event.task)
        elif line := told(read_event(event.body)):
            self._say(line)

    def _say(self, line: str) -> None:
        self._reasoning.append(line + "\n")
        self.group.put([Delta(reasoning=line + "\n")])

    async def _close(self, task: Task) -> None:
        run = await run_of(self._journal, task)
        if run is None or (not run.code and (run.failure is not None or task.outcome != "done")):
            self.group.fail(why_none(task, run))
            return
        result = TaskResult.of(run)
        self._say(result.line())
        self._exchange.proof = AtlasObject.of(result, task_id=task.id)
        self._end("stop", run.answer or last_text(run) or NO_ANSWER, run)

    def _end(self, reason: str, text: str, run: Run | None = None) -> None:
        num_tokens = run.num_tokens if run else 0
        generation = Generation(
            index=0,
            text=text,
            finish_reason="stop" if reason == "stop" else "abort",
            model=ATLAS,
            reasoning="".join(self._reasoning),
            num_tokens=num_tokens,
            reasoning_tokens=num_tokens - shown_tokens(run) if run else 0,
        )
        self.group.put([Delta(text=text)] if text else [])
        self.group.put([Delta(finish_reason=generation.finish_reason)], [(0, num_tokens)])
        self.group.finish(generation)


def why_none(task: Task, run: Run | None) -> AtlasError:
    """What the client is told where there is no answer."""
    if run is not None and run.failure is not None and run.failure.code == BadRequest.code:
        return BadRequest(f"task {task.id}: {run.failure.message}")
    if task.outcome == "cancelled":
        return RequestAborted(f"task {task.id} was ended: {task.reason}")
    return EngineFailed(f"task {task.id} was closed as {task.outcome}, without an answer: {task.reason}")


def last_text(run: Run) -> str:
    """What the model said last, where it said no code."""
    candidates = [candidate for attempt in run.attempts for candidate in attempt.candidates if candidate.text]
    return candidates[-1].text if candidates else ""


def shown_tokens(run: Run) -> int:
    """Tokens of the answer itself; the others went into what led to it."""
    candidates = (candidate for attempt in run.attempts for candidate in attempt.candidates)
    return next((candidate.num_tokens for candidate in candidates if candidate.ref == run.winner), 0)
