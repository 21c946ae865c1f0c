"""One request and its answer: identity, clean-up, and what the log says of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import msgspec
from litestar import Request
from litestar.types import HTTPScope, Receive
from prometheus_client import CollectorRegistry

from atlas.engine import Engine, Group
from atlas.errors import AtlasError, BadRequest, EngineFailed, EngineUnavailable
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.ids import new_id
from atlas.gateway.limit_headers import RawHeader
from atlas.gateway.meter import PRIORITIES, Meter, MeteredRequest
from atlas.gateway.plan import Plan, in_header
from atlas.gateway.proxies import Client
from atlas.gateway.wire import AtlasObject
from atlas.store import Session
from atlas.types import Activity, Generation, Principal, Prompt, RequestState, Usage

HTTPRequest = Request[Any, Any, Any]
USAGE_PREFIX = "req_"
REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,64}")


class Work(Protocol):
    """What is done for an exchange: a request of the engine's (meter.py), or a task (atlas.py).

    Attributes:
        status: of the reply, once it has begun.
        aborted_by: who ended it from outside; empty if nobody did.
        length_reason: the limit that ended the answer early; empty if none did.
        task_id: of the task that is charged instead of this request; empty where there is none.
    """

    status: int

    @property
    def task_id(self) -> str: ...
    @property
    def aborted_by(self) -> str: ...
    @property
    def length_reason(self) -> str: ...
    @property
    def groups(self) -> list[Group]: ...
    @property
    def generations(self) -> list[Generation]: ...
    @property
    def queue_position(self) -> int: ...
    @property
    def is_settled(self) -> bool: ...
    @property
    def charged(self) -> Usage | None:
        """As it is settled or stands now; None if nothing was admitted."""

    @property
    def headers(self) -> list[RawHeader]:
        """What a reply that begins now says of it."""

    async def started(self) -> None: ...
    async def settle(self, state: RequestState, finish: str) -> None: ...
    def stop(self) -> None: ...
    def forget(self) -> None: ...


class Exchange:
    """Written by the event loop only; lives from the request's first byte until its answer's last.

    Attributes:
        registry: where this application's metrics are.
        headers: of the request, names in lower case; those that are repeated are joined, so that none is overlooked.
        usage_id: of its usage row, never the client's own.
        request_id: the client's own if it sent a plain one; it is in the reply and in every line of the log.
        model: id of the model that answers; empty until one is chosen.
        plan: who may answer instead, where the model asked for has stand-ins.
        receive: of its connection, to hear when the client goes; None at the end.
        metered: what is done for it; None until the handler submits something.
        proof: of an answer of model `atlas`, as far as it is known.
        waiting: what its handler waits for outside the engine; cancelled when the exchange ends.
        outcome: "completed", or the code of what went wrong.
        is_cut: the server is stopping and has ended this answer early.
    """

    def __init__(self, deps: GatewayDeps, registry: CollectorRegistry, meter: Meter, scope: HTTPScope, receive: Receive) -> None:
        self.deps = deps
        self.plan: Plan | None = None
        self.receive: Receive | None = receive
        self.registry = registry
        self.meter = meter
        self.headers = _headers(scope)
        self.usage_id = new_id(USAGE_PREFIX)
        self.request_id = _own_id(self.headers) or self.usage_id
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.route = self.path.rstrip("/")  # of those that are metered: they have no parameters
        self.principal: Principal | None = None
        self.session: Session | None = None  # of a browser, where the route looks at cookies
        self.client = Client()  # the Gate finds out who it is
        self.model = ""
        self.adapter: str | None = None  # of `model`, where that is "model:adapter"
        self.metered: Work | None = None
        self.proof: AtlasObject | None = None
        self.waiting: asyncio.Future[Any] | None = None
        self.status = 0
        self.outcome = "completed"
        self.is_cut = False
        self.crash: Exception | None = None  # a defect that is in the log already
        self.started_s = time.monotonic()
        self.at = time.time()

    def answer_id(self, prefix: str) -> str:
        """The id of its answer: that of its usage row behind another prefix, so that each is found by the other."""
        return prefix + self.usage_id.removeprefix(USAGE_PREFIX)

    @property
    def source(self) -> str:
        """Address of the client, for throttles and the audit log."""
        return self.client.address

    @property
    def is_secure(self) -> bool:
        return self.client.is_secure

    @property
    def owner(self) -> str:
        return self.principal.owner if self.principal else ""

    @property
    def groups(self) -> list[Group]:
        """What the engine makes for this exchange; all of it is cancelled when the exchange ends."""
        return self.metered.groups if self.metered else []

    @property
    def has_more(self) -> bool:
        """Whether more of its answer is there already: words of another delta, or what follows when all is paid for."""
        groups = self.groups
        if any(group.has_more for group in groups):
            return True
        return bool(groups) and self.metered is not None and self.metered.is_settled

    @property
    def usage(self) -> Usage | None:
        """What is charged, as it is settled or stands now; None if nothing was admitted."""
        return self.metered.charged if self.metered else None

    @property
    def generations(self) -> list[Generation]:
        """Every candidate that has finished."""
        return self.metered.generations if self.metered else []

    @property
    def queue_position(self) -> int:
        """1 is next; 0 is not waiting."""
        return self.metered.queue_position if self.metered else 0

    @property
    def length_reason(self) -> str:
        """The limit that ended the answer early; empty if none did."""
        return self.metered.length_reason if self.metered else ""

    async def submit(self, engine: Engine, *prompts: Prompt, is_streamed: bool = False) -> None:
        """Have these prompts admitted, paid for and answered. They may have to queue: `started` waits for that.

        Raises:
            AtlasError: as `MeteredRequest.enter`; nothing runs then.
        """
        if self.adapter is not None:
            prompts = tuple(msgspec.structs.replace(prompt, adapter=self.adapter) for prompt in prompts)
        metered = self.open_meter(is_streamed=is_streamed)
        await self.settling_failures(metered.enter(engine, prompts))

    async def reserve(self, prompt_tokens: int) -> MeteredRequest:
        """Have something that needs no slot of the engine admitted and paid for. Raises as `Charge.open`."""
        metered = self.open_meter(is_streamed=False)
        await self.settling_failures(metered.reserve(prompt_tokens))
        return metered

    async def started(self) -> bool:
        """Wait until the engine has the prompts and `groups` are there; False if the exchange was ended meanwhile.

        Raises:
            AtlasError: it has waited too long, or the engine refuses.
        """
        assert self.metered is not None  # something was submitted
        await self.metered.started()
        return bool(self.groups)

    async def settle(self) -> None:
        """Commit what was used, with how the exchange stands now. Later calls change nothing.

        Raises:
            LedgerUnavailable: it cannot be committed now; the client must not be told that all is well.
        """
        if self.metered is not None and not self.metered.is_settled:
            await self.metered.settle(*self._ending(self.metered))

    async def settling_failures(self, step: Awaitable[None]) -> None:
        """Do a step of the way in; if it fails, so does the exchange."""
        try:
            await step
        except Exception as error:
            self.refuse(error.code if isinstance(error, AtlasError) else EngineFailed.code)
            await self.settle()
            raise

    def plan_of(self) -> Plan:
        assert self.plan is not None  # whoever asks follows it
        return self.plan

    def open_meter(self, *, is_streamed: bool, is_watched: bool = False) -> MeteredRequest:
        """What will be done for this exchange, in the name of its caller; as `MeteredRequest`."""
        assert self.principal is not None  # the Gate lets nobody else in
        by_default = PRIORITIES.get(self.route, (1, 1))[0 if is_streamed else 1]
        self.metered = metered = MeteredRequest(
            self.meter,
            self.principal,
            request_id=self.usage_id,
            route=self.route,
            model=self.model,
            is_streamed=is_streamed,
            is_watched=is_watched,
            priority=max(by_default, asked_priority(self.headers.get("x-atlas-priority", ""))),
        )
        return metered

    def _ending(self, metered: Work) -> tuple[RequestState, str]:
        """How it ended, and why in one word."""
        if metered.aborted_by or self.outcome == "disconnected":
            return "aborted", self.outcome
        if self.outcome != "completed":
            return "interrupted" if self.is_cut else "failed", self.outcome
        return "completed", ",".join(dict.fromkeys(each.finish_reason for each in self.generations))

    def refuse(self, code: str) -> None:
        """Note how the exchange went wrong; the first reason stays."""
        if self.outcome == "completed":
            self.outcome = code

    @property
    def is_over(self) -> bool:
        """Its client has gone, or the server has ended it."""
        return self.is_cut or self.outcome == "disconnected"

    def cancel(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        if self.metered is not None:
            self.metered.stop()

    def abandon(self) -> None:
        """The client has gone."""
        self.refuse("disconnected")
        self.cancel()

    def cut(self) -> None:
        """End the answer because the server stops."""
        self.is_cut = True
        self.cancel()

    async def close(self) -> None:
        """Nobody listens any more: stop what still runs, and settle it. Does not raise: there is nobody left to tell."""
        metered = self.metered
        if metered is not None:
            if not metered.is_settled:
                self.refuse("disconnected")
            with contextlib.suppress(AtlasError):  # the ledger's; the row is written when it can be
                await self.settle()
            metered.forget()
        is_refused = self.usage is None and not (metered and metered.task_id)
        if self.principal is not None and self.route in PRIORITIES and is_refused:
            self.deps.traffic.refuse(self._refused(self.principal))

    def _refused(self, principal: Principal) -> Activity:
        usage = Usage(
            request_id=self.usage_id,
            at=self.at,
            owner=principal.owner,
            key_id=principal.key_id,
            route=self.route,
            model=self.model,
            state="refused",
            finish=self.outcome,
            wall_s=self.wall_s,
        )
        key_name = principal.name if principal.key_id else ""
        return Activity(usage=usage, username=principal.username, key_name=key_name, status=self.status)

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.started_s

    def begin_reply(self, status: int) -> list[RawHeader]:
        """The reply begins; the headers in which it speaks of the exchange itself."""
        self.status = status
        headers = [(b"x-request-id", self.request_id.encode())]
        if self.path.startswith("/v1/messages"):
            headers.append((b"request-id", self.request_id.encode()))
        metered = self.metered
        if metered is not None:
            metered.status = status
            headers += metered.headers
            headers += self._names() if status < 400 else []
            if self.usage_id != self.request_id:
                headers.append((b"x-atlas-request-id", self.usage_id.encode()))
        if self.proof is not None:
            headers += self.proof.headers()
        return headers

    def _names(self) -> list[RawHeader]:
        """Which model answers, and which were to before it."""
        if not self.model:
            return []
        fell_through = self.plan.fell_through(self.model) if self.plan is not None else ""
        headers = [(b"x-atlas-model", in_header(self.model).encode())]
        return [*headers, (b"x-atlas-fell-through", fell_through.encode())] if fell_through else headers

    def line(self) -> dict[str, Any]:
        """What the log says about the exchange: sizes, times and outcome, never a text or a secret."""
        path = self.path[:200]
        line: dict[str, Any] = {"method": self.method, "path": path if path.isprintable() else repr(path)}
        line |= {"status": self.status, "outcome": self.outcome, "wall_s": round(self.wall_s, 4)}
        if self.principal:
            line |= {"owner": self.principal.owner, "key_id": self.principal.key_id}
        if self.model:
            line["model"] = self.model
        if (usage := self.usage) is not None:
            line |= _usage_line(usage)
        return line


def _usage_line(usage: Usage) -> dict[str, Any]:
    line: dict[str, Any] = {
        "usage_id": usage.request_id,
        "state": usage.state,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "queue_ms": round(usage.queue_s * 1000),
    }
    return line if usage.ttft_s is None else line | {"ttft_s": round(usage.ttft_s, 4)}


def still_loading() -> EngineUnavailable:
    return EngineUnavailable("no model is loaded yet, or any more; /readyz says how it stands", retry_after_s=2)


def exchange_of(request: HTTPRequest) -> Exchange:
    found: Exchange = request.scope["state"]["exchange"]
    return found


def asked_priority(text: str) -> int:
    """From x-atlas-priority: p0, p1 or p2. Nobody can raise their priority, so 0, the highest, asks for nothing.

    Raises:
        BadRequest: it is none of these.
    """
    if text not in ("", "p0", "p1", "p2"):
        raise BadRequest("x-atlas-priority: must be p0, p1 or p2", param="x-atlas-priority")
    return int(text[1:] or 0)


def _headers(scope: HTTPScope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _own_id(headers: Mapping[str, str]) -> str:
    """What the client calls its request, if that is short and plain."""
    name = headers.get("x-request-id", "")
    return name if name and REQUEST_ID.fullmatch(name) else ""
