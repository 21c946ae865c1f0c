"""GET /metrics for Prometheus: what clients feel, and what the engine, the queue, the limits and the ledger do.

Names follow vLLM's (time to first token, inter-token latency, running, waiting), so that its dashboards port by renaming. There
are no labels per key or user: their number is not bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from litestar import Response, get
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from atlas.engine import Engine
from atlas.gateway.deps import GatewayDeps
from atlas.gateway.exchange import Exchange, HTTPRequest, exchange_of
from atlas.gateway.meter import Meter
from atlas.gateway.openapi import READING, replies_in_text
from atlas.gateway.tally import Spread, Tally
from atlas.gateway.worker_watch import ENDINGS
from atlas.types import Timings, Usage

# Buckets are vLLM's, in seconds: milliseconds of a small model to minutes of a long prompt.
TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
GAP_BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
REQUEST_BUCKETS_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
STATES_OF_BREAKERS = ("closed", "probing", "open")
STATES = ("completed", "aborted", "failed", "interrupted")
FOLD_AT = 256  # exchanges that are counted together; chosen, unmeasured
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})


class _Ended(NamedTuple):
    """What is counted of an exchange: nothing that it said."""

    route: str
    method: str
    status: int
    outcome: str
    model: str
    wall_s: float
    usage: Usage | None
    times: Sequence[tuple[int, Timings]]  # of candidates with tokens: how many, and when


class Metrics:
    """Counters of one application; written by the event loop only."""

    def __init__(self, deps: GatewayDeps, meter: Meter) -> None:
        self.registry = CollectorRegistry()
        self._ended: list[_Ended] = []  # that are not counted yet
        self.registry.register(Fold(self))  # the first to be asked
        self.requests = self._tally("atlas_http_requests", "Requests answered", "route", "method", "code")
        self.rejections = self._tally("atlas_rejections", "Requests that ended in an error", "reason")
        self.tokens = self._tally("atlas_tokens", "Tokens; cached ones are part of prompt", "model", "type")
        self.ttft = self._spread("atlas_ttft_seconds", "Submission to first token", TTFT_BUCKETS_S, "model")
        self.gap = self._spread("atlas_inter_token_seconds", "Mean time between a candidate's tokens", GAP_BUCKETS_S, "model")
        self.queue = self._spread("atlas_queue_wait_seconds", "Admission to start, gateway and engine", TTFT_BUCKETS_S, "model")
        self.wall = self._spread("atlas_request_seconds", "Whole exchange", REQUEST_BUCKETS_S, "model", "finish")
        self.registry.register(EngineCollector(deps))
        self.registry.register(MeterCollector(meter))
        self.registry.register(SandboxCollector(deps))
        self.registry.register(WorkerCollector(deps))
        self.registry.register(UpstreamCollector(deps))
        ProcessCollector(registry=self.registry)

    def observe(self, exchange: Exchange, *, route: str, wall_s: float) -> None:
        """Note a finished exchange; it is counted with others, or when somebody looks."""
        times = [(each.num_tokens, each.timings) for each in exchange.generations if each.num_tokens]
        status = exchange.method, exchange.status, exchange.outcome
        self._ended.append(_Ended(route, *status, exchange.model, wall_s, exchange.usage, times))
        if len(self._ended) >= FOLD_AT:
            self.fold()

    def fold(self) -> None:
        """Count those that have ended, one after the other: what that needs is in the processor's caches then."""
        ended, self._ended = self._ended, []
        for one in ended:
            self._count(one)

    def _count(self, ended: _Ended) -> None:
        method = ended.method if ended.method in METHODS else "other"
        self.requests.add((ended.route, method, str(ended.status)))
        if ended.outcome != "completed":
            self.rejections.add((ended.outcome,))
        if ended.model:
            self.wall.observe((ended.model, ended.outcome), ended.wall_s)
        if ended.usage is not None and ended.usage.model:  # a run in the sandbox has no tokens
            self._count_tokens(ended.usage, ended.times)

    def _count_tokens(self, usage: Usage, times: Sequence[tuple[int, Timings]]) -> None:
        model = usage.model
        self.tokens.add((model, "prompt"), usage.prompt_tokens)
        self.tokens.add((model, "cached"), usage.cached_tokens)
        self.tokens.add((model, "completion"), usage.completion_tokens)
        if times:
            self.queue.observe((model,), usage.queue_s)
        for num_tokens, timings in times:
            self._count_candidate(model, num_tokens, timings)

    def _count_candidate(self, model: str, num_tokens: int, timings: Timings) -> None:
        self.ttft.observe((model,), timings.first_token_s)
        if num_tokens > 1:
            self.gap.observe((model,), (timings.total_s - timings.first_token_s) / (num_tokens - 1))

    def _tally(self, name: str, documentation: str, *labels: str) -> Tally:
        return Tally(self.registry, name, documentation, labels)

    def _spread(self, name: str, documentation: str, bounds: tuple[float, ...], *labels: str) -> Spread:
        return Spread(self.registry, name, documentation, labels, bounds)


