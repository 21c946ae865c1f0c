"""Workers over their line: what they may ask, who pays, and what becomes of a task whoever dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.metered import redis
from tests.gateway.workshop import RIGHT, TASK, Shop, open_shop
from tests.store.live.conftest import Server

__all__ = ["redis"]  # a fixture


@pytest.fixture(scope="module")
def shop(redis: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One server for all tests that leave it as it was."""
    path: Path = tmp_path_factory.mktemp("shop") / "data"
    with open_shop(redis, path) as shop:
        yield shop


def test_a_worker_solves_a_task_and_its_owner_pays_once(shop: Shop) -> None:
    task_id = shop.submit()
    with shop.worker():
        task = shop.closed(task_id)
    assert (task.outcome, task.reason) == ("done", ""), task.reason
    run = shop.run_of(task_id)
    assert (run.verdict.status, run.request, run.ended_by) == ("verified", TASK, "passed")
    assert "2 * x" in run.code
    [usage] = shop.usage(task_id)
    assert (usage.state, usage.owner, usage.route) == ("completed", shop.owner.owner, "/v1/tasks")
    assert usage.completion_tokens == run.num_tokens > 0
    assert task.sandbox_s == pytest.approx(run.sandbox_s)
    names = [type(event).__name__ for event in shop.events(task_id)]
    assert names == ["RunStarted", "AttemptStarted", "CandidateEnded", "CandidateTested", "AttemptEnded"]
    assert RIGHT
