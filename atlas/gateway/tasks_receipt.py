"""Receipts of closed tasks, signed with the key of this data directory."""

from __future__ import annotations

import asyncio
import time

from atlas.errors import Conflict
from atlas.gateway.exchange import Exchange
from atlas.gateway.tasks_desk import journal_of, run_of
from atlas.ralph import issue_receipt, signing_key
from atlas.store import Task


async def signed_receipt(exchange: Exchange, task: Task) -> bytes:
    """A task's receipt, as the bytes of a file.

    Raises:
        Conflict: it is not closed, or has no result.
        BadRequest: its run has no code.
    """
    run = await run_of(journal_of(exchange), task)
    if run is None:
        state = f"closed as {task.outcome}, without a result" if task.is_closed else task.state
        raise Conflict(f"task {task.id} is {state}; a receipt is for a task that was solved or tried to the end")
    key = await asyncio.to_thread(signing_key, exchange.deps.store.secret)
    return issue_receipt(run, key, issued_at=task.closed_at or time.time())
