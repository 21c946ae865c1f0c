"""What clients, strangers and C code may do to a running server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests import ggufs
from tests.e2e import malformed
from tests.e2e.conftest import KEY, Running

HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@pytest.fixture(scope="module")
def server(serve: Callable[..., Running]) -> Running:
    return serve(ggufs.tiny_random(), ATLAS_TASKS_K="1", ATLAS_TASKS_MAX_ATTEMPTS="1")  # its tasks take long and come to nothing


def test_every_malformed_request_is_a_4xx_with_a_json_error(server: Running) -> None:
    before, count, wrong = server.serving_pid, 0, []
    with httpx.Client(base_url=server.url, headers=HEADERS, timeout=30) as client:
        for request in malformed.requests("random"):
            count += 1
            answer = client.post(request.path, content=request.body)
            has_error = answer.headers.get("content-type", "").startswith("application/json") and "error" in answer.json()
            if not (400 <= answer.status_code < 500 and has_error):
                wrong.append(f"{request.path} {request.why}: {answer.status_code} {answer.text[:120]}")
    assert wrong == []
    assert count >= 200
    assert server.serving_pid == before


def chat(server: Running) -> httpx.Response:
    body = {"model": "random", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGABRT], ids=["kill -9", "C abort"])
def test_a_death_in_mid_stream_costs_seconds_and_no_key(server: Running, blow: signal.Signals) -> None:
    body = {"model": "random", "prompt": "x", "max_tokens": 3000, "stream": True}
    with (
        httpx.Client(timeout=30) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body, headers=HEADERS) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        os.kill(server.serving_pid, blow)
        died_at = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in lines:
                pass
    assert chat(server).status_code in (200, 503)  # the connection waits for the new process, which may still be loading
    while httpx.get(f"{server.url}/readyz").status_code != 200:
        time.sleep(0.05)
    assert time.monotonic() - died_at < 60
    assert chat(server).status_code == 200


def schemathesis(server: Running, *, examples: int, report: Path) -> subprocess.CompletedProcess[str]:
    """Generated requests on the published OpenAPI, checked for server errors."""
    tool = Path(sys.executable).with_name("schemathesis")
    command = [
        str(tool), "run", f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--max-examples", str(examples), "--seed", "1", "--request-timeout", "30", "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, cwd=report)


def test_schemathesis_finds_no_server_error(server: Running, tmp_path: Path) -> None:
    result = schemathesis(server, examples=5, report=tmp_path)
    assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_schemathesis_at_length(server: Running, tmp_path: Path) -> None:
    result = schemathesis(server, examples=200, report=tmp_path)
    assert result.returncode == 0, result.stdout[-6000:]
