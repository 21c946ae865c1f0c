"""Fifty requests a second, and then the server, Valkey or PostgreSQL is killed, or the disk fills up (issue: contracts.md 3)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import RunningServer, children, launch_server, wait_for
from tests.disks import mounted
from tests.e2e.faults import Seen, broken_promises, ledger_rows, load
from tests.ledgers import Cluster, postgres_binaries

__all__ = ["launch_server"]  # the fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REPLY = "one two three four five six seven eight nine ten " * 4
RESERVED_TOKENS = 64  # max_tokens of each request, less than a slice
DURATION_S, STRIKE_S = 12.0, 4.0
BUDGET_TOKENS = 20_000  # used up before the end in a run without a fault

Launch = Callable[..., RunningServer]


def started(launch_server: Launch, data_dir: Path, *settings: str, **environ: str) -> RunningServer:
    environ = {"ATLAS_LEDGER_URL": "", "ATLAS_REDIS_URL": ""} | environ  # they are what breaks
    server = launch_server(*settings, data_dir=data_dir, SCRIPTED_REPLY=REPLY, SCRIPTED_DELAY_S="0.005", **environ)
    server.wait_ready()
    made = server.cli("keys", "create", "--name", "budget", "--tokens-per-day", str(BUDGET_TOKENS), **environ)
    server.key = made.stdout.strip()
    return server


async def struck(server: RunningServer, fault: Callable[[], None], *, ledger_url: str = "") -> list[Seen]:
    """Load with a fault in it; afterwards the server answers again, and its ledger has kept every promise."""
    seen = await load(server.url, server.key, duration_s=DURATION_S, at=STRIKE_S, fault=fault)
    wait_for(server.is_ready, 30)
    server.key = server.cli("keys", "create", "--name", "after", ATLAS_LEDGER_URL=ledger_url).stdout.strip()
    assert server.chat(max_tokens=4).status_code == 200
    server.process.terminate()
    server.process.wait(60)
    rows = ledger_rows(server.data_dir, ledger_url)
    assert broken_promises(seen, rows, reserved_tokens=RESERVED_TOKENS) == []
    charged = sum(row.prompt_tokens + row.completion_tokens for row in rows.values() if row.key_id != "")
    assert charged <= BUDGET_TOKENS + 100  # and the one request of the key made afterwards
    assert sum(one.told is not None for one in seen) > 50
    print(Counter(one.status for one in seen), Counter(row.state for row in rows.values()), f"{charged} tokens")
    return seen


async def test_the_server_is_killed(launch_server: Launch, tmp_path: Path) -> None:
    server = started(launch_server, tmp_path / "data")
    await struck(server, lambda: os.kill(server.child, signal.SIGKILL))


async def test_valkey_is_killed(launch_server: Launch, tmp_path: Path) -> None:
    server = started(launch_server, tmp_path / "data")
    [valkey] = [pid for pid in children(server.process.pid) if pid != server.child]
    await struck(server, lambda: os.kill(valkey, signal.SIGKILL))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    cluster = Cluster(binaries)
    yield cluster
    cluster.remove()


async def test_postgresql_is_killed(launch_server: Launch, tmp_path: Path, cluster: Cluster) -> None:
    server = started(launch_server, tmp_path / "data", ATLAS_LEDGER_URL=cluster.url)

    def fault() -> None:
        cluster.kill()
        cluster.start()

    await struck(server, fault, ledger_url=cluster.url)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", megabytes=24) as disk:
        yield disk


async def test_the_disk_fills_up(launch_server: Launch, small_disk: Path) -> None:
    server = started(launch_server, small_disk / "data")
    filler = small_disk / "filler"

    def fault() -> None:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        wait_for(lambda: not server.is_ready(), 20)
        filler.unlink()

    seen = await struck(server, fault)
    assert any(one.status == 503 for one in seen)


async def test_the_directory_becomes_read_only(launch_server: Launch, small_disk: Path) -> None:
    """What is open for writing stays so under a read-only mount; nothing new can be opened. Nothing may be lost either way."""
    data_dir = small_disk / "data"
    server = started(launch_server, data_dir)

    def fault() -> None:
        mount("--bind", str(data_dir), str(data_dir))
        mount("-o", "remount,bind,ro", str(data_dir))

    seen = await load(server.url, server.key, duration_s=DURATION_S, at=STRIKE_S, fault=fault)
    server.process.terminate()
    server.process.wait(60)
    refused = launch_server(data_dir=data_dir)
    assert refused.process.wait(60) == 1
    assert "Read-only file system" in refused.stderr.read_text()
    await asyncio.to_thread(subprocess.run, ["umount", "-l", str(data_dir)], check=True)
    assert broken_promises(seen, ledger_rows(data_dir), reserved_tokens=RESERVED_TOKENS) == []


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