class Fold(Collector):
    """Nothing of its own: has everything counted before the others are asked."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        self._metrics.fold()
        return iter(())


class MeterCollector(Collector):
    """The queue, limits and usage rows as they are when Prometheus asks: counting them costs requests nothing."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def collect(self) -> Iterator[Metric]:
        queues, books = self.meter.queues, self.meter.books
        waiting = {f"p{priority}": float(count) for priority, count in enumerate(queues.waiting())}
        yield _labelled("atlas_queue_waiting", "Requests that wait for a place at the engine", waiting, "priority")
        yield _labelled("atlas_queue_running", "Requests that hold one", {"": queues.num_running})
        yield _labelled(
            "atlas_queue_slots", "Places, one per candidate", {"used": queues.used, "total": queues.capacity}, "state"
        )
        yield _counted("atlas_usage_rows", "Usage rows committed", {state: books.num_written[state] for state in STATES}, "state")
        yield _labelled("atlas_usage_late", "Ended requests that the ledger has not taken yet", {"": len(books.late)})
        refused = {stage: books.num_refused[stage] for stage in ("admission", "extension")}
        yield _counted("atlas_budget_refusals", "Requests and extensions refused for a budget", refused, "stage")
        fallbacks = CounterMetricFamily("atlas_fallbacks", "Answers by a stand-in", labels=["model", "answered_by"])
        for models, count in self.meter.fallbacks.items():
            fallbacks.add_metric(models, count)
        yield fallbacks
        yield _labelled("atlas_limits_up", "Whether Redis answered when it was last asked", {"": books.is_limits_up})


class SandboxCollector(Collector):
    """The sandbox's pool as it was when it was last looked at, which /metrics does first."""

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps

    def collect(self) -> Iterator[Metric]:
        status = self.deps.sandbox_watch.status
        if status is None:
            return
        yield _counted("atlas_sandbox_runs", "Runs by what they showed", status.outcomes, "outcome")
        yield _counted("atlas_sandbox_refusals", "Runs that were not begun, or that failed by our fault", status.refusals, "code")
        yield _labelled("atlas_sandbox_running", "Runs that hold a slot", {"": status.running})
        yield _labelled("atlas_sandbox_waiting", "Runs that wait for one", {"": status.waiting})
        yield _labelled("atlas_sandbox_slots", "Runs at the same time", {"": status.slots})
        is_up = status.tier not in (None, "none") and not self.deps.sandbox_watch.trouble
        yield _labelled("atlas_sandbox_up", "Whether code is run, and is isolated", {"": is_up})


class UpstreamCollector(Collector):
    """Other servers that stand in; nothing where there are none."""

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps

    def collect(self) -> Iterator[Metric]:
        servers = self.deps.upstreams.servers
        if not servers:
            return
        states = {name: float(STATES_OF_BREAKERS.index(server.breaker.state)) for name, server in servers.items()}
        yield _labelled("atlas_upstream_breaker_state", "0 closed, 1 probing, 2 open: nothing is sent", states, "upstream")
        tries = CounterMetricFamily("atlas_upstream_tries", "Requests sent, by what came of it", labels=["upstream", "outcome"])
        for name, server in servers.items():
            for outcome, count in server.outcomes.items():
                tries.add_metric([name, outcome], count)
        yield tries


