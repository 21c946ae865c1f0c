"""A server for the journal's stress test, to be killed: DIRECTORY LEDGER_URL REDIS_URL SOCKET LEASE_S."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from atlas.directory import DataDirectory
from atlas.errors import Unavailable
from atlas.settings import LedgerSettings
from atlas.store import Delivery, Ending, Journal, Submission, open_journal, open_store


async def answer(journal: Journal, method: str, params: dict[str, Any]) -> Any:
    if method == "submit":
        submitted = await journal.submit(msgspec.convert(params, Submission))
        return submitted.task.id
    if method == "lease":
        return await journal.lease(params["worker"], wait_s=1.0)
    if method == "stats":
        return await journal.stats()
    if method == "steps":
        return list(await journal.steps(params["task_id"]))
    delivery = msgspec.convert(params["delivery"], Delivery)
    if method == "heartbeat":
        return await journal.heartbeat(delivery)
    if method == "put_event":
        return await journal.put_events(delivery, b"something happened")
    if method == "put_step":
        return await journal.put_step(delivery, "half", b"")
    assert method == "finish"
    return await journal.finish(delivery, Ending(outcome="done", result=params["result"].encode(), sandbox_s=1.0))


async def serve(journal: Journal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        message = msgspec.json.decode(line)
        try:
            reply = {"result": await answer(journal, message["method"], message["params"])}
        except Unavailable as error:
            reply = {"unavailable": error.message}
        writer.write(msgspec.json.encode(reply) + b"\n")
        with contextlib.suppress(ConnectionError):  # whoever asked was killed
            await writer.drain()


async def main() -> None:
    folder, ledger_url, redis_url, path, lease_s = sys.argv[1:]
    directory = DataDirectory(Path(folder)).create()
    directory.hold()
    store = open_store(directory, settings=LedgerSettings(url=ledger_url))
    journal = open_journal(store.tasks, redis_url, blobs=directory.path / "blobs", lease_s=float(lease_s))
    if os.path.exists(path):  # noqa: ASYNC240, PTH110  left by the one before
        os.unlink(path)  # noqa: PTH108
    server = await asyncio.start_unix_server(lambda reader, writer: serve(journal, reader, writer), path)
    await server.serve_forever()


asyncio.run(main())
