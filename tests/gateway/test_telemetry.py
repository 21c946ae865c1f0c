"""Spans reach a collector that reads the real protocol; nothing in them tells what was said or by whom."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from atlas.settings import Settings, TelemetrySettings
from tests.gateway.conftest import KEY, MODEL, Scripted, wait_for

HI = [{"role": "user", "content": "canaryprompt"}]
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """Reads OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # http.server's name
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                reply = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes_of(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_each_metered_request_is_a_span(scripted: Scripted, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    server = scripted(settings=Settings(telemetry=TelemetrySettings(otlp_url=collector.url)))
    with server.http(traceparent=f"00-{TRACE}-b7ad6b7169203331-01") as http:
        http.post("/v1/chat/completions", json={"model": MODEL, "messages": HI})
        http.post("/v1/embeddings", json={"model": MODEL, "input": "canaryprompt"})
        http.post("/v1/chat/completions", json={"model": "gone", "messages": HI})  # refused: nothing was metered
        http.get("/v1/models")
    wait_for(lambda: len(collector.spans) >= 2)
    chat, embeddings = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert (chat.name, embeddings.name) == (f"chat {MODEL}", f"embeddings {MODEL}")
    assert chat.trace_id.hex() == TRACE
    assert chat.kind == Span.SPAN_KIND_SERVER
    assert 0 < chat.end_time_unix_nano - chat.start_time_unix_nano < 60e9
    found = attributes_of(chat)
    assert (found["gen_ai.request.model"], found["gen_ai.usage.output_tokens"]) == (MODEL, 3)
    assert (found["gen_ai.operation.name"], found["http.response.status_code"], found["atlas.state"]) == (
        "chat",
        200,
        "completed",
    )
    said = str(collector.spans)
    assert not any(secret in said for secret in ("canaryprompt", KEY, server.deps.store.accounts.owner().id))


def test_a_collector_that_is_away_is_nobodys_trouble(scripted: Scripted) -> None:
    server = scripted(settings=Settings(telemetry=TelemetrySettings(otlp_url="http://127.0.0.1:9")))
    with server.http() as http:
        assert http.post("/v1/chat/completions", json={"model": MODEL, "messages": HI}).status_code == 200