class WorkerCollector(Collector):
    """Workers, and how what they were given ended."""

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps

    def collect(self) -> Iterator[Metric]:
        workers = self.deps.workers
        yield _labelled("atlas_workers", "Workers: kept by the server, connected, at work", workers.counts(), "state")
        endings = {ending: workers.endings[ending] for ending in ENDINGS}
        yield _counted("atlas_task_deliveries", "Tasks in the hands of a worker, by how that ended", endings, "ending")


class EngineCollector(Collector):
    """The engine's own snapshot, taken when Prometheus asks; nothing while no model is loaded."""

    def __init__(self, deps: GatewayDeps) -> None:
        self.deps = deps

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}  # one each, however many models there are
        for engine in self.deps.engines().values():
            for family in self._of(engine):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples += family.samples
        yield from families.values()

    @staticmethod
    def _of(engine: Engine) -> Iterator[Metric]:
        stats, model = engine.stats(), [engine.capabilities.model]
        yield _gauge("atlas_engine_asleep", "Whether the next request has to wait for the model", {"": engine.is_asleep}, model)
        yield _gauge("atlas_requests_running", "Candidates prefilling or decoding", {"": stats.num_running}, model)
        yield _gauge("atlas_requests_waiting", "Candidates queued", {"": stats.num_waiting}, model)
        cells = {"used": stats.cells_used, "live": stats.cells_live, "total": stats.cells_total}
        yield _gauge("atlas_kv_cells", "KV cells; live ones belong to running candidates", cells, model, "state")
        yield _counter("atlas_engine_prompt_tokens", "Prompt tokens taken in", stats.prompt_tokens, model)
        yield _counter("atlas_engine_cached_tokens", "Prompt tokens found in the prefix cache", stats.cached_tokens, model)
        yield _counter("atlas_engine_generated_tokens", "Tokens generated", stats.generated_tokens, model)
        yield _counter("atlas_preemptions", "Candidates put back into the queue", stats.preemptions, model)
        yield _counter("atlas_engine_steps", "Steps of the engine", stats.steps, model)
        yield _counter("atlas_engine_step_seconds", "Time in steps", stats.step_s, model)
        yield _counter("atlas_adapter_switches", "Steps with another adapter than the one before", stats.adapter_switches, model)
        yield _counter("atlas_engine_drafted_tokens", "Tokens guessed ahead and computed", stats.drafted_tokens, model)
        yield _counter("atlas_engine_accepted_tokens", "Guessed tokens that were right", stats.accepted_tokens, model)
        yield _counter("atlas_engine_shared_tokens", "Tokens drawn where another candidate drew too", stats.shared_tokens, model)
        users = {adapter.name: adapter.num_users for adapter in engine.adapters()}
        yield _gauge("atlas_adapter_users", "Prompts of an adapter that are not answered yet", users, model, "adapter")
        yield _counter("atlas_engine_decode_seconds", "Time inside llama_decode", stats.decode_s, model)


@get(
    "/metrics",
    opt={"access": "read", "local": True},
    tags=["health"],
    summary="Prometheus metrics",
    responses=replies_in_text(READING),
)
async def metrics(request: HTTPRequest) -> Response[bytes]:
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    exchange = exchange_of(request)
    await exchange.deps.sandbox_watch.look(exchange.deps.sandbox)
    registry = exchange.registry
    return Response(encode(registry), headers={"content-type": content_type})


def _gauge(
    name: str, documentation: str, values: Mapping[str, float], model: list[str], label: str | None = None
) -> GaugeMetricFamily:
    """One value per label; with no label, the only one is under ""."""
    family = GaugeMetricFamily(name, documentation, labels=["model", *([label] if label else [])])
    for value_of, value in values.items():
        family.add_metric([*model, *([value_of] if label else [])], value)
    return family


def _counter(name: str, documentation: str, value: float, model: list[str]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=["model"])
    family.add_metric(model, value)
    return family


def _labelled(name: str, documentation: str, values: Mapping[str, float], label: str | None = None) -> GaugeMetricFamily:
    """A gauge without a model; one value per label, and with no label the only one is under ""."""
    family = GaugeMetricFamily(name, documentation, labels=[label] if label else [])
    for value_of, value in values.items():
        family.add_metric([value_of] if label else [], value)
    return family


def _counted(name: str, documentation: str, values: Mapping[str, float], label: str) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value_of, value in values.items():
        family.add_metric([value_of], value)
    return family
