"""POST /v1/sandbox/execute, over HTTP to a real pool."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from atlas.engine import ScriptedEngine
from atlas.settings import SandboxSettings, ServerSettings, Settings
from tests.gateway.conftest import MODEL, Running, deps_of, serving, wait_for
from tests.gateway.metered import Metered, MeteredServer, metered, redis
from tests.gateway.sandboxes import TWO_SLOTS, new_sandbox, started, status

__all__ = ["metered", "redis"]  # fixtures

EXECUTE = "/v1/sandbox/execute"
ADD = "def add(a, b):\n    return a + b\n"
TESTS = """
from solution import add

def test_small():
    assert add(1, 2) == 3

def test_text():
    assert add("a", "b") == "ab"
"""
SPIN = "while True: pass"


@contextmanager
def sandboxed(settings: SandboxSettings = TWO_SLOTS, **changes: Any) -> Iterator[Running]:
    """A server whose sandbox is really started."""
    engine = ScriptedEngine(["Hello world!"], model=MODEL)
    deps = deps_of(engine, sandbox=new_sandbox(settings), settings=Settings(sandbox=settings), **changes)
    with serving(deps) as running, started(running):
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with sandboxed() as running:
        yield running


def execute(server: Running, path: str = EXECUTE, **body: Any) -> httpx.Response:
    with server.http() as http:
        return http.post(path, json=body)


def shown(server: Running, **body: Any) -> dict[str, Any]:
    reply = execute(server, **body)
    assert reply.status_code == 200, reply.text
    evidence: dict[str, Any] = reply.json()
    return evidence


def refused(server: Running, **body: Any) -> dict[str, Any]:
    """The error of a request that makes no sense."""
    reply = execute(server, **body)
    assert reply.status_code == 400, reply.text
    error: dict[str, Any] = reply.json()["error"]
    return error


# -- answers --


def test_tests_are_run_where_there_are_some(server: Running) -> None:
    evidence = shown(server, code=ADD, test_code=TESTS)
    assert (evidence["success"], evidence["outcome"]) == (True, "passed")
    assert (evidence["tests_run"], evidence["tests_passed"]) == (2, 2)
    assert evidence["sealed"]
    assert evidence["tier"] == "native"
    assert [case["outcome"] for case in evidence["cases"]] == ["passed", "passed"]
    assert evidence["error_type"] is None
    assert evidence["execution_time_ms"] == round(evidence["wall_s"] * 1000)
    assert evidence["peak_bytes"] > 1_000_000


def test_a_failing_test_is_named_with_its_assertion(server: Running) -> None:
    evidence = shown(server, code="def add(a, b):\n    return a - b\n", test_code=TESTS)
    assert (evidence["success"], evidence["outcome"]) == (False, "failed")
    assert (evidence["tests_run"], evidence["tests_passed"]) == (2, 0)
    assert "test_small" in evidence["cases"][0]["name"]
    assert "-1 == 3" in evidence["cases"][0]["message"]


def test_cases_may_hold_literals_or_json(server: Running) -> None:
    literal = {"args": "((1, 2), {3})", "expected": "((1, 2), {3})"}
    value = {"args": [[1, None], {"a": True}], "expected": [[1, None], {"a": True}]}
    evidence = shown(server, mode="function", code="def same(*values): return values", entry_point="same", cases=[literal, value])
    assert [case["outcome"] for case in evidence["cases"]] == ["passed", "passed"]


def test_literals_are_compared_with_their_types_and_json_without(server: Running) -> None:
    cases: list[dict[str, Any]] = [
        {"args": "()", "expected": "[1, 2]"},
        {"args": "()", "expected": "(1, 2)"},
        {"args": [], "expected": [1, 2]},
        {"expected": [1, 2]},
        {"args": [], "expected": [1, 2], "compare": "exact"},
    ]
    evidence = shown(server, mode="function", code="def pair(): return 1, 2", entry_point="pair", cases=cases)
    assert [case["outcome"] for case in evidence["cases"]] == ["failed", "passed", "passed", "passed", "failed"]


def test_keywords_null_and_tolerance_reach_the_function(server: Running) -> None:
    code = "def f(x, *, y=0):\n    return None if x is None else x + y\n"
    cases: list[dict[str, Any]] = [
        {"args": [1], "kwargs": {"y": 2}, "expected": 3},
        {"args": "(1,)", "kwargs": "{'y': 2}", "expected": "3"},
        {"args": [None], "expected": None},
        {"args": [0.1], "kwargs": {"y": 0.2}, "expected": 0.3, "compare": "approx"},
        {"args": [1], "expected": 1.2, "compare": "approx", "tolerance": 0.5},
        {"args": [2**80], "expected": 2**80},
    ]
    evidence = shown(server, mode="function", code=code, entry_point="f", cases=cases)
    assert [case["outcome"] for case in evidence["cases"]] == ["passed"] * 6


def test_a_program_is_judged_by_what_it_writes(server: Running) -> None:
    cases = [{"stdin": "3\n", "expected": "6\n"}, {"stdin": "4\n", "expected": "9\n"}]
    evidence = shown(server, mode="stdin", code="print(2 * int(input()))", cases=cases)
    assert [case["outcome"] for case in evidence["cases"]] == ["passed", "failed"]
    assert evidence["cases"][1]["returned"].strip() == "8"


def test_files_lie_beside_the_code(server: Running) -> None:
    evidence = shown(server, code="print(open('data/words.txt').read())", files={"data/words.txt": "here"})
    assert (evidence["outcome"], evidence["stdout"]) == ("completed", "here\n")


def test_a_program_that_only_ran_has_proved_nothing(server: Running) -> None:
    evidence = shown(server, code="import sys\nprint(sys.stdin.read())\nsys.exit(0)", stdin="given")
    assert (evidence["outcome"], evidence["exit_code"], evidence["stdout"]) == ("completed", 0, "given\n")
    assert (evidence["success"], evidence["tests_run"]) == (False, 0)


def test_zero_tests_are_no_success(server: Running) -> None:
    evidence = shown(server, code=ADD, test_code="# nothing to see here\n")
    assert (evidence["success"], evidence["outcome"], evidence["tests_run"]) == (False, "error", 0)


def test_code_that_does_not_compile_is_an_answer(server: Running) -> None:
    evidence = shown(server, code="def add(:", test_code=TESTS)
    assert (evidence["compile_success"], evidence["outcome"], evidence["error_type"]) == (False, "error", "SyntaxError")


def test_a_limit_that_was_hit_is_named(server: Running) -> None:
    evidence = shown(server, code=SPIN, timeout=0.5)
    assert (evidence["outcome"], evidence["exit_code"]) == ("timeout", None)
    assert evidence["limit"] in ("wall", "cpu")
    evidence = shown(server, code="x = bytearray(300 * 1024 * 1024)\nx[:] = b'1' * len(x)", memory_mb=128)
    assert (evidence["outcome"], evidence["limit"]) == ("memory_limit", "memory")


def test_the_route_of_v1_answers_as_v1_did(server: Running) -> None:
    body = {"code": ADD, "language": "python", "test_code": TESTS, "requirements": [], "timeout": 30}
    evidence = execute(server, "/execute", **body).json()
    v1 = "success compile_success tests_run tests_passed lint_score stdout stderr error_type error_message execution_time_ms"
    assert set(v1.split()) <= set(evidence)
    assert (evidence["success"], evidence["tests_passed"]) == (True, 2)


@pytest.mark.parametrize("name", ["Python", "PY", " python3 "])
def test_a_language_is_known_by_its_other_names(server: Running, name: str) -> None:
    assert shown(server, code="print(1)", language=name)["outcome"] == "completed"


# -- requests that make no sense --


def test_an_unknown_language_is_refused_with_those_there_are(server: Running) -> None:
    error = refused(server, code="x", language="cobol")
    assert error["param"] == "language"
    assert re.search(r"'cobol'.*Python.*Rust", error["message"])


def test_a_misspelt_field_is_named(server: Running) -> None:
    assert "tests_code" in refused(server, code=ADD, tests_code=TESTS)["message"]
    assert "expect" in refused(server, code=ADD, mode="function", entry_point="add", cases=[{"expect": 1}])["message"]


def test_requirements_are_refused_with_the_way_out(server: Running) -> None:
    error = refused(server, code=ADD, test_code=TESTS, requirements=["numpy"])
    assert (error["code"], error["param"]) == ("unsupported_parameter", "requirements")
    assert "sandbox.python" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": 121}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"memory_mb": 63}, "memory_mb"),
        ({"memory_mb": 4097}, "memory_mb"),
        ({"cases": [{"args": [], "expected": 1}]}, "cases"),
        ({"stdin": "x", "test_code": TESTS}, "stdin"),
        ({"mode": "lint", "test_code": TESTS}, "test_code"),
        ({"mode": "run", "entry_point": "add"}, "entry_point"),
        ({"mode": "pytest"}, "test_code"),
        ({"mode": "function", "cases": [{"expected": 1}]}, "entry_point"),
        ({"mode": "function", "entry_point": "add"}, "cases"),
        ({"mode": "stdin"}, "cases"),
        ({"files": {"../x": ""}}, "files"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(server: Running, body: dict[str, Any], param: str) -> None:
    assert refused(server, code=ADD, **body)["param"] == param


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"args": "(1,)", "kwargs": {"b": 2}, "expected": "1"}, "kwargs"),
        ({"args": "(1,)", "expected": 1}, "expected"),
        ({"args": [1]}, "needs `expected`"),
        ({"args": [1], "stdin": "x", "expected": "1"}, "not both"),
        ({"stdin": "x", "expected": 1}, "string"),
        ({"args": [1], "expected": 1, "tolerance": 0.1}, "approx"),
        ({"args": "(1", "expected": "1"}, "literal"),
        ({"args": "__import__('os').getpid()", "expected": "1"}, "literal"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(server: Running, case: dict[str, Any], words: str) -> None:
    error = refused(server, code=ADD, mode="function", entry_point="add", cases=[case])
    assert words in error["message"]


def test_the_modes_are_listed_where_an_unknown_one_is_asked_for(server: Running) -> None:
    assert "mode" in refused(server, code=ADD, mode="unittest")["message"]


def test_a_body_over_the_bound_is_refused() -> None:
    with sandboxed(server=ServerSettings(body_limit_bytes=10_000)) as server:
        assert execute(server, code="x = 1" + " " * 20_000).status_code == 413


# -- what is ours --


def test_a_sandbox_that_cannot_isolate_is_503_and_names_the_cause() -> None:
    with sandboxed(SandboxSettings(python="/nonexistent/python")) as server:
        reply = execute(server, code=ADD, test_code=TESTS)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "sandbox_refused")
        assert "/nonexistent/python" in reply.json()["error"]["message"]
        assert reply.headers["retry-after"]
        ready = httpx.get(f"{server.url}/readyz")
        assert (ready.status_code, ready.json()["sandbox"]) == (200, "refused")
        assert "atlas doctor" in ready.json()["reasons"][0]


def test_a_server_without_a_sandbox_says_so() -> None:
    with serving(deps_of(None)) as server:
        reply = execute(server, code=ADD)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "sandbox_unavailable")


def test_a_full_queue_is_503_with_retry_after() -> None:
    with sandboxed(SandboxSettings(slots=1, max_waiting=1)) as server, server.http() as http:
        with ThreadPoolExecutor() as threads:
            replies = list(threads.map(lambda _: http.post(EXECUTE, json={"code": "import time; time.sleep(1)"}), range(4)))
        codes = sorted(reply.json().get("error", {}).get("code", "ran") for reply in replies)
        assert codes == ["ran", "ran", "sandbox_overloaded", "sandbox_overloaded"]
        assert all(reply.headers["retry-after"] for reply in replies if reply.status_code == 503)
        assert 'atlas_sandbox_refusals_total{code="sandbox_overloaded"} 2.0' in http.get("/metrics").text


def test_a_client_that_goes_away_ends_the_run(server: Running) -> None:
    before = status(server).outcomes
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post(EXECUTE, json={"code": SPIN, "timeout": 60}, timeout=1)
    assert wait_for(lambda: status(server).running == 0) < 5
    assert status(server).outcomes == before


def test_readyz_tells_the_tier_and_metrics_the_runs(server: Running) -> None:
    shown(server, code=ADD, test_code=TESTS)
    ready = httpx.get(f"{server.url}/readyz").json()
    assert (ready["sandbox"], ready["reasons"]) == ("native", [])
    with server.http() as http:
        text = http.get("/metrics").text
    assert re.search(r'atlas_sandbox_runs_total\{outcome="passed"\} [1-9]', text)
    assert "atlas_sandbox_running 0.0" in text
    assert "atlas_sandbox_waiting 0.0" in text
    assert "atlas_sandbox_up 1.0" in text
    assert 'model=""' not in text


# -- who may, and how much --


@pytest.fixture
def limited(metered: MeteredServer) -> Iterator[Metered]:
    """A server with all limits on, and a sandbox."""
    server = metered(sandbox=new_sandbox())
    with started(server.running):
        yield server


def test_a_run_counts_against_the_requests_of_its_key(limited: Metered) -> None:
    with limited.http(limited.key(requests_per_minute=2)) as http:
        replies = [http.post(EXECUTE, json={"code": "print(1)"}) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert replies[1].headers["x-ratelimit-remaining-requests"] == "0"
    rows = [(row.route, row.state, row.prompt_tokens, row.completion_tokens) for row in limited.usage]
    assert rows == [(EXECUTE, "completed", 0, 0)] * 2


def test_a_run_that_is_aborted_ends_and_its_client_hears_of_it(limited: Metered) -> None:
    def abort() -> None:
        wait_for(lambda: status(limited.running).running == 1)
        [one] = limited.call(limited.traffic.open)
        limited.call(lambda: limited.traffic.abort(one.usage.request_id, actor="somebody"))

    with ThreadPoolExecutor() as threads, limited.http() as http:
        aborting = threads.submit(abort)
        reply = http.post(EXECUTE, json={"code": SPIN, "timeout": 60})
        aborting.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "request_aborted")
    [row] = limited.usage
    assert row.state == "aborted"
    assert row.wall_s < 20


def test_a_key_without_the_scope_may_not_run_code(server: Running) -> None:
    key = server.deps.store.keys.mint("chat only", scopes=("chat",)).key
    with server.http(authorization=f"Bearer {key}") as http:
        reply = http.post(EXECUTE, json={"code": "print(1)"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "insufficient_scope")
