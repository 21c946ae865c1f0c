"""More is asked for than the context holds: every request is answered in full, whoever it has to share with.

The rows are those of llama-server's test_completion_unified, where requests that do not fit together may fail. There a context
of 256 tokens is given up as a whole; here whoever came last waits, or gives its cells back and goes on later.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests import ggufs
from tests.e2e.conftest import Running
from tests.e2e.test_soak import wait_idle

CELLS = 256
ROWS = ([80, 40, 80, 80], [70, 70, 70, 70], [90, 90, 40, 90], [90, 90, 40, 75])


class Answered(NamedTuple):
    """What became of one request, and how long its client waited."""

    status: int
    num_tokens: int | None
    seconds: float


def ask(server: Running, max_tokens: int) -> Answered:
    begun_s = time.monotonic()
    answer = server.post("/v1/completions", {"model": "calm", "prompt": "A", "max_tokens": max_tokens})
    assert answer.status_code == 200, answer.text
    usage: dict[str, Any] = answer.json().get("usage", {})
    return Answered(answer.status_code, usage.get("completion_tokens"), time.monotonic() - begun_s)


def ask_at_once(server: Running, wanted: Sequence[int]) -> list[Answered]:
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda max_tokens: ask(server, max_tokens), wanted))


def jain(values: Sequence[float]) -> float:
    """1 where all get the same, 1/n where one gets everything (Jain, Chiu and Hawe, 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


@pytest.fixture(scope="module")
def narrow(serve: Callable[..., Running]) -> Iterator[Running]:
    server = serve(ggufs.tiny_calm(), ATLAS_ENGINE_CONTEXT_TOKENS=str(CELLS))
    yield server
    wait_idle(server)


@pytest.mark.parametrize("wanted", ROWS, ids=lambda wanted: "-".join(map(str, wanted)))
def test_requests_that_do_not_fit_together_are_all_answered_in_full(narrow: Running, wanted: list[int]) -> None:
    answers = ask_at_once(narrow, wanted)
    assert [(answer.status, answer.num_tokens) for answer in answers] == [(200, max_tokens) for max_tokens in wanted]


def test_a_hundred_requests_of_four_times_the_room_all_end_and_none_waits_for_ever(narrow: Running) -> None:
    answers = ask_at_once(narrow, [10] * 100)
    assert {(answer.status, answer.num_tokens) for answer in answers} == {(200, 10)}
    seconds = [answer.seconds for answer in answers]
    print(f"fairness index {jain(seconds):.2f}, median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
