"""The life of one metered request: counted, admitted, reserved, queued, run, extended and settled.

The order is the promise (contracts.md 3). Limits and budgets are charged before anything is spent; the reservation is durable
before the engine sees the prompt, each extension before the tokens it pays for, and the usage row is committed before the last
byte of the answer. After a crash at any moment the ledger therefore charges at least what a client has received and at most what
was reserved for it. When an extension is refused the answer ends where its reservation does, with finish reason "length" and the
name of the limit beside it.

What fails before its reservation is durable is not usage; it is shown as refused (traffic.py), and counted in /metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from atlas.engine import Engine, Group
from atlas.errors import AtlasError, EngineFailed
from atlas.gateway.admission import AdmissionQueue, Ticket
from atlas.gateway.charge import Books, Charge, as_failed, bound_of, refused_by
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.limit_headers import RawHeader
from atlas.gateway.queues import Queues
from atlas.gateway.tariff import Tariff, count_prompt
from atlas.gateway.traffic import speeds_of
from atlas.types import Activity, Generation, Principal, Prompt, RequestState, Usage

log = structlog.get_logger("atlas.gateway")

# Priority by route: (streamed, whole). Somebody reads along with a stream; a whole answer is more often a script's.
PRIORITIES = {
    "/v1/chat/completions": (0, 1),
    "/v1/completions": (0, 1),
    "/v1/messages": (0, 1),
    "/v1/responses": (0, 1),
    "/v1/embeddings": (1, 1),
    "/v1/rerank": (1, 1),
    "/v1/sandbox/execute": (1, 1),
    "/execute": (1, 1),
}
CANCEL_PATIENCE_S = 2.0  # for the engine to say how far a cancelled answer had come


class Meter:
    """What all metered requests of an application share. Lives in the event loop."""

    def __init__(self, deps: GatewayDeps) -> None:
        # Without keys there is nobody to limit; what they use is recorded all the same.
        live = deps.live if deps.auth.mode != "off" else None
        self.books = Books(deps.store, live, Tariff(deps.limits.prices))
        self.slice_tokens = deps.limits.slice_tokens
        self.traffic = deps.traffic
        self.fallbacks: Counter[tuple[str, str]] = Counter()  # (model asked for, model that answered)
        self.queues = Queues(msgspec.structs.replace(deps.settings, queue=deps.queue))
        self.traffic.measure(lambda: (self.queues.waiting(), self.queues.num_running))


class MeteredRequest:
    """One request, from its admission to its usage row. Changed by the event loop only.

    Args:
        is_watched: somebody waits for its answer to begin, so that even a whole one has to come in pieces.

    Attributes:
        id: of its usage row; never the client's own, which may come twice.
        groups: what the engine makes of its prompts; empty until it has left the queue.
        embedded_tokens: what an embedding request turned out to cost.
        work: what is done for it elsewhere than in the engine; it ends with the request.
        length_reason: the limit that ended the answer early; empty if none did.
        aborted_by: who ended it from outside; empty if nobody did.
        status: of the reply, once it has begun.
    """

    def __init__(
        self,
        meter: Meter,
        principal: Principal,
        *,
        request_id: str,
        route: str,
        model: str,
        is_streamed: bool,
        priority: int,
        is_watched: bool = False,
        charge: Charge | None = None,
    ) -> None:
        self.meter = meter
        self.principal = principal
        self.id = request_id
        self.charge = charge or Charge(meter.books, principal, request_id=request_id, route=route, model=model)
        self.groups: list[Group] = []
        self.embedded_tokens = 0
        self.work: asyncio.Future[Any] | None = None
        self.length_reason = ""
        self.task_id = ""
        self.aborted_by = ""
        self.status = 0
        self._route, self._model, self._is_streamed, self._priority = route, model, is_streamed, priority
        self._is_watched = is_watched
        self._started_s = self._submitted_s = time.monotonic()
        self._prompts: Sequence[Prompt] = ()
        self._engine: Engine | None = None
        self._queue: AdmissionQueue | None = None
        self._is_waking = self._is_stopped = False
        self._num_candidates = 0
        self._allowance = 0  # completion tokens per candidate that are paid for
        self._ticket: Ticket | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._extending = asyncio.Lock()
        self._final: Usage | None = None

    # -- the way in --

    async def enter(self, engine: Engine, prompts: Sequence[Prompt]) -> None:
        """Count, admit, reserve, and run or queue. Raises as `prepare`."""
        await self.prepare(engine, prompts, model=self._model)
        await self._line_up()

    async def prepare(self, engine: Engine, prompts: Sequence[Prompt], *, model: str) -> None:
        """Count and pay for what this engine is to answer as `model`; of what was paid for another one, the difference.

        Raises:
            EngineOverloaded: the queue is full.
            AtlasError: as `Charge.open`; what the engine finds wrong with a prompt.
        """
        self._queue = self.meter.queues.of(engine)
        self._queue.check_room()
        self._engine, self._prompts = engine, prompts
        self._model = self.charge.model = model
        self._num_candidates = sum(prompt.n for prompt in prompts)
        prompt_tokens = 0
        for prompt in prompts:
            prompt_tokens += await count_prompt(engine, prompt)
        self._allowance = 0
        self._allowance = self._slice(prompts[0].max_tokens)
        completion_tokens = self._num_candidates * self._allowance
        if not self.charge.is_reserved:
            await self.reserve(prompt_tokens, completion_tokens)
        elif limit := await self.charge.raise_to(prompt_tokens + completion_tokens, prompt_tokens=prompt_tokens):
            raise refused_by(limit, model)

    async def begin(self) -> None:
        """Queue and run what is prepared. Raises as `started`."""
        await self._line_up()
        await self.started()

    def withdraw(self) -> None:
        """Stop what was begun, so that it can be prepared and begun elsewhere. What is reserved stays so."""
        for watcher in self._watchers:
            watcher.cancel()
        self.stop()
        self._leave()
        self._ticket, self._watchers, self.groups = None, [], []
        self._is_waking = self._is_stopped = False

    async def _line_up(self) -> None:
        assert self._queue is not None  # it has been prepared
        self._ticket = self._queue.enter(self.principal.owner, priority=self._priority, cost=self._num_candidates)
        self._is_waking = self._engine is not None and self._engine.is_asleep
        if not self.is_queued:
            await self._submit()

    def _leave(self) -> None:
        """Give back the place at the engine, or in line."""
        if self._queue is not None and self._ticket is not None:
            self._queue.leave(self._ticket)

    async def reserve(self, prompt_tokens: int, completion_tokens: int = 0) -> None:
        """Charge limits and the ledger; from then on there is something to settle."""
        await self.charge.open(prompt_tokens, completion_tokens)
        self.meter.traffic.begin(self)

    def _slice(self, max_tokens: int | None) -> int:
        """The next allowance: one slice more, no more than the answer may have."""
        wanted = self._allowance + self.meter.slice_tokens
        return wanted if max_tokens is None else min(wanted, max_tokens)

    @property
    def charged(self) -> Usage | None:
        """What is charged, as it is settled or stands now; None if nothing was admitted."""
        return self.usage if self.charge.is_reserved else None

    @property
    def headers(self) -> list[RawHeader]:
        """What is left of the limits, and how long it has waited."""
        if self.is_queued:
            return self.charge.headers
        return [*self.charge.headers, (b"x-atlas-queue-ms", b"%d" % round(self.queue_s * 1000))]

    @property
    def is_queued(self) -> bool:
        """Whether it waits for a place, or for its model to be woken."""
        return self._is_waking or (self._ticket is not None and self._ticket.is_waiting)

    @property
    def queue_position(self) -> int:
        """1 is next; 0 is not waiting."""
        position = self._queue.position(self._ticket) if self._queue is not None and self._ticket is not None else 0
        return position or int(self._is_waking)

    async def started(self) -> None:
        """Wait for a place and hand the prompts to the engine. If it is ended while it waits, there are no groups afterwards.

        Raises:
            EngineOverloaded: it has waited for as long as requests may.
        """
        if self._queue is not None and self._ticket is not None and not self.groups and await self._queue.wait(self._ticket):
            await self._submit()

    async def _submit(self) -> None:
        assert self._engine is not None  # `enter` has set it
        self._submitted_s = time.monotonic()
        for prompt in self._prompts:
            paid = msgspec.structs.replace(
                prompt,
                allowance_tokens=bound_of(self._allowance, prompt.max_tokens),
                priority=self._priority,
                whole=not (self._is_streamed or self._is_watched),
            )
            group = await self._engine.submit(paid)
            self.groups.append(group)
            self._is_waking = False
            if self._is_stopped:  # while it waited for its model
                group.cancel()
            if self._slice(prompt.max_tokens) > self._allowance:
                self._watchers.append(asyncio.create_task(self._extend_ahead(group, prompt.max_tokens)))
        if self._num_candidates > 1:
            self._watchers += [asyncio.create_task(self._free_slots(group)) for group in self.groups]
        self.meter.traffic.touch()

    # -- while it runs --

    async def _free_slots(self, group: Group) -> None:
        """Each candidate that ends makes room for somebody else's."""
        assert self._queue is not None and self._ticket is not None  # noqa: PT018  # it has been submitted
        queue, ticket = self._queue, self._ticket
        try:
            async for _ in group.finished():
                queue.shrink(ticket, self._num_running)
        except Exception:  # noqa: S110  # whatever made the group fail: the reader of its answer hears of it
            pass

    async def _extend_ahead(self, group: Group, max_tokens: int | None) -> None:
        """Reserve another slice whenever half of the last one is used, so that no candidate has to wait for it."""
        while not self.length_reason and (wanted := self._slice(max_tokens)) > self._allowance:
            paid = self._allowance
            if not await group.reached(paid - self.meter.slice_tokens // 2):
                return
            async with self._extending:
                if self._allowance == paid and not self.length_reason:  # else another group's turn has done it
                    await self._extend(wanted)

    async def _extend(self, allowance: int) -> None:
        """Pay for so many tokens per candidate, or let the answer end with what is paid for."""
        ended = sum(generation.num_tokens for generation in self.generations)
        tokens = self.charge.prompt_tokens + ended + self._num_running * allowance
        try:
            self.length_reason = await self.charge.raise_to(tokens)
        except Exception:  # a defect; the candidates that wait must not do so for ever, nor go on unpaid
            log.exception("request.not_extended", usage_id=self.id)
            self.length_reason = EngineFailed.code
        if not self.length_reason:
            self._allowance = allowance
        for group in self.groups:
            if self.length_reason:
                group.end(self.length_reason)
            else:
                group.allow(bound_of(allowance, self._prompts[0].max_tokens))

    @property
    def usage(self) -> Usage:
        """As it is settled, or as it stands now."""
        return self._final or self._usage("queued" if self.is_queued else "running", "")

    def activity(self) -> Activity:
        return Activity(
            usage=self.usage,
            username=self.principal.username,
            key_name=self.principal.name if self.principal.key_id else "",
            queue_position=self.queue_position,
            status=self.status,
            priority=self._priority,
        )

    def abort(self, actor: str) -> None:
        """End it from outside; its client gets an error that says so."""
        self.aborted_by = actor
        log.warning("request.aborted", usage_id=self.id, actor=actor)
        self.stop()

    def stop(self) -> None:
        """Leave the queue; cancel what is still done for it."""
        self._is_stopped = True
        if self.work is not None:
            self.work.cancel()
        if self.is_queued:
            self._leave()
        for group in self.groups:
            if not group.is_done:
                group.cancel()

    # -- the way out --

    async def settle(self, state: RequestState, finish: str) -> None:
        """Commit what was used, once; later calls change nothing. Raises as `Charge.close`."""
        if not all(group.is_done for group in self.groups):
            await self._ended()
        if self._final is not None:
            return
        self._final = self._usage(state, finish)
        for watcher in self._watchers:
            watcher.cancel()
        self._leave()
        try:
            await self.charge.close(self._final)
        except AtlasError as error:
            self._final = as_failed(self._final, error)
            raise

    def forget(self) -> None:
        """The exchange is over: among the open requests no longer."""
        self.meter.traffic.end(self, [speeds_of(each, self._offset_s) for each in self.generations if each.num_tokens])

    @property
    def is_settled(self) -> bool:
        return self._final is not None

    @property
    def completion_tokens(self) -> int:
        return sum(group.completion_tokens for group in self.groups)

    @property
    def generations(self) -> list[Generation]:
        """Every candidate that has finished."""
        if len(self.groups) == 1:  # nearly always
            return self.groups[0].generations
        return [generation for group in self.groups for generation in group.generations]

    @property
    def queue_s(self) -> float:
        return self._ticket.waited_s if self._ticket is not None else 0.0

    async def _ended(self) -> None:
        """Stop the engine, and wait until it says how far it has come."""
        self.stop()
        try:
            async with asyncio.timeout(CANCEL_PATIENCE_S):
                for group in self.groups:
                    await group.all()
        except Exception:  # noqa: S110  # TimeoutError, or what made the group fail: its count so far is what there is
            pass

    def _usage(self, state: RequestState, finish: str) -> Usage:
        prompt_tokens, cached_tokens, completion_tokens = self.embedded_tokens, 0, 0
        for group in self.groups:
            prompt_tokens += group.prompt_tokens
            cached_tokens += group.cached_tokens
            completion_tokens += group.completion_tokens
        # A remote engine learns the length of a prompt at the end of its answer, if at all.
        is_estimated = bool(self.groups) and not prompt_tokens and state != "completed"
        prompt_tokens = self.charge.prompt_tokens if is_estimated else prompt_tokens
        timings = [generation.timings for generation in self.generations if generation.num_tokens]
        return Usage(
            request_id=self.id,
            at=self.charge.at,
            owner=self.principal.owner,
            key_id=self.principal.key_id,
            route=self._route,
            model=self._model,
            state=state,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            cost=self.charge.cost(prompt_tokens, completion_tokens),
            finish=finish,
            is_streamed=self._is_streamed,
            is_estimated=is_estimated,
            queue_s=self.queue_s + min((each.queue_s for each in timings), default=0.0),
            ttft_s=self._offset_s + min(each.first_token_s for each in timings) if timings else None,
            wall_s=time.monotonic() - self._started_s,
        )

    @property
    def _num_running(self) -> int:
        return self._num_candidates - sum(len(group.generations) for group in self.groups)

    @property
    def _offset_s(self) -> float:
        """From the request's beginning to its submission."""
        return self._submitted_s - self._started_s
