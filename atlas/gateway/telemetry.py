"""OpenTelemetry, for who has a collector: one span per metered request, named and described as GenAI conventions have it.

Needs the extra `telemetry` and `telemetry.otlp_url`. The conventions are in development and may rename things; every name of
theirs is in this file. Spans carry sizes, times and outcomes, never texts, keys or people. They are sent by a thread of
their own, in batches; when the collector is away they are dropped, and requests go on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atlas.errors import OperatorError
from atlas.types import Usage

if TYPE_CHECKING:  # the packages are optional
    from opentelemetry.sdk.trace import TracerProvider

CONVENTIONS = "https://opentelemetry.io/schemas/1.37.0"  # the version these names were taken from
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "embeddings",
}
NANOSECONDS = 1_000_000_000
EXPORT_TIMEOUT_S = 2.0  # also how long the end of the server may have to wait for the collector


class Telemetry:
    """The spans of one application. Called from the event loop; never blocks."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("atlas", schema_url=CONVENTIONS)

    def record(self, usage: Usage, *, request_id: str, status: int, traceparent: str = "") -> None:
        """A span for a request that is over; with the client's own W3C header it joins the client's trace."""
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        operation = OPERATIONS[usage.route]
        end_ns = time.time_ns()
        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}) if traceparent else None
        span = self._tracer.start_span(
            f"{operation} {usage.model}",
            context=parent,
            kind=trace.SpanKind.SERVER,
            start_time=end_ns - round(usage.wall_s * NANOSECONDS),
            attributes=to_attributes(usage, request_id=request_id, status=status),
        )
        if usage.state != "completed":
            span.set_status(trace.StatusCode.ERROR, usage.finish)
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left. Blocks for as long as the collector takes."""
        self._provider.shutdown()


def to_attributes(usage: Usage, *, request_id: str, status: int) -> dict[str, str | int | float | list[str]]:
    found: dict[str, str | int | float | list[str]] = {
        "gen_ai.operation.name": OPERATIONS[usage.route],
        "gen_ai.provider.name": "atlas",
        "gen_ai.request.model": usage.model,
        "gen_ai.response.model": usage.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "http.route": usage.route,
        "http.response.status_code": status,
        "atlas.request_id": request_id,
        "atlas.state": usage.state,
        "atlas.usage.cached_tokens": usage.cached_tokens,
        "atlas.queue_s": usage.queue_s,
    }
    if usage.ttft_s is not None:
        found["gen_ai.server.time_to_first_token"] = usage.ttft_s
    if usage.state == "completed" and usage.finish:
        found["gen_ai.response.finish_reasons"] = usage.finish.split(",")
    elif usage.state != "completed":
        found["error.type"] = usage.finish
    return found


def open_telemetry(otlp_url: str) -> Telemetry | None:
    """Spans to the collector at `otlp_url` (OTLP over HTTP); None if there is no URL.

    Raises:
        OperatorError: the extra is not installed.
    """
    if not otlp_url:
        return None
    try:  # optional: about 100 ms and 15 MB that a server without a collector does not pay
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise OperatorError("telemetry.otlp_url needs OpenTelemetry: pip install 'atlas-server[telemetry]'") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "atlas"}), shutdown_on_exit=False)
    endpoint = otlp_url if otlp_url.endswith("/v1/traces") else otlp_url.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)))
    return Telemetry(provider)
