"""Receipts of closed tasks, signed with the key of this data directory."""

from __future__ import annotations

import asyncio
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from atlas.errors import Conflict
from atlas.gateway.exchange import Exchange
from atlas.gateway.tasks_desk import journal_of, run_of
from atlas.ralph import issue_receipt
from atlas.store import Store, Task

KEY_NAME = "receipt-key"  # secrets/NAME: 32 bytes


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
    key = await asyncio.to_thread(signing_key, exchange.deps.store)
    return issue_receipt(run, key, issued_at=task.closed_at or time.time())


def signing_key(store: Store) -> Ed25519PrivateKey:
    """The key of this server, made when first needed."""
    return Ed25519PrivateKey.from_private_bytes(store.secret(KEY_NAME, lambda: Ed25519PrivateKey.generate().private_bytes_raw()))
